"""Images in, class maps and how sure the network was out: whole images or a sliding window, several scales, mirrored.

Whatever is averaged (windows, scales, mirror images) is averaged as probabilities, at one size per image. A dense CRF,
where one is asked for, refines them at the image's own size. Everything else happens on the model's device; class maps
of one byte per pixel and a few numbers per image come back.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from segcore.backbones import OUTPUT_STRIDES
from segcore.class_maps import class_map
from segcore.dense_crf import DenseCRFConfig
from segcore.dense_crf import refine as refine_by_crf
from segcore.layers import fold_batch_norm, resize


@dataclass(frozen=True, kw_only=True, slots=True)
class InferenceConfig:
    """How a network is shown an image; part of a mask's identity."""

    mode: Literal["whole", "sliding"] = "whole"
    """Whole images, or square windows whose probabilities are averaged where they overlap."""

    short_side_px: int = 0
    """Resize the image so that its shorter side has this many pixels before the network sees it; 0 = its own size.
    Masks always have the image's own size."""

    window_px: int = 512
    """Side of a sliding window; an image smaller than this is one window."""

    stride_fraction: float = 2 / 3
    """Largest step between two windows, as a fraction of the window."""

    scales: tuple[float, ...] = (1.0,)
    """Factors on that size; probabilities are averaged over all of them."""

    flip: bool = False
    """Average with the mirror image as well."""

    output_stride: int = 0
    """Image size / size of the coarsest feature map, 8, 16 or 32; 0: as the network was trained. DeepLab trains at 16
    and is evaluated at 8. Whoever loads the network builds it so (`segcore.models.at_output_stride`)."""

    precision: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of the network; probabilities are float32 in either case."""

    crf: DenseCRFConfig = field(default_factory=DenseCRFConfig)
    """Dense CRF over the probabilities, once they are averaged; off by default."""

    def __post_init__(self) -> None:
        if self.mode not in ("whole", "sliding"):
            raise ValueError(f"inference mode is {self.mode!r}; expected 'whole' or 'sliding'")
        if self.output_stride not in (0, *OUTPUT_STRIDES):
            raise ValueError(
                f"output_stride is {self.output_stride}; expected 0 (as trained) or one of {OUTPUT_STRIDES}"
            )
        if self.precision not in ("float32", "bfloat16"):
            raise ValueError(f"precision is {self.precision!r}; expected 'float32' or 'bfloat16'")
        if self.short_side_px < 0 or self.window_px < 1:
            raise ValueError(
                f"short_side_px is {self.short_side_px} and window_px {self.window_px}; expected >= 0 and >= 1 pixels"
            )
        if not 0 < self.stride_fraction <= 1:
            raise ValueError(f"stride_fraction is {self.stride_fraction}; above 1 windows leave gaps: expected (0, 1]")
        if not self.scales or min(self.scales) <= 0:
            raise ValueError(f"scales are {self.scales}; expected at least one, each above 0")


def inference_to_dict(config: InferenceConfig) -> dict[str, Any]:
    """The settings as JSON values, part of what identifies stored work.

    The CRF stands among them only where there is one: what was stored before there were any keeps its identity.
    """
    values = asdict(config)
    if config.crf == DenseCRFConfig():
        del values["crf"]
    return values


def inference_from_dict(values: Mapping[str, Any]) -> InferenceConfig:
    """Inverse of `inference_to_dict`, through JSON or not; what is left out has its default."""
    changes: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in values.items()
    }
    if "crf" in changes:
        changes["crf"] = DenseCRFConfig(**changes["crf"])
    return InferenceConfig(**changes)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Predictions:
    """What the network said of a batch; see `ClassMap` for each. Probabilities are those after averaging.

    Attributes:
        predictions_NHW: class maps, uint8, at the images' size.
        class_pixels_NC, mean_confidence_N, low_confidence_N, mean_entropy_N, mean_margin_N, class_confidence_NC: of
            each image.
    """

    predictions_NHW: NDArray[np.uint8]
    class_pixels_NC: NDArray[np.int64]
    mean_confidence_N: NDArray[np.float64]
    low_confidence_N: NDArray[np.float64]
    mean_entropy_N: NDArray[np.float64]
    mean_margin_N: NDArray[np.float64]
    class_confidence_NC: NDArray[np.float64]


def prepare(model: nn.Module, device: torch.device | str) -> None:
    """Ready a trained network for `predict` on a device, in place: it gives the same scores up to rounding, faster.

    Weights in channels-last layout, batch normalisation folded into convolutions (see `segcore.layers.folding`).
    """
    model.eval().to(device).to(memory_format=torch.channels_last)
    fold_batch_norm(model, torch.zeros(1, 3, 64, 64, device=device))


def predict(
    model: nn.Module,
    images_N3HW: Tensor,
    *,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    config: InferenceConfig,
) -> Predictions:
    """Segment uint8 RGB images of one size.

    Args:
        model: obeys `SegmentationModel`, in evaluation mode, best after `prepare`; its device does the work.
        images_N3HW: uint8, on any device, in any memory layout.
        mean: of the network's input per channel, in units of 1 (image / 255).
        std: likewise.
        config: see `InferenceConfig`.
    """
    height, width = images_N3HW.shape[-2:]
    with torch.inference_mode():
        scores_NChw, are_logits = refine(*_scores(model, images_N3HW, mean, std, config), images_N3HW, config)
        maps = [class_map(scores_Chw, are_logits=are_logits, height=height, width=width) for scores_Chw in scores_NChw]
    return Predictions(
        predictions_NHW=np.stack([each.classes_HW for each in maps]),
        class_pixels_NC=np.stack([each.class_pixels_C for each in maps]),
        mean_confidence_N=np.array([each.mean_confidence for each in maps]),
        low_confidence_N=np.array([each.low_confidence for each in maps]),
        mean_entropy_N=np.array([each.mean_entropy for each in maps]),
        mean_margin_N=np.array([each.mean_margin for each in maps]),
        class_confidence_NC=np.stack([each.class_confidence_C for each in maps]),
    )


def class_probabilities(
    model: nn.Module,
    images_N3HW: Tensor,
    *,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    config: InferenceConfig,
) -> Tensor:
    """Averaged class probabilities at the images' size, (N,C,H,W) float32 on the model's device; see `predict`.

    For label maps use `predict`, which never holds this tensor.
    """
    height, width = images_N3HW.shape[-2:]
    with torch.inference_mode():
        scores_NChw, are_logits = refine(*_scores(model, images_N3HW, mean, std, config), images_N3HW, config)
        return _probabilities(scores_NChw, are_logits, height=height, width=width)


def refine(scores_NChw: Tensor, are_logits: bool, images_N3HW: Tensor, config: InferenceConfig) -> tuple[Tensor, bool]:
    """Scores after the CRF, probabilities at the images' size; without a CRF, the scores as they are.

    Args:
        scores_NChw: logits or probabilities.
        are_logits: which of them.
        images_N3HW: uint8 RGB, as they came.
        config: its `crf`.

    Raises:
        ValueError: see `segcore.dense_crf.refine`.
    """
    if not config.crf.iterations:
        return scores_NChw, are_logits
    height, width = images_N3HW.shape[-2:]
    probabilities_NCHW = _probabilities(scores_NChw, are_logits, height=height, width=width)
    return refine_by_crf(probabilities_NCHW, images_N3HW, config.crf), False


def _probabilities(scores_NChw: Tensor, are_logits: bool, *, height: int, width: int) -> Tensor:
    return resize(scores_NChw.softmax(dim=1) if are_logits else scores_NChw, height=height, width=width)


def working_size(height: int, width: int, *, short_side_px: int) -> tuple[int, int]:
    """Height and width of an image whose shorter side is resized to `short_side_px` (0: left alone)."""
    if short_side_px == 0:
        return height, width
    factor = short_side_px / min(height, width)
    return max(1, round(height * factor)), max(1, round(width * factor))


def count_windows(height: int, width: int, config: InferenceConfig) -> int:
    """Network inputs that one image of this size takes: windows times scales times mirror images."""
    total = 0
    for scaled_height, scaled_width in _scaled_sizes(height, width, config):
        total += len(list(_windows(scaled_height, scaled_width, config)))
    return total * (2 if config.flip else 1)


def _scores(
    model: nn.Module,
    images_N3HW: Tensor,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    config: InferenceConfig,
) -> tuple[Tensor, bool]:
    """Scores at the one size where everything is averaged, and whether they are logits (nothing had to be averaged)."""
    images = _normalised(images_N3HW, mean, std, next(model.parameters()).device)
    height, width = images.shape[-2:]
    sizes = _scaled_sizes(height, width, config)
    if config.mode == "whole" and len(sizes) == 1 and not config.flip:
        return _logits(model, _resized(images, *sizes[0]), config), True
    # The largest scale, but no larger than the image as the network sees it at scale 1: more would only interpolate.
    reference = min(max(sizes), working_size(height, width, short_side_px=config.short_side_px))
    total: Tensor | None = None
    for size in sizes:
        scaled = _resized(images, *size)
        for flipped in (False, True) if config.flip else (False,):
            probabilities = _windowed_probabilities(model, scaled.flip(-1) if flipped else scaled, config)
            probabilities = probabilities.flip(-1) if flipped else probabilities
            probabilities = resize(probabilities, height=reference[0], width=reference[1])
            total = probabilities if total is None else total.add_(probabilities)
    assert total is not None
    return total.div_(len(sizes) * (2 if config.flip else 1)), False


def _windowed_probabilities(model: nn.Module, images_N3HW: Tensor, config: InferenceConfig) -> Tensor:
    """Probabilities (N,C,H,W), averaged where windows overlap."""
    height, width = images_N3HW.shape[-2:]
    windows = list(_windows(height, width, config))
    if len(windows) == 1:
        return _logits(model, images_N3HW, config).softmax(dim=1)
    total: Tensor | None = None
    count_HW = images_N3HW.new_zeros(height, width)
    for rows, columns in windows:
        probabilities = _logits(model, images_N3HW[:, :, rows, columns], config).softmax(dim=1)
        if total is None:
            total = probabilities.new_zeros(len(images_N3HW), probabilities.shape[1], height, width)
        total[:, :, rows, columns] += probabilities
        count_HW[rows, columns] += 1
    assert total is not None
    return total.div_(count_HW)


def _windows(height: int, width: int, config: InferenceConfig) -> Iterator[tuple[slice, slice]]:
    """Windows that cover the image, evenly spread, none further apart than the stride."""
    if config.mode == "whole":
        yield slice(0, height), slice(0, width)
        return
    for row in _starts(height, config):
        for column in _starts(width, config):
            yield slice(row, row + config.window_px), slice(column, column + config.window_px)


def _starts(length: int, config: InferenceConfig) -> list[int]:
    stride = max(1, int(config.window_px * config.stride_fraction))
    gap = max(0, length - config.window_px)
    steps = math.ceil(gap / stride)
    return [round(gap * step / steps) for step in range(steps + 1)] if steps else [0]


def _scaled_sizes(height: int, width: int, config: InferenceConfig) -> list[tuple[int, int]]:
    height, width = working_size(height, width, short_side_px=config.short_side_px)
    return [(max(1, round(height * scale)), max(1, round(width * scale))) for scale in config.scales]


def _normalised(
    images_N3HW: Tensor, mean: tuple[float, float, float], std: tuple[float, float, float], device: torch.device
) -> Tensor:
    """Float images on `device`, channels last: what decoders deliver, and a third faster for CPUs and tensor cores."""
    images = images_N3HW.to(device)  # as bytes, a quarter of the floats
    images = images.to(torch.float32, memory_format=torch.channels_last)
    mean_1311 = torch.tensor(mean, device=device).view(1, 3, 1, 1) * 255
    std_1311 = torch.tensor(std, device=device).view(1, 3, 1, 1) * 255
    return images.sub_(mean_1311).div_(std_1311)


def _resized(images_N3HW: Tensor, height: int, width: int) -> Tensor:
    if images_N3HW.shape[-2:] == (height, width):
        return images_N3HW
    return F.interpolate(images_N3HW, size=(height, width), mode="bilinear", align_corners=False, antialias=True)


def _logits(model: nn.Module, images_N3HW: Tensor, config: InferenceConfig) -> Tensor:
    use_bfloat16 = config.precision == "bfloat16"
    with torch.autocast(images_N3HW.device.type, dtype=torch.bfloat16, enabled=use_bfloat16):
        logits_NCHW: Tensor = model(images_N3HW).logits_NCHW
    return logits_NCHW.float()
