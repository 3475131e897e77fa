"""Recipes on PASCAL VOC 2012 (trainaug: 10,582 training images; 1,449 validation images, 21 classes).

First the networks as their papers train them: `pipelines.recipes.published` says what they share. Give --weights timm:
VGG-16, ResNet and Xception start from ImageNet. Scores "with COCO" were pre-trained on it and are out of these recipes'
reach. DeepLab V3's tables with ResNet-50 (from memory) are of its cascaded form, which is not here.

Then the rows of tables 1 to 3 of Tian et al. (arXiv 1903.02120), as published: `pipelines.recipes.dupsampling_tables`
says what their names mean. Give --weights timm, and to the rows with data-dependent upsampling a label PCA of the
training labels whose block side is the output stride, with 64 components (ResNet-50) or 128 (Xception-65).

Each row is 45 epochs of 661 steps: 29,745 steps of 16 crops of 513 x 513, 476,000 crops. A crop's forward pass is 30 to
64 G multiply-adds, backbone included: work for GPUs. No recipe here has been run: what they will cost and reach is not
known.
"""

from pipelines.recipes import published
from pipelines.recipes.dupsampling_tables import bilinear, proposed, vanilla
from pipelines.recipes.recipe import Recipe
from segcore.augment_config import AugmentConfig
from segcore.models import (
    DeepLabV1Config,
    DeepLabV2Config,
    DeepLabV3Config,
    DeepLabV3PlusConfig,
    DilatedContextConfig,
    DUpsamplingConfig,
    EncNetConfig,
    FCNConfig,
    ModelConfig,
    RefineNetConfig,
)
from segcore.optim import OptimConfig

RESNET, XCEPTION = "resnet50_deep", "xception65"


def fcn_32s_vgg16() -> Recipe:
    """FCN-32s on VGG-16: 63.6 % mIoU on seg11valid, the 736 images of VOC 2011's val that SBD does not train on.

    Shelhamer et al., arXiv 1605.06211, and the released model's page. Give --weights timm. 100,000 steps of one image
    at a rate of 1e-10 for a summed loss, here of about 2e-5 for a mean: 9 epochs of 10,582 steps (95,238). 180.9 G
    multiply-adds a crop.
    """
    return published.fcn(FCNConfig(variant="32s"), released_rate=1e-10, epochs=9)


def fcn_16s_vgg16() -> Recipe:
    """FCN-16s on VGG-16, from FCN-32s: 65.0 % mIoU on seg11valid.

    As `fcn_32s_vgg16` (arXiv 1605.06211), a hundredth of its rate. Give --start-from the model folder of that training.
    9 epochs of 10,582 steps (95,238). 180.9 G multiply-adds a crop.
    """
    return published.fcn(FCNConfig(variant="16s"), released_rate=1e-12, epochs=9)


def fcn_8s_vgg16() -> Recipe:
    """FCN-8s on VGG-16, from FCN-16s: 65.5 % mIoU on seg11valid, 67.2 on the test set of VOC 2012.

    As `fcn_16s_vgg16` (arXiv 1605.06211), a hundredth of its rate. Give --start-from the model folder of that training.
    As first trained (arXiv 1411.4038) 62.2 on the test set. 9 epochs of 10,582 steps (95,238). 180.9 G multiply-adds a
    crop.
    """
    return published.fcn(FCNConfig(), released_rate=1e-14, epochs=9)


def fcn_8s_at_once_vgg16() -> Recipe:
    """FCN-8s on VGG-16 without stages, pools scaled by 0.01 and 0.0001: 65.4 % mIoU on seg11valid.

    As `fcn_32s_vgg16` (arXiv 1605.06211), for 300,000 steps: here 28 epochs of 10,582 (296,296). Give --weights timm.
    180.9 G multiply-adds a crop.
    """
    return published.fcn(FCNConfig(at_once=True), released_rate=1e-10, epochs=28)


def deeplab_v1_vgg16() -> Recipe:
    """DeepLab V1, LargeFOV, on VGG-16: 62.25 % mIoU on val, without CRF (67.64 with it).

    Chen et al., arXiv 1412.7062, table 1. From memory: both scores; 6,000 steps of 20 crops of 321 x 321, rate 0.001,
    ten times that for the last layer, weight decay 5e-4, divided by 10 every 2,000 steps. Here 11 epochs of 529 steps
    (5,819), and poly in place of the division. 50.9 G multiply-adds a crop.
    """
    return Recipe(
        model=DeepLabV1Config(),
        augment=AugmentConfig(crop_height=321, crop_width=321, scale_min=1.0, scale_max=1.0),
        optim=OptimConfig(optimiser="sgd", learning_rate=0.001, decoder_multiplier=10.0, weight_decay=5e-4),
        epochs=11,
        batch_size=20,
        precision="bfloat16",
        channels_last=True,
    )


def deeplab_v2_vgg16() -> Recipe:
    """DeepLab V2, ASPP-L, on VGG-16: 68.96 % mIoU on val, one size, without COCO and CRF (71.57 with CRF).

    Chen et al., arXiv 1606.00915, table 3. From memory: both scores; rate 0.001, 20,000 steps of 10 crops of 321 x 321.
    Here 19 epochs of 1,058 steps (20,102). 80.1 G multiply-adds a crop.
    """
    model = DeepLabV2Config(backbone="vgg16", input_scales=(1.0,))
    return published.deeplab_v2(model, learning_rate=0.001, crop_px=321, epochs=19)


def deeplab_v2_resnet101() -> Recipe:
    """DeepLab V2 on ResNet-101 at three sizes: 76.35 % mIoU on val with COCO, without CRF (77.69 with it).

    Chen et al., arXiv 1606.00915, table 4; 79.7 on the test set with CRF. All three from memory, and no score without
    COCO is known to us. Rate 2.5e-4, 20,000 steps of 10 crops of 321 x 321: here 19 epochs of 1,058 steps (20,102).
    136.1 G multiply-adds a crop, three sizes together.
    """
    return published.deeplab_v2(DeepLabV2Config(), learning_rate=2.5e-4, crop_px=321, epochs=19)


def deeplab_v3_resnet101() -> Recipe:
    """DeepLab V3 on ResNet-101, multi-grid 1 2 4: 79.77 % mIoU on val (stride 8, scales, mirrored), without COCO.

    Chen et al., arXiv 1706.05587, table 6; 77.21 at stride 16 and 78.51 at stride 8, one scale: all three from memory.
    85.7 on the test set with COCO. 30,000 steps of 16 crops of 513 x 513, rate 0.007: here 45 epochs of 661 steps
    (29,745). 71.1 G multiply-adds a crop at stride 16, 246.2 at stride 8.
    """
    model = DeepLabV3Config(multi_grid=(1, 2, 4), batch_norm_momentum=published.DEEPLAB_BATCH_NORM_MOMENTUM)
    return published.deeplab_v3(model, crop_px=513, epochs=45, weight_decay=1e-4)


def deeplab_v3plus_resnet101() -> Recipe:
    """DeepLab V3+ on ResNet-101 (deep stem, plain convolutions): 80.57 % mIoU on val (stride 8, scales, mirrored).

    Chen et al., arXiv 1802.02611, table 3, without COCO; 78.85 at stride 16 and 79.35 at stride 8, one scale: all
    three from memory. 30,000 steps of 16 crops of 513 x 513: here 45 epochs of 661 steps (29,745). 100.0 G
    multiply-adds a crop (published: 101.28).
    """
    model = DeepLabV3PlusConfig(
        backbone="resnet101_deep", separable=False, batch_norm_momentum=published.DEEPLAB_BATCH_NORM_MOMENTUM
    )
    return published.deeplab_v3(model, crop_px=513, epochs=45, weight_decay=1e-4)


def deeplab_v3plus_xception65() -> Recipe:
    """DeepLab V3+ on Xception-65: 79.79 % mIoU on val at stride 16, one scale, without COCO.

    Chen et al., arXiv 1802.02611, table 5; that score is from memory. With COCO 82.20, and 83.58 at stride 8 with
    scales and mirrored (TF model zoo); 87.8 on the test set. 30,000 steps of 16 crops of 513 x 513: here 45 epochs of
    661 steps (29,745). 54.0 G multiply-adds a crop (published: 54.17).
    """
    model = DeepLabV3PlusConfig(backbone=XCEPTION, batch_norm_momentum=published.DEEPLAB_BATCH_NORM_MOMENTUM)
    return published.deeplab_v3(model, crop_px=513, epochs=45, weight_decay=4e-5)


def dilated_frontend_vgg16() -> Recipe:
    """Dilated front end on VGG-16, no context module: 67.6 % mIoU on the test set, without COCO.

    Yu and Koltun, arXiv 1511.07122, table 2 (score from a public benchmark page; "without COCO" is from memory).
    Batches of 14 crops of 500 x 500 as released; 60,000 steps from memory: here 79 epochs of 755 steps (59,645).
    730.0 G multiply-adds a crop.
    """
    return _dilated(DilatedContextConfig(context="none"))


def dilated_context_vgg16() -> Recipe:
    """Dilated front end with the basic context module of 8 layers: 73.5 % mIoU on the test set, with COCO.

    Yu and Koltun, arXiv 1511.07122, table 4 (from memory; 75.3 with CRF-RNN). Settings as `dilated_frontend_vgg16`;
    the paper then trains the context module and both together, ours learn at once. 730.1 G multiply-adds a crop.
    """
    return _dilated(DilatedContextConfig())


def deconvnet_stage1() -> Recipe:
    """DeconvNet, stage one, crops of one object each with all else background: no published score, stage two's start.

    Noh et al., arXiv 1505.04366, section 4. Data: `jobs/prepare.py object_crops --stage 1`, about 200,000 crops of
    250 x 250 (published). 20,000 steps of 64: here 6 epochs of about 3,125. Give --weights timm: VGG-16 with fc6 and
    fc7. 32.7 G multiply-adds a crop.
    """
    return published.deconvnet(epochs=6)


def deconvnet_stage2() -> Recipe:
    """DeconvNet, stage two, crops of proposals with all their classes: 69.6 % mIoU on the test set (from memory).

    Noh et al., arXiv 1505.04366, table 1: from 50 proposals an image; 70.5 with CRF (from memory), 72.5 with FCN-8s and
    CRF. It is trained on train and val together, so that its scores on val say nothing. Data: `jobs/prepare.py
    object_crops --stage 2`, about 2.7 million crops of 250 x 250 (published). 40,000 steps of 64: here 1 epoch of
    about 42,000. Give --start-from the model folder of `deconvnet_stage1`. 32.7 G multiply-adds a crop.
    """
    return published.deconvnet(epochs=1)


def pspnet_resnet50() -> Recipe:
    """PSPNet on ResNet-50: 77.05 % mIoU on val at one scale, 78.02 with scales (hszhao/semseg, not the paper).

    Zhao et al., arXiv 1612.01105. No score of the paper's own is known to us. 30,000 steps of 16 crops of 473 x 473
    (from memory): here 45 epochs of 661 steps (29,745); semseg has 50. 127.9 G multiply-adds a crop.
    """
    return published.pspnet("resnet50_deep", crop_px=473, epochs=45, short_side_px=384)


def pspnet_resnet101() -> Recipe:
    """PSPNet on ResNet-101: 82.6 % mIoU on the test set without COCO (from memory), 85.4 with it.

    Zhao et al., arXiv 1612.01105, its VOC table; hszhao/semseg on val: 79.07 at one scale, 79.63 with scales. 30,000
    steps of 16 crops of 473 x 473 (from memory): here 45 epochs of 661 steps (29,745). 196.0 G multiply-adds a crop.
    """
    return published.pspnet("resnet101_deep", crop_px=473, epochs=45, short_side_px=384)


def encnet_resnet101() -> Recipe:
    """EncNet on ResNet-101: 82.9 % mIoU on the test set without COCO (from memory), 85.9 with it.

    Zhang et al., arXiv 1803.08904, its VOC table. 80 epochs of crops of 480 x 480 at 0.001, with the lateral
    connections of the released code. The 50 epochs at 0.0001 on trainval that the test score has behind it are not
    part of it. 225.4 G multiply-adds a crop.
    """
    model = EncNetConfig(backbone="resnet101_deep", lateral=True)
    return published.encnet(model, learning_rate=0.001, crop_px=480, long_side_px=520, short_side_px=390, epochs=80)


def refinenet_resnet101() -> Recipe:
    """RefineNet on ResNet-101 with four pools: 80.5 % mIoU on val at one scale (DrSleep's port of the released model).

    Lin et al., arXiv 1611.06612: 83.4 on the test set (abstract), 84.2 (public benchmark pages) on ResNet-152 and with
    COCO (both from memory). Crops of 400 x 400, here 480 x 480 enlarged; 100 epochs are ours. 231.1 G
    multiply-adds a crop.
    """
    return published.refinenet(RefineNetConfig(num_pools=4), crop_px=480, epochs=100)


def _dilated(model: DilatedContextConfig) -> Recipe:
    return published.dilated(model, crop_height=500, crop_width=500, epochs=79, batch_size=14, momentum=0.9)


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
    """30 000 steps at DeepLab's settings."""
    return published.dupsampling(model, epochs=45)
