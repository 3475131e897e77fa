"""Model folders with random weights, for benchmarks that need a network's work, not its opinion."""

from pathlib import Path

import torch

from pipelines.checkpoints import InputPolicy, ModelCard, save_model
from segcore.models import ModelConfig, build_model

NUM_CLASSES = 19
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
Triple = tuple[float, float, float]


def write_random_model(
    folder: Path,
    config: ModelConfig,
    *,
    height: int,
    width: int,
    num_classes: int = NUM_CLASSES,
    mean: Triple = MEAN,
    std: Triple = STD,
) -> str:
    """Write a network with random weights, the same in every call; returns the folder's path.

    Args:
        folder: to write.
        config: of the network.
        height, width: of the images that its card says it was trained on.
        num_classes: whose names are their numbers.
        mean, std: of its normalisation.
    """
    torch.manual_seed(0)
    card = ModelCard(
        model_config=config,
        class_names=tuple(f"class {index}" for index in range(num_classes)),
        palette=tuple((index, 2 * index, 3 * index) for index in range(num_classes)),
        mean=mean,
        std=std,
        dataset_digest="none: random weights",
        label_pca_digest=None,
        recipe={},
        scores={},
        input_policy=InputPolicy(image_height=height, image_width=width, crop_height=height, crop_width=width),
    )
    save_model(str(folder), build_model(config, num_classes), card)
    return str(folder)
