"""Recipes on ImageNet-1k (1000 classes, 1.28 million training images): backbones are pre-trained here as classifiers.

Prepare with `jobs/prepare.py class_folders --root ILSVRC --output URI --images-per-part 1024`; train; then give
`--weights OUTPUT/NAME/model` to a segmentation recipe on the same backbone. None of these has been run here: they need
days of GPU time. The learning rate follows our poly schedule, where the papers divide it by 10 in steps.
"""

from pipelines.recipes.recipe import Recipe
from segcore.augment_config import ClassificationAugmentConfig
from segcore.classifier import ClassifierConfig
from segcore.optim import OptimConfig


def resnet50() -> Recipe:
    """ResNet-50, 90 epochs in batches of 256: published top-1 76.4 % (Goyal et al., arXiv 1706.02677, table 1).

    Batch, epochs, learning rate, momentum, weight decay, window (8 % to 100 %) and the start of fc are that paper's.
    Ours are label smoothing 0.1 (arXiv 1512.00567, section 7), the poly schedule with five epochs of warm-up, jitter of
    brightness, contrast and saturation, and no decay of normalisation and biases. 4.1 G multiply-adds an image.
    """
    return Recipe(
        model=ClassifierConfig(backbone="resnet50"),
        augment=_augment(area_min=0.08),
        optim=OptimConfig(
            optimiser="sgd",
            learning_rate=0.1,
            decoder_multiplier=1.0,
            weight_decay=1e-4,
            warmup_steps=5 * 5004,
        ),
        epochs=90,
        batch_size=256,
        precision="bfloat16",
        channels_last=True,
        shuffle_buffer=4096,
    )


def mobilenet_v3_small() -> Recipe:
    """MobileNetV3-small by our settings for light backbones; published top-1 67.4 % (arXiv 1905.02244, table 3).

    The published network has one more 1x1 convolution before its classifier and was trained with RMSProp for longer:
    expect some points less. 0.05 G multiply-adds an image; reading and decoding take most of the time.
    """
    return _light("mobilenet_v3_small")


def dfanet_xception_a() -> Recipe:
    """Xception A, the backbone of DFANet A: the paper gives no top-1 accuracy. 0.08 G multiply-adds an image.

    The segmentation recipes of DFANet take the whole classifier, its last layer included, which becomes their FC
    attention; without it they lose about 10 points (the author, in an issue of a reimplementation).
    """
    return _light("dfanet_xception_a")


def dfanet_xception_b() -> Recipe:
    """Xception B, the backbone of DFANet B: the paper gives no top-1 accuracy. 0.04 G multiply-adds an image."""
    return _light("dfanet_xception_b")


def xception39() -> Recipe:
    """Xception39, the backbone of BiSeNet: the paper gives no top-1 accuracy. 0.04 G multiply-adds an image.

    The authors' code trains BiSeNet on it from random weights, for longer: `cityscapes.bisenet_xception39`.
    """
    return _light("xception39")


def _light(backbone: str) -> Recipe:
    """For small backbones (DFANet's Xception A and B, BiSeNet's Xception39): our settings.

    DFANet (arXiv 1904.02216) says that its backbones are pre-trained on ImageNet-1k and not how. Small networks
    underfit, so windows are larger (25 % at least, as in ShuffleNet V2's code), label smoothing is off and weight decay
    is small.
    """
    return Recipe(
        model=ClassifierConfig(backbone=backbone, label_smoothing=0.0),
        augment=_augment(area_min=0.25),
        optim=OptimConfig(
            optimiser="sgd",
            learning_rate=0.5,
            decoder_multiplier=1.0,
            weight_decay=4e-5,
            warmup_steps=5 * 1251,
            power=1.0,
        ),
        epochs=150,
        batch_size=1024,
        precision="bfloat16",
        channels_last=True,
        shuffle_buffer=4096,
        validate_every=2,
    )


def _augment(*, area_min: float) -> ClassificationAugmentConfig:
    """224 x 224 windows, and the centre of the image resized to 256 in validation."""
    return ClassificationAugmentConfig(
        crop_height=224,
        crop_width=224,
        validation_short_side_px=256,
        area_min=area_min,
        brightness=0.4,
        contrast=0.4,
        saturation=0.4,
    )
