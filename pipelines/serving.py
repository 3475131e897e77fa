"""A model folder behind `mlflow.pyfunc.load_model(...).predict(images)`; MLflow finds it by `_load_pyfunc`."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from pipelines.checkpoints import ModelBundle, load_model
from pipelines.intake.images import decode_image

IMAGE_COLUMN = "image"

Pixels = NDArray[np.uint8]


class ServedModel:
    """What MLflow calls: images in, class maps out."""

    def __init__(self, bundle: ModelBundle) -> None:
        self.bundle = bundle
        self.mean_311 = torch.tensor(bundle.card.mean).view(3, 1, 1)
        self.std_311 = torch.tensor(bundle.card.std).view(3, 1, 1)

    def predict(
        self, images: Pixels | Sequence[Pixels] | pd.DataFrame, params: dict[str, Any] | None = None
    ) -> NDArray[np.uint8] | list[NDArray[np.uint8]]:
        """Segment RGB images at their own size.

        Args:
            images: one image (H,W,3) uint8; a batch (N,H,W,3); a list of images of any sizes; or a data frame whose
                column `image` holds encoded bytes (JPEG, PNG, ...).
            params: unused; MLflow passes it.

        Returns:
            Class indices, uint8: (H,W), (N,H,W), or a list of (H,W) for a list or a data frame.

        Raises:
            ValueError: the input is none of these.
        """
        if isinstance(images, np.ndarray):
            if images.ndim == 3:
                return self._segment(images)
            if images.ndim == 4:
                return np.stack([self._segment(image) for image in images])
            raise ValueError(f"images have shape {images.shape}; give (H,W,3) or (N,H,W,3)")
        if isinstance(images, pd.DataFrame):
            if IMAGE_COLUMN not in images:
                raise ValueError(f"the data frame has columns {list(images.columns)}, none of them {IMAGE_COLUMN!r}")
            return [self._segment(decode_image(data).pixels_HW3) for data in images[IMAGE_COLUMN]]
        return [self._segment(np.asarray(image)) for image in images]

    def _segment(self, pixels_HW3: Pixels) -> NDArray[np.uint8]:
        if pixels_HW3.ndim != 3 or pixels_HW3.shape[2] != 3 or pixels_HW3.dtype != np.uint8:
            raise ValueError(f"an image is {pixels_HW3.dtype} of shape {pixels_HW3.shape}; give uint8 (H,W,3), RGB")
        pixels_3HW = torch.from_numpy(np.array(pixels_HW3)).permute(2, 0, 1)
        images_13HW = ((pixels_3HW / 255 - self.mean_311) / self.std_311)[None]
        with torch.inference_mode():
            logits_1CHW = self.bundle.model(images_13HW).logits_NCHW
        predictions_HW: NDArray[np.uint8] = logits_1CHW[0].argmax(dim=0).to(torch.uint8).numpy()
        return predictions_HW


def _load_pyfunc(data_path: str) -> ServedModel:
    """MLflow's entry point: the model folder inside a registered version."""
    return ServedModel(load_model(data_path))
