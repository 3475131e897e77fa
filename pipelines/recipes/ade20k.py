"""Recipes on ADE20K (scene parsing: 20,210 training, 2,000 validation images, 150 classes).

`pipelines.recipes.published` says what they share. Give --weights timm: ResNet and Xception start from ImageNet. The
benchmark's own score is the mean of mIoU and pixel accuracy. None has been run here.
"""

from pipelines.recipes import published
from pipelines.recipes.recipe import Recipe
from segcore.models import DeepLabV3PlusConfig, EncNetConfig, RefineNetConfig

EPOCHS = 119
"""150,000 steps of 16 crops (published), in epochs of 1,263 steps: 150,297."""


def deeplab_v3plus_xception65() -> Recipe:
    """DeepLab V3+ on Xception-65: 45.65 % mIoU and 82.52 % pixel accuracy on val with scales (TF model zoo).

    Chen et al., arXiv 1802.02611, has no ADE20K: settings are the released code's page on it, crops of 513 x 513 of
    images with a longer side of 513 px, 150,000 steps. Its batch of 4 is a demonstration; ours is 16. Stride 8 and
    mirrored in evaluation are from memory. 54.6 G multiply-adds a crop.
    """
    return published.deeplab_v3(
        DeepLabV3PlusConfig(backbone="xception65", batch_norm_momentum=published.DEEPLAB_BATCH_NORM_MOMENTUM),
        crop_px=513,
        epochs=EPOCHS,
        weight_decay=4e-5,
        long_side_px=513,
        short_side_px=385,
    )


def pspnet_resnet50() -> Recipe:
    """PSPNet on ResNet-50: 41.68 % mIoU and 80.04 % pixel accuracy on val at one scale, 42.78 and 80.76 with scales.

    Zhao et al., arXiv 1612.01105, its ablation tables. Crops of 473 x 473; the 150,000 steps of 16 are from memory,
    hszhao/semseg has 100 epochs and reaches 41.89 and 42.84 % mIoU. 128.1 G multiply-adds a crop.
    """
    return published.pspnet("resnet50_deep", crop_px=473, epochs=EPOCHS, short_side_px=384)


def pspnet_resnet101() -> Recipe:
    """PSPNet on ResNet-101: 43.10 % mIoU on val at one scale, 44.15 with scales (hszhao/semseg, 100 epochs).

    Zhao et al., arXiv 1612.01105, table 3: 41.96 and 43.29 from memory. Settings as `pspnet_resnet50`.
    196.3 G multiply-adds a crop.
    """
    return published.pspnet("resnet101_deep", crop_px=473, epochs=EPOCHS, short_side_px=384)


def encnet_resnet50() -> Recipe:
    """EncNet on ResNet-50: 41.11 % mIoU and 79.73 % pixel accuracy on val; the released model has 41.5 and 80.1.

    Zhang et al., arXiv 1803.08904, its ADE20K table; that it is with scales and mirrored is from memory. 120 epochs
    of crops of 480 x 480 at 0.01, images with a longer side of 520 px at zoom 1. 129.1 G multiply-adds a crop.
    """
    return published.encnet(
        EncNetConfig(), learning_rate=0.01, crop_px=480, long_side_px=520, short_side_px=390, epochs=120
    )


def encnet_resnet101() -> Recipe:
    """EncNet on ResNet-101: 44.65 % mIoU and 81.69 % pixel accuracy on val (from memory); released: 44.4 and 81.3.

    Zhang et al., arXiv 1803.08904, its ADE20K tables; 0.5567 (mean of both) on the test set. 180 epochs of crops of
    576 x 576 at 0.004, images with a longer side of 640 px at zoom 1. 284.1 G multiply-adds a crop.
    """
    return published.encnet(
        EncNetConfig(backbone="resnet101_deep"),
        learning_rate=0.004,
        crop_px=576,
        long_side_px=640,
        short_side_px=480,
        epochs=180,
    )


def refinenet_resnet101() -> Recipe:
    """RefineNet on ResNet-101: 40.20 % mIoU on val with scales (40.70 on ResNet-152).

    Lin et al., arXiv 1611.06612, its ADE20K table (scores from public benchmark pages; "with scales" is from memory).
    Crops as on VOC, images at their own size; 60 epochs are ours. 212.0 G multiply-adds a crop.
    """
    return published.refinenet(RefineNetConfig(), crop_px=480, epochs=60)
