"""Recipes on `scenes`, the generated street-like pictures of the demo: both decoders on one small backbone."""

from pipelines.recipes.recipe import Recipe
from segcore.augment_config import AugmentConfig
from segcore.models import DeepLabV3PlusConfig, DUpsampleConfig, DUpsamplingConfig, ModelConfig
from segcore.optim import OptimConfig


def dupsampling_mobilenetv3() -> Recipe:
    """DUpsampling on MobileNetV3-small at output stride 32: the demo's data-dependent decoder.

    No paper: generated data. Needs a label PCA with block side 32. About two minutes on two cores.
    """
    return _demo(
        DUpsamplingConfig(
            backbone="mobilenet_v3_small",
            output_stride=32,
            features=(),  # as the baseline: the two differ in the decoder alone
            dupsample=DUpsampleConfig(num_components=128),
            aspp_channels=128,
        )
    )


def deeplab_v3plus_mobilenetv3() -> Recipe:
    """DeepLabV3+ without its low-level branch on the same backbone, so bilinear upsampling by 32: the demo's baseline.

    No paper: generated data. About two minutes on two cores.
    """
    return _demo(
        DeepLabV3PlusConfig(backbone="mobilenet_v3_small", output_stride=32, aspp_channels=128, low_level_features=())
    )


def _demo(model: ModelConfig) -> Recipe:
    """What the two share: a comparison of decoders and nothing else. Random weights, since nothing is downloaded."""
    return Recipe(
        model=model,
        augment=AugmentConfig(
            crop_height=192, crop_width=256, scale_min=0.75, scale_max=1.5, brightness=0.2, contrast=0.2
        ),
        optim=OptimConfig(
            optimiser="adamw", learning_rate=2e-3, decoder_multiplier=1.0, weight_decay=0.01, warmup_steps=20
        ),
        epochs=12,
        batch_size=8,
        validate_every=4,
    )
