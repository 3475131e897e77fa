"""From where on the doctor speaks up."""

from dataclasses import dataclass

MAX_HASH_DISTANCE = 7
"""The search for near-duplicates finds every pair up to here; see `pipelines.health.hashing`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """Thresholds. The defaults leave CamVid and the generated scenes without error or warning; see docs/doctor.md."""

    max_void_share: float = 0.4
    """Share of all pixels without a label, from where on a dataset is reported."""
    max_image_void_share: float = 0.9
    """The same of a single image."""
    min_train_images: int = 5
    """A class in fewer training images is rare, where there are at least four times as many training images."""
    min_train_share: float = 1e-5
    """A class with a smaller share of the labelled training pixels is rare."""
    min_brightness: float = 0.05
    """Mean brightness, 0 to 1, below which an image is dark."""
    max_brightness: float = 0.95
    """Mean brightness above which an image is blown out."""
    brightness_deviations: float = 6.0
    """Robust standard deviations from the median brightness, from where on an image stands out."""
    min_contrast: float = 0.004
    """Standard deviation of the brightness, below which an image shows nothing."""
    area_ratio: float = 16.0
    """An image so many times larger or smaller than the median stands out."""
    aspect_ratio: float = 3.0
    """An image so many times longer, beside its width, than the median stands out; or wider."""
    hash_distance: int = 6
    """Bits, of 64, in which the perceptual hashes of near-duplicates differ at most; 0 to 7."""
    min_likeness: float = 0.95
    """Correlation of the brightness at 16 x 16 points that two near-duplicates have at least."""
    max_constant_share: float = 0.2
    """Share of images whose label is one single value, from where on that is a warning."""

    def __post_init__(self) -> None:
        """Refuse limits outside their range."""
        for name in ("max_void_share", "max_image_void_share", "min_train_share", "min_brightness", "max_brightness",
                     "min_contrast", "min_likeness", "max_constant_share"):  # fmt: skip
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"--{name.replace('_', '-')} is {getattr(self, name)}, expected 0 to 1")
        for name in ("area_ratio", "aspect_ratio"):
            if getattr(self, name) <= 1:
                raise ValueError(f"--{name.replace('_', '-')} is {getattr(self, name)}, expected above 1")
        if self.brightness_deviations <= 0 or self.min_train_images < 0:
            raise ValueError(
                f"--brightness-deviations is {self.brightness_deviations} and --min-train-images "
                f"{self.min_train_images}, expected above 0 and at least 0"
            )
        if not 0 <= self.hash_distance <= MAX_HASH_DISTANCE:
            raise ValueError(f"--hash-distance is {self.hash_distance}, expected 0 to {MAX_HASH_DISTANCE}")
