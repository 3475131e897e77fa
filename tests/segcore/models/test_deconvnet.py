"""DeconvNet: published sizes part by part, the layers as the paper lists them, and that it can learn."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from segcore.cost import count_multiply_adds, count_parameters
from segcore.layers import fold_batch_norm, recompute_batch_norm
from segcore.models import DeconvNetConfig, build_model, load_pretrained, meta_model
from tests.segcore.batch_norm import randomise_statistics

NARROW = DeconvNetConfig(width=0.0625, fc_channels=16, input_px=64)


def parameters(model: nn.Module, part: str) -> int:
    return count_parameters(model.get_submodule(part)).total


def test_number_of_parameters_in_all_and_of_every_part() -> None:
    model = meta_model(DeconvNetConfig(), 21)
    assert count_parameters(model).total == 251_805_653
    norms = sum(parameters(model, name) for name, module in model.named_modules() if isinstance(module, _BatchNorm))
    assert 251_805_653 - norms == 251_772_245
    assert parameters(model, "backbone.features") == 14_723_136
    assert parameters(model, "backbone.fc6") == 102_772_736
    assert parameters(model, "backbone.fc7") == 16_789_504
    assert parameters(model, "fc6_deconv") == 102_761_984
    assert parameters(model, "decoder") == 14_756_928
    assert parameters(model, "head") == 1_365


def test_multiply_adds_of_a_crop() -> None:
    assert count_multiply_adds(meta_model(DeconvNetConfig(), 21), 224, 224) == pytest.approx(32.746e9, rel=2e-5)


def test_every_layer_of_the_table() -> None:
    """Channels, kernel and size of what each layer gives, at 224 x 224."""
    model = meta_model(DeconvNetConfig(), 21)
    found: list[tuple[int, int, int]] = []
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            module.register_forward_hook(
                lambda layer, inputs, output: found.append((output.shape[1], layer.kernel_size[0], output.shape[2]))
            )
    output = model(torch.empty(2, 3, 224, 224, device="meta"))
    assert output.logits_NCHW.shape == (2, 21, 224, 224)

    def stage(size: int, *channels: int) -> list[tuple[int, int, int]]:
        return [(width, 3, size) for width in channels]

    assert found == [
        *stage(224, 64, 64),
        *stage(112, 128, 128),
        *stage(56, 256, 256, 256),
        *stage(28, 512, 512, 512),
        *stage(14, 512, 512, 512),
        (4096, 7, 1),
        (4096, 1, 1),
        (512, 7, 7),
        *stage(14, 512, 512, 512),
        *stage(28, 512, 512, 256),
        *stage(56, 256, 256, 128),
        *stage(112, 128, 64),
        *stage(224, 64, 64),
        (21, 1, 224),
    ]


def test_the_bottleneck_is_one_location() -> None:
    model = meta_model(DeconvNetConfig(), 21)
    x, poolings = model.get_submodule("backbone")(torch.empty(2, 3, 224, 224, device="meta"))
    assert x.shape == (2, 4096, 1, 1)
    assert [pooling.switches_NKhw.shape[2] for pooling in poolings] == [112, 56, 28, 14, 7]
    assert model.get_submodule("fc6_deconv")(x).shape == (2, 512, 7, 7)


def transposed(convolution: nn.Conv2d, x: Tensor) -> Tensor:
    """What a 3x3 convolution gives, as a transposed convolution with padding 1."""
    kernel = convolution.weight.flip(2, 3).transpose(0, 1)
    return F.conv_transpose2d(x, kernel, convolution.bias, padding=1)


def test_a_deconvolution_is_a_convolution_with_the_turned_and_transposed_kernel() -> None:
    torch.manual_seed(0)
    convolution = nn.Conv2d(5, 7, 3, padding=1).double()
    x = torch.randn(2, 5, 6, 9, dtype=torch.float64)
    torch.testing.assert_close(convolution(x), transposed(convolution, x), rtol=0, atol=1e-12)


def plain_deconvnet(model: nn.Module, images: Tensor) -> Tensor:
    """The layers as the paper lists them, with transposed convolutions, from the network's tensors in order."""
    layers = [layer for layer in model.modules() if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d)]
    norms = [layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)]
    assert len(layers) == len(norms) + 1 == 13 + 2 + 1 + 13 + 1
    paired = iter(zip(layers, norms, strict=False))

    def run(x: Tensor) -> Tensor:
        layer, norm = next(paired)
        if isinstance(layer, nn.ConvTranspose2d):
            x = F.conv_transpose2d(x, layer.weight, layer.bias)
        elif x.shape[2] == 1 or layer.kernel_size == (2, 2):
            x = F.conv2d(x, layer.weight, layer.bias)
        else:
            x = transposed(layer, x)
        return F.relu(F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps))

    x, kept = images, []
    for repeats in (2, 2, 3, 3, 3):
        for _ in range(repeats):
            x = run(x)
        x, switches = F.max_pool2d(x, 2, return_indices=True)
        kept.append(switches)
    x = run(run(run(x)))
    for repeats in (3, 3, 3, 2, 2):
        x = F.max_unpool2d(x, kept.pop(), (2, 2))
        for _ in range(repeats):
            x = run(x)
    return F.conv2d(x, layers[-1].weight, layers[-1].bias)


def trained(config: DeconvNetConfig, num_classes: int) -> nn.Module:
    torch.manual_seed(0)
    model = build_model(config, num_classes).eval()
    randomise_statistics(model)
    with torch.no_grad():  # initial deconvolutions are so small that nothing of the image would be left
        for layer in model.modules():
            if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.kaiming_normal_(layer.weight)
    return model


def test_it_is_the_plain_definition() -> None:
    model = trained(NARROW, 5)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        found, expected = model(images).logits_NCHW, plain_deconvnet(model, images)
    assert float(expected.std()) > 0.01
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


def test_crops_of_its_size_are_seen_as_they_are_and_other_images_as_one_proposal() -> None:
    model = trained(NARROW, 5)
    seen: list[Tensor] = []
    model.get_submodule("backbone").register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    crops, image = torch.randn(1, 3, 64, 64), torch.randn(1, 3, 50, 90)
    with torch.no_grad():
        model(crops)
        assert seen.pop() is crops
        found = model(image).logits_NCHW
        resized = F.interpolate(image, size=(64, 64), mode="bilinear", align_corners=False)
        assert torch.equal(seen.pop(), resized)
        expected = F.interpolate(model(resized).logits_NCHW, size=(50, 90), mode="bilinear", align_corners=False)
    torch.testing.assert_close(found, expected)


def test_it_starts_as_the_released_prototxt_says() -> None:
    torch.manual_seed(0)
    model = build_model(replace(NARROW, width=0.25, fc_channels=64), 5)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(norms) == 29
    assert all(bool((norm.weight == 1).all()) and bool((norm.bias == 0.001).all()) for norm in norms)
    deconvolutions = [
        layer
        for part in ("fc6_deconv", "decoder")
        for layer in model.get_submodule(part).modules()
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d)
    ]
    assert len(deconvolutions) == 14
    for layer in deconvolutions:
        assert layer.bias is not None and not layer.bias.any()
        assert float(layer.weight.detach().std()) == pytest.approx(0.01, rel=0.1)


def test_normalisation_is_folded_into_every_layer_and_the_scores_stay() -> None:
    model = trained(NARROW, 5)
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        before = model(images).logits_NCHW
        assert fold_batch_norm(model, images) == 29
        after = model(images).logits_NCHW
    assert not [module for module in model.modules() if isinstance(module, _BatchNorm)]
    torch.testing.assert_close(after, before, rtol=0, atol=1e-4 * float(before.abs().max()))


def test_the_encoder_takes_a_whole_vgg16_at_full_width_alone() -> None:
    with torch.device("meta"):
        model = meta_model(DeconvNetConfig(), 21)
        state = {
            name: value
            for name, value in model.get_submodule("backbone").state_dict().items()
            if name.startswith("features.")
        }
        state |= {
            "classifier.0.weight": torch.empty(4096, 25088),
            "classifier.0.bias": torch.empty(4096),
            "classifier.3.weight": torch.empty(4096, 4096),
            "classifier.3.bias": torch.empty(4096),
        }
        load_pretrained(model, state)
        with pytest.raises(ValueError, match=r"fc6.0.weight .*as published, and fc6 for images of 224 pixels"):
            load_pretrained(meta_model(DeconvNetConfig(input_px=64), 21), state)


def four_crops(side: int) -> tuple[Tensor, Tensor]:
    """Boxes and bands of three classes on a fourth, each of its colour in noise, at other places in each crop."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.zeros(4, side, side, dtype=torch.long)
    for index in range(4):
        top, left = (int(each) for each in torch.randint(side // 8, side // 3, (2,), generator=generator))
        labels[index, top : top + side // 2, left : left + side // 2] = 1 + index % 3
        labels[index, side - 8 - index :, index:] = 1 + (index + 1) % 3
    colours = torch.cat([-torch.ones(1, 3), 2 * torch.eye(3) - 1])
    images = colours[labels].movedim(3, 1) + 0.5 * torch.randn(4, 3, side, side, generator=generator)
    return images, labels


def overfitted_accuracy(config: DeconvNetConfig, *, learning_rate: float) -> float:
    """Pixel accuracy in evaluation on four crops after training on nothing else, for at most 300 steps."""
    torch.manual_seed(0)
    model = build_model(config, 4).train()
    images, labels = four_crops(config.input_px)
    optimiser = torch.optim.SGD(model.parameters(), lr=learning_rate, momentum=0.9)
    for _ in range(300):
        loss = model.loss(model(images), labels).total
        if loss.item() < 0.02:
            break
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    # Several times over: the unbiased variance of four values, which fc6 has, would be 4/3 of the one in training.
    recompute_batch_norm(model, [images.repeat(32, 1, 1, 1)])
    with torch.no_grad():
        predictions = model.eval()(images).logits_NCHW.argmax(dim=1)
    return float((predictions == labels).float().mean())


def test_it_overfits_four_crops() -> None:
    assert overfitted_accuracy(DeconvNetConfig(width=0.25, fc_channels=64, input_px=32), learning_rate=0.3) > 0.99


@pytest.mark.slow
def test_it_overfits_four_crops_of_more_pixels_at_half_its_width() -> None:
    assert overfitted_accuracy(DeconvNetConfig(width=0.5, fc_channels=256, input_px=64), learning_rate=0.2) > 0.99


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backbone": "resnet18"}, "DeconvNet is built on VGG-16, not on 'resnet18'; known: vgg16, vgg16_bn"),
        ({"input_px": 100}, "input_px is 100; expected a multiple of 32"),
        ({"input_px": 0}, "input_px is 0; expected a multiple of 32"),
        ({"fc_channels": 0}, "fc_channels is 0; it must be at least 1"),
        ({"width": 2.0}, "width is 2.0; expected one of 1.0, 0.5"),
    ],
)
def test_settings_out_of_range_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DeconvNetConfig(**changes)  # type: ignore[arg-type]


def test_widths_and_crops_scale_every_part() -> None:
    sizes = [
        count_parameters(meta_model(DeconvNetConfig(width=width, fc_channels=64, input_px=64), 5)).total
        for width in (1.0, 0.5, 0.25, 0.125)
    ]
    assert all(3 < large / small < 4.2 for large, small in pairwise(sizes))
    images = torch.empty(1, 3, 96, 96, device="meta")
    model = meta_model(DeconvNetConfig(width=0.25, fc_channels=64, input_px=96), 5)
    assert model.get_submodule("backbone")(images)[0].shape == (1, 64, 1, 1)
