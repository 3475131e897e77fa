"""Plain implementations of four networks, as their papers are usually ported: the peers of `network_speed.py`.

Same layers, widths and dilations as ours, written without an eye on speed: torchvision's ResNet-50, `nn.Sequential`,
`F.interpolate`. Papers: DeepLabV3+ 1802.02611, PSPNet 1612.01105, EncNet 1803.08904, DFANet 1904.02216.
"""

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

NUM_CLASSES = 19


def conv_bn_relu(inputs: int, outputs: int, kernel: int = 1, *, dilation: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution, batch normalisation, ReLU."""
    padding = dilation * (kernel // 2)
    convolution = nn.Conv2d(inputs, outputs, kernel, padding=padding, dilation=dilation, groups=groups, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


def separable(inputs: int, outputs: int, *, dilation: int = 1) -> nn.Sequential:
    """Depthwise and pointwise convolution, each with batch normalisation and ReLU."""
    return nn.Sequential(
        conv_bn_relu(inputs, inputs, 3, dilation=dilation, groups=inputs), conv_bn_relu(inputs, outputs)
    )


def enlarged(x: Tensor, like: Tensor) -> Tensor:
    """Bilinear, to another map's size."""
    return F.interpolate(x, size=like.shape[-2:], mode="bilinear", align_corners=False)


class ResNet(nn.Module):
    """torchvision's ResNet-50 with dilation in its last stages: features of its four stages."""

    def __init__(self, *, output_stride: int) -> None:
        super().__init__()
        dilated = [False, output_stride == 8, True]
        self.net = torchvision.models.resnet50(weights=None, replace_stride_with_dilation=dilated)
        self.net.fc = nn.Identity()

    def forward(self, x: Tensor) -> list[Tensor]:
        """Maps of stages 1 to 4."""
        net = self.net
        x = net.maxpool(net.relu(net.bn1(net.conv1(x))))
        features = []
        for stage in (net.layer1, net.layer2, net.layer3, net.layer4):
            x = stage(x)
            features.append(x)
        return features


class PlainDeepLabV3Plus(nn.Module):
    """Output stride 16, separable convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = ResNet(output_stride=16)
        self.branches = nn.ModuleList(
            [conv_bn_relu(2048, 256), *(separable(2048, 256, dilation=rate) for rate in (6, 12, 18))]
        )
        self.pooling = nn.Sequential(nn.AdaptiveAvgPool2d(1), conv_bn_relu(2048, 256))
        self.project = nn.Sequential(conv_bn_relu(1280, 256), nn.Dropout(0.1))
        self.low_level = conv_bn_relu(256, 48)
        self.fuse = nn.Sequential(separable(304, 256), separable(256, 256), nn.Conv2d(256, NUM_CLASSES, 1))

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Scores at the image's size."""
        low, _, _, high = self.backbone(images)
        maps = [branch(high) for branch in self.branches] + [enlarged(self.pooling(high), high)]
        x = enlarged(self.project(torch.cat(maps, dim=1)), low)
        x = self.fuse(torch.cat([x, self.low_level(low)], dim=1))
        return (enlarged(x, images),)


def auxiliary_head() -> nn.Sequential:
    """On stage 3."""
    return nn.Sequential(conv_bn_relu(1024, 256, 3), nn.Dropout(0.1), nn.Conv2d(256, NUM_CLASSES, 1))


class PlainPSPNet(nn.Module):
    """Output stride 8, bins 1, 2, 3 and 6."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = ResNet(output_stride=8)
        self.pools = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(bins), conv_bn_relu(2048, 512)) for bins in (1, 2, 3, 6)
        )
        self.fuse = nn.Sequential(conv_bn_relu(4096, 512, 3), nn.Dropout(0.1), nn.Conv2d(512, NUM_CLASSES, 1))
        self.auxiliary = auxiliary_head()

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Scores at the image's size, and the auxiliary ones in training."""
        _, _, third, x = self.backbone(images)
        x = torch.cat([x, *(enlarged(pool(x), x) for pool in self.pools)], dim=1)
        scores = enlarged(self.fuse(x), images)
        return (scores, enlarged(self.auxiliary(third), images)) if self.training else (scores,)


class PlainEncoding(nn.Module):
    """The encoding layer with all residuals at once, as most ports have it."""

    def __init__(self, channels: int, codewords: int) -> None:
        super().__init__()
        bound = (channels * codewords) ** -0.5
        self.codewords = nn.Parameter(torch.empty(codewords, channels).uniform_(-bound, bound))
        self.scale = nn.Parameter(torch.empty(codewords).uniform_(-1, 0))

    def forward(self, x: Tensor) -> Tensor:
        """B x K x D from B x D x H x W."""
        residuals = x.flatten(2).transpose(1, 2).unsqueeze(2) - self.codewords
        weights = (self.scale * residuals.square().sum(dim=3)).softmax(dim=2)
        return (weights.unsqueeze(3) * residuals).sum(dim=1)


class PlainEncNet(nn.Module):
    """Output stride 8, 32 codewords."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = ResNet(output_stride=8)
        self.reduce = conv_bn_relu(2048, 512, 3)
        self.encoding = nn.Sequential(conv_bn_relu(512, 512), PlainEncoding(512, 32), nn.BatchNorm1d(32), nn.ReLU())
        self.attention = nn.Sequential(nn.Linear(512, 512), nn.Sigmoid())
        self.presence = nn.Linear(512, NUM_CLASSES)
        self.classifier = nn.Sequential(nn.Dropout2d(0.1), nn.Conv2d(512, NUM_CLASSES, 1))
        self.auxiliary = auxiliary_head()

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Scores at the image's size, and in training the auxiliary ones and those of presence."""
        _, _, third, x = self.backbone(images)
        x = self.reduce(x)
        code = self.encoding(x).mean(dim=1)
        gates = self.attention(code)[:, :, None, None]
        scores = enlarged(self.classifier(F.relu(x + x * gates)), images)
        if not self.training:
            return (scores,)
        return scores, enlarged(self.auxiliary(third), images), self.presence(code)


class PlainBlock(nn.Module):
    """Three separable convolutions with a residual."""

    def __init__(self, inputs: int, width: int, *, stride: int) -> None:
        super().__init__()
        widths = (inputs, width, width, 4 * width)
        layers: list[nn.Module] = []
        for index in range(3):
            layers += [
                nn.Conv2d(
                    widths[index],
                    widths[index],
                    3,
                    stride=stride if index == 0 else 1,
                    padding=1,
                    groups=widths[index],
                    bias=False,
                ),
                nn.Conv2d(widths[index], widths[index + 1], 1, bias=False),
                nn.BatchNorm2d(widths[index + 1]),
                nn.ReLU(inplace=True) if index < 2 else nn.Identity(),
            ]
        self.layers = nn.Sequential(*layers)
        self.skip: nn.Module = nn.Identity()
        if stride == 2:
            self.skip = nn.Sequential(nn.Conv2d(inputs, 4 * width, 1, stride=2, bias=False), nn.BatchNorm2d(4 * width))

    def forward(self, x: Tensor) -> Tensor:
        """Map of 1 / stride of the size."""
        return F.relu(self.layers(x) + self.skip(x))


def plain_stage(inputs: int, width: int, repeats: int) -> nn.Sequential:
    """Blocks of one stage."""
    rest = (PlainBlock(4 * width, width, stride=1) for _ in range(repeats - 1))
    return nn.Sequential(PlainBlock(inputs, width, stride=2), *rest)


class PlainEncoder(nn.Module):
    """Three stages and fc attention."""

    def __init__(self, inputs: tuple[int, int, int]) -> None:
        super().__init__()
        self.stages = nn.ModuleList(
            plain_stage(channels, width, repeats)
            for channels, width, repeats in zip(inputs, (12, 24, 48), (4, 6, 4), strict=True)
        )
        self.fc = nn.Linear(192, 1000)
        self.gate = nn.Sequential(nn.Conv2d(1000, 192, 1, bias=False), nn.BatchNorm2d(192), nn.Sigmoid())

    def forward(self, x: Tensor, before: list[Tensor]) -> tuple[list[Tensor], Tensor]:
        """The three stages' maps, and the last one under attention."""
        maps = []
        for index, stage in enumerate(self.stages):
            if index and before:
                x = torch.cat([x, before[index]], dim=1)
            x = stage(x)
            maps.append(x)
        code = self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return maps, x * self.gate(code[:, :, None, None])


class PlainDFANet(nn.Module):
    """DFANet A."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.encoders = nn.ModuleList([PlainEncoder((8, 48, 96)), *(PlainEncoder((240, 144, 288)) for _ in range(2))])
        self.low = nn.ModuleList(conv_bn_relu(48, 32) for _ in range(3))
        self.high = nn.ModuleList(conv_bn_relu(192, 32) for _ in range(3))
        self.fuse = conv_bn_relu(32, 32, 3)
        self.classifier = nn.Conv2d(32, NUM_CLASSES, 1)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Scores at the image's size."""
        x = self.stem(images)
        before: list[Tensor] = []
        lows, highs = [], []
        for encoder, low, high in zip(self.encoders, self.low, self.high, strict=True):
            before, attended = encoder(x, before)
            x = torch.cat([enlarged(attended, before[0]), before[0]], dim=1)
            lows.append(low(before[0]))
            highs.append(high(attended))
        fused = self.fuse(lows[0] + enlarged(lows[1], lows[0]) + enlarged(lows[2], lows[0]))
        for each in highs:
            fused = fused + enlarged(each, fused)
        return (enlarged(self.classifier(fused), images),)
