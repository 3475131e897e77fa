"""Augmentation of an image with its labels (random scale, deformation, crop with ignored padding, flip, colour), and of
an image that is classified as a whole (random resized crop, flip, colour).

The crop window is chosen in the source image first and only that window is resized: at scale 2 a quarter of the work of
resizing the whole image. Everything stays uint8; normalisation happens later, on the device.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from segcore import IGNORE_INDEX
from segcore.augment_config import AugmentConfig, ClassificationAugmentConfig
from segcore.colour_jitter import change_colours

ELASTIC_GRID_SIDE = 3
"""Random displacements of an elastic deformation in each direction: at the image's corners, sides and centre."""

BLUR_SIDE = 5
BLUR_DEVIATION = 1.1
"""What OpenCV takes for a kernel of 5 pixels: 0.3 * ((5 - 1) / 2 - 1) + 0.8; the released PSPNet code blurs so."""


@dataclass(frozen=True, slots=True)
class _Span:
    """One axis of a crop: source pixels `start..start+length`, resized to `resized`, then padded at both ends."""

    start: int
    length: int
    resized: int
    pad_before: int
    pad_after: int


def augment(
    image_3HW: Tensor,
    labels_HW: Tensor,
    config: AugmentConfig,
    generator: torch.Generator,
    *,
    fill: tuple[int, int, int] = (124, 116, 104),
) -> tuple[Tensor, Tensor]:
    """Draw one training crop.

    Args:
        image_3HW: uint8 RGB, any size.
        labels_HW: uint8 classes of the same size.
        config: what varies.
        generator: CPU generator; the result depends on nothing else.
        fill: colour where the crop reaches beyond the image; by default the mean of ImageNet.

    Returns:
        image uint8 (3, crop_height, crop_width) and labels uint8 (crop_height, crop_width), `IGNORE_INDEX` where the
        crop reaches beyond the image. Labels are resized by the nearest pixel: no new value appears.

    Raises:
        ValueError: image and labels differ in size.
    """
    if image_3HW.shape[1:] != labels_HW.shape:
        raise ValueError(
            f"the image has {tuple(image_3HW.shape[1:])} rows and columns and its labels {tuple(labels_HW.shape)}; "
            "prepare the dataset again, which refuses such pairs"
        )
    draws = torch.rand(11, generator=generator, dtype=torch.float64).tolist()
    scale = _scale(config, draws[0])
    if config.long_side_px:
        scale *= config.long_side_px / max(labels_HW.shape)
    if config.rotation_degrees and draws[8] < 0.5:
        image_3HW, labels_HW = _rotated(image_3HW, labels_HW, (2 * draws[9] - 1) * config.rotation_degrees, fill=fill)
    if config.elastic_px:
        image_3HW, labels_HW = _deformed(image_3HW, labels_HW, config.elastic_px, generator, fill=fill)
    rows = _span(labels_HW.shape[0], config.crop_height, scale, draws[1])
    columns = _span(labels_HW.shape[1], config.crop_width, scale, draws[2])
    window = (slice(rows.start, rows.start + rows.length), slice(columns.start, columns.start + columns.length))
    image_3HW, labels_HW = image_3HW[:, window[0], window[1]], labels_HW[window]
    size = [rows.resized, columns.resized]
    if size != [rows.length, columns.length]:
        image_3HW = F.resize_image(image_3HW, size, InterpolationMode.BILINEAR, antialias=True)
        labels_HW = _nearest(labels_HW, rows, columns)
    if config.flip and draws[3] < 0.5:
        image_3HW, labels_HW = image_3HW.flip(-1), labels_HW.flip(-1)
    if config.blur and draws[10] < 0.5:
        image_3HW = F.gaussian_blur_image(image_3HW, [BLUR_SIDE, BLUR_SIDE], [BLUR_DEVIATION, BLUR_DEVIATION])
    image_3HW = _jitter(image_3HW, config, draws[4:8])
    padding = [columns.pad_before, rows.pad_before, columns.pad_after, rows.pad_after]
    if any(padding):
        image_3HW = F.pad_image(image_3HW, padding, fill=list(fill))
        labels_HW = F.pad_mask(labels_HW, padding, fill=IGNORE_INDEX)
    return image_3HW.contiguous(), labels_HW.contiguous()


def _nearest(labels_HW: Tensor, rows: _Span, columns: _Span) -> Tensor:
    """Labels resized to the pixels whose centres lie nearest, as bilinear interpolation places them; the right or lower
    one of two that are as near. Plain `nearest` of PyTorch shifts labels by up to half a pixel."""
    sources = [(2 * np.arange(axis.resized) + 1) * axis.length // (2 * axis.resized) for axis in (rows, columns)]
    return torch.from_numpy(labels_HW.numpy().take(sources[0], axis=0).take(sources[1], axis=1))


def _scale(config: AugmentConfig, draw: float) -> float:
    """A zoom from the range, or from the steps within it; `draw` in [0, 1) decides."""
    span = config.scale_max - config.scale_min
    if not config.scale_step:
        return config.scale_min + span * draw
    steps = int(span / config.scale_step + 1e-6) + 1
    return config.scale_min + config.scale_step * int(draw * steps)


def _rotated(
    image_3HW: Tensor, labels_HW: Tensor, degrees: float, *, fill: tuple[int, int, int]
) -> tuple[Tensor, Tensor]:
    """Image and labels turned counter-clockwise around the centre, at their size."""
    image_3HW = F.rotate_image(image_3HW, degrees, InterpolationMode.BILINEAR, fill=list(fill))
    labels_1HW = F.rotate_mask(labels_HW[None], degrees, fill=IGNORE_INDEX)
    return image_3HW, labels_1HW[0]


def _deformed(
    image_3HW: Tensor,
    labels_HW: Tensor,
    deviation_px: float,
    generator: torch.Generator,
    *,
    fill: tuple[int, int, int],
) -> tuple[Tensor, Tensor]:
    """Image and labels, each pixel from where a smooth random displacement points, at their size."""
    height, width = labels_HW.shape
    coarse_12hw = deviation_px * torch.randn(1, 2, ELASTIC_GRID_SIDE, ELASTIC_GRID_SIDE, generator=generator)
    shift_12HW = torch.nn.functional.interpolate(coarse_12hw, size=(height, width), mode="bicubic", align_corners=True)
    # In units of half the image, columns first.
    shift_1HW2 = shift_12HW.movedim(1, 3) * torch.tensor([2 / width, 2 / height])
    image_3HW = F.elastic_image(image_3HW, shift_1HW2, InterpolationMode.BILINEAR, fill=list(fill))
    labels_1HW = F.elastic_mask(labels_HW[None], shift_1HW2, fill=IGNORE_INDEX)
    return image_3HW, labels_1HW[0]


def _span(source: int, crop: int, scale: float, draw: float) -> _Span:
    """Place a crop of `crop` output pixels on an axis of `source` pixels; `draw` in [0, 1) decides where."""
    length = max(1, round(crop / scale))
    if length <= source:
        return _Span(int(draw * (source - length + 1)), length, crop, 0, 0)
    resized = min(crop, max(1, round(source * scale)))
    before = int(draw * (crop - resized + 1))
    return _Span(0, source, resized, before, crop - resized - before)


WINDOW_ATTEMPTS = 10
"""Windows that are drawn before the largest centred one is taken; torchvision's number."""


def random_resized_crop(image_3HW: Tensor, config: ClassificationAugmentConfig, generator: torch.Generator) -> Tensor:
    """Draw one window of an image and resize it to the crop: uint8 (3, crop_height, crop_width).

    Area and the logarithm of the ratio are uniform, as in torchvision's `RandomResizedCrop`. The result depends on
    nothing but image, config and generator, which is advanced by the same number of draws whatever the image.
    """
    *window_draws, flip, brightness, contrast, saturation, hue = torch.rand(
        4 * WINDOW_ATTEMPTS + 5, generator=generator, dtype=torch.float64
    ).tolist()
    row, column, height, width = _window(image_3HW.shape[1], image_3HW.shape[2], config, window_draws)
    window_3HW = image_3HW[:, row : row + height, column : column + width]
    size = [config.crop_height, config.crop_width]
    if size != [height, width]:
        window_3HW = F.resize_image(window_3HW, size, InterpolationMode.BILINEAR, antialias=True)
    if config.flip and flip < 0.5:
        window_3HW = window_3HW.flip(-1)
    return _jitter(window_3HW, config, [brightness, contrast, saturation, hue]).contiguous()


def centre_crop(image_3HW: Tensor, config: ClassificationAugmentConfig) -> Tensor:
    """The centre of an image resized to `validation_short_side_px`: uint8 (3, crop_height, crop_width)."""
    source_height, source_width = image_3HW.shape[1:]
    short, shorter_source = config.validation_short_side_px, min(source_height, source_width)
    size = [short * source_height // shorter_source, short * source_width // shorter_source]  # as torchvision rounds
    if size != [source_height, source_width]:
        image_3HW = F.resize_image(image_3HW, size, InterpolationMode.BILINEAR, antialias=True)
    row, column = round((size[0] - config.crop_height) / 2), round((size[1] - config.crop_width) / 2)
    return image_3HW[:, row : row + config.crop_height, column : column + config.crop_width].contiguous()


def _window(
    source_height: int, source_width: int, config: ClassificationAugmentConfig, draws: list[float]
) -> tuple[int, int, int, int]:
    """Row, column, height and width of the first drawn window that fits, or of the largest one in the centre."""
    low, high = math.log(config.ratio_min), math.log(config.ratio_max)
    for first in range(0, len(draws), 4):
        area, ratio, vertical, horizontal = draws[first : first + 4]
        area = source_height * source_width * (config.area_min + (config.area_max - config.area_min) * area)
        ratio = math.exp(low + (high - low) * ratio)
        height, width = max(1, round(math.sqrt(area / ratio))), max(1, round(math.sqrt(area * ratio)))
        if height <= source_height and width <= source_width:
            row, column = int(vertical * (source_height - height + 1)), int(horizontal * (source_width - width + 1))
            return row, column, height, width
    ratio = min(max(source_width / source_height, config.ratio_min), config.ratio_max)
    height = min(source_height, max(1, round(source_width / ratio)))
    width = min(source_width, max(1, round(source_height * ratio)))
    return (source_height - height) // 2, (source_width - width) // 2, height, width


def _jitter(image_3HW: Tensor, config: AugmentConfig | ClassificationAugmentConfig, draws: list[float]) -> Tensor:
    """Change colours; each draw in [0, 1) becomes a factor around 1, or a shift around 0 for the hue."""
    brightness, contrast, saturation, hue = (2 * draw - 1 for draw in draws)
    return change_colours(
        image_3HW,
        brightness=1 + config.brightness * brightness,
        contrast=1 + config.contrast * contrast,
        saturation=1 + config.saturation * saturation,
        hue=config.hue * hue,
    )
