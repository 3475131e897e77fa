"""Recipes on CamVid (SegNet's split: 367 training, 101 validation, 233 test images of 360 x 480, 11 classes).

`dilated_context_vgg16`, `enet`, `unet`, `dfanet_...`, `icnet` and `bisenet_...` are the papers'
(`pipelines.recipes.published`). The last three are for images of 720 x 960, which SegNet's copy does not have: prepare
those with `jobs/prepare.py folder`. `table...` are the rows of tables 1 to 3 of Tian et al. (arXiv 1903.02120) in
small: see the comment above them. One small recipe of each network: `pipelines.recipes.small_camvid`.
"""

from dataclasses import replace

from pipelines.recipes import published
from pipelines.recipes.dupsampling_tables import bilinear, proposed, vanilla
from pipelines.recipes.recipe import Recipe
from segcore.augment_config import AugmentConfig
from segcore.inference import InferenceConfig
from segcore.models import (
    DeepLabV3PlusConfig,
    DilatedContextConfig,
    DUpsampleConfig,
    DUpsamplingConfig,
    ENetConfig,
    ICNetConfig,
    ModelConfig,
    UNetConfig,
)
from segcore.optim import OptimConfig

LITE = "efficientnet_lite0"


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
    return on_cpu(
        DUpsamplingConfig(
            backbone="efficientnet_lite0", output_stride=32, features=(), dupsample=DUpsampleConfig(num_components=128)
        )
    )


def deeplab_v3plus_efficientnet_lite0() -> Recipe:
    """DeepLabV3+ on EfficientNet-Lite0 at output stride 32, with its decoder at stride 4.

    The network of Chen et al. (arXiv 1802.02611), which has no CamVid. Give ImageNet weights.
    """
    return on_cpu(DeepLabV3PlusConfig(backbone="efficientnet_lite0", output_stride=32))


def bilinear_efficientnet_lite0() -> Recipe:
    """DeepLabV3+ without the low-level branch on EfficientNet-Lite0: ASPP's scores upsampled bilinearly by 32.

    The "bilinear" row of Tian et al., table 1; the baseline of `dupsampling_efficientnet_lite0`. Give ImageNet weights.
    """
    return on_cpu(DeepLabV3PlusConfig(backbone="efficientnet_lite0", output_stride=32, low_level_features=()))


def dilated_context_vgg16() -> Recipe:
    """Dilated front end with the basic context module of 8 layers, "Dilation8": 65.3 % mIoU on the test set.

    Yu and Koltun, arXiv 1511.07122, appendix (score from public benchmark pages). For hundreds of images the released
    code's notes train front end and context module together from the identity, as here. Whole images; the rest of the
    settings on CamVid is not known to us: 400 epochs of 45 steps are ours. Give --weights timm. 526.6 G multiply-adds
    a crop.
    """
    return published.dilated(
        DilatedContextConfig(), crop_height=360, crop_width=480, epochs=400, batch_size=8, momentum=0.9
    )


def unet() -> Recipe:
    """U-Net without padding, trained as on cells: no published score on CamVid.

    Ronneberger et al., arXiv 1505.04597: weight 10 and deviation 5 px of the borders between objects, here connected
    parts of a class; elastic deformation of 10 px; from memory: single tiles, momentum 0.99. Crops of 356 x 468, whose
    tiles are 540 x 652. Rate, weight decay and 200 epochs are ours. 164.8 G multiply-adds a crop.
    """
    return Recipe(
        model=UNetConfig(border_weight=10.0),
        augment=AugmentConfig(crop_height=356, crop_width=468, scale_min=1.0, scale_max=1.0, elastic_px=10.0),
        optim=OptimConfig(
            optimiser="sgd", learning_rate=1e-4, decoder_multiplier=1.0, weight_decay=5e-4, momentum=0.99
        ),
        epochs=200,
        batch_size=1,
        precision="bfloat16",
        channels_last=True,
        validate_every=10,
    )


def dfanet_a() -> Recipe:
    """DFANet A on Xception A: 64.7 % mIoU on the test set, images of 720 x 960 (score from public benchmark pages).

    Li et al., arXiv 1904.02216, its CamVid table. Give --weights of `imagenet.dfanet_xception_a`. The settings are
    those on Cityscapes, 800 epochs of 7 steps are ours. 2.39 G multiply-adds a crop.
    """
    return published.dfanet("dfanet_xception_a", crop_height=720, crop_width=960, epochs=800)


def dfanet_b() -> Recipe:
    """DFANet B on Xception B: 59.3 % mIoU on the test set, images of 720 x 960 (from memory of the paper, not checked).

    As `dfanet_a`, with --weights of `imagenet.dfanet_xception_b`. 1.43 G multiply-adds a crop.
    """
    return published.dfanet("dfanet_xception_b", crop_height=720, crop_width=960, epochs=800)


def enet_encoder() -> Recipe:
    """ENet's encoder with a 1x1 classifier: no published score; the first half of `enet`.

    Paszke et al., arXiv 1606.02147. Settings as `enet`. 1.00 G multiply-adds a crop.
    """
    return published.enet(ENetConfig(stage="encoder"), height=360, width=480, epochs=300)


def enet() -> Recipe:
    """ENet: 51.3 % mIoU on the test set. Give --start-from of `enet_encoder`.

    Paszke et al., arXiv 1606.02147, table of CamVid results. Whole images of 360 x 480, the released code's; 300 epochs
    of 36 steps are its default. 1.28 G multiply-adds a crop.
    """
    return published.enet(ENetConfig(), height=360, width=480, epochs=300)


def icnet() -> Recipe:
    """ICNet: 67.1 % mIoU on the test set, images of 720 x 960 (score from memory of the paper).

    Zhao et al., arXiv 1704.08545, its CamVid table. Whole images; the settings are those on Cityscapes, 400 epochs
    of 22 steps are ours. 9.57 G multiply-adds a crop.
    """
    return published.icnet(ICNetConfig(), crop_height=720, crop_width=960, epochs=400)


def bisenet_xception39() -> Recipe:
    """BiSeNet on Xception39: 65.6 % mIoU on the test set, images of 720 x 960 (score from memory of the paper).

    Yu et al., arXiv 1808.00897, its CamVid table, trained on train and val. Give --weights of `imagenet.xception39`.
    The settings are those on Cityscapes, 800 epochs of 22 steps are ours. 9.15 G multiply-adds a crop.
    """
    return _bisenet("xception39", epochs=800)


def bisenet_resnet18() -> Recipe:
    """BiSeNet on ResNet-18: 68.7 % mIoU on the test set, images of 720 x 960 (score from memory of the paper).

    As `bisenet_xception39`, with --weights timm and 400 epochs of 22 steps. 34.32 G multiply-adds a crop.
    """
    return _bisenet("resnet18", epochs=400)


def _bisenet(backbone: str, *, epochs: int) -> Recipe:
    return published.bisenet(
        backbone, crop_height=720, crop_width=960, epochs=epochs, scale_min=0.75, inference=InferenceConfig()
    )


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


def on_cpu(model: ModelConfig) -> Recipe:
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
    recipe = on_cpu(model)
    return replace(recipe, augment=replace(recipe.augment, crop_height=256, crop_width=320), epochs=10)
