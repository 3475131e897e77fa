"""Recipes on PASCAL Context (4,998 training, 5,105 validation images; 59 classes, or 60 with the background).

Scores with 59 and with 60 classes differ by about a point; each recipe says which it was counted for, as far as that is
known. `pipelines.recipes.published` says what they share. Give --weights timm: VGG-16, ResNet and Xception start from
ImageNet. None has been run here.
"""

from pipelines.recipes import published
from pipelines.recipes.dupsampling_tables import proposed
from pipelines.recipes.recipe import Recipe
from segcore.models import DeepLabV2Config, EncNetConfig, FCNConfig, RefineNetConfig

DUPSAMPLING_EPOCHS = 96
"""30,000 steps of 16 crops (published for VOC), in epochs of 312 steps: 29,952."""
FCN_EPOCHS = 60
"""300,000 steps of one image, in epochs of 4,998: 299,880."""


def fcn_32s_vgg16() -> Recipe:
    """FCN-32s on VGG-16: 36.7 % mIoU on val, 59 classes (from memory).

    Shelhamer et al., arXiv 1605.06211, its PASCAL Context table. Settings as `voc.fcn_32s_vgg16`, but 300,000 steps:
    here 60 epochs of 4,998 (299,880). Give --weights timm. 180.9 G multiply-adds a crop with 60 classes.
    """
    return published.fcn(FCNConfig(variant="32s"), released_rate=1e-10, epochs=FCN_EPOCHS)


def fcn_16s_vgg16() -> Recipe:
    """FCN-16s on VGG-16, from FCN-32s: 38.4 % mIoU on val, 59 classes (from memory).

    As `fcn_32s_vgg16` (arXiv 1605.06211), a hundredth of its rate. Give --start-from the model folder of that training.
    181.0 G multiply-adds a crop with 60 classes.
    """
    return published.fcn(FCNConfig(variant="16s"), released_rate=1e-12, epochs=FCN_EPOCHS)


def fcn_8s_vgg16() -> Recipe:
    """FCN-8s on VGG-16, from FCN-16s: 39.1 % mIoU on val, 59 classes (from memory; 35.1 as first trained).

    As `fcn_16s_vgg16` (arXiv 1605.06211), a hundredth of its rate. Give --start-from the model folder of that training.
    181.1 G multiply-adds a crop with 60 classes.
    """
    return published.fcn(FCNConfig(), released_rate=1e-14, epochs=FCN_EPOCHS)


def deeplab_v2_resnet101() -> Recipe:
    """DeepLab V2 on ResNet-101 at three sizes: 44.7 % mIoU on val with COCO, without CRF (45.7 with it), 60 classes.

    Chen et al., arXiv 1606.00915, table 6; both scores from memory. As on VOC, 20,000 steps of 10 crops of 321 x 321:
    here 40 epochs of 499 steps (19,960). 144.6 G multiply-adds a crop with 60 classes, three sizes together.
    """
    return published.deeplab_v2(DeepLabV2Config(), learning_rate=2.5e-4, crop_px=321, epochs=40)


def encnet_resnet50() -> Recipe:
    """EncNet on ResNet-50: 49.2 % mIoU and 79.4 % pixel accuracy on val, 59 classes, one scale (from memory).

    Zhang et al., arXiv 1803.08904, its ablation on PASCAL Context; the released model has 51.0 and 79.2. 80 epochs of
    crops of 480 x 480 at 0.001, with the lateral connections of the released code. 157.3 G multiply-adds a crop.
    """
    return _encnet("resnet50_deep")


def encnet_resnet101() -> Recipe:
    """EncNet on ResNet-101: 51.7 % mIoU on val; the released model has 54.1 and 80.7 % pixel accuracy.

    Zhang et al., arXiv 1803.08904, abstract. From memory 51.7 is both 59 classes at one scale and 60 classes with
    scales, and 52.6 is 59 classes with scales. Settings as `encnet_resnet50`. 225.5 G multiply-adds a crop.
    """
    return _encnet("resnet101_deep")


def dupsampling_xception65() -> Recipe:
    """DUpsampling on Xception-65: 51.4 % mIoU on val; its classes, scales and pre-training are not known to us.

    Tian et al., arXiv 1903.02120, its PASCAL Context table. Network and settings are those of `voc.table3...`'s best
    row. Give a label PCA with block side 16 and 128 components. 53.7 G multiply-adds a crop with 60 classes.
    """
    return published.dupsampling(proposed("xception65", 16, num_components=128), epochs=DUPSAMPLING_EPOCHS)


def dupsampling_xception71() -> Recipe:
    """DUpsampling on Xception-71: 52.5 % mIoU on val; its classes, scales and pre-training are not known to us.

    Tian et al., arXiv 1903.02120, its PASCAL Context table. As `dupsampling_xception65`.
    65.7 G multiply-adds a crop with 60 classes.
    """
    return published.dupsampling(proposed("xception71", 16, num_components=128), epochs=DUPSAMPLING_EPOCHS)


def refinenet_resnet101() -> Recipe:
    """RefineNet on ResNet-101: 47.1 % mIoU on val with scales, 60 classes (from memory); 47.3 on ResNet-152.

    Lin et al., arXiv 1611.06612, its PASCAL Context table; that 47.3 is ResNet-152's is from memory too. Crops as on
    VOC; 100 epochs are ours. 209.0 G multiply-adds a crop with 60 classes.
    """
    return published.refinenet(RefineNetConfig(), crop_px=480, epochs=100)


def _encnet(backbone: str) -> Recipe:
    model = EncNetConfig(backbone=backbone, lateral=True)
    return published.encnet(model, learning_rate=0.001, crop_px=480, long_side_px=520, short_side_px=390, epochs=80)
