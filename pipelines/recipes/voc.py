"""Recipes on PASCAL VOC 2012 (trainaug: 10,582 training images; 1,449 validation images, 21 classes).

The rows of tables 1 to 3 of Tian et al. (arXiv 1903.02120), as published: `pipelines.recipes.dupsampling_tables` says
what their names mean. Give --weights timm, and to the rows with data-dependent upsampling a label PCA of the training
labels whose block side is the output stride, with 64 components (ResNet-50) or 128 (Xception-65).

Each is 45 epochs of 661 steps: 29,745 steps of 16 crops of 513 x 513, 476,000 crops. A crop's forward pass is 30 to 64
G multiply-adds, backbone included: work for GPUs. They have not been run: what they will cost and reach is not known.
"""

from pipelines.recipes.dupsampling_tables import bilinear, proposed, vanilla
from pipelines.recipes.recipe import Recipe
from segcore.augment import AugmentConfig
from segcore.models import DUpsamplingConfig, ModelConfig
from segcore.optim import OptimConfig

RESNET, XCEPTION = "resnet50_deep", "xception65"


def table1_bilinear_os32() -> Recipe:
    """Table 1, bilinear, output stride 32: 70.77 % mIoU (mIoU* 94.80).

    Decoder FLOPs are not published; ours, a classifier at 17 x 17, are 3 M. 30.4 G multiply-adds a crop.
    """
    return _published(bilinear(RESNET, output_stride=32))


def table1_dupsampling_os32() -> Recipe:
    """Table 1, DUpsampling, output stride 32: 72.09 % mIoU (mIoU* 99.90). Label PCA: block side 32.

    Decoder FLOPs are not published; ours are 0.81 B. 30.8 G multiply-adds a crop.
    """
    return _published(proposed(RESNET, num_components=64, output_stride=32))


def table1_bilinear_os16() -> Recipe:
    """Table 1, bilinear, output stride 16: 72.15 % mIoU (mIoU* 98.40).

    Decoder FLOPs are not published; ours, a classifier at 33 x 33, are 12 M. 43.9 G multiply-adds a crop.
    """
    return _published(bilinear(RESNET, output_stride=16))


def table1_dupsampling_os16() -> Recipe:
    """Table 1, DUpsampling, output stride 16: 73.15 % mIoU (mIoU* 99.95). Label PCA: block side 16.

    Decoder FLOPs 0.80 B (table 2, none). 44.3 G multiply-adds a crop.
    """
    return _published(_resnet())


def table2_none() -> Recipe:
    """Table 2, no low-level feature: 73.15 % mIoU, decoder FLOPs 0.80 B.

    The same network as `table1_dupsampling_os16`. 44.3 G multiply-adds a crop.
    """
    return _published(_resnet())


def table2_conv1_3() -> Recipe:
    """Table 2, conv1_3 (stride 2): 72.70 % mIoU, decoder FLOPs 1.13 B.

    Label PCA: block side 16. 44.5 G multiply-adds a crop.
    """
    return _published(_resnet(2))


def table2_b1u2c3() -> Recipe:
    """Table 2, b1u2c3 (stride 4): 74.03 % mIoU, decoder FLOPs 1.15 B.

    Label PCA: block side 16. 44.5 G multiply-adds a crop.
    """
    return _published(_resnet(4))


def table2_b3u6c3() -> Recipe:
    """Table 2, b3u6c3 (stride 16): 73.43 % mIoU, decoder FLOPs 1.23 B.

    Label PCA: block side 16. 44.5 G multiply-adds a crop.
    """
    return _published(_resnet(16))


def table2_b1u2c3_b3u6c3() -> Recipe:
    """Table 2, b1u2c3 + b3u6c3 (strides 4 and 16): 73.82 % mIoU, decoder FLOPs 1.58 B.

    Label PCA: block side 16. 44.7 G multiply-adds a crop.
    """
    return _published(_resnet(4, 16))


def table2_conv1_3_b3u6c3() -> Recipe:
    """Table 2, conv1_3 + b3u6c3 (strides 2 and 16): 74.20 % mIoU, the best; decoder FLOPs 1.56 B.

    Label PCA: block side 16. 44.7 G multiply-adds a crop.
    """
    return _published(_resnet(2, 16))


def table3_resnet50_vanilla_4() -> Recipe:
    """Table 3, ResNet-50, vanilla decoder, b1u2c3 (stride 4): 73.26 % mIoU, decoder FLOPs 5.53 B.

    DeepLabV3+ on ResNet-50. 46.7 G multiply-adds a crop.
    """
    return _published(vanilla(RESNET, 4))


def table3_resnet50_vanilla_2_16() -> Recipe:
    """Table 3, ResNet-50, vanilla decoder, conv1_3 + b3u6c3 (strides 2 and 16): out of memory, decoder FLOPs 22.34 B.

    How the paper's vanilla decoder fuses two features is not known: ours, one after the other at stride 2, takes
    40.8 B. 64.3 G multiply-adds a crop, and activations of 257 x 257 x 304: take a smaller --batch-size or more GPUs.
    """
    return _published(vanilla(RESNET, 2, 16))


def table3_resnet50_proposed_4() -> Recipe:
    """Table 3, ResNet-50, proposed decoder, b1u2c3 (stride 4): 74.03 % mIoU, decoder FLOPs 1.15 B.

    The same network as `table2_b1u2c3`. 44.5 G multiply-adds a crop.
    """
    return _published(_resnet(4))


def table3_xception65_vanilla_4() -> Recipe:
    """Table 3, Xception-65, vanilla decoder, efb2u1c2 (stride 4): 78.70 % mIoU, decoder FLOPs 5.53 B.

    DeepLabV3+ on Xception-65. 54.0 G multiply-adds a crop.
    """
    return _published(vanilla(XCEPTION, 4))


def table3_xception65_proposed_4() -> Recipe:
    """Table 3, Xception-65, proposed decoder, efb2u1c2 (stride 4): 79.09 % mIoU, decoder FLOPs 1.93 B.

    Label PCA: block side 16, 128 components. 52.2 G multiply-adds a crop.
    """
    return _published(proposed(XCEPTION, 4, num_components=128))


def table3_xception65_vanilla_16() -> Recipe:
    """Table 3, Xception-65, vanilla decoder, mfb1u16c3 (stride 16): 78.74 % mIoU, decoder FLOPs 0.41 B.

    DeepLabV3+ with its decoder at stride 16, then bilinear by 16. 51.5 G multiply-adds a crop.
    """
    return _published(vanilla(XCEPTION, 16))


def table3_xception65_proposed_16() -> Recipe:
    """Table 3, Xception-65, proposed decoder, mfb1u16c3 (stride 16): 79.67 % mIoU, the best; decoder FLOPs 1.98 B.

    Label PCA: block side 16, 128 components. 52.3 G multiply-adds a crop.
    """
    return _published(proposed(XCEPTION, 16, num_components=128))


def _resnet(*features: int) -> DUpsamplingConfig:
    """The proposed decoder on ResNet-50 at output stride 16."""
    return proposed(RESNET, *features, num_components=64)


def _published(model: ModelConfig) -> Recipe:
    """30 000 steps at DeepLab's settings: the paper says no more than its schedule, so its rate for all parameters."""
    return Recipe(
        model=model,
        augment=AugmentConfig(crop_height=513, crop_width=513),
        optim=OptimConfig(optimiser="sgd", learning_rate=0.007, decoder_multiplier=1.0, weight_decay=1e-4),
        epochs=45,
        batch_size=16,
        precision="bfloat16",
        channels_last=True,
        validate_every=5,
    )
