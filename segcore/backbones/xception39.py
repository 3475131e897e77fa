"""Xception39, the light image classifier of BiSeNet (Yu et al., ECCV 2018, arXiv 1808.00897).

3x3 convolution of stride 2 to 8 channels, maximum pooling, then three stages of 4, 8 and 4 residual blocks [m, m, 4m],
each stage of stride 2: a relative of DFANet's Xception A and B (`segcore.backbones.light_xception`) that ends at stride
32. The layout is that of the authors' code (ycszen/TorchSeg, `furnace/base_model/xception.py`), whose stages project
their skip by a separable convolution of stride 2. The gain at the start is that of `light_xception`.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from segcore.backbones.light_xception import STEM_CHANNELS, LightXceptionBlock
from segcore.layers import initialise_convolutions, strided_conv

STAGE_BLOCKS = (4, 8, 4)
STAGE_CHANNELS = (64, 128, 256)

XCEPTION39_CHANNELS = (STEM_CHANNELS, STEM_CHANNELS, *STAGE_CHANNELS)
"""Of the features of stride 2 (the first convolution), 4 (the pool) and 8, 16, 32 (ends of the stages)."""


class Xception39(nn.Module):
    """The trunk; a map at stride s of an image with L rows has ceil(L / s) rows.

    Args:
        output_stride: 8, 16 or 32. A stage that lost its stride keeps the dilation so far in its first separable
            convolution and takes twice that after it, so features at 16, subsampled, equal those at 32.
        in_channels: of the image.
    """

    def __init__(self, *, output_stride: int, in_channels: int = 3) -> None:
        super().__init__()
        self.conv1 = strided_conv(in_channels, STEM_CHANNELS)
        self.stages = nn.ModuleDict()
        before, stride, dilation = STEM_CHANNELS, 4, 1
        for number, (channels, num_blocks) in enumerate(zip(STAGE_CHANNELS, STAGE_BLOCKS, strict=True), start=1):
            previous = dilation
            stride, dilation = (2 * stride, 1) if stride < output_stride else (stride, 2 * dilation)
            blocks = [
                LightXceptionBlock(before, channels, strided=True, separable_skip=True, dilations=(previous, dilation))
            ]
            blocks += [
                LightXceptionBlock(channels, channels, strided=False, dilations=(dilation, dilation))
                for _ in range(num_blocks - 1)
            ]
            self.stages[f"stage{number}"] = nn.Sequential(*blocks)
            before = channels
        initialise_convolutions(self)

    def forward(self, images_NKHW: Tensor) -> list[Tensor]:
        """Features of nominal stride 2, 4, 8, 16 and 32."""
        x = self.conv1(images_NKHW)
        features = [x]
        x = F.max_pool2d(x, 3, stride=2, padding=1)
        features.append(x)
        for stage in self.stages.values():
            x = stage(x)
            features.append(x)
        return features
