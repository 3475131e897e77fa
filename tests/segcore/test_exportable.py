"""What an exported graph has in place of operations that know only one size: the same numbers, at any size."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from timm.layers.conv2d_same import Conv2dSame
from torch import Tensor, nn

from segcore.backbones import BACKBONES, OUTPUT_STRIDES, build_backbone
from segcore.exportable import ExportableModel
from segcore.layers import (
    downsample,
    mirror,
    pad_to_multiple,
    pool_with_switches,
    region_means,
    resize,
    scaled_side,
    unpool,
    upsample,
    window,
)
from segcore.layers.resize import product

SIZES = [(1, 1), (2, 3), (7, 12), (16, 9), (31, 32)]


@pytest.fixture
def as_exported(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], Tensor]], Tensor]:
    """The value that a function takes in the branch of an exported graph."""

    def value(function: Callable[[], Tensor]) -> Tensor:
        with monkeypatch.context() as patched:
            patched.setattr(torch.compiler, "is_exporting", lambda: True)
            return function()

    return value


def _noise(height: int, width: int, *, channels: int = 3) -> Tensor:
    return torch.randn(2, channels, height, width, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize("side", [1, 2, 3, 6])
def test_region_means_are_those_of_adaptive_pooling(
    as_exported: Callable[[Callable[[], Tensor]], Tensor], height: int, width: int, side: int
) -> None:
    x = _noise(height, width)
    torch.testing.assert_close(as_exported(lambda: region_means(x, side)), F.adaptive_avg_pool2d(x, side))


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_unpooling_by_scattering_is_unpooling(
    as_exported: Callable[[Callable[[], Tensor]], Tensor], height: int, width: int
) -> None:
    def unpooled() -> Tensor:
        pooled, switches = pool_with_switches(_noise(height, width))
        return unpool(pooled + 1, switches, height=height, width=width)

    assert torch.equal(as_exported(unpooled), unpooled())


@pytest.mark.parametrize("scale", [0.25, 0.5, 0.75, 1.0, 1.25])
def test_scaled_sides_are_rounded_alike(monkeypatch: pytest.MonkeyPatch, scale: float) -> None:
    expected = [scaled_side(length, scale) for length in range(1, 300)]
    assert expected == [max(1, round(scale * length)) for length in range(1, 300)]
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
    assert [scaled_side(length, scale) for length in range(1, 300)] == expected
    with pytest.raises(ValueError, match=r"input scale 0\.7 is no multiple of 1/1024, .*; train with scales such as"):
        scaled_side(45, 0.7)


@pytest.mark.parametrize("num_images", [1, 3])
def test_products_are_those_of_the_operator(
    as_exported: Callable[[Callable[[], Tensor]], Tensor], num_images: int
) -> None:
    matrix, maps = torch.randn(4, 6), torch.randn(num_images, 2, 6, 1)
    torch.testing.assert_close(as_exported(lambda: product(matrix, maps)), matrix @ maps)
    torch.testing.assert_close(as_exported(lambda: product(matrix, maps[:, 0])), matrix @ maps[:, 0])
    torch.testing.assert_close(as_exported(lambda: product(maps.mT, matrix.T)), maps.mT @ matrix.T)


@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize("factor", [1, 2, 4])
def test_sizes_are_changed_alike(
    as_exported: Callable[[Callable[[], Tensor]], Tensor], height: int, width: int, factor: int
) -> None:
    x = _noise(height, width)
    rows, columns = -(-height // factor), -(-width // factor)
    functions: list[Callable[[], Tensor]] = [
        lambda: resize(x, height=height, width=width),
        lambda: pad_to_multiple(x, factor),
        lambda: downsample(x, factor, height=rows, width=columns),
        lambda: upsample(x, factor, height=factor * height - factor // 2, width=factor * width),
        lambda: window(x, first=height // 3, height=height // 2, width=width // 2),
        lambda: mirror(x, margin=5, height=height + 20, width=width + 11),
    ]
    for function in functions:
        assert torch.equal(as_exported(function), function())


@pytest.mark.parametrize("output_stride", OUTPUT_STRIDES)
def test_same_padding_is_constant_where_networks_pad_their_images(output_stride: int) -> None:
    """Through a whole backbone: each map's size is a multiple of the stride that it meets."""
    (name,) = (name for name, spec in BACKBONES.items() if spec.same_padding and name.endswith("lite0"))
    backbone = build_backbone(name, output_stride=output_stride).eval()
    assert any(isinstance(layer, Conv2dSame) for layer in backbone.modules())
    from segcore.exportable import _static_same_padding

    images = torch.randn(1, 3, 2 * output_stride, 3 * output_stride)
    with torch.no_grad():
        expected = backbone(images)
        with _static_same_padding(backbone):
            found = backbone(images)
        again = backbone(images)
    for stride, feature in expected.items():
        assert torch.equal(found[stride], feature) and torch.equal(again[stride], feature)
    assert not any("forward" in vars(layer) for layer in backbone.modules())


def test_normalisation_is_inside() -> None:
    class Twice(nn.Module):
        def forward(self, images: Tensor) -> "Twice":
            self.logits_NCHW = 2 * images
            return self

    images_N3HW = torch.randint(0, 256, (1, 3, 4, 5), dtype=torch.uint8)
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
    found = ExportableModel(Twice(), mean=mean, std=std)(images_N3HW)
    for channel in range(3):
        expected = 2 * (images_N3HW[:, channel].double() / 255 - mean[channel]) / std[channel]
        torch.testing.assert_close(found[:, channel].double(), expected, atol=1e-5, rtol=0)
