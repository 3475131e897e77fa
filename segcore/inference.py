"""Images in, class maps and how sure the networks were out: whole images, a sliding window or object proposals, several
scales, mirrored, by one network or several.

Whatever is averaged (windows, scales, mirror images, networks) is averaged as probabilities, at one size per image;
proposals alone meet as scores (`segcore.instance_inference`). A dense CRF, where one is asked for, refines the averages
at the image's own size. Everything but finding proposals and the CRF happens on the model's device; class maps of one
byte per pixel and a few numbers per image come back.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from segcore.backbones import OUTPUT_STRIDES
from segcore.class_maps import SMALLEST_PROBABILITY, MapStatistics, class_map
from segcore.dense_crf import DenseCRFConfig, refine
from segcore.instance_inference import Aggregate, as_pixels, boxes_to_show, proposal_scores
from segcore.layers import fold_batch_norm, resize, resize_smoothly
from segcore.proposals import ProposalConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class InferenceConfig:
    """How a network is shown an image; part of a mask's identity."""

    mode: Literal["whole", "sliding", "proposals"] = "whole"
    """Whole images; square windows whose probabilities are averaged where they overlap; or DeconvNet's procedure: crops
    of object proposals, whose scores are pasted into the image."""

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

    proposals: ProposalConfig = field(default_factory=ProposalConfig)
    """Of mode 'proposals', as are the fields below: how boxes are found, how many, how much they are enlarged."""

    crop_px: int = 224
    """Side of the square that a proposal's crop is resized to; DeconvNet takes no other than it was built for."""

    aggregate: Aggregate = "max"
    """A pixel's score is the maximum, or the mean, over the proposals that cover it."""

    whole_image: bool = False
    """The whole image is one proposal more. Without it, as in the paper, pixels that no proposal covers are class 0,
    which suits VOC's background; a dataset without a background class needs it."""

    def __post_init__(self) -> None:
        if self.mode not in ("whole", "sliding", "proposals"):
            raise ValueError(f"inference mode is {self.mode!r}; expected 'whole', 'sliding' or 'proposals'")
        if self.mode == "proposals" and (self.short_side_px or self.scales != (1.0,) or self.flip):
            raise ValueError(
                f"mode 'proposals' with short_side_px {self.short_side_px}, scales {self.scales} and flip {self.flip}: "
                "it shows every crop once, at crop_px; leave the three out"
            )
        if self.aggregate not in ("max", "mean"):
            raise ValueError(f"aggregate is {self.aggregate!r}; expected 'max' or 'mean'")
        if self.crop_px < 1:
            raise ValueError(f"crop_px is {self.crop_px}; expected 1 pixel or more, the network's input size")
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


_PROPOSAL_FIELDS = ("proposals", "crop_px", "aggregate", "whole_image")


def inference_to_dict(config: InferenceConfig) -> dict[str, Any]:
    """The settings as JSON values, part of what identifies stored work.

    The CRF stands among them only where there is one, and what mode 'proposals' alone reads only in that mode: what was
    stored before there were any keeps its identity.
    """
    left_out = () if config.mode == "proposals" else _PROPOSAL_FIELDS
    if config.crf == DenseCRFConfig():
        left_out = (*left_out, "crf")
    return {name: value for name, value in asdict(config).items() if name not in left_out}


def inference_from_dict(values: Mapping[str, Any]) -> InferenceConfig:
    """Inverse of `inference_to_dict`, through JSON or not; what is left out has its default."""
    changes: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in values.items()
    }
    if "crf" in changes:
        changes["crf"] = DenseCRFConfig(**changes["crf"])
    if "proposals" in changes:
        changes["proposals"] = ProposalConfig(**changes["proposals"])
    return InferenceConfig(**changes)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Predictions:
    """What the network said of a batch; see `MapStatistics` for each. Probabilities are those after averaging.

    Attributes:
        predictions_NHW: class maps, uint8, at the images' size.
        confidence_NHW: float32, the largest probability of each pixel, where it was asked for.
        class_pixels_NC, mean_confidence_N, low_confidence_N, mean_entropy_N, mean_margin_N, class_confidence_NC: of
            each image.
        num_inputs_N: network inputs that each image took: windows times scales times mirror images, or crops of
            proposals; of all networks together.
    """

    predictions_NHW: NDArray[np.uint8]
    class_pixels_NC: NDArray[np.int64]
    mean_confidence_N: NDArray[np.float64]
    low_confidence_N: NDArray[np.float64]
    mean_entropy_N: NDArray[np.float64]
    mean_margin_N: NDArray[np.float64]
    class_confidence_NC: NDArray[np.float64]
    num_inputs_N: NDArray[np.int64]
    confidence_NHW: NDArray[np.float32] | None = None

    def statistics(self, index: int) -> MapStatistics:
        """Of one image."""
        return MapStatistics(
            class_pixels_C=self.class_pixels_NC[index],
            mean_confidence=float(self.mean_confidence_N[index]),
            low_confidence=float(self.low_confidence_N[index]),
            mean_entropy=float(self.mean_entropy_N[index]),
            mean_margin=float(self.mean_margin_N[index]),
            class_confidence_C=self.class_confidence_NC[index],
        )


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Member:
    """A network and how it is shown an image; one of an ensemble, or the only one.

    Attributes:
        model: obeys `SegmentationModel`, in evaluation mode, best after `prepare`; its device does the work.
        mean: of the network's input per channel, in units of 1 (image / 255).
        std: likewise.
        config: see `InferenceConfig`.
        classes: channels of the logits that are asked for; empty for all. The others are left out before the softmax:
            probabilities are those given that a pixel has one of these classes.
    """

    model: nn.Module
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    config: InferenceConfig
    classes: tuple[int, ...] = ()


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
    image_ids: Sequence[str] = (),
) -> Predictions:
    """Segment uint8 RGB images of one size with one network; see `Member` and `predict_ensemble`."""
    member = Member(model=model, mean=mean, std=std, config=config)
    return predict_ensemble([member], images_N3HW, image_ids=image_ids)


def predict_ensemble(
    members: Sequence[Member], images_N3HW: Tensor, *, image_ids: Sequence[str] = (), with_confidence: bool = False
) -> Predictions:
    """Segment uint8 RGB images of one size by the mean of the members' class probabilities.

    The CRF of the first member's config, where it has one, refines the mean.

    Args:
        members: one or more on one device, with one class table; each sees the images in its own way. DeconvNet and
            FCN-8s are EDeconvNet (arXiv 1505.04366, section 4.4, from memory).
        images_N3HW: uint8, on any device, in any memory layout.
        image_ids: of the images, for messages; may be left out.
        with_confidence: give `confidence_NHW` too, four bytes per pixel.

    Raises:
        ValueError: the members have different numbers of classes, or CRFs (`check_one_crf`); scores are not finite.
    """
    check_one_crf([member.config for member in members])
    height, width = images_N3HW.shape[-2:]
    with torch.inference_mode():
        found = _refined(_ensemble_scores(members, images_N3HW, image_ids), images_N3HW, members[0].config)
        maps = [
            class_map(
                scores_Chw, are_logits=found.are_logits, height=height, width=width, with_confidence=with_confidence
            )
            for scores_Chw in found.scores_NChw
        ]
    statistics = [each.statistics for each in maps]
    return Predictions(
        predictions_NHW=np.stack([each.classes_HW for each in maps]),
        class_pixels_NC=np.stack([each.class_pixels_C for each in statistics]),
        mean_confidence_N=np.array([each.mean_confidence for each in statistics]),
        low_confidence_N=np.array([each.low_confidence for each in statistics]),
        mean_entropy_N=np.array([each.mean_entropy for each in statistics]),
        mean_margin_N=np.array([each.mean_margin for each in statistics]),
        class_confidence_NC=np.stack([each.class_confidence_C for each in statistics]),
        num_inputs_N=found.num_inputs_N,
        confidence_NHW=np.stack([each.confidence_HW for each in maps if each.confidence_HW is not None])
        if with_confidence
        else None,
    )


def ensemble_logits(
    members: Sequence[Member], images_N3HW: Tensor, *, image_ids: Sequence[str] = ()
) -> tuple[Tensor, NDArray[np.int64]]:
    """What `predict_ensemble` compares, as logits that can be blended: for pieces of an image (`segcore.tiling`).

    Of one network that is shown each image once, at its own size, these are its logits; otherwise they are the
    logarithms of the averaged probabilities. Of the same probabilities both differ by one number per pixel, and so do
    their weighted means, which therefore have one softmax.

    Returns:
        Logits (N,C,H,W) at the images' size, float32, the caller's to change; and how many network inputs each image
        took.

    Raises:
        ValueError: see `predict_ensemble`.
    """
    check_one_crf([member.config for member in members])
    with torch.inference_mode():
        found = _refined(_ensemble_scores(members, images_N3HW, image_ids), images_N3HW, members[0].config)
        return found.logits(*images_N3HW.shape[-2:]), found.num_inputs_N


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
        found = _scores(Member(model=model, mean=mean, std=std, config=config), images_N3HW, ())
        found = _refined(found, images_N3HW, config)
        return found.probabilities(height, width)


def check_one_crf(configs: Sequence[InferenceConfig]) -> None:
    """An ensemble has one CRF, that of its first member, after the mean.

    Raises:
        ValueError: a later member has a CRF, and not the first one's.
    """
    for number, config in enumerate(configs[1:], start=2):
        if config.crf.iterations and config.crf != configs[0].crf:
            raise ValueError(
                f"model {number} of the ensemble has a CRF, {config.crf}, and the first has {configs[0].crf}; the mean "
                "of the models is refined by the first one's: give the model whose CRF is meant first"
            )


def mean_probabilities(maps: Iterable[Tensor]) -> Tensor:
    """Mean of maps of class probabilities, (N,C,H,W) each; two of them are held at a time. The maps stay as they are.

    Raises:
        ValueError: the maps have different shapes, or there is none.
    """
    total: Tensor | None = None
    count = 0
    for map_NCHW in maps:
        if total is not None and map_NCHW.shape != total.shape:
            raise ValueError(
                f"maps of shapes {tuple(total.shape)} and {tuple(map_NCHW.shape)} have no mean; average "
                "networks of one class table, over the same images"
            )
        total = map_NCHW.clone() if total is None else total.add_(map_NCHW)
        count += 1
    if total is None:
        raise ValueError("there are no maps to average; give one or more")
    return total.div_(count)


def working_size(height: int, width: int, *, short_side_px: int) -> tuple[int, int]:
    """Height and width of an image whose shorter side is resized to `short_side_px` (0: left alone)."""
    if short_side_px == 0:
        return height, width
    factor = short_side_px / min(height, width)
    return max(1, round(height * factor)), max(1, round(width * factor))


@dataclass(frozen=True, slots=True, eq=False)
class _Scores:
    """Scores of some images at the one size where everything is averaged.

    `are_logits` where nothing had to be averaged; else they are probabilities.
    """

    scores_NChw: Tensor
    are_logits: bool
    num_inputs_N: NDArray[np.int64]

    def probabilities(self, height: int, width: int) -> Tensor:
        p_NChw = self.scores_NChw.softmax(dim=1) if self.are_logits else self.scores_NChw
        return resize(p_NChw, height=height, width=width)

    def logits(self, height: int, width: int) -> Tensor:
        if self.are_logits and self.scores_NChw.shape[-2:] == (height, width):
            return self.scores_NChw
        return self.probabilities(height, width).clamp_min(SMALLEST_PROBABILITY).log_()


def _refined(found: _Scores, images_N3HW: Tensor, config: InferenceConfig) -> _Scores:
    """Scores after the config's CRF: probabilities at the images' size; the scores themselves without one."""
    if not config.crf.iterations:
        return found
    probabilities_NCHW = refine(found.probabilities(*images_N3HW.shape[-2:]), images_N3HW, config.crf)
    return _Scores(probabilities_NCHW, False, found.num_inputs_N)


def _ensemble_scores(members: Sequence[Member], images_N3HW: Tensor, image_ids: Sequence[str]) -> _Scores:
    if len(members) == 1:
        return _scores(members[0], images_N3HW, image_ids)
    num_inputs_N = np.zeros(len(images_N3HW), dtype=np.int64)

    def maps() -> Iterator[Tensor]:
        for member in members:
            found = _scores(member, images_N3HW, image_ids)
            num_inputs_N[:] += found.num_inputs_N
            yield found.probabilities(*images_N3HW.shape[-2:])

    return _Scores(mean_probabilities(maps()), False, num_inputs_N)


def _scores(member: Member, images_N3HW: Tensor, image_ids: Sequence[str]) -> _Scores:
    """One network's scores of images of one size."""
    config = member.config
    images = _normalised(images_N3HW, member.mean, member.std, next(member.model.parameters()).device)
    if config.mode == "proposals":
        return _scores_of_proposals(member, images_N3HW, images, image_ids)
    height, width = images.shape[-2:]
    sizes = _scaled_sizes(height, width, config)
    num_inputs_N = np.full(len(images), _count_windows(sizes, config), dtype=np.int64)
    if config.mode == "whole" and len(sizes) == 1 and not config.flip:
        shown = resize_smoothly(images, height=sizes[0][0], width=sizes[0][1])
        scores_NChw = _logits(member, shown)
        return _Scores(scores_NChw, True, num_inputs_N)
    # The largest scale, but no larger than the image as the network sees it at scale 1: more would only interpolate.
    reference = min(max(sizes), working_size(height, width, short_side_px=config.short_side_px))
    total: Tensor | None = None
    for size in sizes:
        scaled = resize_smoothly(images, height=size[0], width=size[1])
        for flipped in (False, True) if config.flip else (False,):
            probabilities = _windowed_probabilities(member, scaled.flip(-1) if flipped else scaled)
            probabilities = probabilities.flip(-1) if flipped else probabilities
            probabilities = resize(probabilities, height=reference[0], width=reference[1])
            total = probabilities if total is None else total.add_(probabilities)
    assert total is not None
    return _Scores(total.div_(len(sizes) * (2 if config.flip else 1)), False, num_inputs_N)


def _scores_of_proposals(
    member: Member, images_N3HW: Tensor, normalised_N3HW: Tensor, image_ids: Sequence[str]
) -> _Scores:
    """Image by image, since each has its own boxes; they are found in the image as it came."""
    config = member.config
    network = partial(_logits, member)
    scores: list[Tensor] = []
    num_inputs: list[int] = []
    for index, (image_3HW, normalised_3HW) in enumerate(zip(images_N3HW, normalised_N3HW, strict=True)):
        boxes_K4 = boxes_to_show(
            as_pixels(image_3HW),
            config.proposals,
            whole_image=config.whole_image,
            image_id=image_ids[index] if image_ids else "",
        )
        scores.append(
            proposal_scores(network, normalised_3HW, boxes_K4, crop_px=config.crop_px, aggregate=config.aggregate)
        )
        num_inputs.append(len(boxes_K4))
    return _Scores(torch.stack(scores), True, np.array(num_inputs, dtype=np.int64))


def _count_windows(sizes: list[tuple[int, int]], config: InferenceConfig) -> int:
    """Network inputs that one image takes: windows over all scaled sizes, times mirror images."""
    windows = sum(len(list(_windows(height, width, config))) for height, width in sizes)
    return windows * (2 if config.flip else 1)


def _windowed_probabilities(member: Member, images_N3HW: Tensor) -> Tensor:
    """Probabilities (N,C,H,W), averaged where windows overlap."""
    height, width = images_N3HW.shape[-2:]
    windows = list(_windows(height, width, member.config))
    if len(windows) == 1:
        return _logits(member, images_N3HW).softmax(dim=1)
    total: Tensor | None = None
    count_HW = images_N3HW.new_zeros(height, width)
    for rows, columns in windows:
        probabilities = _logits(member, images_N3HW[:, :, rows, columns]).softmax(dim=1)
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


def _logits(member: Member, images_N3HW: Tensor) -> Tensor:
    use_bfloat16 = member.config.precision == "bfloat16"
    with torch.autocast(images_N3HW.device.type, dtype=torch.bfloat16, enabled=use_bfloat16):
        logits_NCHW: Tensor = member.model(images_N3HW).logits_NCHW
    return (logits_NCHW[:, list(member.classes)] if member.classes else logits_NCHW).float()
