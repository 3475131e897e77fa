"""Recipes on CamVid in small, one of each network: minutes on two cores; what came out stands in docs/log.md.

All have equal augmentation and, but for two, optimiser, so that they can be laid side by side. They are ours: no paper
has them.
SegNet's and DeconvNet's are in `pipelines.recipes.unpooling_camvid`.
"""

from dataclasses import replace

from pipelines.recipes.camvid import on_cpu
from pipelines.recipes.recipe import Recipe
from segcore.models import (
    BackboneUNetConfig,
    BiSeNetConfig,
    DeepLabV1Config,
    DeepLabV2Config,
    DeepLabV3Config,
    DFANetConfig,
    DilatedContextConfig,
    EncNetConfig,
    ENetConfig,
    ESPNetConfig,
    FCNConfig,
    ICNetConfig,
    ModelConfig,
    PSPNetConfig,
    RefineNetConfig,
    UNetConfig,
)

LITE = "efficientnet_lite0"
CROP_CLASSES = 10
"""Of `prepare.py label_crops` on CamVid with its defaults: no crop of 64 x 64 pixels shows mostly the class Pole."""


def small(model: ModelConfig) -> Recipe:
    """`on_cpu` with smaller crops, for six epochs of 45 steps."""
    recipe = on_cpu(model)
    return replace(recipe, augment=replace(recipe.augment, crop_height=192, crop_width=256), epochs=6)


def small_deeplab_v1() -> Recipe:
    """DeepLab V1 in small: VGG-16 with batch normalisation, fc6 and fc7 of 256 channels, crops of 96 x 128. Ours.

    The network of Chen et al. (arXiv 1412.7062), which has no CamVid. Batch normalisation lets VGG learn from random
    weights too. Minutes on two cores, figures in docs/log.md. 4.9 G multiply-adds a crop.
    """
    recipe = small(DeepLabV1Config(backbone="vgg16_bn", channels=256))
    return replace(recipe, augment=replace(recipe.augment, crop_height=96, crop_width=128))


def small_deeplab_v2() -> Recipe:
    """DeepLab V2 in small: EfficientNet-Lite0 at stride 16, three sizes. Ours.

    The network of Chen et al. (arXiv 1606.00915), which has no CamVid. Give ImageNet weights. Minutes on two cores,
    figures in docs/log.md. 1.2 G multiply-adds a crop.
    """
    return small(DeepLabV2Config(backbone=LITE, output_stride=16))


def small_deeplab_v3() -> Recipe:
    """DeepLab V3 in small: EfficientNet-Lite0 at stride 16, ASPP of 128 channels. Ours.

    The network of Chen et al. (arXiv 1706.05587), which has no CamVid. Give ImageNet weights. Minutes on two cores,
    figures in docs/log.md. 0.8 G multiply-adds a crop.
    """
    return small(DeepLabV3Config(backbone=LITE, output_stride=16, aspp_channels=128))


def small_fcn8s() -> Recipe:
    """FCN-8s in small: VGG-16 with batch normalisation at a quarter of its width, fc6 and fc7 of 256 channels. Ours.

    The network of Long et al. (arXiv 1411.4038), which has no CamVid, without its stages and from random weights.
    Minutes on two cores, figures in docs/log.md. 3.6 G multiply-adds a crop.
    """
    return small(FCNConfig(backbone="vgg16_bn", channels=256, width=0.25))


def small_dilated_context() -> Recipe:
    """Context module in small: EfficientNet-Lite0 at stride 8 in place of VGG-16, basic context of 8 layers. Ours.

    After Yu and Koltun (arXiv 1511.07122): `dilated_context_vgg16`. Give ImageNet weights. Minutes on two cores,
    figures in docs/log.md. 2.3 G multiply-adds a crop.
    """
    return small(DilatedContextConfig(backbone=LITE))


def small_pspnet() -> Recipe:
    """PSPNet in small: EfficientNet-Lite0 at stride 16. Ours.

    The network of Zhao et al. (arXiv 1612.01105), which has no CamVid. Give ImageNet weights. Minutes on two cores,
    figures in docs/log.md. 0.7 G multiply-adds a crop.
    """
    return small(PSPNetConfig(backbone=LITE, output_stride=16))


def small_encnet() -> Recipe:
    """EncNet in small: EfficientNet-Lite0 at stride 16, 128 channels encoded. Ours.

    The network of Zhang et al. (arXiv 1803.08904), which has no CamVid. Give ImageNet weights. Minutes on two cores,
    figures in docs/log.md. 0.7 G multiply-adds a crop.
    """
    return small(EncNetConfig(backbone=LITE, output_stride=16, channels=128))


def small_dfanet_a() -> Recipe:
    """DFANet A in small: crops of 192 x 256, attention over 10 classes. Ours.

    The network of Li et al. (arXiv 1904.02216): `dfanet_a`. Give --weights of
    `crops.dfanet_xception_b --model.backbone dfanet_xception_a`, trained on crops of CamVid's labels. Minutes on two
    cores, figures in docs/log.md. 0.2 G multiply-adds a crop.
    """
    return small(DFANetConfig(backbone="dfanet_xception_a", classifier_classes=CROP_CLASSES))


def small_dfanet_b() -> Recipe:
    """DFANet B in small: crops of 192 x 256, attention over 10 classes. Ours.

    The network of Li et al. (arXiv 1904.02216): `dfanet_b`. Give --weights of `crops.dfanet_xception_b`, trained on
    crops of CamVid's labels. Minutes on two cores, figures in docs/log.md. 0.1 G multiply-adds a crop.
    """
    return small(DFANetConfig(backbone="dfanet_xception_b", classifier_classes=CROP_CLASSES))


def small_enet_encoder() -> Recipe:
    """ENet's encoder in small: crops of 192 x 256. Ours; the first half of `small_enet`.

    The network of Paszke et al. (arXiv 1606.02147): `enet_encoder`. Minutes on two cores, figures in docs/log.md. 0.3 G
    multiply-adds a crop.
    """
    return small(ENetConfig(stage="encoder"))


def small_enet() -> Recipe:
    """ENet in small: crops of 192 x 256; ten times the others' learning rate, see `_narrow_decoder`. Ours.

    The network of Paszke et al. (arXiv 1606.02147): `enet`. Give --start-from of `small_enet_encoder`. Minutes on two
    cores, figures in docs/log.md. 0.4 G multiply-adds a crop.
    """
    return _narrow_decoder(small(ENetConfig()))


def small_espnet_c() -> Recipe:
    """ESPNet-C in small: crops of 192 x 256. Ours; the first half of `small_espnet`.

    The network of Mehta et al. (arXiv 1803.06815), which has no CamVid that we know. Minutes on two cores, figures in
    docs/log.md. 0.3 G multiply-adds a crop.
    """
    return small(ESPNetConfig(stage="encoder"))


def small_espnet() -> Recipe:
    """ESPNet in small: crops of 192 x 256; ten times the others' learning rate, see `_narrow_decoder`. Ours.

    The network of Mehta et al. (arXiv 1803.06815), which has no CamVid that we know. Give --start-from of
    `small_espnet_c`. Minutes on two cores, figures in docs/log.md. 0.4 G multiply-adds a crop.
    """
    return _narrow_decoder(small(ESPNetConfig()))


def _narrow_decoder(recipe: Recipe) -> Recipe:
    """Ten times the learning rate: AdamW's steps have one size, and a score is the sum of a few weights only.

    At the others' rate the whole network is still worse than the encoder that it started from after three epochs
    (docs/log.md).
    """
    return replace(recipe, optim=replace(recipe.optim, learning_rate=2e-3))


def small_unet() -> Recipe:
    """U-Net without padding in small: 12 channels at the finest level, batch normalisation. Ours.

    The network of Ronneberger et al. (arXiv 1505.04597), which has no CamVid; crops of 192 x 256 make tiles of
    380 x 444. From random weights. Minutes on two cores, figures in docs/log.md. 2.3 G multiply-adds a crop.
    """
    return small(UNetConfig(width=12, batch_norm=True))


def small_backbone_unet() -> Recipe:
    """U-Net's way up over EfficientNet-Lite0, in small. Ours.

    After Ronneberger et al. (arXiv 1505.04597). Give ImageNet weights. Minutes on two cores, figures in docs/log.md.
    0.9 G multiply-adds a crop.
    """
    return small(BackboneUNetConfig(backbone=LITE))


def small_refinenet() -> Recipe:
    """RefineNet in small: EfficientNet-Lite0, 64 channels, 128 at stride 32. Ours.

    The network of Lin et al. (arXiv 1611.06612), which has no CamVid. Give ImageNet weights. Minutes on two cores,
    figures in docs/log.md. 2.5 G multiply-adds a crop.
    """
    return small(RefineNetConfig(backbone=LITE, width=64, coarsest_width=128))


def small_icnet() -> Recipe:
    """ICNet in small: the published widths, crops of 320 x 416. Ours.

    The network of Zhao et al. (arXiv 1704.08545): `icnet`. From random weights. Minutes on two cores, figures in
    docs/log.md. 1.8 G multiply-adds a crop.
    """
    recipe = small(ICNetConfig())
    return replace(recipe, augment=replace(recipe.augment, crop_height=320, crop_width=416))


def small_bisenet() -> Recipe:
    """BiSeNet in small: EfficientNet-Lite0, paths of 64 channels. Ours.

    The network of Yu et al. (arXiv 1808.00897): `bisenet_resnet18`. Give ImageNet weights. Minutes on two cores,
    figures in docs/log.md. 0.7 G multiply-adds a crop.
    """
    return small(BiSeNetConfig(backbone=LITE, channels=64, auxiliary_channels=64))


def small_bisenet_resnet18() -> Recipe:
    """BiSeNet in small: ResNet-18. Ours.

    The network of Yu et al. (arXiv 1808.00897): `bisenet_resnet18`. Give --weights timm. Minutes on two cores, figures
    in docs/log.md. 2.4 G multiply-adds a crop.
    """
    return small(BiSeNetConfig())
