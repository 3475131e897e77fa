"""What is done about rare classes: weights of pixels by class, and how often an image is visited in an epoch.

All of it follows from the pixels of each class in each training image. A class that no image shows has no weight.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

SamplingMethod = Literal["none", "class_balanced", "rare_class", "hard_class"]
SAMPLING_METHODS: tuple[SamplingMethod, ...] = get_args(SamplingMethod)
_VISITS_KEY = 0x5EED
"""Sets the generator of visits apart from others with the same seed and epoch."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingConfig:
    """Which images an epoch shows; it has as many visits as there are images. docs/training.md says which to use when.

    Sources: class_balanced: Shen et al., "Relay backpropagation", arXiv 1512.05830 (class-aware sampling). rare_class:
    Hoyer et al., DAFormer, arXiv 2111.14887, equations 3 and 4. hard_class: Chen et al., DeepLabV3, arXiv 1706.05587,
    section 4 (images with hard classes stand twice in the training set).
    """

    method: SamplingMethod = "none"
    """none: every image once. class_balanced: a class, all being equally likely, and then an image that shows it;
    rare_class: the same, rare classes being likelier; hard_class: images with one of `hard_classes` twice as often."""
    temperature: float = 0.01
    """rare_class: smaller takes the rarest classes more often; a large one is class_balanced. 0.01 in the paper."""
    min_pixels: int = 1
    """class_balanced, rare_class: pixels of a class that an image must have to stand for it; 3000 in DAFormer's code,
    for images of 1024 x 2048."""
    hard_classes: tuple[str, ...] = ()
    """hard_class: names of classes."""

    def __post_init__(self) -> None:
        if self.method not in SAMPLING_METHODS:
            raise ValueError(f"unknown sampling method {self.method!r}; known: {', '.join(SAMPLING_METHODS)}")
        if self.temperature <= 0 or self.min_pixels < 1:
            raise ValueError(
                f"temperature is {self.temperature} and min_pixels {self.min_pixels}; expected above 0, and 1 or more"
            )
        if bool(self.hard_classes) != (self.method == "hard_class"):
            raise ValueError(
                f"sampling method {self.method} with hard_classes {self.hard_classes}; hard_class needs names of "
                "classes, and no other method takes any"
            )


def median_frequency_weights(class_pixels_NC: NDArray[np.int64], image_pixels_N: NDArray[np.int64]) -> list[float]:
    """Weight of each class: the median of all frequencies over its own.

    The frequency of a class is the number of its pixels over the number of all pixels of the images that show it, so
    that a class that is large where it is, but seldom there, is no rare one. A class that no image shows gets 0.

    Source: Eigen and Fergus, arXiv 1411.4734 (median frequency balancing), which Badrinarayanan et al., SegNet, arXiv
    1511.00561, use. SegNet's released weights of CamVid do not follow from its released labels: most are within 20 % of
    ours, that of signs is 2.5 times as large.

    Args:
        class_pixels_NC: pixels of each class in each image.
        image_pixels_N: pixels of each image that count: labelled ones, or all.
    """
    present_NC = class_pixels_NC > 0
    around_C = (present_NC * image_pixels_N[:, None]).sum(axis=0)
    present_C = around_C > 0
    frequency_C = class_pixels_NC.sum(axis=0)[present_C] / around_C[present_C]
    weights_C = np.zeros(len(present_C))
    weights_C[present_C] = np.median(frequency_C) / frequency_C
    return [float(weight) for weight in weights_C]


def inverse_log_weights(class_pixels_C: NDArray[np.int64], *, offset: float = 1.02) -> list[float]:
    """Weight of each class: 1 / ln(offset + p), p its share of the labelled pixels of all images.

    With 1.02 weights lie between 1 / ln 2.02 = 1.4 and 1 / ln 1.02 = 50.5.

    Source: Paszke et al., ENet, arXiv 1606.02147, section 5.2.

    Args:
        class_pixels_C: pixels of each class; at least one of them is not 0.
        offset: above 1.
    """
    share_C = class_pixels_C / class_pixels_C.sum()
    return [float(weight) for weight in 1 / np.log(offset + share_C)]


def image_weights(
    class_pixels_NC: NDArray[np.int64], config: SamplingConfig, *, hard_indices: tuple[int, ...] = ()
) -> NDArray[np.float64]:
    """Share of an epoch's visits that each image shall have, on average: (N,), sum 1.

    rare_class: with f_c the share of class c in all labelled pixels, P(c) = exp((1 - f_c) / T) / sum over all classes,
    and a class's visits are spread evenly over the images that show it with `min_pixels` or more. Classes that no
    image shows so are left out of the sum. class_balanced has P(c) equal for all.

    Args:
        class_pixels_NC: pixels of each class in each image.
        config: any method but none.
        hard_indices: class indices of `config.hard_classes`.

    Raises:
        ValueError: no image shows any class with `min_pixels`, or none a hard class.
    """
    if config.method == "hard_class":
        hard_N = (class_pixels_NC[:, list(hard_indices)] > 0).any(axis=1)
        if not hard_N.any():
            raise ValueError(
                f"no training image shows {' or '.join(config.hard_classes)}; give other --sampling.hard-classes"
            )
        weights_N = 1.0 + hard_N
        return np.asarray(weights_N / weights_N.sum(), dtype=np.float64)
    shown_NC = class_pixels_NC >= config.min_pixels
    images_C = shown_NC.sum(axis=0)
    present_C = images_C > 0
    if not present_C.any():
        raise ValueError(
            f"no training image shows any class with {config.min_pixels} pixels; give a smaller --sampling.min-pixels"
        )
    chance_C = np.where(present_C, 1.0, 0.0)
    if config.method == "rare_class":
        share_C = class_pixels_NC.sum(axis=0) / class_pixels_NC.sum()
        exponent_C = (1 - share_C) / config.temperature
        chance_C *= np.exp(np.minimum(exponent_C - exponent_C[present_C].max(), 0))
    chance_C /= chance_C.sum()
    weights_N = shown_NC @ (chance_C / np.maximum(images_C, 1))
    return np.asarray(weights_N / weights_N.sum(), dtype=np.float64)


def visits_of_epoch(weights_N: NDArray[np.float64], *, seed: int, epoch: int) -> NDArray[np.int64]:
    """How often each image is visited in an epoch: (N,), sum N.

    Systematic sampling: N equally spaced marks with one random offset over the weights laid end to end, in a random
    order. An image gets N * weight visits on average, and in every epoch that number rounded up or down: independent
    draws would leave a third of equally weighted images out of each epoch.

    Args:
        weights_N: from `image_weights`.
        seed, epoch: all that the result depends on, beside the weights.
    """
    generator = np.random.default_rng([seed, epoch, _VISITS_KEY])
    order_N = generator.permutation(len(weights_N))
    ends_N = np.cumsum(weights_N[order_N]) * len(weights_N)
    ends_N[-1] = len(weights_N)  # the sum's rounding error must not cost a visit
    marks_N = np.ceil(np.minimum(ends_N, len(weights_N)) - generator.random()).astype(np.int64)
    visits_N = np.empty(len(weights_N), dtype=np.int64)
    visits_N[order_N] = np.diff(marks_N, prepend=0)
    return visits_N
