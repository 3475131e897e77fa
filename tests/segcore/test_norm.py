"""Statistics of batch normalisation from a pass of their own."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segcore.backbones import build_backbone
from segcore.layers import recompute_batch_norm, set_batch_norm_momentum


def two_layers() -> nn.Sequential:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 1), nn.BatchNorm2d(5))
    for layer in layers:
        if isinstance(layer, nn.BatchNorm2d):
            assert layer.running_mean is not None and layer.running_var is not None
            layer.running_mean.fill_(100.0)  # of an earlier training, to be forgotten
            layer.running_var.fill_(100.0)
    return layers


def batches() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [factor * torch.randn(size, 3, 6, 5, generator=generator) for factor, size in ((1, 2), (3, 4), (0.5, 3))]


@pytest.mark.parametrize("training", [True, False])
def test_means_and_unbiased_variances_are_averaged_over_the_batches(training: bool) -> None:
    layers = two_layers().train(training)
    first, second = layers[0], layers[3]
    maps_1, maps_2 = [], []
    with torch.no_grad():
        for images in batches():
            maps_1.append(first(images))
            maps_2.append(second(F.relu(F.batch_norm(maps_1[-1], None, None, training=True))))
    before = {name: value.clone() for name, value in layers.named_parameters()}
    assert recompute_batch_norm(layers, iter(batches())) == 3
    for norm, maps in ((layers[1], maps_1), (layers[4], maps_2)):
        mean = torch.stack([x.mean(dim=(0, 2, 3)) for x in maps]).mean(dim=0)
        variance = torch.stack([x.var(dim=(0, 2, 3), unbiased=True) for x in maps]).mean(dim=0)
        torch.testing.assert_close(norm.running_mean, mean)
        torch.testing.assert_close(norm.running_var, variance)
    assert all(torch.equal(value, before[name]) for name, value in layers.named_parameters())
    assert {module.training for module in layers.modules()} == {training}
    assert {layers[1].momentum, layers[4].momentum} == {0.1}


def test_modes_of_single_layers_and_momenta_come_back() -> None:
    layers = two_layers().train()
    layers[1].eval()
    set_batch_norm_momentum(layers[4], 0.003)
    recompute_batch_norm(layers, batches())
    assert [module.training for module in layers] == [True, False, True, True, True]
    assert [layers[index].momentum for index in (1, 4)] == [0.1, 0.003]


def test_timm_s_normalisation_counts_as_well() -> None:
    torch.manual_seed(0)
    backbone = build_backbone("mobilenet_v3_small", output_stride=32)
    images = torch.randn(4, 3, 64, 64)
    recompute_batch_norm(backbone, [images, images])
    stem = backbone.get_submodule("body.bn1")
    found = backbone.get_submodule("body.conv_stem")(images)
    torch.testing.assert_close(stem.running_mean, found.mean(dim=(0, 2, 3)))
    torch.testing.assert_close(stem.running_var, found.var(dim=(0, 2, 3)))


def test_no_batch_is_refused_and_changes_nothing() -> None:
    layers = two_layers()
    with pytest.raises(ValueError, match="from no batches; give at least one"):
        recompute_batch_norm(layers, [])
    assert float(layers[1].running_mean.mean()) == 100 and layers[1].momentum == 0.1
