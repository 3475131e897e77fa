"""Changes of brightness, contrast, saturation and hue, several times as fast as torchvision's.

Levels are looked up in a table and pixels rounded twice, where torchvision makes floats of the image three times.

OpenCV does it, without holding Python's lock: threads that augment run beside each other.
"""

from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms.v2 import functional as F

LUMA = np.array([0.299, 0.587, 0.114])
"""Of red, green and blue. Source: ITU-R BT.601, section 2.5.1."""
_LEVELS = np.arange(256)


def change_colours(
    image_3HW: Tensor, *, brightness: float = 1.0, contrast: float = 1.0, saturation: float = 1.0, hue: float = 0.0
) -> Tensor:
    """Change an image's colours, in this order: brightness, contrast, saturation, hue.

    Args:
        image_3HW: uint8 RGB; channels last in memory is fastest.
        brightness: factor of every level.
        contrast: factor of every level's distance from the image's mean luma.
        saturation: factor of every colour's distance from its own luma.
        hue: shift in turns of the colour wheel, -0.5 to 0.5.

    Returns:
        uint8 of the same shape. torchvision's `adjust_brightness`, `adjust_contrast` and `adjust_saturation`, one after
        the other, give levels that are lower by up to 5 (factors up to 1.5): each cuts off what is behind the point.
    """
    if brightness != 1 or contrast != 1 or saturation != 1:
        pixels_HW3 = np.ascontiguousarray(image_3HW.permute(1, 2, 0).numpy())
        image_3HW = torch.from_numpy(_changed(pixels_HW3, brightness, contrast, saturation)).permute(2, 0, 1)
    return F.adjust_hue_image(image_3HW, hue) if hue else image_3HW


def _changed(pixels_HW3: NDArray[np.uint8], brightness: float, contrast: float, saturation: float) -> NDArray[np.uint8]:
    table = _rounded(_LEVELS * brightness)
    if contrast != 1:
        mean = float(LUMA @ cv2.mean(cv2.LUT(pixels_HW3, table))[:3])
        table = _rounded(table * contrast + mean * (1 - contrast))
    changed = pixels_HW3 if brightness == contrast == 1 else cv2.LUT(pixels_HW3, table)
    if saturation != 1:
        changed = cv2.transform(changed, saturation * np.eye(3) + (1 - saturation) * LUMA)
    return np.asarray(changed, dtype=np.uint8)


def _rounded(levels_256: NDArray[np.floating[Any]]) -> NDArray[np.uint8]:
    return np.asarray(np.clip(np.rint(levels_256), 0, 255), dtype=np.uint8)
