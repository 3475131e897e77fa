"""ESPNet and ESPNet-C: published sizes, the ESP module against its definition, and the two stages."""

from itertools import accumulate
from typing import cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segcore.backbones import backbone_state
from segcore.cost import count_multiply_adds, count_parameters
from segcore.models import ESPNetConfig, build_model, load_pretrained, meta_model
from segcore.models.espnet import EPSILON, ESP, Encoder
from tests.segcore.batch_norm import randomise_statistics

WHOLE, ENCODER = ESPNetConfig(), ESPNetConfig(stage="encoder")
NARROW = ESPNetConfig(fine_modules=1, coarse_modules=1)


@pytest.mark.parametrize(
    ("config", "num_classes", "expected"),
    [
        (WHOLE, 19, 363_462),
        (WHOLE, 20, 365_109),
        (ENCODER, 19, 349_193),
        (ENCODER, 20, 349_449),
    ],
)
def test_number_of_parameters(config: ESPNetConfig, num_classes: int, expected: int) -> None:
    assert count_parameters(meta_model(config, num_classes)).total == expected


@pytest.mark.parametrize(
    ("config", "num_classes", "expected"),
    [
        (WHOLE, 20, 4_780_220_416),
        (WHOLE, 19, 4_670_283_776),
        (ENCODER, 20, 3_470_155_776),
        (ENCODER, 19, 3_468_058_624),
    ],
)
def test_multiply_adds(config: ESPNetConfig, num_classes: int, expected: int) -> None:
    assert count_multiply_adds(meta_model(config, num_classes), 512, 1024) == expected


def plain_esp(module: ESP, x: Tensor, *, stride: int) -> Tensor:
    """The module as the paper draws it: sums by hand, one branch after the other."""
    reduced = F.conv2d(x, module.reduce.weight, stride=stride, padding=module.reduce.weight.shape[-1] // 2)
    first, *rest = (
        F.conv2d(reduced, cast(nn.Conv2d, branch).weight, padding=dilation, dilation=dilation)
        for branch, dilation in zip(module.branches, (1, 2, 4, 8, 16), strict=True)
    )
    joined = torch.cat([first, *accumulate(rest)], dim=1)
    if module.residual:
        joined = joined + x
    norm, slopes = module.norm_act[0], module.norm_act[1].weight.reshape(1, -1, 1, 1)
    assert isinstance(norm, nn.BatchNorm2d) and isinstance(slopes, Tensor)
    y = F.batch_norm(
        joined, norm.running_mean, norm.running_var, norm.weight, norm.bias, training=module.training, eps=EPSILON
    )
    return torch.where(y > 0, y, slopes * y)


@pytest.mark.parametrize(
    ("in_channels", "out_channels", "strided", "residual"),
    [(13, 13, False, True), (19, 64, True, False), (10, 5, False, False)],
)
@pytest.mark.parametrize("training", [False, True])
def test_an_esp_module_is_its_definition(
    in_channels: int, out_channels: int, strided: bool, residual: bool, training: bool
) -> None:
    torch.manual_seed(0)
    module = ESP(in_channels, out_channels, strided=strided, residual=residual).double().train(training)
    randomise_statistics(module)
    nn.init.uniform_(cast(nn.PReLU, module.norm_act[1]).weight, 0, 0.5)
    x = torch.randn(2, in_channels, 21, 40, dtype=torch.float64, requires_grad=True)
    expected = plain_esp(module, x, stride=2 if strided else 1)
    leaves = [x, *module.parameters()]
    direction = torch.randn_like(expected)
    expected_gradients = torch.autograd.grad((expected * direction).sum(), leaves)
    found = module(x)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    for one, other in zip(torch.autograd.grad((found * direction).sum(), leaves), expected_gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize(("channels", "widths"), [(64, [16, 12, 12, 12, 12]), (128, [28, 25, 25, 25, 25])])
def test_the_first_branch_takes_what_a_fifth_leaves_over(channels: int, widths: list[int]) -> None:
    module = ESP(channels, channels, residual=True)
    assert [cast(nn.Conv2d, branch).out_channels for branch in module.branches] == widths
    assert [cast(nn.Conv2d, branch).dilation[0] for branch in module.branches] == [1, 2, 4, 8, 16]


def test_every_level_sees_the_image() -> None:
    """The last three channels of the maps at stride 2 and 4 are means of the image."""
    torch.manual_seed(0)
    encoder = Encoder(1, 1).double().eval()
    images = torch.randn(1, 3, 32, 48, dtype=torch.float64)
    maps = encoder(images)
    assert [each.shape[1:] for each in maps] == [(19, 16, 24), (131, 8, 12), (256, 4, 6)]
    means = images
    for x, join in ((maps.half_NKhw, encoder.join_half), (maps.quarter_NKhw, encoder.join_quarter)):
        kernel = torch.full((3, 1, 3, 3), 1 / 9, dtype=torch.float64)
        means = F.conv2d(means, kernel, stride=2, padding=1, groups=3)
        norm, slopes = cast(nn.BatchNorm2d, join[0]), cast(nn.PReLU, join[1]).weight[-3:]
        expected = means / (1 + norm.eps) ** 0.5  # the statistics of a fresh layer
        expected = torch.where(expected > 0, expected, slopes[:, None, None] * expected)
        torch.testing.assert_close(x[:, -3:], expected)


def test_the_whole_network_starts_from_espnet_c_with_its_classifier() -> None:
    torch.manual_seed(0)
    encoder = build_model(ESPNetConfig(stage="encoder", fine_modules=1, coarse_modules=1), 7)
    encoder.train()(torch.randn(2, 3, 32, 32))  # running statistics
    whole = build_model(NARROW, 7)
    trained, own = encoder.state_dict(), whole.state_dict()
    assert set(trained) <= set(own)  # all of it has a place
    assert all(tensor.shape == own[name].shape for name, tensor in trained.items())
    assert set(trained) == {name for name in own if name.startswith("backbone.")} | {"head.classifier.weight"}
    load_pretrained(whole, backbone_state(trained))
    found = whole.state_dict()
    assert all(torch.equal(found[name], trained[name]) for name in trained if name.startswith("backbone."))
    whole.load_state_dict(trained, strict=False)
    images = torch.randn(1, 3, 32, 48)
    with torch.no_grad():
        maps = whole.eval().backbone(images)
        coarse = whole.get_submodule("head.classifier")(maps.eighth_NKhw)
        enlarged = F.interpolate(coarse, scale_factor=8, mode="bilinear")
        torch.testing.assert_close(enlarged, encoder.eval()(images).logits_NCHW)


def test_another_encoder_is_refused() -> None:
    other = backbone_state(build_model(ESPNetConfig(coarse_modules=2, fine_modules=1), 7).state_dict())
    with pytest.raises(ValueError, match="does not fit backbone 'espnet'; tensors .* without a place"):
        load_pretrained(build_model(NARROW, 7), other)


@pytest.mark.parametrize("num_classes", [1, 4, 5, 6])
def test_few_classes_keep_a_channel_for_each_branch(num_classes: int) -> None:
    model = build_model(NARROW, num_classes).eval()
    module = model.get_submodule("head.merge_quarter.1")
    assert isinstance(module, ESP)
    assert cast(nn.BatchNorm2d, module.norm_act[0]).num_features == max(5, num_classes)
    with torch.no_grad():
        assert model(torch.randn(1, 3, 21, 30)).logits_NCHW.shape == (1, num_classes, 21, 30)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backbone": "resnet18"}, "network 'espnet' has an encoder of its own and not 'resnet18'"),
        ({"stage": "c"}, "unknown stage 'c'; known: encoder, whole"),
        ({"fine_modules": 0}, "fine_modules is 0; it must be at least 1"),
        ({"coarse_modules": 0}, "coarse_modules is 0; it must be at least 1"),
        ({"decoder": "dupsample"}, "would enlarge by 2 only"),
    ],
)
def test_settings_out_of_range_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ESPNetConfig(**changes)  # type: ignore[arg-type]
