"""What is run: one complete, frozen description of a training."""

from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, Literal

import tyro

from segcore import Task
from segcore.augment import AugmentConfig, ClassificationAugmentConfig
from segcore.inference import InferenceConfig, inference_to_dict
from segcore.networks import NetworkConfig, network_to_dict, task_of
from segcore.optim import OptimConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """A training, but for where its data, weights and machines are. One function per recipe returns one of these."""

    model: NetworkConfig
    """The network."""
    augment: AugmentConfig | ClassificationAugmentConfig
    """Random scale, crop, flip and colour; the second where the network is a classifier."""
    optim: OptimConfig
    """Optimiser and learning rate schedule."""
    epochs: int
    """Visits of every training image."""
    batch_size: int
    """Images per optimiser step, over all workers together."""
    seed: int = 0
    """Of initial weights, order of images, augmentation and dropout."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of activations; bfloat16 is autocast, with float32 weights and losses."""
    compile: bool = False
    """torch.compile the network: minutes of start-up, for long runs on GPUs."""
    channels_last: bool = False
    """NHWC memory layout: faster with bfloat16 on GPUs, and on some CPUs."""
    sync_batch_norm: bool = True
    """Batch statistics over all GPUs; on CPU workers, which PyTorch does not support, they are per worker."""
    validate_every: int = 1
    """Epochs between validations; the last epoch is always validated."""
    keep_checkpoints: int = 1
    """Checkpoints kept, the best by validation mIoU (of a classifier: top-1 accuracy); the latest is always kept too,
    to resume from."""
    shuffle_buffer: int = 256
    """Encoded images that each worker shuffles at a time, beside the shuffled order of the shards."""
    inference: InferenceConfig = field(default_factory=InferenceConfig)
    """How evaluate and segment show images to the trained network under --recipe-inference: windows, scales, mirror
    images, output stride, CRF. Validation during training always takes whole images at one scale."""
    recipe_name: Annotated[str, tyro.conf.Fixed, tyro.conf.Suppress] = ""
    """Key of RECIPES that a run started from, whatever flags then changed: no flag itself; "" for none of them."""

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "validate_every", "keep_checkpoints", "shuffle_buffer"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be 1 or more")
        if self.precision not in ("float32", "bfloat16"):
            raise ValueError(f"unknown precision {self.precision!r}; known: float32, bfloat16")
        if isinstance(self.augment, ClassificationAugmentConfig) != (self.task == "classification"):
            raise ValueError(
                f"the network is for {self.task} and the augmentation a {type(self.augment).__name__}; give a "
                "classifier a ClassificationAugmentConfig, and every other network an AugmentConfig"
            )

    @property
    def task(self) -> Task:
        """What the network says of an image: its data must be prepared for it."""
        return task_of(self.model)

    def steps_per_epoch(self, *, num_images: int, num_workers: int) -> int:
        """Optimiser steps of one epoch, the same on every worker; the last images, which fill no batch, are left out.

        Raises:
            ValueError: the batch does not divide among the workers, or there are fewer images than one batch holds.
        """
        if self.batch_size % num_workers:
            raise ValueError(
                f"batch_size {self.batch_size} does not divide among {num_workers} workers; "
                f"give --batch-size a multiple of {num_workers}, or other --workers"
            )
        steps = num_images // num_workers // (self.batch_size // num_workers)
        if steps == 0:
            raise ValueError(
                f"{num_images} training images do not fill one batch of {self.batch_size} over {num_workers} workers; "
                "give a smaller --batch-size, fewer --workers or more images"
            )
        return steps


def recipe_to_dict(recipe: Recipe) -> dict[str, Any]:
    """The recipe as nested JSON values, to store with a run and to compare with another start of it."""
    return asdict(recipe) | {"model": network_to_dict(recipe.model), "inference": inference_to_dict(recipe.inference)}
