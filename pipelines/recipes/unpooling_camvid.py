"""Recipes on CamVid of the networks that unpool: SegNet as published, SegNet and DeconvNet in small.

`small_...` are ours, with the settings of the other `camvid.small_...`: minutes on two cores; what came out stands in
docs/log.md. DeconvNet has two stages, each on crops of its own; the second starts from the first:

    python jobs/prepare.py object_crops --data DATA --stage 1 --output CROPS1
    python jobs/prepare.py object_crops --data DATA --stage 2 --output CROPS2
    python jobs/train.py camvid.small_deconvnet_stage1 --data CROPS1 --output RUNS --name stage1
    python jobs/train.py camvid.small_deconvnet_stage2 --data CROPS2 --output RUNS --name stage2 \\
        --start-from RUNS/stage1/model

CamVid's objects are the connected regions of a class, and a background comes as a twelfth class, which is left out on
CamVid's own images. Proposals leave pixels out, and no class of CamVid is a background: the whole image is a proposal
too.

    python jobs/evaluate.py --model RUNS/stage2/model --ensemble FCN8S --data DATA --output SCORES \\
        --recipe-inference --leave-out background --inference.crf.iterations 10
"""

from dataclasses import replace

from pipelines.recipes import published
from pipelines.recipes.recipe import Recipe
from pipelines.recipes.small_camvid import small
from segcore.augment_config import AugmentConfig
from segcore.inference import InferenceConfig
from segcore.models import DeconvNetConfig, SegNetConfig


def segnet() -> Recipe:
    """SegNet on VGG-16: 60.1 % mIoU on the test set (from memory), trained on 3,433 images; here on CamVid's 367.

    Badrinarayanan et al., arXiv 1511.00561, table 3 (from memory), and its tutorial: rate 0.001, weight decay 5e-4,
    40,000 steps; batches of 4 (from memory): 440 epochs of 91 steps (40,040). With class weights:
    `pipelines.recipes.published.segnet`. Give --weights timm. 106.7 G multiply-adds a crop.
    """
    return published.segnet(
        SegNetConfig(), learning_rate=0.001, crop_height=360, crop_width=480, epochs=440, batch_size=4
    )


def segnet_basic() -> Recipe:
    """SegNet-Basic, four 7x7 convolutions to either side: no published score known to us for this split.

    Badrinarayanan et al., arXiv 1511.00561, section 3.1. From memory of its tutorial: rate 0.1, 10,000 steps of 6: 164
    epochs of 61 steps (10,004). With class weights: `pipelines.recipes.published.segnet`. From random weights.
    59.2 G multiply-adds a crop.
    """
    return published.segnet(
        SegNetConfig(backbone="segnet_basic"),
        learning_rate=0.1,
        crop_height=360,
        crop_width=480,
        epochs=164,
        batch_size=6,
    )


def small_segnet() -> Recipe:
    """SegNet in small: a quarter of its widths. Ours.

    The network of Badrinarayanan et al. (arXiv 1511.00561): `camvid.segnet`. From random weights. Minutes on two cores,
    figures in docs/log.md. 2.0 G multiply-adds a crop.
    """
    return small(SegNetConfig(width=0.25))


def small_segnet_basic() -> Recipe:
    """SegNet-Basic in small: 32 channels. Ours.

    The network of Badrinarayanan et al. (arXiv 1511.00561): `camvid.segnet_basic`. From random weights. Minutes on two
    cores, figures in docs/log.md. 4.3 G multiply-adds a crop.
    """
    return small(SegNetConfig(backbone="segnet_basic", width=0.5))


def small_deconvnet_stage1() -> Recipe:
    """DeconvNet in small, stage one: a quarter of its widths, fc6 and fc7 of 512 channels. Ours.

    The network of Noh et al. (arXiv 1505.04366): `voc.deconvnet_stage1`. Crops are resized to 72 px, and windows of 64
    px taken of them, as the paper's 224 px of 250. From random weights. Minutes on two cores, figures in docs/log.md.
    0.2 G multiply-adds a crop.
    """
    return _small_deconvnet()


def small_deconvnet_stage2() -> Recipe:
    """DeconvNet in small, stage two: crops of proposals, all classes. Ours.

    As `small_deconvnet_stage1`, with --start-from its model folder. Minutes on two cores, figures in docs/log.md.
    0.2 G multiply-adds a crop.
    """
    return _small_deconvnet()


def _small_deconvnet() -> Recipe:
    recipe = small(DeconvNetConfig(backbone="vgg16_bn", width=0.25, fc_channels=512, input_px=64))
    assert isinstance(recipe.augment, AugmentConfig)
    return replace(
        recipe,
        augment=replace(recipe.augment, crop_height=64, crop_width=64, scale_min=1.0, scale_max=1.0, long_side_px=72),
        epochs=3,
        batch_size=32,
        batch_norm_batches=50,
        validate_every=3,
        inference=InferenceConfig(mode="proposals", crop_px=64, whole_image=True),
    )
