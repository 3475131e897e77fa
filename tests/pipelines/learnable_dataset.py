"""A prepared dataset that a tiny network can learn, and a recipe that does so in seconds."""

from pathlib import Path

from pipelines import storage
from pipelines.manifests import MANIFEST
from pipelines.recipes import Recipe
from segcore.augment_config import AugmentConfig
from segcore.models import DeepLabV3PlusConfig
from segcore.optim import OptimConfig
from tests.pipelines.tiny_inputs import random_pairs, write_dataset

NUM_TRAIN, NUM_VAL, IMAGES_PER_PART = 38, 9, 8


def write_learnable_dataset(folder: Path) -> str:
    """Splits `train` (38 images, 5 parts) and `val` (9 images of two sizes, 2 parts); returns the folder's path."""
    splits = []
    sizes = ((48, 64), (64, 48))
    for split, count in (("train", NUM_TRAIN), ("val", NUM_VAL)):
        pairs = random_pairs(count, seed=len(split), sizes=sizes)
        write_dataset(folder, pairs, images_per_part=IMAGES_PER_PART, split=split)
        manifest = storage.read_json(str(folder / MANIFEST))
        splits += manifest["splits"]
    storage.write_atomic(str(folder / MANIFEST), storage.json_bytes(manifest | {"splits": splits}))
    return str(folder)


def tiny_recipe(*, epochs: int = 4, batch_size: int = 8) -> Recipe:
    """DeepLabV3+ on the smallest backbone, without its decoder."""
    return Recipe(
        model=DeepLabV3PlusConfig(
            backbone="mobilenet_v3_small",
            output_stride=32,
            aspp_channels=16,
            low_level_features=(),
            decoder_channels=16,
            batch_norm_momentum=0.5,
        ),
        augment=AugmentConfig(crop_height=64, crop_width=64, scale_min=0.75, scale_max=1.5),
        optim=OptimConfig(optimiser="adamw", learning_rate=2e-2, decoder_multiplier=1.0),
        epochs=epochs,
        batch_size=batch_size,
        shuffle_buffer=16,
        seed=3,
    )
