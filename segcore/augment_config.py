"""What varies between two visits of a training image. Apart from `segcore.augment`, which imports torchvision: a second
and a half that a job need not spend in order to read a recipe.
"""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class AugmentConfig:
    """What varies between two visits of one image.

    Source: Chen et al., "DeepLabv3+" (arXiv 1802.02611), section 4: scales 0.5 to 2, left-right flips, fixed crop; its
    code: scales in steps of 0.25. Rotation and blur: Zhao et al., PSPNet (arXiv 1612.01105), section 5.1. Zooms
    relative to a longer side: PyTorch-Encoding's data sets. Elastic deformation: Ronneberger et al., U-Net (arXiv
    1505.04597), section 3.1.
    """

    crop_height: int
    """Rows of the training crop, in pixels."""
    crop_width: int
    """Columns of the training crop, in pixels."""
    scale_min: float = 0.5
    """Smallest random zoom of the image; 1 keeps its size."""
    scale_max: float = 2.0
    """Largest random zoom of the image."""
    scale_step: float = 0.0
    """Distance of the zooms that are drawn from, beginning with the smallest; 0 draws any."""
    long_side_px: int = 0
    """The image's longer side at zoom 1, in pixels; 0 takes every image at its own size."""
    rotation_degrees: float = 0.0
    """Rotate one image in two by an angle from -x to x around its centre; what comes from beyond it is ignored."""
    elastic_px: float = 0.0
    """Deform every image smoothly: standard deviation, in the image's own pixels, of random displacements on a grid of
    3 x 3 points, interpolated bicubically; what comes from beyond the image is ignored. 10 in U-Net's paper; 0: off."""
    flip: bool = True
    """Mirror left-right with probability one half."""
    blur: bool = False
    """Blur one image in two: Gaussian, 5 x 5 pixels of the crop, deviation 1.1."""
    brightness: float = 0.0
    """Brightness factor is drawn from 1 - x to 1 + x; 0 leaves it."""
    contrast: float = 0.0
    """Contrast factor, likewise."""
    saturation: float = 0.0
    """Saturation factor, likewise."""
    hue: float = 0.0
    """Hue shift is drawn from -x to x, in turns of the colour wheel; at most 0.5."""

    def __post_init__(self) -> None:
        if self.crop_height < 1 or self.crop_width < 1:
            raise ValueError(f"the crop is {self.crop_height} x {self.crop_width} pixels; both sides must be 1 or more")
        if not 0 < self.scale_min <= self.scale_max:
            raise ValueError(f"scales run from {self.scale_min} to {self.scale_max}; give 0 < scale_min <= scale_max")
        if self.scale_step < 0 or self.long_side_px < 0:
            raise ValueError(
                f"scale_step is {self.scale_step} and long_side_px {self.long_side_px}; neither may be negative"
            )
        if not 0 <= self.rotation_degrees <= 180:
            raise ValueError(f"rotation_degrees is {self.rotation_degrees}; give 0 (off) to 180")
        if self.elastic_px < 0:
            raise ValueError(f"elastic_px is {self.elastic_px}; give 0 (off) or more")
        _check_colours(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassificationAugmentConfig:
    """What varies between two visits of one image that is classified as a whole, and how it is shown in validation.

    Source: Szegedy et al., "Going deeper with convolutions", arXiv 1409.4842, section 6: a window of 8 % to 100 % of
    the image, aspect ratio 3/4 to 4/3. Validation, as in most papers: the centre of the resized image.
    """

    crop_height: int
    """Rows of the network's input, in pixels."""
    crop_width: int
    """Columns of the network's input, in pixels."""
    validation_short_side_px: int
    """In validation the image is resized to this shorter side, and its centre is cut out."""
    area_min: float = 0.08
    """Smallest random window, as a share of the image's area."""
    area_max: float = 1.0
    """Largest random window, likewise."""
    ratio_min: float = 3 / 4
    """Smallest width / height of the random window, which is then resized to the crop."""
    ratio_max: float = 4 / 3
    """Largest width / height, likewise."""
    flip: bool = True
    """Mirror left-right with probability one half."""
    brightness: float = 0.0
    """Brightness factor is drawn from 1 - x to 1 + x; 0 leaves it."""
    contrast: float = 0.0
    """Contrast factor, likewise."""
    saturation: float = 0.0
    """Saturation factor, likewise."""
    hue: float = 0.0
    """Hue shift is drawn from -x to x, in turns of the colour wheel; at most 0.5."""

    def __post_init__(self) -> None:
        if self.crop_height < 1 or self.crop_width < 1:
            raise ValueError(f"the crop is {self.crop_height} x {self.crop_width} pixels; both sides must be 1 or more")
        if self.validation_short_side_px < max(self.crop_height, self.crop_width):
            raise ValueError(
                f"validation_short_side_px is {self.validation_short_side_px}, less than the crop's "
                f"{self.crop_height} x {self.crop_width} pixels; give at least {max(self.crop_height, self.crop_width)}"
            )
        if not 0 < self.area_min <= self.area_max <= 1:
            raise ValueError(f"areas run from {self.area_min} to {self.area_max}; give 0 < area_min <= area_max <= 1")
        if not 0 < self.ratio_min <= self.ratio_max:
            raise ValueError(f"ratios run from {self.ratio_min} to {self.ratio_max}; give 0 < ratio_min <= ratio_max")
        _check_colours(self)


def _check_colours(config: AugmentConfig | ClassificationAugmentConfig) -> None:
    for name in ("brightness", "contrast", "saturation"):
        if not 0 <= getattr(config, name) <= 1:
            raise ValueError(f"{name} is {getattr(config, name)}; give 0 (off) to 1")
    if not 0 <= config.hue <= 0.5:
        raise ValueError(f"hue is {config.hue}; give 0 (off) to 0.5 (any colour)")
