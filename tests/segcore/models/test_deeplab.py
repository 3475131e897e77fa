"""DeepLabV3+: published sizes, and what its parts must satisfy."""

import pytest
import torch
from torch import nn

from segcore.cost import count_multiply_adds, count_parameters
from segcore.layers import atrous_rates
from segcore.models import DeepLabV3PlusConfig, build_model


def on_meta(config: DeepLabV3PlusConfig, num_classes: int = 21) -> nn.Module:
    with torch.device("meta"):
        return build_model(config, num_classes)


@pytest.mark.parametrize(
    ("config", "num_classes", "expected"),
    [
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
def test_number_of_parameters(config: DeepLabV3PlusConfig, num_classes: int, expected: int) -> None:
    assert count_parameters(on_meta(config, num_classes)).total == expected


@pytest.mark.parametrize(
    ("config", "num_classes", "size", "expected"),
    [
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
    config: DeepLabV3PlusConfig, num_classes: int, size: tuple[int, int], expected: float
) -> None:
    assert count_multiply_adds(on_meta(config, num_classes), *size) / 1e9 == pytest.approx(expected, abs=6e-4)


def test_multiply_adds_are_those_of_the_model_zoo() -> None:
    """54.17 G on VOC and 418.64 G on Cityscapes, the TF model zoo's own counts."""
    voc = on_meta(DeepLabV3PlusConfig(backbone="xception65"), 21)
    assert count_multiply_adds(voc, 513, 513) == pytest.approx(54.17e9, rel=5e-3)
    cityscapes = on_meta(DeepLabV3PlusConfig(backbone="xception65"), 19)
    assert count_multiply_adds(cityscapes, 1025, 2049) == pytest.approx(418.64e9, rel=5e-3)


def test_output_strides_share_their_weights_and_double_the_rates() -> None:
    state = on_meta(DeepLabV3PlusConfig(backbone="mobilenet_v2", output_stride=16)).state_dict()
    for output_stride in (8, 16, 32):
        model = on_meta(DeepLabV3PlusConfig(backbone="mobilenet_v2", output_stride=output_stride))
        assert {name: value.shape for name, value in model.state_dict().items()} == {
            name: value.shape for name, value in state.items()
        }
        dilations = [
            module.dilation[0]
            for module in model.get_submodule("aspp").modules()
            if isinstance(module, nn.Conv2d) and module.dilation[0] > 1
        ]
        assert tuple(dilations) == atrous_rates(output_stride)


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
