"""Networks and mathematics of semantic segmentation: tensors and arrays in, tensors and arrays out.

`segcore` opens no file, reads no environment variable and knows nothing of Ray, storage or MLflow.

Shape letters mean the same everywhere and stand at the end of a name (`labels_NHW`, `basis_DP`):

| letter | meaning |
|---|---|
| N | images of a batch |
| C | classes |
| K | channels of a feature map |
| H, W | rows and columns of an image |
| h, w | rows and columns of a feature map |
| R | side of a label block, in pixels |
| M | label blocks |
| D | entries of a one-hot label block, R*R*C, class-major: index = (c*R + row)*R + column |
| P | components of a label PCA |
| L | locations of a feature map, h*w |
| Q | codewords of an encoding layer |
| X | points of a lattice: the pixels of one image, row by row |
| V | vertices of a lattice |
| F, S | features of a point; corners of the simplex around it, F + 1 |
"""

from typing import Literal

IGNORE_INDEX = 255
"""Label value of pixels that enter neither a loss nor a score, in everything after `prepare`."""

Task = Literal["segmentation", "classification"]
"""What a dataset or a network says of an image: a class for every pixel, or one for the whole."""
