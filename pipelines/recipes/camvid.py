"""Recipes on CamVid (SegNet's split: 367 training, 101 validation images of 360 x 480, 11 classes).

`table...` are the rows of tables 1 to 3 of Tian et al. (arXiv 1903.02120) in small: see the comment above them.
"""

from dataclasses import replace

from pipelines.recipes.dupsampling_tables import bilinear, proposed, vanilla
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


# The rows of the paper's tables: minutes each on two CPU cores, 450 steps, with --weights a file of ImageNet weights of
# EfficientNet-Lite0, which stands in for either backbone: what is compared is the decoder. The paper's figures are
# VOC's; it has no CamVid. Rows with data-dependent upsampling need a label PCA with the output stride as block side and
# 128 components.
LITE = "efficientnet_lite0"


def table1_bilinear_os32() -> Recipe:
    """Table 1, bilinear, output stride 32 (VOC: 70.77 % mIoU, mIoU* 94.80), on EfficientNet-Lite0.

    Decoder FLOPs are not published. 0.6 G multiply-adds a crop; minutes on two cores.
    """
    return _table_row(bilinear(LITE, output_stride=32))


def table1_dupsampling_os32() -> Recipe:
    """Table 1, DUpsampling, output stride 32 (VOC: 72.09 % mIoU, mIoU* 99.90), on EfficientNet-Lite0.

    Label PCA: block side 32. Decoder FLOPs are not published. 0.8 G multiply-adds a crop; minutes on two cores.
    """
    return _table_row(proposed(LITE, num_components=128, output_stride=32))


def table1_bilinear_os16() -> Recipe:
    """Table 1, bilinear, output stride 16 (VOC: 72.15 % mIoU, mIoU* 98.40), on EfficientNet-Lite0.

    Decoder FLOPs are not published. 1.3 G multiply-adds a crop; minutes on two cores.
    """
    return _table_row(bilinear(LITE, output_stride=16))


def table1_dupsampling_os16() -> Recipe:
    """Table 1, DUpsampling, output stride 16 (VOC: 73.15 % mIoU, mIoU* 99.95), on EfficientNet-Lite0.

    Label PCA: block side 16. Decoder FLOPs on ResNet-50 0.80 B. 1.5 G multiply-adds a crop; minutes on two cores.
    """
    return _table_row(_proposed())


def table2_none() -> Recipe:
    """Table 2, no low-level feature (VOC: 73.15 % mIoU, decoder FLOPs 0.80 B), on EfficientNet-Lite0.

    The same network as `table1_dupsampling_os16`: one run serves both.
    """
    return _table_row(_proposed())


def table2_conv1_3() -> Recipe:
    """Table 2, conv1_3 (stride 2) (VOC: 72.70 % mIoU, decoder FLOPs 1.13 B), on EfficientNet-Lite0.

    Label PCA: block side 16. 1.5 G multiply-adds a crop; minutes on two cores.
    """
    return _table_row(_proposed(2))


def table2_b1u2c3() -> Recipe:
    """Table 2, b1u2c3 (stride 4) (VOC: 74.03 % mIoU, decoder FLOPs 1.15 B), on EfficientNet-Lite0.

    Label PCA: block side 16. 1.5 G multiply-adds a crop; minutes on two cores.
    """
    return _table_row(_proposed(4))


def table2_b3u6c3() -> Recipe:
    """Table 2, b3u6c3 (stride 16) (VOC: 73.43 % mIoU, decoder FLOPs 1.23 B), on EfficientNet-Lite0.

    Label PCA: block side 16. 1.5 G multiply-adds a crop; minutes on two cores.
    """
    return _table_row(_proposed(16))


def table2_b1u2c3_b3u6c3() -> Recipe:
    """Table 2, b1u2c3 + b3u6c3 (strides 4, 16) (VOC: 73.82 % mIoU, decoder FLOPs 1.58 B), on EfficientNet-Lite0.

    Label PCA: block side 16. 1.5 G multiply-adds a crop; minutes on two cores.
    """
    return _table_row(_proposed(4, 16))


def table2_conv1_3_b3u6c3() -> Recipe:
    """Table 2, conv1_3 + b3u6c3 (strides 2, 16) (VOC: 74.20 % mIoU, decoder FLOPs 1.56 B), on EfficientNet-Lite0.

    Label PCA: block side 16. 1.5 G multiply-adds a crop; minutes on two cores.
    """
    return _table_row(_proposed(2, 16))


def table3_resnet50_vanilla_4() -> Recipe:
    """Table 3, vanilla decoder, b1u2c3 (stride 4) (VOC: 73.26 % mIoU, decoder FLOPs 5.53 B), on EfficientNet-Lite0.

    2.1 G multiply-adds a crop; minutes on two cores.
    """
    return _table_row(vanilla(LITE, 4))


def table3_resnet50_vanilla_2_16() -> Recipe:
    """Table 3, vanilla decoder, strides 2 and 16 (VOC: out of memory, decoder FLOPs 22.34 B), on EfficientNet-Lite0.

    7.5 G multiply-adds a crop: five times the work of the other rows.
    """
    return _table_row(vanilla(LITE, 2, 16))


def table3_resnet50_proposed_4() -> Recipe:
    """Table 3, proposed decoder, b1u2c3 (stride 4) (VOC: 74.03 % mIoU, decoder FLOPs 1.15 B), on EfficientNet-Lite0.

    The same network as `table2_b1u2c3`: one run serves both.
    """
    return _table_row(_proposed(4))


def table3_xception65_vanilla_4() -> Recipe:
    """Table 3, Xception-65's row vanilla, stride 4 (VOC: 78.70 % mIoU, 5.53 B), here on EfficientNet-Lite0 too.

    The same network as `table3_resnet50_vanilla_4`: one run serves both.
    """
    return _table_row(vanilla(LITE, 4))


def table3_xception65_proposed_4() -> Recipe:
    """Table 3, Xception-65's row proposed, stride 4 (VOC: 79.09 % mIoU, 1.93 B), here on EfficientNet-Lite0 too.

    The same network as `table2_b1u2c3`: one run serves both.
    """
    return _table_row(_proposed(4))


def table3_xception65_vanilla_16() -> Recipe:
    """Table 3, Xception-65's row vanilla, stride 16 (VOC: 78.74 % mIoU, 0.41 B), here on EfficientNet-Lite0.

    1.4 G multiply-adds a crop; minutes on two cores.
    """
    return _table_row(vanilla(LITE, 16))


def table3_xception65_proposed_16() -> Recipe:
    """Table 3, Xception-65's row proposed, stride 16 (VOC: 79.67 % mIoU, 1.98 B), here on EfficientNet-Lite0.

    The same network as `table2_b3u6c3`: one run serves both.
    """
    return _table_row(_proposed(16))


def _proposed(*features: int) -> DUpsamplingConfig:
    """The proposed decoder at output stride 16."""
    return proposed(LITE, *features, num_components=128)


def _table_row(model: ModelConfig) -> Recipe:
    """What two cores can do in minutes: smaller crops, fewer epochs."""
    recipe = _on_cpu(model)
    return replace(recipe, augment=replace(recipe.augment, crop_height=256, crop_width=320), epochs=10)
