"""A prepared classification dataset that a tiny classifier can learn, and a recipe that does so in seconds."""

from pathlib import Path

from pipelines.datasets.class_folders import ClassFoldersConfig
from pipelines.prepare import PrepareConfig, prepare
from pipelines.recipes import Recipe
from segcore.augment_config import ClassificationAugmentConfig
from segcore.classifier import ClassifierConfig
from segcore.optim import OptimConfig
from tests.data.class_folders.make import make_class_folders


def prepare_class_folders(folder: Path, *, num_train: int = 16, num_val: int = 30) -> str:
    """Three classes in splits `train` and `val`, prepared on the session's Ray; returns the dataset's path."""
    root = make_class_folders(folder / "raw", num_train=num_train, num_val=num_val)
    config = PrepareConfig(
        dataset=ClassFoldersConfig(root=str(root)), output=str(folder / "prepared"), images_per_part=20
    )
    return prepare(config).uri


def tiny_classifier_recipe(*, epochs: int = 3, batch_size: int = 12) -> Recipe:
    """The smallest backbone on crops of 32 x 32 pixels."""
    return Recipe(
        model=ClassifierConfig(backbone="mobilenet_v3_small", batch_norm_momentum=0.5),
        augment=ClassificationAugmentConfig(
            crop_height=32, crop_width=32, validation_short_side_px=34, area_min=0.3, brightness=0.1
        ),
        optim=OptimConfig(optimiser="adamw", learning_rate=5e-3, decoder_multiplier=1.0),
        epochs=epochs,
        batch_size=batch_size,
        shuffle_buffer=16,
        seed=3,
    )
