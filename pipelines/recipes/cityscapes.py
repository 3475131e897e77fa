"""Recipes on Cityscapes (fine annotations: 2,975 training, 500 validation images of 1024 x 2048, 19 classes).

`pipelines.recipes.published` says what they share. Give --weights timm: VGG-16, ResNet and Xception start from
ImageNet. DFANet takes our own classifiers, --weights OUTPUT/NAME/model of the recipes `imagenet.dfanet_xception_a`
and `..._b`; without them it loses about 10 points (its author); BiSeNet on Xception39 those of `imagenet.xception39`.
ENet, ESPNet and ICNet of half width start from random weights; --start-from OUTPUT/NAME/model of the encoder's training
begins the whole ENet or ESPNet. None has been run here.
"""

from pipelines.recipes import published
from pipelines.recipes.recipe import Recipe
from segcore.augment_config import AugmentConfig
from segcore.inference import InferenceConfig
from segcore.models import (
    DeepLabV2Config,
    DeepLabV3Config,
    DeepLabV3PlusConfig,
    DilatedContextConfig,
    EncNetConfig,
    ENetConfig,
    ESPNetConfig,
    ICNetConfig,
    RefineNetConfig,
    SegNetConfig,
    UNetConfig,
)
from segcore.optim import OptimConfig

SCALES = (0.75, 1.0, 1.25)
"""DeepLab's sizes in evaluation (released TF code)."""
EPOCHS = 486
"""90,000 steps of 16 crops (published), in epochs of 185 steps: 89,910."""


def deeplab_v2_resnet101() -> Recipe:
    """DeepLab V2 on ResNet-101 at three sizes: 71.4 % mIoU on val and 70.4 on the test set, both with CRF.

    Chen et al., arXiv 1606.00915, its Cityscapes tables; that both have the CRF, and 70.4 on val without it, is from
    memory. Its crop, length and CRF on Cityscapes are not known to us: 713 px is ours, and the 20,000 steps of 10 crops
    and the CRF are VOC's; here 67 epochs of 297 steps (19,899). 652.7 G multiply-adds a crop, three sizes together.
    """
    return published.deeplab_v2(
        DeepLabV2Config(), learning_rate=2.5e-4, crop_px=713, epochs=67, crf=published.DEEPLAB_CRF
    )


def deeplab_v3_resnet101() -> Recipe:
    """DeepLab V3 on ResNet-101: 79.30 % mIoU on val (stride 8, scales, mirrored), trained on fine annotations.

    Chen et al., arXiv 1706.05587, appendix; 77.23 at stride 16 and 77.82 at stride 8, one scale: all three from memory.
    81.3 on the test set with coarse annotations. 90,000 steps of 16 crops of 769 x 769 at 0.007.
    157.0 G multiply-adds a crop.
    """
    model = DeepLabV3Config(multi_grid=(1, 2, 4), batch_norm_momentum=published.DEEPLAB_BATCH_NORM_MOMENTUM)
    return published.deeplab_v3(model, crop_px=769, epochs=EPOCHS, weight_decay=1e-4, scales=SCALES)


def deeplab_v3plus_xception65() -> Recipe:
    """DeepLab V3+ on Xception-65: 78.79 % mIoU on val at stride 16, 80.42 at stride 8 with scales and mirrored.

    Chen et al., arXiv 1802.02611, and the TF model zoo; fine annotations, no COCO. 90,000 steps of 8 to 16 crops of
    769 x 769: here 16. 119.5 G multiply-adds a crop.
    """
    return _v3plus("xception65")


def deeplab_v3plus_xception71() -> Recipe:
    """DeepLab V3+ on Xception-71: 79.55 % mIoU on val at one scale (from memory), 82.1 on the test set.

    Chen et al., arXiv 1802.02611, table 7; the test score has coarse annotations behind it. Settings as
    `deeplab_v3plus_xception65`. 146.3 G multiply-adds a crop.
    """
    return _v3plus("xception71")


def dilated_context_vgg16() -> Recipe:
    """Dilated front end with 10 layers of context, "Dilation10": 68.7 % mIoU on val, 67.1 on the test set.

    Yu and Koltun, arXiv 1511.07122, appendix. From memory: batches of 8 crops of 628 x 628, momentum 0.99, 40,000 steps
    of the front end (then context module and both): here both at once, 108 epochs of 371 steps (40,068).
    1088.7 G multiply-adds a crop.
    """
    model = DilatedContextConfig(context_layers=10)
    return published.dilated(model, crop_height=628, crop_width=628, epochs=108, batch_size=8, momentum=0.99)


def pspnet_resnet50() -> Recipe:
    """PSPNet on ResNet-50: 77.30 % mIoU on val at one scale, 78.38 with scales (hszhao/semseg, not the paper).

    Zhao et al., arXiv 1612.01105. No score of the paper's own is known to us. As `pspnet_resnet101`.
    287.6 G multiply-adds a crop.
    """
    return published.pspnet("resnet50_deep", crop_px=713, epochs=EPOCHS)


def pspnet_resnet101() -> Recipe:
    """PSPNet on ResNet-101: 79.70 % mIoU on val at one scale, 80.91 with scales; 78.4 on the test set.

    Zhao et al., arXiv 1612.01105, and the released Caffe model's README; fine annotations (with coarse: 81.2 on the
    test set). Crops of 713 x 713; the 90,000 steps of 16 are from memory, hszhao/semseg has 200 epochs and reaches
    78.63 and 79.29. 441.0 G multiply-adds a crop.
    """
    return published.pspnet("resnet101_deep", crop_px=713, epochs=EPOCHS)


def encnet_resnet101() -> Recipe:
    """EncNet on ResNet-101: no published score known to us; mmsegmentation's own training reaches 78.55 % on val.

    Zhang et al., arXiv 1803.08904, has no Cityscapes. The released code trains 240 epochs at 0.004 to 0.01; crops of
    768 x 768 at the images' size are from memory of that code. 504.5 G multiply-adds a crop.
    """
    return published.encnet(
        EncNetConfig(backbone="resnet101_deep"),
        learning_rate=0.01,
        crop_px=768,
        long_side_px=2048,
        short_side_px=1024,
        epochs=240,
    )


def segnet_vgg16() -> Recipe:
    """SegNet on VGG-16: 56.1 % mIoU on the test set.

    Badrinarayanan et al., arXiv 1511.00561, has no Cityscapes: the score is that of the benchmark, as the papers of
    ENet and DFANet cite it. How it was trained is not known to us. Ours: images of 512 x 1024, the tutorial's rate of
    0.001 and 40,000 steps, in batches of 8: 108 epochs of 371 steps (40,068). Give --weights timm. 325.5 G
    multiply-adds a crop.
    """
    return published.segnet(
        SegNetConfig(),
        learning_rate=0.001,
        crop_height=512,
        crop_width=1024,
        epochs=108,
        batch_size=8,
        long_side_px=1024,
    )


def dfanet_a() -> Recipe:
    """DFANet A on Xception A: 71.9 % mIoU on val, 71.3 on the test set, at one scale.

    Li et al., arXiv 1904.02216, table 5. Crops of 1024 x 1024 (from memory). What the paper's input of 1024 x 1024 is
    of an image of 1024 x 2048 is not said: we evaluate whole images. 600 epochs of 61 steps (36,600) are ours. 3.42 G
    multiply-adds a crop (published: 3.4).
    """
    return published.dfanet("dfanet_xception_a", crop_height=1024, crop_width=1024, epochs=600)


def dfanet_a_half() -> Recipe:
    """DFANet A', the same network on images of 512 x 1024: 70.3 % mIoU on the test set, at one scale.

    Li et al., arXiv 1904.02216, table 5. That it is trained on images of half size too is our reading, and the 600
    epochs are ours. 1.71 G multiply-adds a crop (published: 1.7).
    """
    return published.dfanet(
        "dfanet_xception_a", crop_height=512, crop_width=1024, epochs=600, long_side_px=1024, short_side_px=512
    )


def dfanet_b() -> Recipe:
    """DFANet B on Xception B: 68.4 % mIoU on val, 67.1 on the test set, at one scale.

    Li et al., arXiv 1904.02216, table 5. Settings as `dfanet_a`. 2.06 G multiply-adds a crop (published: 2.1).
    """
    return published.dfanet("dfanet_xception_b", crop_height=1024, crop_width=1024, epochs=600)


def enet_encoder() -> Recipe:
    """ENet's encoder with a 1x1 classifier: no published score; the first half of `enet`.

    Paszke et al., arXiv 1606.02147. Settings as `enet`. 3.04 G multiply-adds a crop.
    """
    return _enet(ENetConfig(stage="encoder"))


def enet() -> Recipe:
    """ENet: 58.3 % mIoU on the test set, at one scale. Give --start-from of `enet_encoder`.

    Paszke et al., arXiv 1606.02147, table of Cityscapes results. Images of 512 x 1024; the released code's own default
    for Cityscapes is 256 x 512. 300 epochs are that code's. 4.04 G multiply-adds a crop.
    """
    return _enet(ENetConfig())


def espnet_c() -> Recipe:
    """ESPNet-C, ESPNet's encoder with a 1x1 classifier: no published score checked; the first half of `espnet`.

    Mehta et al., arXiv 1803.06815. Batches of 12 (released code). 3.47 G multiply-adds a crop.
    """
    return published.espnet(ESPNetConfig(stage="encoder"), batch_size=12)


def espnet() -> Recipe:
    """ESPNet: 60.3 % mIoU on the test set, at one scale. Give --start-from of `espnet_c`.

    Mehta et al., arXiv 1803.06815, table of Cityscapes results. Batches of 6 (released code). 4.67 G multiply-adds a
    crop.
    """
    return published.espnet(ESPNetConfig(), batch_size=6)


def _enet(model: ENetConfig) -> Recipe:
    return published.enet(model, height=512, width=1024, epochs=300, long_side_px=1024)


def refinenet_resnet101() -> Recipe:
    """RefineNet on ResNet-101: 73.6 % mIoU on the test set.

    Lin et al., arXiv 1611.06612, its Cityscapes table. Crops of 600 x 600, here 720 x 720 enlarged; the code evaluates
    images with a shorter side of up to 1100 px. 100 epochs are ours. 468.4 G multiply-adds a crop.
    """
    return published.refinenet(RefineNetConfig(), crop_px=720, epochs=100)


def unet() -> Recipe:
    """U-Net, padded, with batch normalisation: 65.00 % mIoU on val at one scale, 66.89 with scales (PaddleSeg).

    Ronneberger et al., arXiv 1505.04597, has no Cityscapes: settings are PaddleSeg's, 160,000 steps of 4 crops (a card;
    how many cards is not said) of 512 x 1024 at 0.01, from random weights; here 215 epochs of 743 steps (159,745). Its
    network has 512 channels in the coarsest level, bilinear enlargement and no dropout; ours is the paper's, padded.
    385.9 G multiply-adds a crop.
    """
    return Recipe(
        model=UNetConfig(padded=True, batch_norm=True, dropout=0.0),
        augment=AugmentConfig(
            crop_height=512, crop_width=1024, scale_step=0.25, brightness=0.4, contrast=0.4, saturation=0.4
        ),
        optim=OptimConfig(optimiser="sgd", learning_rate=0.01, decoder_multiplier=1.0, weight_decay=4e-5),
        epochs=215,
        batch_size=4,
        precision="bfloat16",
        channels_last=True,
        validate_every=20,
    )


def icnet() -> Recipe:
    """ICNet: 67.7 % mIoU on val, 69.5 on the test set (trained on train and val, 90,000 steps), at one scale.

    Zhao et al., arXiv 1704.08545, and the released network's README: 30,000 steps on train, here 162 epochs of 185
    (29,970). Crops of 720 x 720 are ours. Whole images in evaluation; the released network resizes them to 1025 x 2049.
    7.25 G multiply-adds a crop.
    """
    return published.icnet(ICNetConfig(), crop_height=720, crop_width=720, epochs=162)


def icnet_full_width() -> Recipe:
    """ICNet at ResNet-50's own widths: no published score of the paper's; mmsegmentation's has 76.29 % mIoU on val.

    Zhao et al., arXiv 1704.08545: the network before compression. Give --weights timm. Then train `cityscapes.icnet`
    from it, `--start-from` its model, twice, at widths 1.5 and 1: see `segcore.models.icnet_pruning`. Settings as
    `icnet` (29,970); mmsegmentation's network shares one more stage and trains longer. 21.4 G multiply-adds a crop.
    """
    model = ICNetConfig(width=2.0, imagenet_layout=True)
    return published.icnet(model, crop_height=720, crop_width=720, epochs=162)


def bisenet_xception39() -> Recipe:
    """BiSeNet on Xception39: 69.0 % mIoU on val, 68.4 on the test set, images of 768 x 1536, at one scale.

    Yu et al., arXiv 1808.00897, its tables of speed and accuracy. Crops of 768 x 1536; 140,000 steps of the authors'
    code, which starts from random weights and reaches 68.5 on val: 757 epochs of 185 (140,045). 15.62 G multiply-adds
    a crop (published: 14.8).
    """
    return _fast_bisenet("xception39", epochs=757, scale_min=0.5)


def bisenet_resnet18() -> Recipe:
    """BiSeNet on ResNet-18: 74.8 % mIoU on val, 74.7 on the test set, images of 768 x 1536, at one scale.

    Yu et al., arXiv 1808.00897, its tables of speed and accuracy. Crops of 768 x 1536; 80,000 steps of the authors'
    code: 432 epochs of 185 (79,920). 58.34 G multiply-adds a crop (published: 55.3).
    """
    return _fast_bisenet("resnet18", epochs=432, scale_min=0.75)


def bisenet_xception39_scales() -> Recipe:
    """BiSeNet on Xception39, for accuracy: 72.0 % mIoU on val with scales and mirrored, 71.4 on the test set.

    Yu et al., arXiv 1808.00897, its table of accuracy; the authors' code has 70.3 at one scale. Crops and windows of
    1024 x 1024, steps as `bisenet_xception39` (140,045). 13.88 G multiply-adds a crop.
    """
    return _accurate_bisenet("xception39", epochs=757)


def bisenet_resnet18_scales() -> Recipe:
    """BiSeNet on ResNet-18, for accuracy: 78.6 % mIoU on val with scales and mirrored, 77.7 on the test set.

    Yu et al., arXiv 1808.00897, its table of accuracy; 76.2 at one scale. Crops and windows of 1024 x 1024, steps as
    `bisenet_resnet18` (79,920). 51.86 G multiply-adds a crop.
    """
    return _accurate_bisenet("resnet18", epochs=432)


def bisenet_resnet101_scales() -> Recipe:
    """BiSeNet on ResNet-101, for accuracy: 80.3 % mIoU on val with scales and mirrored, 78.9 on the test set.

    Yu et al., arXiv 1808.00897, its table of accuracy; the authors' code has 79.1 at one scale, on a ResNet with a stem
    of three 3x3 convolutions, as here. Its length is not known to us: that of ResNet-18 (79,920) is ours.
    """
    return _accurate_bisenet("resnet101_deep", epochs=432)


def _fast_bisenet(backbone: str, *, epochs: int, scale_min: float) -> Recipe:
    return published.bisenet(
        backbone,
        crop_height=768,
        crop_width=1536,
        epochs=epochs,
        scale_min=scale_min,
        inference=InferenceConfig(short_side_px=768),
    )


def _accurate_bisenet(backbone: str, *, epochs: int) -> Recipe:
    inference = InferenceConfig(
        mode="sliding", window_px=1024, stride_fraction=5 / 6, scales=published.SCALES, flip=True
    )
    return published.bisenet(
        backbone, crop_height=1024, crop_width=1024, epochs=epochs, scale_min=0.75, inference=inference
    )


def _v3plus(backbone: str) -> Recipe:
    model = DeepLabV3PlusConfig(backbone=backbone, batch_norm_momentum=published.DEEPLAB_BATCH_NORM_MOMENTUM)
    return published.deeplab_v3(model, crop_px=769, epochs=EPOCHS, weight_decay=4e-5, scales=SCALES)
