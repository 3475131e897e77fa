"""What an importer of a public layout hands to `prepare`: a class table, and which files belong together.

`DatasetListing` for segmentation (image and label file), `ClassificationListing` for image classification (image and
index of its class), `CropListing` for pieces of the images of a prepared dataset, `MixedListing` for the images of
several. All name their task, their class table and their samples.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from pipelines.intake.formats import ImageError
from segcore import IGNORE_INDEX, Task

MAX_CLASSES = 254
MAX_IMAGE_CLASSES = 65536
"""Far above ImageNet's 21 841: more is a folder of images that was taken for one of classes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassTable:
    """Names and colours of the classes, and how they are stored in this dataset's label files.

    Attributes:
        names: by class index.
        palette: 8-bit RGB by class index.
        values: stored label value of each class.
        ignore_values: stored values that mean "no label"; they become `IGNORE_INDEX`.
    """

    names: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    values: tuple[int, ...]
    ignore_values: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Refuse a table that is one off, twice the same, or too long for 8 bits."""
        if not 1 <= len(self.names) <= MAX_CLASSES:
            raise ValueError(f"the class table has {len(self.names)} classes, expected 1 to {MAX_CLASSES}")
        if len(self.palette) != len(self.names) or len(self.values) != len(self.names):
            raise ValueError(
                f"the class table has {len(self.names)} names, {len(self.palette)} colours and {len(self.values)} "
                "values; give one of each per class"
            )
        for what, entries in (("name", self.names), ("label value", (*self.values, *self.ignore_values))):
            twice = sorted({str(entry) for entry in entries if entries.count(entry) > 1})
            if twice:
                raise ValueError(f"the class table has the {what} {', '.join(twice)} twice; each may stand there once")
        if not all(name.strip() for name in self.names):
            raise ValueError("the class table has an empty name; name every class")
        if not all(0 <= value <= 65535 for value in (*self.values, *self.ignore_values)):
            raise ValueError("the class table has a label value outside 0..65535; labels are 8-bit or 16-bit files")
        if not all(0 <= level <= 255 for colour in self.palette for level in colour):
            raise ValueError("the palette has a level outside 0..255; colours are 8-bit red, green, blue")

    def class_indices(self, values_HW: NDArray[np.uint8] | NDArray[np.uint16]) -> NDArray[np.uint8]:
        """Stored label values to class indices, `IGNORE_INDEX` where there is no label.

        Raises:
            ImageError: stage `validate`: a value is in neither `values` nor `ignore_values`.
        """
        num_classes, levels_HW = len(self.names), values_HW if values_HW.dtype == np.uint8 else None
        if self.values == tuple(range(num_classes)) and self.ignore_values == (IGNORE_INDEX,) and levels_HW is not None:
            if (levels_HW + np.uint8(1)).max(initial=0) > num_classes:  # IGNORE_INDEX, 255, becomes 0
                raise ImageError(self._outside(values_HW), "validate")
            return np.asarray(levels_HW, dtype=np.uint8)  # they are the class indices
        table = np.full(65536, MAX_CLASSES, dtype=np.uint8)  # MAX_CLASSES: no class has this index
        table[list(self.ignore_values)] = IGNORE_INDEX
        table[list(self.values)] = np.arange(num_classes, dtype=np.uint8)
        indices_HW: NDArray[np.uint8]
        if levels_HW is not None:
            indices_HW = np.asarray(cv2.LUT(levels_HW, table[:256]), dtype=np.uint8)  # several times faster
        else:
            indices_HW = table[values_HW]
        if (indices_HW == MAX_CLASSES).any():
            raise ImageError(self._outside(values_HW), "validate")
        return indices_HW

    def _outside(self, values_HW: NDArray[Any]) -> str:
        found = [int(value) for value in np.unique(values_HW)]
        outside = [value for value in found if value not in self.values and value not in self.ignore_values]
        if found == [0, 255] or found == [255]:
            return (
                f"the label holds the values {found} alone, as a black and white mask does, but 255 is not in the "
                "class table; store class indices (0 and 1), or list 255 under `ignore` if it means 'no label'"
            )
        listed = ", ".join(map(str, outside[:8])) + (", ..." if len(outside) > 8 else "")
        return (
            f"label value {listed} is outside the class table, which knows {_ranges(self.values)} and ignores "
            f"{_ranges(self.ignore_values) or 'nothing'}; check the class table, or list the value under `ignore`"
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageClasses:
    """Class names of a classification dataset, by class index. No colours: nothing is drawn in them."""

    names: tuple[str, ...]

    def __post_init__(self) -> None:
        """Refuse no class, too many, and a name that stands twice."""
        if not 1 <= len(self.names) <= MAX_IMAGE_CLASSES:
            raise ValueError(f"there are {len(self.names)} classes of images, expected 1 to {MAX_IMAGE_CLASSES}")
        if len(set(self.names)) != len(self.names):
            raise ValueError("a class of images stands twice in the class table; each may stand there once")

    @property
    def palette(self) -> tuple[tuple[int, int, int], ...]:
        """Empty."""
        return ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One image and its label: where they are, and what they are called."""

    image_id: str
    split: str
    image_uri: str
    label_uri: str


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassifiedImage:
    """One image file and the index of its class."""

    image_id: str
    split: str
    image_uri: str
    class_index: int


@dataclass(frozen=True, kw_only=True, slots=True)
class PreparedImage:
    """One image of a prepared segmentation dataset, by its place there.

    Attributes:
        image_id, split: there.
        part_uri, part_sha256: the file that holds it.
        row: in that file.
    """

    image_id: str
    split: str
    part_uri: str
    part_sha256: str
    row: int


@dataclass(frozen=True, kw_only=True, slots=True)
class MappedImage:
    """One image of a prepared segmentation dataset that becomes one of a mixed dataset.

    Attributes:
        image_id, split: in the mixed dataset.
        part_uri, part_sha256, row: as in `PreparedImage`.
        dataset: key of `MixedListing.targets`.
    """

    image_id: str
    split: str
    part_uri: str
    part_sha256: str
    row: int
    dataset: str


Entry = Sample | ClassifiedImage | PreparedImage | MappedImage
"""What a shard consists of."""


class Crop(NamedTuple):
    """A piece of an image with its label map.

    Attributes:
        image_id: unique within the new dataset.
        window: left column, top row, width and height in the image, in pixels.
        image, label: encoded; class indices of the new dataset.
    """

    image_id: str
    window: tuple[int, int, int, int]
    image: bytes
    label: bytes


class Cut(Protocol):
    """Crops of an image, and what is to be noted about it. Picklable."""

    def __call__(
        self, pixels_HW3: NDArray[np.uint8], labels_HW: NDArray[np.uint8], *, image_id: str, split: str
    ) -> tuple[list[Crop], list[str]]: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Unpaired:
    """A file that has no partner, found while listing."""

    image_id: str
    split: str
    uri: str
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class DatasetListing:
    """A segmentation dataset before it is read.

    Attributes:
        name: entry of `DATASETS`.
        config: what the listing was made from; JSON values only; it is saved with the prepared dataset.
        class_table: classes and their stored values.
        samples: every pair; ids are unique.
        unpaired: files without a partner; they count as failures.
        read: encoded image and encoded label (one channel of stored values) of a sample; picklable, because it runs in
            Ray tasks. Raises OSError where it cannot be read, ImageError where a label cannot be made of what was.
        together: samples for which it gives the same name are read together (rows of one row group): they stay
            neighbours when the order is mixed. None: every sample stands alone.
        palette_given: the user gave the class table's colours, so that no others are shown.
    """

    name: str
    config: dict[str, Any]
    class_table: ClassTable
    samples: tuple[Sample, ...]
    read: Callable[[Sample], tuple[bytes, bytes]]
    unpaired: tuple[Unpaired, ...] = field(default=())
    together: Callable[[Sample], str] | None = None
    palette_given: bool = False
    task: ClassVar[Task] = "segmentation"
    unit: ClassVar[str] = "pairs"

    def __post_init__(self) -> None:
        """Refuse ids that stand twice."""
        _refuse_ids_that_stand_twice(self.name, self.samples)


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassificationListing:
    """A classification dataset before it is read: image files. Attributes are those of `DatasetListing`."""

    name: str
    config: dict[str, Any]
    class_table: ImageClasses
    samples: tuple[ClassifiedImage, ...]
    unpaired: tuple[Unpaired, ...] = field(default=())
    palette_given: ClassVar[bool] = False
    task: ClassVar[Task] = "classification"
    unit: ClassVar[str] = "images"

    def __post_init__(self) -> None:
        """Refuse ids that stand twice."""
        _refuse_ids_that_stand_twice(self.name, self.samples)


@dataclass(frozen=True, kw_only=True, slots=True)
class CropListing:
    """A segmentation dataset of pieces of prepared images. What is not told here is as in `DatasetListing`.

    Attributes:
        samples: the prepared images, in the order in which they lie in their files.
        class_table: of the crops, whose label maps hold class indices.
        cut: the crops of an image, any number of them.
    """

    name: str
    config: dict[str, Any]
    class_table: ClassTable
    samples: tuple[PreparedImage, ...]
    cut: Cut
    unpaired: tuple[Unpaired, ...] = field(default=())
    palette_given: ClassVar[bool] = True  # that of the prepared images
    task: ClassVar[Task] = "segmentation"
    unit: ClassVar[str] = "images"


@dataclass(frozen=True, kw_only=True, slots=True)
class MixedListing:
    """A segmentation dataset of the images of several prepared ones. What is not told here is as in `DatasetListing`.

    Attributes:
        samples: the prepared images; neighbours lie near each other in their files.
        class_table: of the mixed dataset; class indices are stored as they are.
        targets: by dataset: the class index, or `IGNORE_INDEX`, that each of the 256 values of its label maps becomes.
    """

    name: str
    config: dict[str, Any]
    class_table: ClassTable
    samples: tuple[MappedImage, ...]
    targets: dict[str, tuple[int, ...]]
    unpaired: tuple[Unpaired, ...] = field(default=())
    palette_given: bool = False
    task: ClassVar[Task] = "segmentation"
    unit: ClassVar[str] = "images"


def _refuse_ids_that_stand_twice(name: str, samples: Sequence[Sample | ClassifiedImage]) -> None:
    """Nobody could say later which image is meant."""
    seen: dict[str, Sample | ClassifiedImage] = {}
    for sample in samples:
        other = seen.setdefault(sample.image_id, sample)
        if other is not sample:
            raise ValueError(
                f"two images of {name!r} have the id {sample.image_id!r}: {other.image_uri} ({other.split}) "
                f"and {sample.image_uri} ({sample.split}); remove or rename one"
            )


def default_palette(num_classes: int) -> tuple[tuple[int, int, int], ...]:
    """Distinct colours: the colour map of PASCAL VOC from entry 1 on (its entry 0 is black, which here means ignored).

    Bit k of a colour's channel c, counted from the top, is bit 3*k + c of the entry's number.
    """
    return tuple(
        (_voc_level(entry, 0), _voc_level(entry, 1), _voc_level(entry, 2)) for entry in range(1, num_classes + 1)
    )


def _voc_level(entry: int, channel: int) -> int:
    return sum(((entry >> (3 * k + channel)) & 1) << (7 - k) for k in range(8))


def _ranges(values: tuple[int, ...]) -> str:
    """`0..3, 7` for 0, 1, 2, 3, 7."""
    runs: list[list[int]] = []
    for value in sorted(values):
        if runs and value == runs[-1][1] + 1:
            runs[-1][1] = value
        else:
            runs.append([value, value])
    return ", ".join(str(first) if first == last else f"{first}..{last}" for first, last in runs)
