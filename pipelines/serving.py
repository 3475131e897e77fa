"""A model folder behind `mlflow.pyfunc.load_model(...).predict(images)`; MLflow finds it by `_load_pyfunc`."""

from collections.abc import Sequence
from contextlib import closing
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from pipelines.checkpoints import ModelBundle, load_model
from pipelines.intake.images import decode_image
from pipelines.intake.sources import Source
from pipelines.intake.windows import num_pixels, open_windows
from segcore import run_lengths
from segcore.inference import InferenceConfig, Member
from segcore.tile_grid import TilingConfig
from segcore.tiling import TiledImage, predict_tiled

IMAGE_COLUMN = "image"
MAX_PIXELS = 2**29
"""Of one image, as `segment` has it."""

Pixels = NDArray[np.uint8]


class ServedModel:
    """What MLflow calls: images in, class maps out.

    Args:
        bundle: the model.
        tiling: which images are shown in tiles, and how; default: those that `segment` shows so.
    """

    def __init__(self, bundle: ModelBundle, tiling: TilingConfig | None = None) -> None:
        self.bundle = bundle
        self.tiling = tiling or TilingConfig()
        self.mean_311 = torch.tensor(bundle.card.mean).view(3, 1, 1)
        self.std_311 = torch.tensor(bundle.card.std).view(3, 1, 1)

    def predict(
        self, images: Pixels | Sequence[Pixels] | pd.DataFrame, params: dict[str, Any] | None = None
    ) -> NDArray[np.uint8] | list[NDArray[np.uint8]]:
        """Segment RGB images at their own size; large ones in tiles, never as a whole (`segcore.tiling`).

        Args:
            images: one image (H,W,3) uint8; a batch (N,H,W,3); a list of images of any sizes; or a data frame whose
                column `image` holds encoded bytes (JPEG, PNG, ...) or such arrays. A registered model takes the data
                frame alone: it is what its signature names.
            params: unused; MLflow passes it.

        Returns:
            Class indices, uint8: (H,W), (N,H,W), or a list of (H,W) for a list or a data frame.

        Raises:
            ValueError: the input is none of these.
            ImageError: encoded bytes are no image, broken, or of more than `MAX_PIXELS`.
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
            return [self._segment_cell(cell) for cell in images[IMAGE_COLUMN]]
        return [self._segment(np.asarray(image)) for image in images]

    def _segment_cell(self, cell: Any) -> NDArray[np.uint8]:
        if isinstance(cell, np.ndarray):
            return self._segment(cell)
        if not isinstance(cell, bytes | bytearray):
            raise ValueError(
                f"a cell of column {IMAGE_COLUMN!r} is a {type(cell).__name__}; give the bytes of an image file (in "
                "JSON as base64), or a uint8 array (H,W,3)"
            )
        source = Source(data=bytes(cell))
        if num_pixels(source) <= self.tiling.above_px:
            return self._segment(decode_image(source.data).pixels_HW3)
        with closing(open_windows(source, max_pixels=MAX_PIXELS)) as windows:
            return self._segment_tiled(TiledImage(height=windows.height, width=windows.width, read=windows.read))

    def _segment(self, pixels_HW3: Pixels) -> NDArray[np.uint8]:
        if pixels_HW3.ndim != 3 or pixels_HW3.shape[2] != 3 or pixels_HW3.dtype != np.uint8:
            raise ValueError(f"an image is {pixels_HW3.dtype} of shape {pixels_HW3.shape}; give uint8 (H,W,3), RGB")
        height, width = pixels_HW3.shape[:2]
        if height * width > self.tiling.above_px:
            return self._segment_tiled(
                TiledImage(height=height, width=width, read=lambda rows, columns: pixels_HW3[rows, columns])
            )
        pixels_3HW = torch.from_numpy(np.array(pixels_HW3)).permute(2, 0, 1)
        images_13HW = ((pixels_3HW / 255 - self.mean_311) / self.std_311)[None]
        with torch.inference_mode():
            logits_1CHW = self.bundle.model(images_13HW).logits_NCHW
        predictions_HW: NDArray[np.uint8] = logits_1CHW[0].argmax(dim=0).to(torch.uint8).numpy()
        return predictions_HW

    def _segment_tiled(self, image: TiledImage) -> NDArray[np.uint8]:
        card = self.bundle.card
        member = Member(model=self.bundle.model, mean=card.mean, std=card.std, config=InferenceConfig())
        ((_, found),) = predict_tiled([member], [image], config=self.tiling)
        if isinstance(found, Exception):
            raise found
        return run_lengths.decode(found.values, found.lengths, height=image.height, width=image.width)


def _load_pyfunc(data_path: str) -> ServedModel:
    """MLflow's entry point: the model folder inside a registered version."""
    return ServedModel(load_model(data_path))
