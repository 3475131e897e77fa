"""How the papers train and evaluate their networks, for recipes on several datasets: these say crop, epochs and scores.

What our fields force on all of them: the schedule is poly by steps (as in all these papers but FCN, whose rate is
fixed, DeepLab V1 and the dilated networks, which divide the rate by 10, and ENet and ESPNet, which keep or halve it);
its length is in epochs, the published iterations times the batch over the number of training images; one rate holds for
the backbone, one multiple of it for the rest; validation during training takes whole images. bfloat16 and channels-last
are ours. None of these recipes has been run here: they are work for GPUs, and their scores are the papers'. A figure
"from memory" is from memory of the paper, not checked, and so are the numbers of tables but those of DUpsampling and
DFANet.
"""

from dataclasses import replace

from pipelines.recipes.recipe import Recipe
from segcore.augment_config import AugmentConfig
from segcore.dense_crf import DenseCRFConfig
from segcore.inference import InferenceConfig
from segcore.models import (
    BiSeNetConfig,
    DeconvNetConfig,
    DeepLabV2Config,
    DeepLabV3Config,
    DeepLabV3PlusConfig,
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
    SegNetConfig,
)
from segcore.models.main_loss import LossConfig
from segcore.optim import OptimConfig

SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
"""Sizes at which DeepLab (VOC), PSPNet and EncNet see each image in evaluation."""
REFINENET_ENLARGEMENT = 1.2
"""Factor by which the released RefineNet code enlarges every image, behind its own scales."""
DEEPLAB_BATCH_NORM_MOMENTUM = 0.0003
"""DeepLab's decay of 0.9997. New layers' statistics need some 10 000 steps: validation before that says little."""
FCN_PIXELS = 375 * 500
"""Of a usual PASCAL image: FCN's released loss is a sum over them."""
DEEPLAB_CRF = DenseCRFConfig(iterations=10, w1=4.0, theta_alpha=67.0, theta_beta=3.0, w2=3.0, theta_gamma=3.0)
"""DeepLab V1 and V2 (arXiv 1606.00915, section 4) fix w2, theta_gamma and 10 iterations, and search the others on 100
images: about 4 to 5, 49 to 121 and 3 to 5 (from memory). These three are those of kazuto1011/deeplab-pytorch, whose
theta_gamma is 1."""
DECONVNET_CRF = DenseCRFConfig(iterations=10, w1=5.0, theta_alpha=20.0, theta_beta=3.0, w2=3.0, theta_gamma=3.0)
"""DeconvNet (arXiv 1505.04366), from its released code; there the probabilities are not clipped at 1e-5."""


def deeplab_v2(
    model: DeepLabV2Config, *, learning_rate: float, crop_px: int, epochs: int, crf: DenseCRFConfig | None = None
) -> Recipe:
    """Chen et al., arXiv 1606.00915, section 4.1: poly, batches of 10, mirrored and scaled by 0.5 to 1.5.

    The last layer learns 10 times faster (its biases 20 times, which we have not). The steps of the scales are those of
    a reimplementation (kazuto1011/deeplab-pytorch). Published scores of ResNet-101 start from COCO, ours from ImageNet.
    The network itself sees three sizes (ResNet-101). A CRF is part of a recipe whose published score has one.
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
        inference=InferenceConfig(crf=crf or DenseCRFConfig()),
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


def enet(model: ENetConfig, *, height: int, width: int, epochs: int, long_side_px: int = 0) -> Recipe:
    """Paszke et al., arXiv 1606.02147, section 5, and e-lab/ENet-training: Adam, batches of 10, whole images.

    From memory of the paper: rate 5e-4, weight decay 2e-4, whose Adam adds it to the gradient; ours is AdamW. The code
    neither scales nor mirrors. It weights classes by 1 / ln(1.02 + share of the class). The encoder is trained first,
    against labels of an eighth of the size there, against whole ones here (see `segcore.models.enet`); the whole
    network then starts from it.
    """
    return Recipe(
        model=model,
        augment=AugmentConfig(
            crop_height=height, crop_width=width, scale_min=1.0, scale_max=1.0, flip=False, long_side_px=long_side_px
        ),
        optim=_adam(weight_decay=2e-4),
        loss=LossConfig(class_weights="inverse_log"),
        epochs=epochs,
        batch_size=10,
        precision="bfloat16",
        channels_last=True,
        validate_every=max(1, epochs // 20),
        inference=InferenceConfig(short_side_px=height if long_side_px else 0),
    )


def espnet(model: ESPNetConfig, *, batch_size: int) -> Recipe:
    """Mehta et al., arXiv 1803.06815, and sacmehta/ESPNet: Adam, rate 5e-4, weight decay 5e-4, images of 512 x 1024.

    An epoch of the code shows each image at five sizes, 256 x 512 to 768 x 1536: 1,500 epochs at random zooms of 0.5 to
    1.5 are its 300. It halves the rate every 100 of them. It mirrors upside down too (its comment says left to right);
    ours left to right. It weights classes by 1 / ln(1.10 + share of the class). ESPNet-C is trained first, against
    labels of an eighth of the size there, against whole ones here; ESPNet then starts from it.
    """
    return Recipe(
        model=model,
        augment=AugmentConfig(crop_height=512, crop_width=1024, scale_min=0.5, scale_max=1.5, long_side_px=1024),
        optim=_adam(weight_decay=5e-4),
        loss=LossConfig(class_weights="inverse_log", inverse_log_offset=1.10),
        epochs=1500,
        batch_size=batch_size,
        precision="bfloat16",
        channels_last=True,
        validate_every=50,
        inference=InferenceConfig(short_side_px=512),
    )


def _adam(*, weight_decay: float) -> OptimConfig:
    """AdamW at 5e-4 for all parameters, which ENet and ESPNet share but for the decay."""
    return OptimConfig(optimiser="adamw", learning_rate=5e-4, decoder_multiplier=1.0, weight_decay=weight_decay)


def deconvnet(*, epochs: int) -> Recipe:
    """Noh et al., arXiv 1505.04366, and its released solvers: windows of 224 px of crops of 250 px, mirrored.

    Rate 0.01 for all layers, batches of 64, weight decay 5e-4. The solvers divide the rate by 10 every 9,000 steps of
    stage one and every 10,000 of stage two, and stage two's takes crops of 224 px as they are. Statistics of batch
    normalisation are computed anew at the end, from 500 batches (501 in the code). Validation sees the crops of the
    validation split whole, resized to 224 px. Inference is from the best 50 of 2000 proposals, without CRF, which is
    `DECONVNET_CRF`.
    """
    return Recipe(
        model=DeconvNetConfig(),
        inference=InferenceConfig(mode="proposals", crop_px=224),
        augment=AugmentConfig(crop_height=224, crop_width=224, scale_min=1.0, scale_max=1.0),
        optim=_sgd(learning_rate=0.01, decoder_multiplier=1.0, weight_decay=5e-4),
        epochs=epochs,
        batch_size=64,
        precision="bfloat16",
        channels_last=True,
        batch_norm_batches=500,
    )


def segnet(
    model: SegNetConfig,
    *,
    learning_rate: float,
    crop_height: int,
    crop_width: int,
    epochs: int,
    batch_size: int,
    long_side_px: int = 0,
) -> Recipe:
    """Badrinarayanan et al., arXiv 1511.00561, as its released tutorial trains it: whole images, as they are.

    Weight decay 5e-4; a fixed rate, here poly. Classes are weighed by median frequency / frequency, of pixels in images
    that have the class. The tutorial's own weights of CamVid (0.14 for roads to 9.6 for signs) do not follow from its
    labels: `segcore.class_balance.median_frequency_weights`.
    """
    return Recipe(
        model=model,
        augment=AugmentConfig(
            crop_height=crop_height,
            crop_width=crop_width,
            scale_min=1.0,
            scale_max=1.0,
            flip=False,
            long_side_px=long_side_px,
        ),
        optim=_sgd(learning_rate=learning_rate, decoder_multiplier=1.0, weight_decay=5e-4),
        loss=LossConfig(class_weights="median_frequency"),
        epochs=epochs,
        batch_size=batch_size,
        precision="bfloat16",
        channels_last=True,
        validate_every=max(1, epochs // 20),
    )


def refinenet(model: RefineNetConfig, *, crop_px: int, epochs: int, short_side_px: int = 0) -> Recipe:
    """Lin et al., arXiv 1611.06612, as guosheng/refinenet trains and evaluates: scales of 0.7 to 1.3 and of 0.4 to 1.2.

    The code takes single crops (`crop_px` / 1.2 before enlargement) at 5e-4, a tenth of that in the ResNet, whose
    normalisation it keeps fixed, until validation scores are stable, then at a tenth. Ours adapts the normalisation and
    needs batches: 8 crops at ten times these rates, poly; how many epochs is ours. Its crops contain rare classes more
    often, ours do not.
    """
    enlarge = REFINENET_ENLARGEMENT
    return Recipe(
        model=model,
        augment=AugmentConfig(
            crop_height=crop_px,
            crop_width=crop_px,
            scale_min=0.7 * enlarge,
            scale_max=1.3 * enlarge,
            scale_step=0.1 * enlarge,
        ),
        optim=_sgd(learning_rate=5e-4, decoder_multiplier=10.0, weight_decay=5e-4),
        epochs=epochs,
        batch_size=8,
        precision="bfloat16",
        channels_last=True,
        validate_every=max(1, epochs // 10),
        inference=InferenceConfig(
            scales=tuple(round(scale * enlarge, 2) for scale in (0.4, 0.6, 0.8, 1.0, 1.2)), short_side_px=short_side_px
        ),
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
    The losses of all its heads see hard pixels alone (online bootstrapping; of probability below 0.7, a sixteenth of
    all at least), at 1/8 of the size for the fast networks; ours so at full size, and the auxiliary heads see all.
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
        loss=LossConfig(main="ohem"),
        epochs=epochs,
        batch_size=16,
        precision="bfloat16",
        channels_last=True,
        validate_every=max(1, epochs // 20),
        inference=inference,
    )


def _sgd(*, learning_rate: float, decoder_multiplier: float, weight_decay: float, momentum: float = 0.9) -> OptimConfig:
    """SGD with poly 0.9, which all the others have."""
    return OptimConfig(
        optimiser="sgd",
        learning_rate=learning_rate,
        decoder_multiplier=decoder_multiplier,
        weight_decay=weight_decay,
        momentum=momentum,
    )
