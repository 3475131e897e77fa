"""How the papers train and evaluate their networks, for recipes on several datasets: these say crop, epochs and scores.

What our fields force on all of them: the schedule is poly by steps (as in all these papers but FCN, whose rate is
fixed, and DeepLab V1 and the dilated networks, which divide the rate by 10); its length is in epochs, the published
iterations times the batch over the number of training images; one rate holds for the backbone, one multiple of it for
the rest; validation during training takes whole images. bfloat16 and channels-last are ours. None of these recipes has
been run here: they are work for GPUs, and their scores are the papers'. A figure "from memory" is from memory of the
paper, not checked, and so are the numbers of tables but those of DUpsampling and DFANet.
"""

from dataclasses import replace

from pipelines.recipes.recipe import Recipe
from segcore.augment import AugmentConfig
from segcore.inference import InferenceConfig
from segcore.models import (
    BiSeNetConfig,
    DeepLabV2Config,
    DeepLabV3Config,
    DeepLabV3PlusConfig,
    DFANetConfig,
    DilatedContextConfig,
    EncNetConfig,
    FCNConfig,
    ICNetConfig,
    ModelConfig,
    PSPNetConfig,
)
from segcore.optim import OptimConfig

SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
"""Sizes at which DeepLab (VOC), PSPNet and EncNet see each image in evaluation."""
DEEPLAB_BATCH_NORM_MOMENTUM = 0.0003
"""DeepLab's decay of 0.9997. New layers' statistics need some 10 000 steps: validation before that says little."""
FCN_PIXELS = 375 * 500
"""Of a usual PASCAL image: FCN's released loss is a sum over them."""


def deeplab_v2(model: DeepLabV2Config, *, learning_rate: float, crop_px: int, epochs: int) -> Recipe:
    """Chen et al., arXiv 1606.00915, section 4.1: poly, batches of 10, mirrored and scaled by 0.5 to 1.5.

    The last layer learns 10 times faster (its biases 20 times, which we have not). The steps of the scales are those of
    a reimplementation (kazuto1011/deeplab-pytorch). Published scores of ResNet-101 start from COCO, ours from ImageNet.
    The network itself sees three sizes (ResNet-101); the CRF is not part of it.
    """
    return Recipe(
        model=model,
        augment=AugmentConfig(
            crop_height=crop_px, crop_width=crop_px, scale_min=0.5, scale_max=1.5, scale_step=0.25, flip=True
        ),
        optim=_sgd(learning_rate=learning_rate, decoder_multiplier=10.0, weight_decay=5e-4),
        epochs=epochs,
        batch_size=10,
        precision="bfloat16",
        channels_last=True,
        validate_every=max(1, epochs // 10),
    )


def deeplab_v3(
    model: DeepLabV3Config | DeepLabV3PlusConfig,
    *,
    crop_px: int,
    epochs: int,
    weight_decay: float,
    scales: tuple[float, ...] = SCALES,
    long_side_px: int = 0,
    short_side_px: int = 0,
) -> Recipe:
    """DeepLab V3 and V3+ (arXiv 1706.05587 and 1802.02611, section 4; released TF code): trained at 16, evaluated at 8.

    Rate 0.007 for all layers, batches of 16. V3's second half on VOC (stride 8, frozen batch normalisation, rate 0.001)
    is not part of it: scores on a test set need it, scores on val after the first half are published too.
    """
    return Recipe(
        model=model,
        augment=AugmentConfig(crop_height=crop_px, crop_width=crop_px, scale_step=0.25, long_side_px=long_side_px),
        optim=_sgd(learning_rate=0.007, decoder_multiplier=1.0, weight_decay=weight_decay),
        epochs=epochs,
        batch_size=16,
        precision="bfloat16",
        channels_last=True,
        validate_every=max(1, epochs // 10),
        inference=InferenceConfig(scales=scales, flip=True, output_stride=8, short_side_px=short_side_px),
    )


def dupsampling(model: ModelConfig, *, epochs: int) -> Recipe:
    """Tian et al., arXiv 1903.02120: the paper says no more than its schedule, so DeepLab's rate for all parameters.

    It compares decoders at one scale.
    """
    return Recipe(
        model=model,
        augment=AugmentConfig(crop_height=513, crop_width=513),
        optim=_sgd(learning_rate=0.007, decoder_multiplier=1.0, weight_decay=1e-4),
        epochs=epochs,
        batch_size=16,
        precision="bfloat16",
        channels_last=True,
        validate_every=5,
    )


def dilated(
    model: DilatedContextConfig, *, crop_height: int, crop_width: int, epochs: int, batch_size: int, momentum: float
) -> Recipe:
    """Yu and Koltun, arXiv 1511.07122, as in the released code: crops at one scale, mirrored.

    The code trains the front end at 1e-4, then the context module at 1e-3, then both at 1e-5; here both learn at once,
    at the first two rates, and the context module starts as the identity. The released code's loss sees the middle of
    a crop (128 of 500 px) where nothing is padded; ours sees all of it, the network continues it by reflection.
    """
    return Recipe(
        model=model,
        augment=AugmentConfig(crop_height=crop_height, crop_width=crop_width, scale_min=1.0, scale_max=1.0),
        optim=_sgd(learning_rate=1e-4, decoder_multiplier=10.0, weight_decay=5e-4, momentum=momentum),
        epochs=epochs,
        batch_size=batch_size,
        precision="bfloat16",
        channels_last=True,
        validate_every=max(1, epochs // 10),
    )


def fcn(model: FCNConfig, *, released_rate: float, epochs: int) -> Recipe:
    """Shelhamer et al., arXiv 1605.06211, as in the released code: whole images one by one, momentum 0.99.

    Images are neither zoomed nor mirrored, and a crop of 500 x 500 holds any of PASCAL's. The released loss is a sum
    over pixels, ours a mean: the rate is multiplied by the 187,500 pixels of a usual image, and the decay of 5e-4,
    which is added to the gradient of the loss, divided by them. The rate is fixed there: with a power of 0.001 ours
    stays above 99 % of its start until the last steps. Biases learn at twice the rate there, not here.
    """
    optim = _sgd(
        learning_rate=released_rate * FCN_PIXELS,
        decoder_multiplier=1.0,
        weight_decay=5e-4 / FCN_PIXELS,
        momentum=0.99,
    )
    return Recipe(
        model=model,
        augment=AugmentConfig(crop_height=500, crop_width=500, scale_min=1.0, scale_max=1.0, flip=False),
        optim=replace(optim, power=0.001),
        epochs=epochs,
        batch_size=1,
        precision="bfloat16",
        channels_last=True,
        validate_every=max(1, epochs // 10),
    )


def pspnet(backbone: str, *, crop_px: int, epochs: int, short_side_px: int = 0) -> Recipe:
    """Zhao et al., arXiv 1612.01105, section 5.1, and hszhao/semseg: 10 degrees, blur; crop-sized windows.

    Rate 0.01, ten times that outside the backbone (the code). The code evaluates ADE20K and VOC with a longer side of
    512 px at scale 1; `short_side_px` of 384 is the same for pictures of 4:3.
    """
    return Recipe(
        model=PSPNetConfig(backbone=backbone),
        augment=AugmentConfig(crop_height=crop_px, crop_width=crop_px, rotation_degrees=10, blur=True),
        optim=_sgd(learning_rate=0.01, decoder_multiplier=10.0, weight_decay=1e-4),
        epochs=epochs,
        batch_size=16,
        precision="bfloat16",
        channels_last=True,
        validate_every=max(1, epochs // 10),
        inference=InferenceConfig(
            mode="sliding", window_px=crop_px, scales=SCALES, flip=True, short_side_px=short_side_px
        ),
    )


def encnet(
    model: EncNetConfig, *, learning_rate: float, crop_px: int, long_side_px: int, short_side_px: int, epochs: int
) -> Recipe:
    """Zhang et al., arXiv 1803.08904, as PyTorch-Encoding trains it: zooms of 0.5 to 2 relative to the longer side.

    Ten times the rate outside the backbone, batches of 16. The code pads labels of crops with class 0, ours are
    ignored there; its evaluation mixes exponentials of flipped scores, ours averages probabilities. `short_side_px`
    in evaluation is three quarters of the longer side: the same for pictures of 4:3.
    """
    return Recipe(
        model=model,
        augment=AugmentConfig(crop_height=crop_px, crop_width=crop_px, long_side_px=long_side_px),
        optim=_sgd(learning_rate=learning_rate, decoder_multiplier=10.0, weight_decay=1e-4),
        epochs=epochs,
        batch_size=16,
        precision="bfloat16",
        channels_last=True,
        validate_every=max(1, epochs // 10),
        inference=InferenceConfig(
            mode="sliding", window_px=crop_px, scales=SCALES, flip=True, short_side_px=short_side_px
        ),
    )


def dfanet(
    backbone: str, *, crop_height: int, crop_width: int, epochs: int, long_side_px: int = 0, short_side_px: int = 0
) -> Recipe:
    """Li et al., arXiv 1904.02216, section 4: batches of 48, weight decay 1e-5; evaluated at one scale, not mirrored.

    From memory: rate 0.2, zooms of 0.75 to 1.75. How long it was trained is not known to us: the epochs are ours.
    """
    return Recipe(
        model=DFANetConfig(backbone=backbone),
        augment=AugmentConfig(
            crop_height=crop_height, crop_width=crop_width, scale_min=0.75, scale_max=1.75, long_side_px=long_side_px
        ),
        optim=_sgd(learning_rate=0.2, decoder_multiplier=1.0, weight_decay=1e-5),
        epochs=epochs,
        batch_size=48,
        precision="bfloat16",
        channels_last=True,
        validate_every=max(1, epochs // 20),
        inference=InferenceConfig(short_side_px=short_side_px),
    )


def icnet(model: ICNetConfig, *, crop_height: int, crop_width: int, epochs: int) -> Recipe:
    """Zhao et al., arXiv 1704.08545, section 5.1: rate 0.01, batches of 16, zooms of 0.5 to 2, mirrored; one scale.

    All of it from memory. The paper starts from a pruned PSPNet-50. Nobody publishes weights of that width, so a
    network that is not pruned here (`segcore.models.icnet_pruning`) starts from random ones: expect less.
    """
    return Recipe(
        model=model,
        augment=AugmentConfig(crop_height=crop_height, crop_width=crop_width),
        optim=_sgd(learning_rate=0.01, decoder_multiplier=1.0, weight_decay=1e-4),
        epochs=epochs,
        batch_size=16,
        precision="bfloat16",
        channels_last=True,
        validate_every=max(1, epochs // 10),
    )


def bisenet(
    backbone: str, *, crop_height: int, crop_width: int, epochs: int, scale_min: float, inference: InferenceConfig
) -> Recipe:
    """Yu et al., arXiv 1808.00897, as the authors' code (ycszen/TorchSeg) trains it: rate 0.01, batches of 16.

    The code gives 10 times the rate to the fusion and the classifiers; here all that is outside the backbone has it.
    Its loss sees hard pixels alone (online bootstrapping; of probability below 0.7, a sixteenth of all at least), at
    1/8 of the size for the fast networks; ours sees all, at full size.
    """
    return Recipe(
        model=BiSeNetConfig(backbone=backbone, auxiliary_channels=128 if backbone == "xception39" else 256),
        augment=AugmentConfig(
            crop_height=crop_height,
            crop_width=crop_width,
            scale_min=scale_min,
            scale_max=scale_min + 1.25,
            scale_step=0.25,
        ),
        optim=_sgd(learning_rate=0.01, decoder_multiplier=10.0, weight_decay=5e-4),
        epochs=epochs,
        batch_size=16,
        precision="bfloat16",
        channels_last=True,
        validate_every=max(1, epochs // 20),
        inference=inference,
    )


def _sgd(*, learning_rate: float, decoder_multiplier: float, weight_decay: float, momentum: float = 0.9) -> OptimConfig:
    """SGD with poly 0.9, which all of them have."""
    return OptimConfig(
        optimiser="sgd",
        learning_rate=learning_rate,
        decoder_multiplier=decoder_multiplier,
        weight_decay=weight_decay,
        momentum=momentum,
    )
