"""Counting, against sums done by hand."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segcore.cost import (
    ParameterCount,
    count_multiply_adds,
    count_parameters,
    decoder_multiply_adds,
    module_multiply_adds,
)
from segcore.layers import DUpsample


def image(channels: int, height: int, width: int) -> Tensor:
    return torch.empty(1, channels, height, width, device="meta")


@pytest.mark.parametrize(
    ("layer", "shape", "expected"),
    [
        (nn.Conv2d(3, 8, 3, padding=1), (3, 10, 12), 10 * 12 * 8 * 3 * 9),
        (nn.Conv2d(3, 8, 3, stride=2, padding=1), (3, 11, 12), 6 * 6 * 8 * 3 * 9),
        (nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=8), (8, 10, 12), 10 * 12 * 8 * 9),
        (nn.Conv2d(8, 4, 1, groups=2), (8, 10, 12), 10 * 12 * 4 * 4),
        (nn.ConvTranspose2d(5, 2, 4, stride=4), (5, 3, 7), 3 * 7 * 5 * 2 * 16),
        (nn.Linear(12, 5), (3, 10, 12), 3 * 10 * 12 * 5),
        (nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(), nn.AvgPool2d(2)), (3, 10, 12), 0),
        (DUpsample(torch.zeros(2 * 16, 5), torch.zeros(32), block_side=4, trainable=False), (5, 3, 7), 3 * 7 * 5 * 32),
    ],
    ids=["conv", "stride", "depthwise", "grouped", "transposed", "linear", "nothing", "dupsample"],
)
def test_multiply_adds_of_one_layer(layer: nn.Module, shape: tuple[int, int, int], expected: int) -> None:
    assert module_multiply_adds(layer, image(*shape)) == expected


class Resized(nn.Module):
    """Resizing and adding do not count; a layer that is used twice counts twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)
        self.norm = nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.norm(self.conv(x))
        return torch.as_tensor(self.conv(F.interpolate(x, scale_factor=2.0, mode="bilinear")))


def test_a_networks_count_follows_the_image_size_and_leaves_it_alone() -> None:
    model = Resized().train()
    model.norm.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert count_multiply_adds(model, 5, 7) == 9 * 5 * 7 + 9 * 10 * 14
    assert model.training and model.conv.training and not model.norm.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model(torch.zeros(2, 3, 4, 4)).device.type == "cpu"


class Encoded(nn.Module):
    """A network in three parts."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.aspp = nn.Sequential(nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 3, padding=1))
        self.head = nn.Conv2d(8, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.backbone(x)
        return torch.as_tensor(self.head(x + self.aspp(x)))


def test_a_decoder_is_what_lies_outside_of_backbone_and_aspp() -> None:
    model = Encoded()
    encoder = module_multiply_adds(model.backbone, image(3, 10, 12)) + module_multiply_adds(model.aspp, image(8, 5, 6))
    assert decoder_multiply_adds(model, 10, 12) == 5 * 6 * 8 * 5
    assert count_multiply_adds(model, 10, 12) - encoder == 5 * 6 * 8 * 5
    with pytest.raises(ValueError, match=r"outside of backbone and aspp, and Resized has only conv, norm"):
        decoder_multiply_adds(Resized(), 10, 12)


def test_parameters_are_counted_once_and_buffers_not() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(4, 4, bias=False))
    model.append(model[2])
    model[2].requires_grad_(False)
    assert count_parameters(model) == ParameterCount(trainable=3 * 8 * 9 + 8 + 16, frozen=16)
    assert count_parameters(model).total == 256
