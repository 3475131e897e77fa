"""DeepLab V1 to V3+: published sizes, and what their parts must satisfy."""

from dataclasses import replace

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from segcore.cost import count_multiply_adds, count_parameters
from segcore.layers import atrous_rates
from segcore.layers.aspp import ImagePooling
from segcore.losses import cross_entropy
from segcore.models import (
    DeepLabV1Config,
    DeepLabV2Config,
    DeepLabV3Config,
    DeepLabV3PlusConfig,
    ModelConfig,
    build_model,
    load_pretrained,
)


def on_meta(config: ModelConfig, num_classes: int = 21) -> nn.Module:
    with torch.device("meta"):
        return build_model(config, num_classes)


@pytest.mark.parametrize(
    ("config", "num_classes", "expected"),
    [
        (DeepLabV1Config(), 21, 20_505_429),
        (DeepLabV2Config(backbone="vgg16"), 21, 37_877_652),
        (DeepLabV2Config(), 21, 44_048_532),
        (DeepLabV3Config(backbone="resnet50", final_convolution=True), 21, 39_638_869),
        (DeepLabV3Config(final_convolution=True), 21, 58_630_997),
        (DeepLabV3Config(final_convolution=True, multi_grid=(1, 2, 4)), 21, 58_630_997),
        (DeepLabV3PlusConfig(backbone="resnet50", separable=False), 21, 40_352_181),
        (DeepLabV3PlusConfig(backbone="resnet50"), 21, 26_696_133),
        (DeepLabV3PlusConfig(backbone="resnet101", separable=False), 21, 59_344_309),
        (DeepLabV3PlusConfig(backbone="resnet101"), 21, 45_688_261),
        (DeepLabV3PlusConfig(backbone="resnet101_deep", separable=False), 21, 59_468_085),
        (DeepLabV3PlusConfig(backbone="resnet101_deep", separable=False, low_level_features=()), 21, 58_164_437),
        (DeepLabV3PlusConfig(backbone="resnet101_deep"), 19, 45_811_523),
        (DeepLabV3PlusConfig(backbone="xception65", separable=False), 21, 54_711_461),
        (DeepLabV3PlusConfig(backbone="xception65"), 21, 41_055_413),
        (DeepLabV3PlusConfig(backbone="xception65"), 19, 41_054_899),
        (DeepLabV3PlusConfig(backbone="xception65", low_level_features=()), 21, 40_892_485),
    ],
)
def test_number_of_parameters(config: ModelConfig, num_classes: int, expected: int) -> None:
    assert count_parameters(on_meta(config, num_classes)).total == expected


@pytest.mark.parametrize(
    ("config", "num_classes", "size", "expected"),
    [
        (DeepLabV3Config(backbone="resnet50", final_convolution=True), 21, (513, 513), 51.078),
        (DeepLabV3Config(final_convolution=True), 21, (513, 513), 71.704),
        (DeepLabV3Config(final_convolution=True, output_stride=8), 21, (513, 513), 248.674),
        (DeepLabV3PlusConfig(backbone="resnet50"), 21, (513, 513), 39.551),
        (DeepLabV3PlusConfig(backbone="resnet50", output_stride=8), 21, (513, 513), 115.973),
        (DeepLabV3PlusConfig(backbone="resnet50", separable=False), 21, (513, 513), 72.195),
        (DeepLabV3PlusConfig(backbone="resnet101", output_stride=8, separable=False), 21, (513, 513), 267.924),
        (DeepLabV3PlusConfig(backbone="resnet101_deep", separable=False), 21, (513, 513), 99.958),
        (
            DeepLabV3PlusConfig(backbone="resnet101_deep", separable=False, low_level_features=()),
            21,
            (513, 513),
            78.199,
        ),
        (DeepLabV3PlusConfig(backbone="resnet101_deep"), 19, (769, 769), 149.051),
        (DeepLabV3PlusConfig(backbone="xception65", separable=False), 21, (513, 513), 86.679),
        (DeepLabV3PlusConfig(backbone="xception65", output_stride=8), 21, (513, 513), 176.852),
        (DeepLabV3PlusConfig(backbone="xception65", low_level_features=()), 21, (513, 513), 51.278),
    ],
)
def test_multiply_adds_counted_for_the_specification(
    config: ModelConfig, num_classes: int, size: tuple[int, int], expected: float
) -> None:
    assert count_multiply_adds(on_meta(config, num_classes), *size) / 1e9 == pytest.approx(expected, abs=6e-4)


def test_multiply_adds_are_those_of_the_model_zoo() -> None:
    """54.17 G on VOC and 418.64 G on Cityscapes, the TF model zoo's own counts."""
    voc = on_meta(DeepLabV3PlusConfig(backbone="xception65"), 21)
    assert count_multiply_adds(voc, 513, 513) == pytest.approx(54.17e9, rel=5e-3)
    cityscapes = on_meta(DeepLabV3PlusConfig(backbone="xception65"), 19)
    assert count_multiply_adds(cityscapes, 1025, 2049) == pytest.approx(418.64e9, rel=5e-3)


@pytest.mark.parametrize(
    "config",
    [
        DeepLabV3Config(backbone="mobilenet_v2", output_stride=16),
        DeepLabV3PlusConfig(backbone="mobilenet_v2", output_stride=16),
    ],
)
def test_output_strides_share_their_weights_and_double_the_rates(
    config: DeepLabV3Config | DeepLabV3PlusConfig,
) -> None:
    state = on_meta(config).state_dict()
    for output_stride in (8, 16, 32):
        model = on_meta(replace(config, output_stride=output_stride))
        assert {name: value.shape for name, value in model.state_dict().items()} == {
            name: value.shape for name, value in state.items()
        }
        dilations = [
            module.dilation[0]
            for module in model.get_submodule("aspp").modules()
            if isinstance(module, nn.Conv2d) and module.dilation[0] > 1
        ]
        assert tuple(dilations) == atrous_rates(output_stride)


def dilations_of(model: nn.Module, part: str) -> list[int]:
    """Of the 3x3 convolutions."""
    layers = model.get_submodule(part).modules()
    return [layer.dilation[0] for layer in layers if isinstance(layer, nn.Conv2d) and layer.kernel_size == (3, 3)]


def test_fields_of_view_before_v3_keep_their_size_in_pixels() -> None:
    assert dilations_of(on_meta(DeepLabV1Config()), "backbone.branches") == [12]
    assert dilations_of(on_meta(DeepLabV1Config(output_stride=16)), "backbone.branches") == [6]
    assert dilations_of(on_meta(DeepLabV2Config(backbone="vgg16")), "backbone.branches") == [6, 12, 18, 24]
    assert dilations_of(on_meta(DeepLabV2Config()), "head.classifier") == [6, 12, 18, 24]
    assert dilations_of(on_meta(DeepLabV2Config(output_stride=16)), "head.classifier") == [3, 6, 9, 12]


def test_vgg_of_deeplab_has_overlapping_pools_and_dilates_its_last_stage() -> None:
    model = on_meta(DeepLabV1Config())
    assert dilations_of(model, "backbone.trunk") == [1] * 10 + [2] * 3
    features = model.get_submodule("backbone.trunk")(torch.empty(1, 3, 321, 321, device="meta"))
    assert features[32].shape == (1, 512, 41, 41)


def test_multi_grid_multiplies_the_dilations_of_the_last_stage() -> None:
    config = DeepLabV3Config(backbone="resnet50", output_stride=16, multi_grid=(1, 2, 4))
    assert dilations_of(on_meta(config), "backbone.body.layer4") == [1, 4, 8]
    assert dilations_of(on_meta(replace(config, output_stride=8)), "backbone.body.layer4") == [2, 8, 16]
    with pytest.raises(
        ValueError, match=r"multi_grid is \(1, 2\) and backbone 'resnet50' has a last stage of 3 blocks"
    ):
        on_meta(replace(config, multi_grid=(1, 2)))
    with pytest.raises(ValueError, match="backbone 'mobilenet_v2' has no such stage"):
        on_meta(replace(config, backbone="mobilenet_v2"))


def test_multi_grid_means_the_same_at_every_output_stride() -> None:
    config = DeepLabV3Config(backbone="resnet18", output_stride=32, aspp_channels=8, multi_grid=(2, 4))
    torch.manual_seed(0)
    coarse = build_model(config, 3).eval()
    dense = build_model(replace(config, output_stride=8), 3).eval()
    dense.load_state_dict(coarse.state_dict())
    images = torch.randn(1, 3, 129, 97)
    with torch.no_grad():
        expected = coarse.get_submodule("backbone")(images)[32]
        found = dense.get_submodule("backbone")(images)[32][..., ::4, ::4]
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("backbone", ["resnet18", "vgg16"])
def test_v2_scores_are_the_largest_of_several_sizes(backbone: str) -> None:
    config = DeepLabV2Config(backbone=backbone, channels=8, input_scales=(0.5, 1.0))
    torch.manual_seed(0)
    model = build_model(config, 3).eval()
    single = build_model(replace(config, input_scales=(1.0,)), 3).eval()
    single.load_state_dict(model.state_dict())
    images = torch.randn(1, 3, 64, 96)
    half = F.interpolate(images, size=(32, 48), mode="bilinear", align_corners=False)
    with torch.no_grad():
        at_half = F.interpolate(single(half).logits_NCHW, size=(64, 96), mode="bilinear", align_corners=False)
        expected = torch.maximum(single(images).logits_NCHW, at_half)
        output = model(images)
    torch.testing.assert_close(output.logits_NCHW, expected)
    assert output.auxiliary_NCHW == ()
    with pytest.raises(
        ValueError, match=r"input_scales are \(1.0, 0.5\); expected numbers above 0, the last of them 1"
    ):
        DeepLabV2Config(input_scales=(1.0, 0.5))


def test_v2_takes_the_loss_of_every_size_in_training() -> None:
    torch.manual_seed(0)
    model = build_model(DeepLabV2Config(backbone="resnet18", input_scales=(0.5, 0.75, 1.0)), 3).train()
    labels = torch.randint(0, 3, (2, 33, 41))
    output = model(torch.randn(2, 3, 33, 41))
    parts = [cross_entropy(scores, labels) for scores in (output.logits_NCHW, *output.auxiliary_NCHW)]
    assert len(parts) == 4
    torch.testing.assert_close(model.loss(output, labels).total, torch.stack(parts).sum())


def test_v2_adds_scores_of_four_rates() -> None:
    torch.manual_seed(0)
    model = build_model(DeepLabV2Config(backbone="resnet18", input_scales=(1.0,)), 3).eval()
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        x = model.get_submodule("backbone")(images)[32]
        state = model.state_dict()
        scores = torch.zeros(1, 3, 8, 12)
        for index, rate in enumerate((6, 12, 18, 24)):
            branch = f"head.classifier.branches.{index}"
            scores += F.conv2d(x, state[f"{branch}.weight"], state[f"{branch}.bias"], padding=rate, dilation=rate)
        expected = F.interpolate(scores, scale_factor=8, mode="bilinear", align_corners=False)
        torch.testing.assert_close(model(images).logits_NCHW, expected)


def test_image_pooling_is_constant_and_aspp_is_where_its_field_lies_inside() -> None:
    torch.manual_seed(0)
    aspp = build_model(DeepLabV3Config(backbone="resnet18", aspp_channels=8), 3).get_submodule("aspp").eval()
    pooling = next(branch for branch in aspp.modules() if isinstance(branch, ImagePooling))
    with torch.no_grad():
        pooled = pooling(torch.randn(1, 512, 9, 7))
        assert torch.equal(pooled, pooled[..., :1, :1].expand_as(pooled))
        joined = aspp(torch.randn(1, 512, 1, 1).expand(-1, -1, 45, 41))[..., 18:-18, 18:-18]
    torch.testing.assert_close(joined, joined[..., :1, :1].expand_as(joined))


@pytest.mark.parametrize("names", ["timm", "torchvision"])
def test_vgg_weights_carry_over_with_their_fully_connected_layers(names: str) -> None:
    """fc6 keeps taps 0, 3 and 6 of 7, and every fourth of the 4096 channels."""
    torch.manual_seed(0)
    classifier = torchvision.models.vgg16() if names == "torchvision" else timm.create_model("vgg16")
    state = classifier.state_dict()
    model = build_model(DeepLabV2Config(backbone="vgg16", input_scales=(1.0,)), 3)
    load_pretrained(model, state)
    found = model.state_dict()
    assert torch.equal(found["backbone.trunk.body.features.28.weight"], state["features.28.weight"])
    first, second = ("classifier.0", "classifier.3") if names == "torchvision" else ("pre_logits.fc1", "pre_logits.fc2")
    fc6 = state[f"{first}.weight"].reshape(4096, 512, 7, 7)[::4, :, [0, 3, 6]][..., [0, 3, 6]]
    fc7 = state[f"{second}.weight"].reshape(4096, 4096)[::4, ::4]
    for branch in range(4):
        prefix = f"backbone.branches.{branch}"
        assert torch.equal(found[f"{prefix}.fc6.weight"], fc6)
        assert torch.equal(found[f"{prefix}.fc7.weight"][..., 0, 0], fc7)
        assert torch.equal(found[f"{prefix}.fc7.bias"], state[f"{second}.bias"][::4])
    features = {name: value for name, value in state.items() if name.startswith("features.")}
    with pytest.raises(ValueError, match=r"neither timm's pre_logits.fc1 and fc2 nor torchvision's classifier.0 and 3"):
        load_pretrained(model, features)


def test_v1_is_built_on_vgg() -> None:
    with pytest.raises(ValueError, match="built on VGG-16, not on 'resnet50'; known: vgg16, vgg16_bn"):
        DeepLabV1Config(backbone="resnet50")


def test_the_classifier_starts_small() -> None:
    torch.manual_seed(0)
    model = build_model(DeepLabV3PlusConfig(backbone="mobilenet_v3_small", aspp_channels=8, decoder_channels=2048), 21)
    classifier = model.get_submodule("head.classifier")
    assert isinstance(classifier, nn.Conv2d) and classifier.bias is not None
    assert float(classifier.weight.detach().std()) == pytest.approx(0.01, rel=0.05)
    assert not classifier.bias.any()


def test_batch_normalisation_momentum_reaches_backbone_and_decoder() -> None:
    model = on_meta(DeepLabV3PlusConfig(backbone="mobilenet_v2", batch_norm_momentum=0.0003))
    layers = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    assert {layer.momentum for layer in layers} == {0.0003}


@pytest.mark.parametrize("low_level_features", [(), (4,)])
def test_scores_lie_where_they_lie_for_the_padded_image(low_level_features: tuple[int, ...]) -> None:
    """The padding is the mean colour, zero, which is what convolutions see beyond the image anyway."""
    config = DeepLabV3PlusConfig(
        backbone="resnet18",
        output_stride=32,
        aspp_channels=8,
        decoder_channels=8,
        low_level_features=low_level_features,
        low_level_channels=8,
    )
    torch.manual_seed(0)
    model = build_model(config, 3).eval()
    images = torch.randn(1, 3, 240, 96)
    with torch.no_grad():
        found = model(images).logits_NCHW
        padded = model(torch.nn.functional.pad(images, (0, 0, 0, 16))).logits_NCHW
    scale = float(padded.std())
    error = (found - padded[..., :240, :]).abs().mean() / scale
    squeezed = torch.nn.functional.interpolate(padded, size=(240, 96), mode="bilinear")
    assert error < 0.25 * (found - squeezed).abs().mean() / scale


def test_same_padding_backbones_keep_one_sampling_grid() -> None:
    """TensorFlow's "same" padding shifts the grid by a pixel where a size turns odd; padding to a multiple cures it."""
    torch.manual_seed(0)
    config = DeepLabV3PlusConfig(backbone="efficientnet_lite0", output_stride=16, aspp_channels=8, decoder_channels=8)
    model = build_model(config, 3).eval()
    backbone = model.get_submodule("backbone")
    seen: list[torch.Tensor] = []
    backbone.register_forward_hook(lambda _module, _inputs, features: seen.append(features[4][:, :, :16]))
    images = torch.randn(1, 3, 144, 64)
    with torch.no_grad():
        assert model(images[:, :, :129]).logits_NCHW.shape == (1, 3, 129, 64)
        model(images)
        backbone(images[:, :, :129])
    odd, even, odd_without_padding = seen
    torch.testing.assert_close(odd, even)
    assert not torch.allclose(odd_without_padding, even, atol=0.1)


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match=r"low_level_features are \(32,\); expected different strides out of"):
        DeepLabV3PlusConfig(low_level_features=(32,))
    with pytest.raises(ValueError, match="decoder_channels is 0"):
        DeepLabV3PlusConfig(decoder_channels=0)
