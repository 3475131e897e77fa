"""FCN: published sizes, the crops, a plain re-statement of the released network, stages, weights."""

from typing import cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segcore.backbones import DenseVGG, backbone_state, build_backbone
from segcore.cost import count_multiply_adds, count_parameters
from segcore.layers import bilinear_kernel, bilinear_transposed_convolution
from segcore.models import DilatedContextConfig, FCNConfig, build_model, load_pretrained, meta_model
from segcore.models.fcn import FCN, OUTPUT_CROPS, SKIP_CROPS, SKIPS, VARIANTS, Variant
from segcore.networks import normalises_batches, start_from_whole

VGG16_CONVOLUTIONS = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)


def tiny(variant: Variant = "8s", **settings: object) -> FCNConfig:
    return FCNConfig(variant=variant, channels=8, width=0.0625, **settings)  # type: ignore[arg-type]


def build(config: FCNConfig, num_classes: int = 5) -> FCN:
    """In evaluation mode, with scores that do say something."""
    torch.manual_seed(0)
    model = cast(FCN, build_model(config, num_classes)).eval()
    for scores in model.head.scores.parameters():
        nn.init.normal_(scores, std=0.1)
    return model


@pytest.mark.parametrize(
    ("variant", "published", "own"),
    [("32s", 136_152_917, 134_346_581), ("16s", 134_815_994, 134_357_354), ("8s", 134_489_759, 134_362_751)],
)
def test_numbers_of_parameters(variant: Variant, published: int, own: int) -> None:
    """The released models store their fixed kernels for each pair of 21 classes."""
    config = FCNConfig(variant=variant)
    found = count_parameters(meta_model(config, 21))
    assert (found.total, found.frozen) == (own, 0)
    sides = [2 * config.enlargement] + [4] * len(SKIPS[variant])
    assert found.total + sum(21 * 21 * side * side for side in sides) == published
    learned = count_parameters(meta_model(FCNConfig(variant=variant, learned_upsampling=True), 21))
    assert learned.trainable == own + 21 * 21 * 16 * len(SKIPS[variant])


@pytest.mark.parametrize(
    ("variant", "expected"), [("32s", 180_903_432_960), ("16s", 180_915_862_272), ("8s", 180_942_204_672)]
)
def test_multiply_adds_of_a_voc_image(variant: Variant, expected: int) -> None:
    """Counted by hand from the sizes of the maps; fixed enlargements do not count."""
    assert count_multiply_adds(meta_model(FCNConfig(variant=variant), 21), 500, 500) == expected


def test_pools_of_an_image_of_500_pixels() -> None:
    backbone = meta_model(FCNConfig(), 21).get_submodule("backbone")
    assert isinstance(backbone, DenseVGG)
    (fc7,), pools = backbone.with_features(torch.empty(1, 3, 500, 375, device="meta"))
    assert [pools[stride].shape[2] for stride in (2, 4, 8, 16, 32)] == [349, 175, 88, 44, 22]
    assert fc7.shape == (1, 4096, 16, 12)


def lengths(side: int) -> dict[int, int]:
    """Rows of fc7's map (32) and of the pools (16, 8) of an image of `side` rows, by arithmetic."""
    rows, found = side + 2 * 100 - 2, {}
    for stride in (2, 4, 8, 16, 32):
        rows = -(-rows // 2)
        found[stride] = rows
    return found | {32: rows - 6}


def test_every_crop_exists_for_every_side_from_1_to_1199() -> None:
    for side in range(1, 1200):
        maps = lengths(side)
        for skips in SKIPS.values():
            rows, stride = maps[32], 32
            assert rows >= 1
            for stride in skips:
                rows = 2 * (rows + 1)
                assert SKIP_CROPS[stride] + rows <= maps[stride]
            assert OUTPUT_CROPS[stride] + side <= stride * (rows + 1)


@pytest.mark.parametrize("variant", VARIANTS)
def test_scores_have_the_image_s_size_at_any_side(variant: Variant) -> None:
    model = meta_model(tiny(variant), 3)
    backbone = cast(DenseVGG, model.get_submodule("backbone"))
    for height, width in zip((*range(1, 98, 7), 500), (*range(1199, 1101, -7), 375), strict=True):
        images = torch.empty(1, 3, height, width, device="meta")
        assert model(images).logits_NCHW.shape == (1, 3, height, width)
        (fc7,), pools = backbone.with_features(images)
        found = {**{stride: x.shape[2] for stride, x in pools.items()}, 32: fc7.shape[2]}
        assert found == lengths(height)


def full_kernel(num_classes: int, factor: int) -> Tensor:
    """As the released code fills it: triangles around `factor` - 0.5, one filter for each class on the diagonal."""
    place = torch.arange(2 * factor, dtype=torch.float64)
    triangle = 1 - (place - (factor - 0.5)).abs() / factor
    kernel = torch.zeros(num_classes, num_classes, 2 * factor, 2 * factor, dtype=torch.float64)
    for index in range(num_classes):
        kernel[index, index] = torch.outer(triangle, triangle)
    return kernel


@pytest.mark.parametrize("factor", [2, 8, 16, 32])
def test_the_transposed_convolution_is_bilinear_in_the_interior_and_fades_at_the_border(factor: int) -> None:
    x = torch.randn(2, 3, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(bilinear_kernel(factor).double(), full_kernel(1, factor)[0, 0])
    expected = F.conv_transpose2d(x, full_kernel(3, factor), stride=factor)
    found = bilinear_transposed_convolution(x, factor)
    assert found.shape[2:] == (6 * factor, 5 * factor)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    half = factor // 2
    aligned = found[..., half:-half, half:-half]  # padding = factor / 2
    enlarged = F.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=False)
    inside = (..., slice(half, -half), slice(half, -half))
    torch.testing.assert_close(aligned[inside], enlarged[inside], rtol=1e-12, atol=1e-12)
    assert float((aligned - enlarged)[..., 0, :].abs().max()) > 0.1


def released(model: FCN, images: Tensor, *, scales: dict[int, float]) -> Tensor:
    """The prototxt in plain functions, in float64: pad 100, ceil pools, crops after the scores, whole kernels."""
    state = {name: tensor.double() for name, tensor in model.state_dict().items()}
    x, pools = images.double(), dict[int, Tensor]()
    for index in VGG16_CONVOLUTIONS:
        name = f"backbone.trunk.body.features.{index}"
        padding = 100 if index == 0 else 1
        x = F.relu(F.conv2d(x, state[f"{name}.weight"], state[f"{name}.bias"], padding=padding))
        if index in (2, 7, 14, 21, 28):
            x = F.max_pool2d(x, 2, 2, ceil_mode=True)
            pools[2 ** (1 + len(pools))] = x
    for name in ("fc6", "fc7"):
        name = f"backbone.branches.0.{name}"
        x = F.relu(F.conv2d(x, state[f"{name}.weight"], state[f"{name}.bias"]))
    x = F.conv2d(x, state["head.scores.32.weight"], state["head.scores.32.bias"])
    stride = 32
    for stride in model.head.skips:
        x = F.conv_transpose2d(x, full_kernel(x.shape[1], 2), stride=2)
        weight, bias = state[f"head.scores.{stride}.weight"], state[f"head.scores.{stride}.bias"]
        skip = F.conv2d(scales[stride] * pools[stride], weight, bias)
        first = {16: 5, 8: 9}[stride]
        x = x + skip[..., first : first + x.shape[2], first : first + x.shape[3]]
    x = F.conv_transpose2d(x, full_kernel(x.shape[1], stride), stride=stride)
    first = {32: 19, 16: 27, 8: 31}[stride]
    return x[..., first : first + images.shape[2], first : first + images.shape[3]]


@pytest.mark.parametrize(
    ("config", "scales"),
    [
        (tiny("32s"), {}),
        (tiny("16s"), {16: 1.0}),
        (tiny("8s"), {16: 1.0, 8: 1.0}),
        (tiny("8s", at_once=True), {16: 0.01, 8: 0.0001}),
        (tiny("8s", learned_upsampling=True), {16: 1.0, 8: 1.0}),
    ],
)
def test_it_is_the_released_network(config: FCNConfig, scales: dict[int, float]) -> None:
    model = build(config)
    images = 10 * torch.randn(2, 3, 41, 66, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found, expected = model(images).logits_NCHW, released(model, images, scales=scales)
    assert float(expected.std()) > 0.01
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)


def test_without_skips_8s_is_the_32s_score_enlarged_by_2_by_2_and_by_8() -> None:
    model = build(tiny("8s"))
    images = torch.randn(1, 3, 70, 50, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        for stride in ("16", "8"):
            for parameter in model.head.scores[stride].parameters():
                parameter.zero_()
        (fc7,), _ = model.backbone.with_features(images)
        x = model.head.scores["32"](fc7).double()
        for factor in (2, 2, 8):
            x = F.conv_transpose2d(x, full_kernel(5, factor), stride=factor)
        found = model(images).logits_NCHW
    torch.testing.assert_close(found.double(), x[..., 31 : 31 + 70, 31 : 31 + 50], rtol=1e-4, atol=1e-6)


def test_scores_start_at_zero_and_training_moves_them() -> None:
    torch.manual_seed(0)
    model = build_model(tiny(), 5).train()
    images = torch.randn(1, 3, 32, 32)
    labels = torch.zeros(1, 32, 32, dtype=torch.uint8)
    assert not model(images).logits_NCHW.any()
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = []
    for _ in range(4):
        terms = cast(FCN, model).loss(model(images), labels)
        optimiser.zero_grad()
        terms.total.backward()
        optimiser.step()
        losses.append(float(terms.total.detach()))
    assert losses[0] == pytest.approx(torch.tensor(5.0).log().item(), rel=1e-6) and losses[-1] < 0.9 * losses[0]


def test_each_stage_starts_from_the_scores_of_the_one_before() -> None:
    first, images = build(tiny("32s")), torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    second = cast(FCN, build_model(tiny("16s"), 5)).eval()
    left = start_from_whole(second, first.state_dict())
    assert left == (("head.scores.16.weight", "head.scores.16.bias"), ())
    with torch.no_grad():
        (fc7,), _ = first.backbone.with_features(images)
        x = bilinear_transposed_convolution(first.head.scores["32"](fc7), 2)
        expected = bilinear_transposed_convolution(x, 16)[..., 27 : 27 + 64, 27 : 27 + 64]
        torch.testing.assert_close(second(images).logits_NCHW, expected)
    nn.init.normal_(second.get_parameter("head.scores.16.weight"))
    third = build_model(tiny("8s"), 5)
    start_from_whole(third, second.state_dict())
    assert torch.equal(third.state_dict()["head.scores.16.weight"], second.get_parameter("head.scores.16.weight"))


def test_weights_of_other_widths_are_refused_and_change_nothing() -> None:
    model = build(tiny("16s"))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(
        ValueError, match="does not fit backbone 'vgg16 with 1 fc6 and fc7'; tensors .* of another shape"
    ):
        load_pretrained(model, backbone_state(build(FCNConfig(channels=16, width=0.0625)).state_dict()))
    with pytest.raises(ValueError, match="does not fit backbone 'vgg16'; tensors 2[0-9] of another shape"):
        load_pretrained(model, vgg16_classifier(("classifier.0", "classifier.3")))
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def vgg16_classifier(names: tuple[str, str]) -> dict[str, Tensor]:
    """A VGG-16 classifier's tensors; its large ones have the same value all over each row."""
    generator = torch.Generator().manual_seed(3)
    trunk = build_backbone("vgg16", output_stride=32)
    state = {name: torch.randn(tensor.shape, generator=generator) for name, tensor in trunk.body.state_dict().items()}
    as_convolutions = names[0].startswith("pre_logits")
    shapes = ((4096, 512, 7, 7), (4096, 4096, 1, 1)) if as_convolutions else ((4096, 25088), (4096, 4096))
    for name, shape in zip(names, shapes, strict=True):
        rows = torch.randn(4096, generator=generator).view(-1, *[1] * (len(shape) - 1))
        state |= {f"{name}.weight": rows.expand(shape), f"{name}.bias": torch.randn(4096, generator=generator)}
    head = "head.fc" if as_convolutions else "classifier.6"
    return state | {f"{head}.weight": torch.zeros(3, 4096), f"{head}.bias": torch.zeros(3)}


@pytest.mark.parametrize("names", [("pre_logits.fc1", "pre_logits.fc2"), ("classifier.0", "classifier.3")])
def test_timm_s_and_torchvision_s_vgg16_fill_it(names: tuple[str, str]) -> None:
    state = vgg16_classifier(names)
    model = build_model(FCNConfig(channels=16), 3)  # every 256th of fc6 and fc7
    load_pretrained(model, state)
    found = model.state_dict()
    for index in VGG16_CONVOLUTIONS:
        assert torch.equal(found[f"backbone.trunk.body.features.{index}.weight"], state[f"features.{index}.weight"])
    fc6 = found["backbone.branches.0.fc6.weight"]
    assert fc6.shape == (16, 512, 7, 7)
    assert torch.equal(fc6[:, 0, 0, 0], state[f"{names[0]}.weight"].reshape(4096, -1)[::256, 0])
    assert torch.equal(found["backbone.branches.0.fc7.bias"], state[f"{names[1]}.bias"][::256])
    assert not any(found[name].any() for name in found if name.startswith("head."))


def test_the_unpadded_front_end_of_the_dilated_network_fills_it() -> None:
    """The same layers and names: padding has no weights."""
    torch.manual_seed(0)
    dilated = build_model(DilatedContextConfig(fully_connected_channels=16), 5)
    model = build_model(FCNConfig(channels=16), 5)
    load_pretrained(model, backbone_state(dilated.state_dict()))
    name = "backbone.branches.0.fc6.weight"
    assert torch.equal(model.state_dict()[name], dilated.state_dict()[name])
    assert not model.state_dict()["head.scores.32.weight"].any()


def test_only_the_batch_normalised_backbone_needs_batches() -> None:
    assert not normalises_batches(tiny(), 5)
    assert normalises_batches(tiny(backbone="vgg16_bn"), 5)


def test_settings_that_no_fcn_has_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown variant '4s'; known: 32s, 16s, 8s"):
        tiny(cast(Variant, "4s"))
    with pytest.raises(ValueError, match="FCN is built on VGG-16, not on 'resnet18'; known: vgg16, vgg16_bn"):
        tiny(backbone="resnet18")
    with pytest.raises(ValueError, match="width is 0.3; expected one of 1.0, 0.5, 0.25"):
        FCNConfig(width=0.3)
    with pytest.raises(ValueError, match="backbone 'resnet18' has one width, not 1 / 2; choose vgg16 or vgg16_bn"):
        build_backbone("resnet18", output_stride=32, vgg_width_divisor=2)
