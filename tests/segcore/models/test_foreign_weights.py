"""Public checkpoints under our names: the same scores as networks written after the public ones."""

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from segcore.models import DeepLabV3Config, EncNetConfig, PSPNetConfig, SegmentationOutput, restore_model
from segcore.models.foreign_weights import (
    deeplab_v3_from_torchvision,
    encnet_from_pytorch_encoding,
    pspnet_from_semseg,
)
from tests.segcore.batch_norm import randomise_statistics

NUM_CLASSES = 5
CHANNELS = (64, 128, 256, 512)
DEPTHS = (3, 4, 6, 3)


def conv_bn(in_channels: int, out_channels: int, kernel_size: int = 1, *, stride: int = 1) -> list[nn.Module]:
    padding = kernel_size // 2
    convolution = nn.Conv2d(in_channels, out_channels, kernel_size, stride=stride, padding=padding, bias=False)
    return [convolution, nn.BatchNorm2d(out_channels), nn.ReLU()]


class Bottleneck(nn.Module):
    def __init__(self, in_channels: int, width: int, *, stride: int, dilation: int) -> None:
        super().__init__()
        self.conv1, self.bn1, _ = conv_bn(in_channels, width)
        self.conv2 = nn.Conv2d(width, width, 3, stride=stride, padding=dilation, dilation=dilation, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3, self.bn3, _ = conv_bn(width, 4 * width)
        widens = in_channels != 4 * width
        self.downsample = (
            nn.Sequential(*conv_bn(in_channels, 4 * width, stride=stride)[:2]) if widens else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        return F.relu(self.bn3(self.conv3(y)) + self.downsample(x))


def stage(index: int, *, first_dilation: int, dilation: int) -> nn.Sequential:
    """Stage `index` of four of a ResNet-50 at output stride 8."""
    width = CHANNELS[index]
    before = 4 * CHANNELS[index - 1] if index else 128
    blocks = [Bottleneck(before, width, stride=2 if index == 1 else 1, dilation=first_dilation)]
    blocks += [Bottleneck(4 * width, width, stride=1, dilation=dilation) for _ in range(DEPTHS[index] - 1)]
    return nn.Sequential(*blocks)


def deep_stem() -> list[nn.Module]:
    """Ends in its third normalisation and ReLU."""
    return [*conv_bn(3, 64, 3, stride=2), *conv_bn(64, 64, 3), *conv_bn(64, 128, 3)]


class EncodingResNet(nn.Module):
    """PyTorch-Encoding's `resnet50s`: the first block of a dilated stage has half its dilation."""

    def __init__(self) -> None:
        super().__init__()
        *stem, self.bn1, _ = deep_stem()
        self.conv1 = nn.Sequential(*stem)
        for index, (first, dilation) in enumerate([(1, 1), (1, 1), (1, 2), (2, 4)]):
            self.add_module(f"layer{index + 1}", stage(index, first_dilation=first, dilation=dilation))

    def forward(self, images: Tensor) -> list[Tensor]:
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(images))), 3, stride=2, padding=1)
        features = []
        for index in range(1, 5):
            x = self.get_submodule(f"layer{index}")(x)
            features.append(x)
        return features


class NaiveEncoding(nn.Module):
    def __init__(self, channels: int, num_codewords: int) -> None:
        super().__init__()
        self.codewords = nn.Parameter(torch.randn(num_codewords, channels) / channels**0.5)
        self.scale = nn.Parameter(-torch.rand(num_codewords))

    def forward(self, x: Tensor) -> Tensor:
        residuals = x.flatten(2).transpose(1, 2)[:, :, None] - self.codewords
        assignments = (self.scale * residuals.square().sum(dim=3)).softmax(dim=2)
        return (assignments[..., None] * residuals).sum(dim=1)


class EncodingModule(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoding = nn.Sequential(*conv_bn(512, 512), NaiveEncoding(512, 32), nn.BatchNorm1d(32), nn.ReLU())
        self.fc = nn.Sequential(nn.Linear(512, 512), nn.Sigmoid())
        self.selayer = nn.Linear(512, NUM_CLASSES)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        encoding = self.encoding(x).mean(dim=1)
        return F.relu(x + x * self.fc(encoding)[:, :, None, None]), self.selayer(encoding)


class EncodingHead(nn.Module):
    def __init__(self, *, lateral: bool) -> None:
        super().__init__()
        self.lateral = lateral
        self.conv5 = nn.Sequential(*conv_bn(2048, 512, 3))
        if lateral:
            self.connect = nn.ModuleList([nn.Sequential(*conv_bn(width, 512)) for width in (512, 1024)])
            self.fusion = nn.Sequential(*conv_bn(1536, 512, 3))
        self.encmodule = EncodingModule()
        self.conv6 = nn.Sequential(nn.Dropout(0.1), nn.Conv2d(512, NUM_CLASSES, 1))

    def forward(self, features: list[Tensor]) -> tuple[Tensor, Tensor]:
        x = self.conv5(features[3])
        if self.lateral:
            x = self.fusion(torch.cat([x, self.connect[0](features[1]), self.connect[1](features[2])], dim=1))
        x, presence = self.encmodule(x)
        return self.conv6(x), presence


class AuxiliaryHead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv5 = nn.Sequential(*conv_bn(1024, 256, 3), nn.Dropout(0.1), nn.Conv2d(256, NUM_CLASSES, 1))


class EncodingEncNet(nn.Module):
    """zhanghang1989/PyTorch-Encoding's EncNet: scores on the map, of the classes, and the auxiliary ones."""

    def __init__(self, *, lateral: bool) -> None:
        super().__init__()
        self.pretrained = EncodingResNet()
        self.head = EncodingHead(lateral=lateral)
        self.auxlayer = AuxiliaryHead()

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        features = self.pretrained(images)
        return (*self.head(features), self.auxlayer.conv5(features[2]))


class SemsegPyramid(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(side), *conv_bn(2048, 512)) for side in (1, 2, 3, 6)
        )

    def forward(self, x: Tensor) -> Tensor:
        means = [F.interpolate(branch(x), x.shape[2:], mode="bilinear", align_corners=True) for branch in self.features]
        return torch.cat([x, *means], dim=1)


class SemsegPSPNet(nn.Module):
    """hszhao/semseg's PSPNet: scores on the map, and the auxiliary ones. All blocks of a dilated stage are dilated."""

    def __init__(self) -> None:
        super().__init__()
        self.layer0 = nn.Sequential(*deep_stem(), nn.MaxPool2d(3, stride=2, padding=1))
        for index, dilation in enumerate([1, 1, 2, 4]):
            self.add_module(f"layer{index + 1}", stage(index, first_dilation=dilation, dilation=dilation))
        self.ppm = SemsegPyramid()
        self.cls = nn.Sequential(*conv_bn(4096, 512, 3), nn.Dropout2d(0.1), nn.Conv2d(512, NUM_CLASSES, 1))
        self.aux = nn.Sequential(*conv_bn(1024, 256, 3), nn.Dropout2d(0.1), nn.Conv2d(256, NUM_CLASSES, 1))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        x = self.layer0(images)
        for index in range(1, 4):
            x = self.get_submodule(f"layer{index}")(x)
        return self.cls(self.ppm(self.get_submodule("layer4")(x))), self.aux(x)


def ready(network: nn.Module) -> nn.Module:
    randomise_statistics(network)
    return network.eval()


def images() -> Tensor:
    return torch.randn(2, 3, 57, 73, generator=torch.Generator().manual_seed(0))


def scores_on_the_map(model: nn.Module) -> tuple[SegmentationOutput, Tensor, Tensor]:
    """Our output, what its classifier and its auxiliary classifier gave before the enlargement."""
    found: list[Tensor] = []
    model.get_submodule("head.classifier").register_forward_hook(lambda module, args, result: found.append(result))
    with torch.no_grad():
        output = model(images())
        auxiliary = model.get_submodule("auxiliary")(model.get_submodule("backbone")(images())[16])
    return output, found[0], auxiliary


@pytest.mark.parametrize("lateral", [False, True])
def test_encnet_of_pytorch_encoding_scores_the_same_under_our_names(lateral: bool) -> None:
    torch.manual_seed(0)
    theirs = ready(EncodingEncNet(lateral=lateral))
    with torch.no_grad():
        scores, presence, auxiliary = theirs(images())
    state = encnet_from_pytorch_encoding(theirs.state_dict())
    ours = restore_model(EncNetConfig(lateral=lateral), NUM_CLASSES, state)
    output, our_scores, our_auxiliary = scores_on_the_map(ours)
    assert output.presence_NC is not None
    for found, expected in ((our_scores, scores), (output.presence_NC, presence), (our_auxiliary, auxiliary)):
        assert expected.std() > 0.01
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().amax()))


def test_pspnet_of_semseg_scores_the_same_under_our_names() -> None:
    torch.manual_seed(0)
    theirs = ready(SemsegPSPNet())
    with torch.no_grad():
        scores, auxiliary = theirs(images())
    wrapped = {f"module.{name}": tensor for name, tensor in theirs.state_dict().items()}
    state = pspnet_from_semseg(wrapped)
    _, our_scores, our_auxiliary = scores_on_the_map(
        restore_model(PSPNetConfig(released_layout=True), NUM_CLASSES, state)
    )
    for found, expected in ((our_scores, scores), (our_auxiliary, auxiliary)):
        assert expected.std() > 0.01
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().amax()))
    _, other_scores, _ = scores_on_the_map(restore_model(PSPNetConfig(), NUM_CLASSES, state))
    assert (other_scores - scores).abs().amax() > 0.01 * scores.abs().amax()
    without = {name: tensor for name, tensor in state.items() if not name.startswith("auxiliary.")}
    restore_model(PSPNetConfig(released_layout=True, auxiliary_weight=0.0), NUM_CLASSES, without)


def test_deeplab_v3_of_torchvision_scores_the_same_under_our_names() -> None:
    torch.manual_seed(0)
    theirs = torchvision.models.segmentation.deeplabv3_resnet50(
        weights=None, weights_backbone=None, num_classes=NUM_CLASSES, aux_loss=True
    ).eval()
    randomise_statistics(theirs)
    config = DeepLabV3Config(backbone="resnet50", output_stride=8, final_convolution=True)
    ours = restore_model(config, NUM_CLASSES, deeplab_v3_from_torchvision(theirs.state_dict()))
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        expected = theirs(images)["out"]
        found = ours(images).logits_NCHW
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def test_names_of_another_network_are_refused() -> None:
    tensor = torch.zeros(1)
    with pytest.raises(
        ValueError, match="1 of 2 names are not those of PyTorch-Encoding's EncNet: backbone.conv1.weight"
    ):
        encnet_from_pytorch_encoding({"pretrained.bn1.weight": tensor, "backbone.conv1.weight": tensor})
    with pytest.raises(
        ValueError, match=r"7 of 7 names are not those of hszhao/semseg's PSPNet: x0, x1, x2, x3, x4, \.\.\."
    ):
        pspnet_from_semseg({f"x{index}": tensor for index in range(7)})
