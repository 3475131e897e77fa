"""What is run: one complete, frozen description of a training."""

from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, Literal

import tyro

from segcore import Task
from segcore.augment_config import AugmentConfig, ClassificationAugmentConfig
from segcore.class_balance import SamplingConfig
from segcore.classifier import ClassifierConfig
from segcore.copy_paste import CopyPasteConfig
from segcore.inference import InferenceConfig, inference_to_dict
from segcore.models.main_loss import LossConfig
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
    loss: LossConfig = field(default_factory=LossConfig)
    """What is minimised, beside auxiliary terms that the network adds itself."""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    """Which images an epoch shows how often."""
    copy_paste: CopyPasteConfig = field(default_factory=CopyPasteConfig)
    """Pixels of rare classes pasted from other images."""
    accumulation: int = 1
    """Parts into which each worker cuts its share of a batch, to go through the network one after the other before the
    optimiser's step: less memory for the same batch_size. Batch normalisation, OHEM, class weights, Dice and Lovasz see
    one part at a time."""
    ema_decay: float = 0.0
    """Exponential moving average of the weights, for example 0.999, which is validated and becomes the model; with
    timm's warm-up (`segcore.weight_average`). Polyak and Juditsky 1992, Tarvainen and Valpola 2017 (arXiv 1703.01780,
    section 2). 0: off."""
    patience: int = 0
    """Stop after so many validations in a row without a better score (Prechelt, "Early stopping - but when?", 1998);
    the learning rate falls as if all epochs came. 0: all epochs."""
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
    batch_norm_batches: int = 0
    """Training batches, at most an epoch's, from which means and variances of batch normalisation are computed anew
    after the last epoch, before its validation; 0 keeps their running averages."""
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
        for name in ("epochs", "batch_size", "validate_every", "keep_checkpoints", "shuffle_buffer", "accumulation"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be 1 or more")
        if self.batch_norm_batches < 0:
            raise ValueError(f"batch_norm_batches is {self.batch_norm_batches}; it must not be negative")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay is {self.ema_decay}; give 0 (off) or a number below 1, such as 0.999")
        if self.patience < 0:
            raise ValueError(f"patience is {self.patience}; give 0 (all epochs) or a number of validations")
        if self.patience and self.batch_norm_batches:
            raise ValueError(
                f"patience {self.patience} and batch_norm_batches {self.batch_norm_batches} exclude each other: only "
                "the validation that it ends with says which epoch is the last; give one of them"
            )
        if self.precision not in ("float32", "bfloat16"):
            raise ValueError(f"unknown precision {self.precision!r}; known: float32, bfloat16")
        if isinstance(self.augment, ClassificationAugmentConfig) != (self.task == "classification"):
            raise ValueError(
                f"the network is for {self.task} and the augmentation a {type(self.augment).__name__}; give a "
                "classifier a ClassificationAugmentConfig, and every other network an AugmentConfig"
            )

        self._check_what_labels_are_for()

    def _check_what_labels_are_for(self) -> None:
        """Refuse what needs label maps in a classifier's recipe, and a loss that the network has no place for."""
        defaults = {"loss": LossConfig(), "sampling": SamplingConfig(), "copy_paste": CopyPasteConfig()}
        changed = [name for name, default in defaults.items() if getattr(self, name) != default]
        if not changed:
            return
        if isinstance(self.model, ClassifierConfig):
            raise ValueError(
                f"{' and '.join(changed)} is set and the network is an image classifier; these need label maps, "
                "so leave them as they are"
            )
        without = self.model.decoder == "dupsample" and self.model.dupsample.cross_entropy_weight == 0
        if "loss" in changed and without:
            raise ValueError(
                "loss is set and the decoder's cross_entropy_weight is 0, so that nothing is learned from scores; "
                "give --model.dupsample.cross-entropy-weight 1, or leave the loss as it is"
            )

    @property
    def samples(self) -> bool:
        """Whether an epoch visits some images more often than others."""
        return self.sampling.method != "none"

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
