"""SegNet and SegNet-Basic: published sizes, plain definitions, switches."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segcore.cost import count_multiply_adds, count_parameters
from segcore.models import SegNetConfig, build_model, load_pretrained, meta_model
from tests.segcore.batch_norm import randomise_statistics

BASIC = SegNetConfig(backbone="segnet_basic")
NARROW = SegNetConfig(width=0.0625)
NARROW_BASIC = SegNetConfig(backbone="segnet_basic", width=0.125)


@pytest.mark.parametrize(
    ("config", "num_classes", "expected"),
    [
        (SegNetConfig(), 11, 29_449_355),
        (SegNetConfig(), 19, 29_453_971),
        (SegNetConfig(backbone="vgg16"), 19, 29_453_971),
        (BASIC, 11, 7 * 7 * 64 * (3 + 7 * 64) + 8 * 2 * 64 + 65 * 11),
    ],
)
def test_number_of_parameters(config: SegNetConfig, num_classes: int, expected: int) -> None:
    assert count_parameters(meta_model(config, num_classes)).total == expected


def test_basic_has_the_parameters_that_its_docstring_says() -> None:
    assert count_parameters(meta_model(BASIC, 11)).total == 1_416_075


@pytest.mark.parametrize(("height", "width", "expected"), [(360, 640, 143.05e9), (512, 1024, 325.5e9)])
def test_multiply_adds(height: int, width: int, expected: float) -> None:
    """At 360 the fifth stage has 23 rows where 22.5 would be exact."""
    counted = count_multiply_adds(meta_model(SegNetConfig(), 19), height, width)
    assert counted == pytest.approx(expected, rel=0.0025 if height % 32 else 0.0005)


def normalised(x: Tensor, norm: nn.Module) -> Tensor:
    assert isinstance(norm, nn.BatchNorm2d)
    return F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)


def plain_segnet(model: nn.Module, images: Tensor) -> Tensor:
    """The layers as the paper lists them, from the network's tensors in order."""
    convolutions = [layer for layer in model.modules() if isinstance(layer, nn.Conv2d)]
    norms = [layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)]
    layers = iter(zip(convolutions, norms, strict=False))  # the classifier has no normalisation
    x, kept = images, []

    def convolve(x: Tensor) -> Tensor:
        convolution, norm = next(layers)
        return F.relu(normalised(F.conv2d(x, convolution.weight, convolution.bias, padding=1), norm))

    for repeats in (2, 2, 3, 3, 3):
        for _ in range(repeats):
            x = convolve(x)
        size = x.shape
        x, switches = F.max_pool2d(x, 2, return_indices=True, ceil_mode=True)
        kept.append((switches, size))
    for repeats in (3, 3, 3, 2, 1):
        switches, size = kept.pop()
        x = F.max_unpool2d(x, switches, (2, 2), output_size=size)
        for _ in range(repeats):
            x = convolve(x)
    assert next(layers, None) is None and len(convolutions) == len(norms) + 1 == 26
    return F.conv2d(x, convolutions[-1].weight, convolutions[-1].bias, padding=1)


@pytest.mark.parametrize("size", [(64, 96), (45, 31)])
def test_it_is_the_plain_definition(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    model = build_model(NARROW, 5).eval()
    randomise_statistics(model)
    images = torch.randn(2, 3, *size)
    with torch.no_grad():
        torch.testing.assert_close(model(images).logits_NCHW, plain_segnet(model, images))


def test_basic_has_neither_biases_nor_relu_in_its_decoder() -> None:
    torch.manual_seed(0)
    model = build_model(NARROW_BASIC, 5).eval()
    randomise_statistics(model)
    images = torch.randn(1, 3, 50, 48)
    convolutions = [layer for layer in model.modules() if isinstance(layer, nn.Conv2d)]
    norms = [layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)]
    assert [layer.kernel_size[0] for layer in convolutions] == [7] * 8 + [1]
    assert [layer.bias is None for layer in convolutions] == [True] * 8 + [False]
    x, kept = images, []
    with torch.no_grad():
        for convolution, norm in zip(convolutions[:4], norms[:4], strict=True):
            x = F.relu(normalised(F.conv2d(x, convolution.weight, padding=3), norm))
            size = x.shape
            x, switches = F.max_pool2d(x, 2, return_indices=True, ceil_mode=True)
            kept.append((switches, size))
        for convolution, norm in zip(convolutions[4:8], norms[4:], strict=True):
            switches, size = kept.pop()
            x = F.max_unpool2d(x, switches, (2, 2), output_size=size)
            x = normalised(F.conv2d(x, convolution.weight, padding=3), norm)
        expected = F.conv2d(x, convolutions[8].weight, convolutions[8].bias)
        torch.testing.assert_close(model(images).logits_NCHW, expected)
    assert (x < 0).any()


def test_encoder_and_decoder_maps_have_the_same_sizes() -> None:
    model = meta_model(SegNetConfig(), 11)
    sizes: list[tuple[int, ...]] = []
    for stage in model.get_submodule("decoder.stages").children():
        stage.register_forward_hook(lambda module, inputs, output: sizes.append(tuple(output.shape[1:])))
    images = torch.empty(1, 3, 96, 160, device="meta")
    x, poolings = model.get_submodule("backbone")(images)
    assert x.shape == (1, 512, 3, 5)
    model(images)
    assert [size[1:] for size in sizes] == [(each.height, each.width) for each in reversed(poolings)]
    assert [size[0] for size in sizes] == [512, 256, 128, 64, 64]


def test_an_image_smaller_than_the_stride_is_scored() -> None:
    for config in (NARROW, NARROW_BASIC):
        model = build_model(config, 5).eval()
        with torch.no_grad():
            assert model(torch.randn(1, 3, 3, 1)).logits_NCHW.shape == (1, 5, 3, 1)


def test_the_encoder_of_another_basic_is_taken_and_a_classifier_s_refused() -> None:
    torch.manual_seed(0)
    one, other = build_model(NARROW_BASIC, 5), build_model(NARROW_BASIC, 3)
    state = other.get_submodule("backbone").state_dict()
    load_pretrained(one, state)
    assert all(torch.equal(value, state[name]) for name, value in one.get_submodule("backbone").state_dict().items())
    with pytest.raises(ValueError, match="does not fit backbone 'segnet'.*the encoder of a trained network 'segnet'"):
        load_pretrained(one, {"features.0.weight": torch.zeros(64, 3, 3, 3)})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backbone": "resnet18"}, "unknown backbone 'resnet18'; known: vgg16, vgg16_bn, segnet_basic"),
        ({"width": 0.3}, "width is 0.3; expected one of 1.0, 0.5, 0.25"),
        ({"batch_norm_momentum": 0.0}, "batch_norm_momentum 0.0 is outside"),
    ],
)
def test_settings_out_of_range_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SegNetConfig(**changes)  # type: ignore[arg-type]
