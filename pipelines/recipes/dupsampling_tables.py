"""The networks in tables 1 to 3 of Tian et al. (DUpsampling, arXiv 1903.02120), which compare decoders on VOC 2012 val.

Each row is a recipe `<dataset>.table<number>_<row>`. The names end in what the paper's tables call the decoder:

| here | the paper's low-level feature |
|---|---|
| `conv1_3`, `2` | last convolution of the stem, stride 2 |
| `b1u2c3`, `4` | block 1, unit 2, convolution 3 (`efb2u1c2` of Xception-65), stride 4 |
| `b3u6c3`, `16` | block 3, unit 6, convolution 3 (`mfb1u16c3` of Xception-65), stride 16 |

Rows that the paper prints twice are recipes twice and train the same network: `table2_none` is
`table1_dupsampling_os16`, `table3_resnet50_proposed_4` is `table2_b1u2c3`. Decoder FLOPs are two per multiply-add, at
513 x 513 with 21 classes.
"""

from segcore.models import DeepLabV3PlusConfig, DUpsampleConfig, DUpsamplingConfig


def bilinear(backbone: str, *, output_stride: int) -> DeepLabV3PlusConfig:
    """ "Bilinear" of table 1: ASPP's scores enlarged by the output stride."""
    return DeepLabV3PlusConfig(backbone=backbone, output_stride=output_stride, low_level_features=())


def vanilla(backbone: str, *features: int) -> DeepLabV3PlusConfig:
    """ "Vanilla" of table 3: DeepLabV3+'s decoder at the stride of the finest low-level feature, then bilinear."""
    return DeepLabV3PlusConfig(backbone=backbone, output_stride=16, low_level_features=features)


def proposed(backbone: str, *features: int, num_components: int, output_stride: int = 16) -> DUpsamplingConfig:
    """ "DUpsampling" of table 1, "proposed" of tables 2 and 3: features fused at the coarsest map, then its code."""
    return DUpsamplingConfig(
        backbone=backbone,
        output_stride=output_stride,
        features=features,
        dupsample=DUpsampleConfig(num_components=num_components),
    )
