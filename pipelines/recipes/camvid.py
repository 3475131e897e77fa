"""Recipes on CamVid (SegNet's split: 367 training, 101 validation images of 360 x 480, 11 classes)."""

from pipelines.recipes.recipe import Recipe
from segcore.augment import AugmentConfig
from segcore.models import DeepLabV3PlusConfig, DUpsampleConfig, DUpsamplingConfig, ModelConfig
from segcore.optim import OptimConfig


def dupsampling_resnet50() -> Recipe:
    """DUpsampling on ResNet-50 at output stride 16, features of strides 2 and 16, 64 components.

    The network of Tian et al. (arXiv 1903.02120), table 2, last row: 74.20 % mIoU on VOC 2012 val; the paper has no
    CamVid. Give --weights timm (ImageNet) and a label PCA with block side 16. For one GPU: minutes.
    """
    return _on_gpu(
        DUpsamplingConfig(
            backbone="resnet50", output_stride=16, features=(2, 16), dupsample=DUpsampleConfig(num_components=64)
        )
    )


def deeplab_v3plus_resnet50() -> Recipe:
    """DeepLabV3+ on ResNet-50 at output stride 16.

    The network of Chen et al. (arXiv 1802.02611), which has no CamVid. Give --weights timm. For one GPU: minutes.
    """
    return _on_gpu(DeepLabV3PlusConfig(backbone="resnet50", output_stride=16))


def dupsampling_efficientnet_lite0() -> Recipe:
    """DUpsampling on EfficientNet-Lite0 at output stride 32.

    The comparison of Tian et al., table 1 (bilinear 70.77, DUpsampling 72.09 at output stride 32, ResNet-50, VOC 2012
    val), without low-level features as there, on a backbone that two CPU cores can train. Give ImageNet weights and a
    label PCA with block side 32.
    """
    return _on_cpu(
        DUpsamplingConfig(
            backbone="efficientnet_lite0", output_stride=32, features=(), dupsample=DUpsampleConfig(num_components=128)
        )
    )


def deeplab_v3plus_efficientnet_lite0() -> Recipe:
    """DeepLabV3+ on EfficientNet-Lite0 at output stride 32, with its decoder at stride 4. Give ImageNet weights."""
    return _on_cpu(DeepLabV3PlusConfig(backbone="efficientnet_lite0", output_stride=32))


def bilinear_efficientnet_lite0() -> Recipe:
    """DeepLabV3+ without the low-level branch on EfficientNet-Lite0: ASPP's scores upsampled bilinearly by 32.

    The "bilinear" row of Tian et al., table 1; the baseline of `dupsampling_efficientnet_lite0`. Give ImageNet weights.
    """
    return _on_cpu(DeepLabV3PlusConfig(backbone="efficientnet_lite0", output_stride=32, low_level_features=()))


def _on_gpu(model: ModelConfig) -> Recipe:
    """DeepLab's published settings, scaled to CamVid's size."""
    return Recipe(
        model=model,
        augment=AugmentConfig(crop_height=352, crop_width=480, brightness=0.3, contrast=0.3, saturation=0.3),
        optim=OptimConfig(optimiser="sgd", learning_rate=0.007, decoder_multiplier=10.0, weight_decay=1e-4),
        epochs=100,
        batch_size=16,
        precision="bfloat16",
        channels_last=True,
        validate_every=2,
    )


def _on_cpu(model: ModelConfig) -> Recipe:
    """What two cores can do in an hour."""
    return Recipe(
        model=model,
        augment=AugmentConfig(crop_height=320, crop_width=416, brightness=0.3, contrast=0.3, saturation=0.3),
        optim=OptimConfig(
            optimiser="adamw", learning_rate=2e-4, decoder_multiplier=5.0, weight_decay=0.01, warmup_steps=50
        ),
        epochs=30,
        batch_size=8,
        channels_last=True,  # a fifth less CPU time per step than NCHW with these depthwise convolutions
        validate_every=2,
    )
