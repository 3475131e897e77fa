"""The published networks that `network_table.py` lays ours beside: configuration, input, figures of their papers."""

from dataclasses import dataclass

from segcore.models import (
    BackboneUNetConfig,
    BiSeNetConfig,
    DeconvNetConfig,
    DeepLabV1Config,
    DeepLabV2Config,
    DeepLabV3Config,
    DeepLabV3PlusConfig,
    DFANetConfig,
    DilatedContextConfig,
    DUpsampleConfig,
    DUpsamplingConfig,
    EncNetConfig,
    ENetConfig,
    ESPNetConfig,
    FCNConfig,
    ICNetConfig,
    ModelConfig,
    PSPNetConfig,
    RefineNetConfig,
    SegNetConfig,
    UNetConfig,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One line of the table.

    Attributes:
        name: network and backbone.
        config: of ours.
        num_classes: of the published network.
        height, width: the published input.
        parameters: published, in millions; 0 where nothing is.
        multiply_adds: published, in units of 1e9; 0 where nothing is.
        score: published mIoU, and where.
    """

    name: str
    config: ModelConfig
    num_classes: int
    height: int
    width: int
    parameters: float = 0.0
    multiply_adds: float = 0.0
    score: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Ensemble:
    """Networks that are asked together.

    Attributes:
        name: of the whole.
        parts: each network, and how many inputs of its size one image becomes.
        parameters, multiply_adds, score: as of `Row`.
    """

    name: str
    parts: tuple[tuple[Row, int], ...]
    parameters: float = 0.0
    multiply_adds: float = 0.0
    score: str


def square(
    name: str, config: ModelConfig, num_classes: int, side: int, score: str, *, size: float = 0.0, cost: float = 0.0
) -> Row:
    """A row with a square input."""
    return Row(
        name=name,
        config=config,
        num_classes=num_classes,
        height=side,
        width=side,
        parameters=size,
        multiply_adds=cost,
        score=score,
    )


def deeplab_rows() -> list[Row]:
    """DeepLab V1 to V3+."""
    xception = DeepLabV3PlusConfig(backbone="xception65")
    dense = DeepLabV3PlusConfig(backbone="xception65", output_stride=8)
    deep = "resnet101_deep"
    return [
        square("DeepLab V1, VGG-16", DeepLabV1Config(), 21, 321, "63.1 Cityscapes test (with CRF)", size=20.5),
        square("DeepLab V2, VGG-16", DeepLabV2Config(backbone="vgg16"), 21, 321, "-"),
        square("DeepLab V2, ResNet-101", DeepLabV2Config(), 21, 321, "70.4 Cityscapes test (with CRF)"),
        square("DeepLab V3, ResNet-50", DeepLabV3Config(backbone="resnet50"), 21, 513, "-"),
        square("DeepLab V3, ResNet-101", DeepLabV3Config(), 21, 513, "85.7 VOC test (COCO, multi-scale)"),
        square("DeepLab V3+, ResNet-50", DeepLabV3PlusConfig(), 21, 513, "73.26 VOC val (DUpsampling paper)"),
        square(
            "DeepLab V3+, ResNet-101 deep stem, plain",
            DeepLabV3PlusConfig(backbone=deep, separable=False),
            21,
            513,
            "78.85 VOC val",
            cost=101.28,
        ),
        square("DeepLab V3+, Xception-65", xception, 21, 513, "82.20 VOC val (COCO)", cost=54.17),
        square("DeepLab V3+, Xception-65, stride 8", dense, 21, 513, "83.58 VOC val (COCO, multi-scale, flip)"),
        Row(
            name="DeepLab V3+, Xception-65",
            config=xception,
            num_classes=19,
            height=1025,
            width=2049,
            multiply_adds=418.64,
            score="78.79 Cityscapes val",
        ),
    ]


def other_rows() -> list[Row]:
    """The other families."""
    dfanet_b = DFANetConfig(backbone="dfanet_xception_b")
    lateral = EncNetConfig(backbone="resnet101_deep", lateral=True)
    wide = DUpsampleConfig(num_components=128)
    sizes = "prints 7.8 M and 4.8 M, which are megabytes of a checkpoint"
    return [
        square("FCN-32s, VGG-16", FCNConfig(variant="32s"), 21, 500, "63.6 VOC 2011 val (736 images)", size=136.152917),
        square("FCN-16s, VGG-16", FCNConfig(variant="16s"), 21, 500, "65.0 VOC 2011 val (736 images)", size=134.815994),
        square("FCN-8s, VGG-16", FCNConfig(), 21, 500, "65.5 VOC 2011 val (736 images), 67.2 test", size=134.489759),
        Row(
            name="FCN-8s, VGG-16",
            config=FCNConfig(),
            num_classes=19,
            height=512,
            width=1024,
            multiply_adds=136.2,
            score="63.1 Cityscapes test (as the DFANet paper cites it)",
        ),
        square("Dilated front end, VGG-16", DilatedContextConfig(context="none"), 21, 500, "-"),
        square("Dilated front end and context", DilatedContextConfig(), 21, 500, "73.5 VOC test"),
        square("Dilation 10", DilatedContextConfig(context_layers=10), 19, 500, "68.7 Cityscapes val, 67.1 test"),
        square("PSPNet, ResNet-50", PSPNetConfig(), 150, 473, "41.68 ADE20K val"),
        square(
            "PSPNet, ResNet-101",
            PSPNetConfig(backbone="resnet101_deep"),
            19,
            713,
            "79.70 Cityscapes val, 78.4 test",
            cost=412.2,
        ),
        square("EncNet, ResNet-50", EncNetConfig(), 150, 480, "41.11 ADE20K val"),
        square("EncNet, ResNet-101, lateral", lateral, 59, 480, "51.7 PASCAL Context val"),
        square("DFANet A", DFANetConfig(), 19, 1024, f"71.3 Cityscapes test ({sizes})", cost=3.4),
        Row(
            name="DFANet A'",
            config=DFANetConfig(),
            num_classes=19,
            height=512,
            width=1024,
            multiply_adds=1.7,
            score="70.3 Cityscapes test",
        ),
        square("DFANet B", dfanet_b, 19, 1024, "67.1 Cityscapes test", cost=2.1),
        square(
            "DUpsampling, ResNet-50",
            DUpsamplingConfig(backbone="resnet50_deep", output_stride=16),
            21,
            513,
            "74.20 VOC val",
        ),
        square(
            "DUpsampling, Xception-65",
            DUpsamplingConfig(backbone="xception65", output_stride=16, features=(16,), dupsample=wide),
            21,
            513,
            "79.67 VOC val",
        ),
    ]


def light_rows() -> list[Row]:
    """Networks for fast machines of little memory, at the sizes of their papers and at 512 x 1024."""
    return [
        Row(
            name="ENet",
            config=ENetConfig(),
            num_classes=19,
            height=360,
            width=640,
            parameters=0.37,
            multiply_adds=1.9,
            score="58.3 Cityscapes test (prints 3.8 GFLOPs, two per multiply-add)",
        ),
        Row(
            name="ENet, layout davidtvs",
            config=ENetConfig(layout="davidtvs"),
            num_classes=19,
            height=512,
            width=1024,
            score="42.35 Cityscapes val (davidtvs/PyTorch-ENet)",
        ),
        half("ENet's encoder", ENetConfig(stage="encoder"), "-"),
        half("ENet", ENetConfig(), "58.3 Cityscapes test, 51.3 CamVid test"),
        half("ESPNet-C", ESPNetConfig(stage="encoder"), "-"),
        half("ESPNet", ESPNetConfig(), "60.3 Cityscapes test", size=0.36),
    ]


def half(name: str, config: ModelConfig, score: str, *, size: float = 0.0) -> Row:
    """A row with Cityscapes' images at half of their size."""
    return Row(name=name, config=config, num_classes=19, height=512, width=1024, parameters=size, score=score)


def unpooling_rows() -> list[Row | Ensemble]:
    """Networks whose decoders unpool."""
    basic = SegNetConfig(backbone="segnet_basic")
    deconvnet = square("DeconvNet, a crop", DeconvNetConfig(), 21, 224, "69.6 VOC test, with CRF 70.5", size=252)
    fcn = square("FCN-8s", FCNConfig(), 21, 500, "-")
    return [
        deconvnet,
        Ensemble(
            name="EDeconvNet: DeconvNet and FCN-8s",
            parts=((deconvnet, 50), (fcn, 1)),
            score="71.7 VOC test, with CRF 72.5",
        ),
        Row(
            name="SegNet",
            config=SegNetConfig(),
            num_classes=19,
            height=360,
            width=640,
            parameters=29.5,
            multiply_adds=143.0,
            score="56.1 Cityscapes test (286 GFLOPs, two per multiply-add)",
        ),
        Row(name="SegNet", config=SegNetConfig(), num_classes=11, height=360, width=480, score="60.1 CamVid test"),
        Row(name="SegNet-Basic", config=basic, num_classes=11, height=360, width=480, parameters=1.425, score="-"),
    ]


def path_rows() -> list[Row]:
    """Networks that go up again over all of their encoder's levels."""
    padded = UNetConfig(padded=True, batch_norm=True)
    pools = RefineNetConfig(num_pools=4)
    return [
        square("U-Net, tile of 572 x 572", UNetConfig(), 2, 388, "-"),
        Row(
            name="U-Net, padded, batch normalisation",
            config=padded,
            num_classes=19,
            height=512,
            width=1024,
            score="65.00 Cityscapes val (PaddleSeg's variant)",
        ),
        square("U-Net's way up over ResNet-50", BackboneUNetConfig(), 21, 512, "-"),
        square("RefineNet, ResNet-101", RefineNetConfig(), 19, 512, "73.6 Cityscapes test"),
        square("RefineNet, ResNet-101, four pools", pools, 21, 512, "83.4 VOC test (COCO, multi-scale)"),
    ]


def real_time_rows() -> list[Row]:
    """ICNet and BiSeNet; the sizes that other papers print as millions are megabytes."""
    light = BiSeNetConfig(backbone="xception39", auxiliary_channels=128)
    sizes = (
        ("BiSeNet, Xception39", light, 14.8, "69.0 Cityscapes val, 68.4 test (prints 5.8 M, which are megabytes)"),
        ("BiSeNet, ResNet-18", BiSeNetConfig(), 55.3, "74.8 Cityscapes val, 74.7 test (prints 49 M)"),
    )
    icnet = "67.7 Cityscapes val, 69.5 test (26.5 M, which are megabytes)"
    return [
        Row(
            name="ICNet",
            config=ICNetConfig(),
            num_classes=19,
            height=1024,
            width=2048,
            parameters=6.7,
            multiply_adds=28.3,
            score=icnet,
        ),
        *(
            Row(name=name, config=config, num_classes=19, height=768, width=1536, multiply_adds=cost, score=score)
            for name, config, cost, score in sizes
        ),
    ]


GROUPS = (deeplab_rows(), other_rows(), path_rows(), light_rows(), real_time_rows(), unpooling_rows())
"""All rows, as they stand in the table."""

LATENCY_ROWS = (
    half("ENet", ENetConfig(), "-"),
    half("DFANet B", DFANetConfig(backbone="dfanet_xception_b"), "-"),
    half("ESPNet", ESPNetConfig(), "-"),
    half("ICNet", ICNetConfig(), "-"),
    half("BiSeNet, ResNet-18", BiSeNetConfig(), "-"),
    half("FCN-8s, VGG-16", FCNConfig(), "-"),
)
"""Those that are timed at one size; the last is the slowest."""
