"""Tables as papers published them: figures, what they were counted on, and which of our recipes are of which row.

Only figures that were read in a table of the paper (`TABLE`) or in released code or its documentation (`CODE`) stand
here. What could not be read there is None, and `missing` says so: nothing is from memory.
"""

from dataclasses import dataclass

TABLE = "table"
CODE = "code"
VOC_VAL, VOC_TEST = "VOC 2012 val", "VOC 2012 test"
CITYSCAPES_VAL, CITYSCAPES_TEST = "Cityscapes val", "Cityscapes test"
CITYSCAPES_CLASSES, VOC_CLASSES = 19, 21

UNCONFIRMED = "the paper's mIoU could not be read in its table or code"
HIDDEN = "test labels are not public"
NO_RECIPE = "no recipe here"
FROM_COCO = "theirs started from COCO, ours from ImageNet"
TWICE = "their cost counts two per multiply-add"
CHECKPOINT = "their size is megabytes of a checkpoint"


@dataclass(frozen=True, kw_only=True, slots=True)
class PaperRow:
    """One row as published; None where the paper prints nothing or nobody could read it.

    Attributes:
        table: its number or name.
        method: what the row is, in the paper's words.
        data: dataset and split.
        source: `TABLE` or `CODE`.
        mean_iou, bound: mIoU and mIoU*, fractions of 1.
        decoder_gflops: decoder FLOPs in billions, two per multiply-add, at 513 x 513.
        cost_g: of the whole network, in billions, as printed; per multiply-add unless `missing` says otherwise.
        size_px: height and width of the image that it is of.
        num_classes: of the network that it is of.
        size_m: size in millions as printed.
        milliseconds: per image, on the paper's machine.
        recipes: ours of this row; those of other datasets stand there for comparison of differences. Empty: the row's
            name behind the dataset's is the recipe's.
        several_scales: whether the row is of several scales and mirror images (True), of one (False), or of what the
            paper does not say (None).
        missing: what keeps ours from being the same experiment.
    """

    table: str
    method: str
    data: str = VOC_VAL
    source: str = TABLE
    mean_iou: float | None = None
    bound: float | None = None
    decoder_gflops: float | None = None
    cost_g: float | None = None
    size_px: tuple[int, int] | None = None
    num_classes: int = CITYSCAPES_CLASSES
    size_m: float | None = None
    milliseconds: float | None = None
    recipes: tuple[str, ...] = ()
    several_scales: bool | None = None
    missing: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class PaperTable:
    """Rows by name, in the paper's order, and where they were published."""

    source: str
    rows: dict[str, PaperRow]


DUPSAMPLING = {
    "table1_bilinear_os32": PaperRow(table="1", method="bilinear, OS 32", mean_iou=0.7077, bound=0.9480),
    "table1_dupsampling_os32": PaperRow(table="1", method="DUpsampling, OS 32", mean_iou=0.7209, bound=0.9990),
    "table1_bilinear_os16": PaperRow(table="1", method="bilinear, OS 16", mean_iou=0.7215, bound=0.9840),
    "table1_dupsampling_os16": PaperRow(table="1", method="DUpsampling, OS 16", mean_iou=0.7315, bound=0.9995),
    "table2_none": PaperRow(table="2", method="no feature", mean_iou=0.7315, decoder_gflops=0.80),
    "table2_conv1_3": PaperRow(table="2", method="conv1_3", mean_iou=0.7270, decoder_gflops=1.13),
    "table2_b1u2c3": PaperRow(table="2", method="b1u2c3", mean_iou=0.7403, decoder_gflops=1.15),
    "table2_b3u6c3": PaperRow(table="2", method="b3u6c3", mean_iou=0.7343, decoder_gflops=1.23),
    "table2_b1u2c3_b3u6c3": PaperRow(table="2", method="b1u2c3 + b3u6c3", mean_iou=0.7382, decoder_gflops=1.58),
    "table2_conv1_3_b3u6c3": PaperRow(table="2", method="conv1_3 + b3u6c3", mean_iou=0.7420, decoder_gflops=1.56),
    "table3_resnet50_vanilla_4": PaperRow(
        table="3", method="R50, vanilla, b1u2c3 / 4", mean_iou=0.7326, decoder_gflops=5.53
    ),
    "table3_resnet50_proposed_4": PaperRow(
        table="3", method="R50, proposed, b1u2c3 / 4", mean_iou=0.7403, decoder_gflops=1.15
    ),
    "table3_resnet50_vanilla_2_16": PaperRow(
        table="3", method="R50, vanilla, conv1_3 / 2 + b3u6c3 / 16 (out of memory)", decoder_gflops=22.34
    ),
    "table3_xception65_vanilla_4": PaperRow(
        table="3", method="X65, vanilla, efb2u1c2 / 4", mean_iou=0.7870, decoder_gflops=5.53
    ),
    "table3_xception65_proposed_4": PaperRow(
        table="3", method="X65, proposed, efb2u1c2 / 4", mean_iou=0.7909, decoder_gflops=1.93
    ),
    "table3_xception65_vanilla_16": PaperRow(
        table="3", method="X65, vanilla, mfb1u16c3 / 16", mean_iou=0.7874, decoder_gflops=0.41
    ),
    "table3_xception65_proposed_16": PaperRow(
        table="3", method="X65, proposed, mfb1u16c3 / 16", mean_iou=0.7967, decoder_gflops=1.98
    ),
}


_X65_VOC = ("voc.deeplab_v3plus_xception65",)
_X65_CITYSCAPES = ("cityscapes.deeplab_v3plus_xception65",)
DEEPLABV3PLUS = {
    "voc_xception65": PaperRow(
        table="model zoo",
        method="Xception-65, OS 16, one scale",
        source=CODE,
        mean_iou=0.8220,
        cost_g=54.17,
        size_px=(513, 513),
        num_classes=VOC_CLASSES,
        recipes=_X65_VOC,
        several_scales=False,
        missing=FROM_COCO,
    ),
    "voc_xception65_scales": PaperRow(
        table="model zoo",
        method="Xception-65, OS 8, scales and mirror images",
        source=CODE,
        mean_iou=0.8358,
        cost_g=3055.35,
        recipes=_X65_VOC,
        several_scales=True,
        missing=f"{FROM_COCO}; their cost is of all scales",
    ),
    "voc_mobilenet_v2": PaperRow(
        table="model zoo",
        method="MobileNetV2, without ASPP and decoder, OS 16",
        source=CODE,
        mean_iou=0.7532,
        cost_g=2.75,
    ),
    "cityscapes_xception65": PaperRow(
        table="model zoo",
        method="Xception-65, OS 16, one scale",
        data=CITYSCAPES_VAL,
        source=CODE,
        mean_iou=0.7879,
        cost_g=418.64,
        size_px=(1025, 2049),
        recipes=_X65_CITYSCAPES,
        several_scales=False,
    ),
    "cityscapes_xception65_scales": PaperRow(
        table="model zoo",
        method="Xception-65, OS 8, scales and mirror images",
        data=CITYSCAPES_VAL,
        source=CODE,
        mean_iou=0.8042,
        cost_g=8677.92,
        recipes=_X65_CITYSCAPES,
        several_scales=True,
        missing="their cost is of all scales",
    ),
    "cityscapes_mobilenet_v2": PaperRow(
        table="model zoo",
        method="MobileNetV2, without ASPP and decoder, OS 16",
        data=CITYSCAPES_VAL,
        source=CODE,
        mean_iou=0.7071,
        cost_g=21.27,
    ),
    "ade20k_xception65_scales": PaperRow(
        table="model zoo",
        method="Xception-65, several scales",
        data="ADE20K val",
        source=CODE,
        mean_iou=0.4565,
        recipes=("ade20k.deeplab_v3plus_xception65",),
        several_scales=True,
    ),
    "voc_test_deeplab_v3": PaperRow(
        table="test",
        method="DeepLab V3",
        data=VOC_TEST,
        mean_iou=0.857,
        recipes=("voc.deeplab_v3_resnet101",),
        missing=HIDDEN,
    ),
    "voc_test_deeplab_v3_jft": PaperRow(
        table="test", method="DeepLab V3, JFT", data=VOC_TEST, mean_iou=0.869, missing="JFT is not public"
    ),
    "voc_test_deeplab_v3plus": PaperRow(
        table="test",
        method="DeepLab V3+, Xception",
        data=VOC_TEST,
        mean_iou=0.878,
        recipes=_X65_VOC,
        missing=f"{HIDDEN}; {FROM_COCO}",
    ),
    "voc_test_deeplab_v3plus_jft": PaperRow(
        table="test", method="DeepLab V3+, Xception, JFT", data=VOC_TEST, mean_iou=0.890, missing="JFT is not public"
    ),
    "voc_test_pspnet": PaperRow(
        table="test", method="PSPNet", data=VOC_TEST, mean_iou=0.854, recipes=("voc.pspnet_resnet101",), missing=HIDDEN
    ),
    "voc_test_refinenet": PaperRow(
        table="test",
        method="RefineNet",
        data=VOC_TEST,
        mean_iou=0.842,
        recipes=("voc.refinenet_resnet101",),
        missing=HIDDEN,
    ),
    "cityscapes_test_pspnet": PaperRow(
        table="test",
        method="PSPNet",
        data=CITYSCAPES_TEST,
        mean_iou=0.812,
        recipes=("cityscapes.pspnet_resnet101",),
        missing=HIDDEN,
    ),
    "cityscapes_test_deeplab_v3": PaperRow(
        table="test",
        method="DeepLab V3",
        data=CITYSCAPES_TEST,
        mean_iou=0.813,
        recipes=("cityscapes.deeplab_v3_resnet101",),
        missing=HIDDEN,
    ),
    "cityscapes_test_deeplab_v3plus": PaperRow(
        table="test",
        method="DeepLab V3+",
        data=CITYSCAPES_TEST,
        mean_iou=0.821,
        recipes=("cityscapes.deeplab_v3plus_xception71",),
        missing=f"{HIDDEN}; which backbone theirs has could not be read",
    ),
}


def _street(
    method: str,
    mean_iou: float,
    *recipes: str,
    cost_g: float | None = None,
    size_px: tuple[int, int] | None = None,
    size_m: float | None = None,
    milliseconds: float | None = None,
    missing: str = "",
) -> PaperRow:
    """A row of DFANet's comparison, on Cityscapes' test set."""
    return PaperRow(
        table="test",
        method=method,
        data=CITYSCAPES_TEST,
        mean_iou=mean_iou,
        cost_g=cost_g,
        size_px=size_px,
        size_m=size_m,
        milliseconds=milliseconds,
        recipes=recipes,
        missing="; ".join(part for part in (HIDDEN if recipes else "", missing) if part),
    )


def _ablation(method: str, mean_iou: float, *recipes: str, cost_g: float | None = None) -> PaperRow:
    """A row of DFANet's ablations, on Cityscapes val; costs are counted at 1024 x 1024."""
    size_px = (1024, 1024) if recipes else None
    return PaperRow(
        table="ablation",
        method=method,
        data=CITYSCAPES_VAL,
        mean_iou=mean_iou,
        cost_g=cost_g,
        size_px=size_px,
        recipes=recipes,
    )


_DFANET_A = ("cityscapes.dfanet_a", "camvid.dfanet_a", "camvid.small_dfanet_a")
_DFANET_B = ("cityscapes.dfanet_b", "camvid.dfanet_b", "camvid.small_dfanet_b")
DFANET = {
    "pspnet": _street(
        "PSPNet, 713 x 713",
        0.812,
        "cityscapes.pspnet_resnet101",
        cost_g=412.2,
        size_px=(713, 713),
        size_m=250.8,
        milliseconds=1288,
        missing=CHECKPOINT,
    ),
    "deeplab": _street(
        "DeepLab, 512 x 1024", 0.631, cost_g=457.8, size_m=262.1, milliseconds=4000, missing="which DeepLab is not said"
    ),
    "segnet": _street(
        "SegNet, 360 x 640",
        0.57,
        "cityscapes.segnet_vgg16",
        "camvid.segnet",
        cost_g=286,
        size_px=(360, 640),
        size_m=29.5,
        missing=f"{TWICE}; 16 ms beside 16.7 images per second is a misprint",
    ),
    "enet": _street(
        "ENet, 360 x 640",
        0.57,
        "cityscapes.enet",
        "camvid.enet",
        "camvid.small_enet",
        cost_g=3.8,
        size_px=(360, 640),
        size_m=0.4,
        milliseconds=7,
        missing=TWICE,
    ),
    "sq": _street("SQ, 1024 x 2048", 0.598, cost_g=270, milliseconds=60),
    "crf_rnn": _street("CRF-RNN, 512 x 1024", 0.625, milliseconds=700),
    "fcn_8s": _street("FCN-8s, 512 x 1024", 0.631, cost_g=136.2, milliseconds=500),
    "frrn": _street(
        "FRRN, 512 x 1024", 0.718, cost_g=235, missing="469 ms beside 0.25 images per second is a misprint"
    ),
    "icnet": _street(
        "ICNet, 1024 x 2048",
        0.695,
        "cityscapes.icnet",
        "camvid.icnet",
        "camvid.small_icnet",
        cost_g=28.3,
        size_px=(1024, 2048),
        size_m=26.5,
        milliseconds=33,
        missing=CHECKPOINT,
    ),
    "two_column": _street("TwoColumn, 512 x 1024", 0.729, cost_g=57.2, milliseconds=68),
    "bisenet_1": _street(
        "BiSeNet1, 768 x 1536",
        0.684,
        "cityscapes.bisenet_xception39",
        "camvid.bisenet_xception39",
        cost_g=14.8,
        size_px=(768, 1536),
        size_m=5.8,
        milliseconds=13,
    ),
    "bisenet_2": _street(
        "BiSeNet2, 768 x 1536",
        0.747,
        "cityscapes.bisenet_resnet18",
        "camvid.bisenet_resnet18",
        "camvid.small_bisenet_resnet18",
        cost_g=55.3,
        size_px=(768, 1536),
        size_m=49,
        milliseconds=21,
    ),
    "dfanet_a": _street(
        "DFANet A, 1024 x 1024",
        0.713,
        *_DFANET_A,
        cost_g=3.4,
        size_px=(1024, 1024),
        size_m=7.8,
        milliseconds=10,
        missing=CHECKPOINT,
    ),
    "dfanet_b": _street(
        "DFANet B, 1024 x 1024",
        0.671,
        *_DFANET_B,
        cost_g=2.1,
        size_px=(1024, 1024),
        size_m=4.8,
        milliseconds=8,
        missing=CHECKPOINT,
    ),
    "dfanet_a_half": _street(
        "DFANet A', 512 x 1024",
        0.703,
        "cityscapes.dfanet_a_half",
        cost_g=1.7,
        size_px=(512, 1024),
        size_m=7.8,
        milliseconds=6,
        missing=CHECKPOINT,
    ),
    "ablation_a": _ablation("A, three encoders, high and low levels fused", 0.719, *_DFANET_A, cost_g=3.4),
    "ablation_b": _ablation("B, three encoders, high and low levels fused", 0.684, *_DFANET_B, cost_g=2.1),
    "ablation_a_high": _ablation("A, three encoders, high levels fused", 0.696, cost_g=2.7),
    "ablation_b_high": _ablation("B, three encoders, high levels fused", 0.676, cost_g=1.5),
    "ablation_a_two": _ablation("A, two encoders, high and low levels fused", 0.694, cost_g=3.2),
    "ablation_a_two_high": _ablation("A, two encoders, high levels fused", 0.671, cost_g=2.5),
    "ablation_a_encoder": _ablation("A, one encoder with attention", 0.654, cost_g=1.6),
    "ablation_b_encoder": _ablation("B, one encoder with attention", 0.592, cost_g=0.83),
}


def _zoo(method: str, data: str, mean_iou: float, *recipes: str) -> PaperRow:
    """A row of the documentation of the authors' code."""
    return PaperRow(
        table="model zoo", method=method, data=data, source=CODE, mean_iou=mean_iou, recipes=recipes, missing=_ZOO
    )


_ZOO = "at how many scales theirs was scored could not be read"
ENCNET = {
    "ade20k_fcn_resnet50": _zoo("FCN, ResNet-50s", "ADE20K", 0.385),
    "ade20k_resnet50": _zoo("EncNet, ResNet-50s", "ADE20K", 0.415, "ade20k.encnet_resnet50"),
    "ade20k_resnet101": _zoo("EncNet, ResNet-101s", "ADE20K", 0.444, "ade20k.encnet_resnet101"),
    "context_resnet50": _zoo("EncNet, ResNet-50s", "PASCAL Context", 0.510, "pascal_context.encnet_resnet50"),
    "context_resnet101": _zoo("EncNet, ResNet-101s", "PASCAL Context", 0.541, "pascal_context.encnet_resnet101"),
    "context_paper": PaperRow(
        table="DUpsampling's",
        method="EncNet, ResNet-101",
        data="PASCAL Context val",
        mean_iou=0.517,
        recipes=("pascal_context.encnet_resnet101",),
        missing="59 or 60 classes and how many scales could not be read",
    ),
    "voc_test": PaperRow(
        table="DUpsampling's",
        method="EncNet, ResNet-101",
        data=VOC_TEST,
        mean_iou=0.859,
        recipes=("voc.encnet_resnet101",),
        missing=f"{HIDDEN}; {FROM_COCO}",
    ),
}
_DECONVNET = ("voc.deconvnet_stage2", "camvid.small_deconvnet_stage2")
DECONVNET = {
    "fcn_8s": PaperRow(
        table="VOC test",
        method="FCN-8s",
        data=VOC_TEST,
        recipes=("voc.fcn_8s_vgg16",),
        missing=f"{UNCONFIRMED}; {HIDDEN}",
    ),
    "deconvnet": PaperRow(
        table="VOC test", method="DeconvNet", data=VOC_TEST, recipes=_DECONVNET, missing=f"{UNCONFIRMED}; {HIDDEN}"
    ),
    "deconvnet_crf": PaperRow(
        table="VOC test",
        method="DeconvNet + CRF",
        data=VOC_TEST,
        missing=f"{UNCONFIRMED}; evaluate --protocols crf has ours",
    ),
    "edeconvnet": PaperRow(
        table="VOC test", method="EDeconvNet", data=VOC_TEST, missing=f"{UNCONFIRMED}; evaluate --ensemble has ours"
    ),
    "edeconvnet_crf": PaperRow(
        table="VOC test",
        method="EDeconvNet + CRF",
        data=VOC_TEST,
        source=CODE,
        mean_iou=0.725,
        missing="an ensemble is no training run: evaluate --ensemble has ours",
    ),
}

TABLES: dict[str, PaperTable] = {
    "dupsampling": PaperTable(
        source="Tian et al., DUpsampling (CVPR 2019, arXiv 1903.02120), tables 1 to 3", rows=DUPSAMPLING
    ),
    "deeplabv3plus": PaperTable(
        source="Chen et al., DeepLab V3+ (ECCV 2018, arXiv 1802.02611), and its released model zoo", rows=DEEPLABV3PLUS
    ),
    "dfanet": PaperTable(source="Li et al., DFANet (CVPR 2019, arXiv 1904.02216), on a Titan X", rows=DFANET),
    "encnet": PaperTable(
        source="Zhang et al., EncNet (CVPR 2018, arXiv 1803.08904), its released zoo, and as DUpsampling cites it",
        rows=ENCNET,
    ),
    "deconvnet": PaperTable(source="Noh et al., DeconvNet (ICCV 2015, arXiv 1505.04366)", rows=DECONVNET),
}
