"""Recipes on crops of label maps (`jobs/prepare.py label_crops`): pre-training in small, where there is no ImageNet.

For crops of 64 x 64 px of CamVid, of the generated scenes, or of your own data: minutes on two CPU cores. The settings
are ours; the segmentation recipe on the same backbone then takes `--weights OUTPUT/NAME/model`.
"""

from pipelines.recipes.recipe import Recipe
from segcore.augment_config import ClassificationAugmentConfig
from segcore.classifier import ClassifierConfig
from segcore.optim import OptimConfig


def mobilenet_v3_small() -> Recipe:
    """MobileNetV3-small on crops of label maps, for the recipes `scenes...mobilenetv3`.

    No paper: pre-training in small. 5 M multiply-adds a crop; about two minutes for 8000 crops on two cores.
    """
    return _on_cpu("mobilenet_v3_small")


def efficientnet_lite0() -> Recipe:
    """EfficientNet-Lite0 on crops of label maps, for the recipes `camvid...efficientnet_lite0` without ImageNet.

    No paper: pre-training in small. 30 M multiply-adds a crop; some minutes for 8000 crops on two cores.
    """
    return _on_cpu("efficientnet_lite0")


def dfanet_xception_b() -> Recipe:
    """Xception B on crops of label maps, for the recipes of DFANet B without ImageNet.

    The segmentation recipe needs `--model.classifier-classes` of as many classes as the crops have. No paper:
    pre-training in small.
    """
    return _on_cpu("dfanet_xception_b")


def _on_cpu(backbone: str) -> Recipe:
    """What two cores can do in minutes. A crop is small already, so that windows keep a third of it at least."""
    return Recipe(
        model=ClassifierConfig(backbone=backbone),
        augment=ClassificationAugmentConfig(
            crop_height=64,
            crop_width=64,
            validation_short_side_px=64,
            area_min=0.35,
            brightness=0.3,
            contrast=0.3,
            saturation=0.3,
        ),
        optim=OptimConfig(
            optimiser="adamw", learning_rate=2e-3, decoder_multiplier=1.0, weight_decay=0.01, warmup_steps=20
        ),
        epochs=15,
        batch_size=64,
        channels_last=True,
        shuffle_buffer=2048,
    )
