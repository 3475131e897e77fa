"""Shared blocks, against their definitions."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from segcore.backbones import build_backbone
from segcore.cost import count_parameters, module_multiply_adds
from segcore.layers import (
    ASPP,
    AtrousConv2d,
    ConvBnAct,
    DUpsample,
    SeparableConv,
    UnpoolingDecoder,
    atrous_rates,
    downsample,
    initialise_convolutions,
    mirror,
    pad_to_multiple,
    pool_with_switches,
    record_pooling,
    resize,
    set_batch_norm_momentum,
    synchronise_batch_norm,
    unpool,
    upsample,
)


def test_separable_convolution_has_a_norm_and_relu_after_each_half() -> None:
    torch.manual_seed(0)
    layer = SeparableConv(4, 6, dilation=3).eval()
    x = torch.randn(2, 4, 9, 7)
    depthwise, pointwise = layer.depthwise, layer.pointwise
    middle = F.relu(depthwise.norm(F.conv2d(x, depthwise.conv.weight, padding=3, dilation=3, groups=4)))
    expected = F.relu(pointwise.norm(F.conv2d(middle, pointwise.conv.weight)))
    torch.testing.assert_close(layer(x), expected)
    assert count_parameters(layer).total == 9 * 4 + 2 * 4 + 4 * 6 + 2 * 6


def test_the_last_relu_can_be_left_out() -> None:
    torch.manual_seed(0)
    output = ConvBnAct(4, 6, activation=False)(torch.randn(2, 4, 9, 7))
    assert output.min() < 0 < output.max()
    assert ConvBnAct(4, 6)(torch.randn(2, 4, 9, 7)).min() == 0


def test_rates_follow_the_output_stride_and_keep_the_weights() -> None:
    assert atrous_rates(16) == (6, 12, 18)
    assert atrous_rates(8) == (12, 24, 36)
    assert atrous_rates(32) == (3, 6, 9)
    state = ASPP(8, 4, rates=atrous_rates(16)).state_dict()
    ASPP(8, 4, rates=atrous_rates(8)).load_state_dict(state)


@pytest.mark.parametrize("separable", [True, False])
def test_aspp_has_the_published_number_of_parameters(separable: bool) -> None:
    with torch.device("meta"):
        aspp = ASPP(2048, 256, rates=(6, 12, 18), separable=separable)
    atrous = 9 * 2048 + 2 * 2048 + 2048 * 256 + 512 if separable else 9 * 2048 * 256 + 512
    assert count_parameters(aspp).total == 2 * (2048 * 256 + 512) + 3 * atrous + 1280 * 256 + 512


def test_image_pooling_is_the_same_everywhere_and_sees_everything() -> None:
    torch.manual_seed(0)
    pooling = ASPP(8, 4, rates=(1, 2, 3)).branches[4].eval()
    x = torch.randn(2, 8, 9, 7)
    output = pooling(x)
    assert output.shape == (2, 4, 9, 7)
    assert torch.equal(output, output[:, :, :1, :1].expand_as(output))
    changed = x.clone()
    changed[:, :, 8, 6] += 10
    assert (pooling(changed) != output).any()


def test_aspp_of_a_constant_is_constant_away_from_the_border() -> None:
    torch.manual_seed(0)
    aspp = ASPP(6, 4, rates=(2, 4, 6)).eval()
    output = aspp(torch.randn(1, 6, 1, 1).expand(1, 6, 17, 19))
    inner = output[:, :, 6:-6, 6:-6]
    torch.testing.assert_close(inner, inner[:, :, :1, :1].expand_as(inner))
    assert (output[:, :, 0, 0] != inner[:, :, 0, 0]).any()


def test_a_rate_beyond_the_map_reduces_a_branch_to_its_centre_tap() -> None:
    torch.manual_seed(0)
    branch = ConvBnAct(3, 4, 3, dilation=9)
    x = torch.randn(1, 3, 9, 9)
    torch.testing.assert_close(branch.conv(x), F.conv2d(x, branch.conv.weight[:, :, 1:2, 1:2]))


@pytest.mark.parametrize("kernel_size", [3, 7])
@pytest.mark.parametrize("size", [(4, 9), (3, 3), (9, 13), (10, 4), (1, 1)])
def test_leaving_out_taps_that_only_meet_padding_changes_nothing(kernel_size: int, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    ours = AtrousConv2d(4, 6, kernel_size, dilation=3, groups=2).double()
    plain = nn.Conv2d(4, 6, kernel_size, padding=3 * (kernel_size // 2), dilation=3, groups=2).double()
    plain.load_state_dict(ours.state_dict())
    x = torch.randn(2, 4, *size, dtype=torch.float64)
    gradient = torch.randn(2, 6, *size, dtype=torch.float64)
    for convolution in (ours, plain):
        convolution(x).backward(gradient)
    torch.testing.assert_close(ours(x), plain(x))
    torch.testing.assert_close(ours.weight.grad, plain.weight.grad)
    torch.testing.assert_close(ours.bias.grad, plain.bias.grad)


@pytest.mark.parametrize(("size", "share"), [((13, 13), 1), ((12, 13), 1 / 3), ((12, 12), 1 / 9)])
def test_taps_that_only_meet_padding_cost_nothing(size: tuple[int, int], share: float) -> None:
    x = torch.empty(1, 4, *size, device="meta")
    work = module_multiply_adds(AtrousConv2d(4, 6, 3, dilation=12), x)
    assert work == pytest.approx(share * module_multiply_adds(nn.Conv2d(4, 6, 3, padding=12, dilation=12), x))


def test_training_on_one_image_is_refused_with_the_remedies() -> None:
    aspp = ASPP(8, 4, rates=(1, 2, 3))
    with pytest.raises(ValueError, match="training batch of 1 image.*raise the batch size per worker.*eval mode"):
        aspp(torch.randn(1, 8, 5, 5))
    assert aspp(torch.randn(2, 8, 5, 5)).shape == (2, 4, 5, 5)
    aspp.branches[4].eval()
    assert aspp(torch.randn(1, 8, 5, 5)).shape == (1, 4, 5, 5)


@pytest.mark.parametrize("trainable", [True, False])
def test_dupsample_is_a_transposed_convolution(trainable: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    classes, side, components = 3, 4, 5
    basis = torch.randn(classes * side**2, components, dtype=torch.float64, generator=generator)
    bias = torch.randn(classes * side**2, dtype=torch.float64, generator=generator)
    code = torch.randn(2, components, 3, 7, dtype=torch.float64, generator=generator)
    layer = DUpsample(basis, bias, block_side=side, trainable=trainable).double()
    layer.load_state_dict({"weight": basis[:, :, None, None], "bias": bias})
    kernel = basis.T.reshape(components, classes, side, side)
    expected = F.conv_transpose2d(code, kernel, stride=side)
    expected = expected + bias.reshape(classes, side, side).repeat(1, 3, 7)
    torch.testing.assert_close(layer(code), expected, rtol=1e-12, atol=1e-12)
    assert layer(code).shape == (2, 3, 12, 28)
    assert [parameter.requires_grad for parameter in layer.parameters()] == [trainable, trainable]


def test_dupsample_keeps_the_memory_layout_and_the_scores() -> None:
    torch.manual_seed(0)
    layer = DUpsample(torch.randn(3 * 16, 5), torch.randn(3 * 16), block_side=4, trainable=True)
    code = torch.randn(2, 5, 3, 7)
    expected = F.pixel_shuffle(F.conv2d(code, layer.weight, layer.bias), 4)
    for layout in (torch.contiguous_format, torch.channels_last):
        scores = layer(code.contiguous(memory_format=layout))
        assert scores.is_contiguous(memory_format=layout)
        torch.testing.assert_close(scores, expected)


def test_blocks_of_labels_go_through_a_full_basis_unchanged() -> None:
    """`pixel_unshuffle` of one-hot labels has the basis' row order, so a complete orthonormal basis is the identity."""
    generator = torch.Generator().manual_seed(0)
    classes, side = 3, 2
    labels = torch.randint(0, classes, (2, 6, 8), generator=generator)
    one_hot = F.one_hot(labels, classes).movedim(3, 1).double()
    blocks = F.pixel_unshuffle(one_hot, side)
    assert torch.equal(F.pixel_shuffle(blocks, side), one_hot)
    entries = classes * side**2
    basis = torch.linalg.qr(torch.randn(entries, entries, dtype=torch.float64, generator=generator)).Q
    layer = DUpsample(basis, torch.zeros(entries), block_side=side, trainable=False).double()
    layer.load_state_dict({"weight": basis[:, :, None, None], "bias": torch.zeros(entries)})
    code = torch.einsum("dp,ndhw->nphw", basis, blocks)
    torch.testing.assert_close(layer(code), one_hot, rtol=0, atol=1e-12)


def test_a_basis_of_the_wrong_shape_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\(30, 5\) and bias \(30,\); expected D x P and D, with D a multiple"):
        DUpsample(torch.zeros(30, 5), torch.zeros(30), block_side=4, trainable=False)
    with pytest.raises(ValueError, match=r"bias \(31,\)"):
        DUpsample(torch.zeros(32, 5), torch.zeros(31), block_side=4, trainable=False)


def test_resize_is_bilinear_with_half_pixel_centres() -> None:
    ramp = torch.arange(4.0).reshape(1, 1, 1, 4)
    wide = resize(ramp, height=1, width=8)[0, 0, 0]
    torch.testing.assert_close(wide, torch.tensor([0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3.0]))
    assert resize(ramp, height=1, width=4) is ramp


@pytest.mark.parametrize("height", [225, 240, 255, 256])
def test_where_a_map_row_is_drawn_does_not_depend_on_the_size_of_the_image(height: int) -> None:
    """Regression: eight rows of stride 32 were squeezed into 240 pixels, and DUpsampling's were not."""
    map_rows = torch.zeros(1, 1, 8, 2)
    map_rows[0, 0, 6] = 1.0
    drawn = upsample(map_rows, 32, height=height, width=60)
    assert drawn.shape == (1, 1, height, 60)
    whole = resize(map_rows, height=256, width=64)
    torch.testing.assert_close(drawn, whole[..., :height, :60])


def test_downsampling_takes_each_row_from_where_the_coarse_one_lies() -> None:
    ramp = torch.arange(60.0).reshape(1, 1, 60, 1).expand(1, 1, 60, 64)
    coarse = downsample(ramp, 8, height=8, width=8)[0, 0, :, 0]
    torch.testing.assert_close(coarse, torch.tensor([3.5, 11.5, 19.5, 27.5, 35.5, 43.5, 51.5, 59.0]))
    whole = torch.randn(1, 2, 64, 32)
    assert torch.equal(downsample(whole, 8, height=8, width=4), resize(whole, height=8, width=4))


def test_padding_goes_to_the_bottom_and_right() -> None:
    images = torch.ones(1, 3, 5, 8)
    padded = pad_to_multiple(images, 4)
    assert padded.shape == (1, 3, 8, 8)
    assert torch.equal(padded[:, :, :5], images) and not padded[:, :, 5:].any()
    assert pad_to_multiple(padded, 4) is padded
    assert pad_to_multiple(images, 1) is images


def test_mirrored_images_are_torch_s_reflection_as_far_as_that_goes() -> None:
    images = torch.randn(2, 3, 9, 7)
    expected = F.pad(images, (4, 6, 4, 8), mode="reflect")
    assert torch.equal(mirror(images, margin=4, height=9 + 12, width=7 + 10), expected)
    assert torch.equal(mirror(images, margin=0, height=9, width=7), images)


def test_beyond_an_image_s_own_size_the_mirror_image_is_mirrored_again() -> None:
    row = torch.tensor([10.0, 20.0, 30.0])[None, None, None]
    found = mirror(row, margin=5, height=2, width=13)
    assert found.shape == (1, 1, 2, 13)
    assert found[0, 0, 0].tolist() == [20.0, 10, 20, 30, 20, 10, 20, 30, 20, 10, 20, 30, 20]
    assert torch.equal(found[0, 0, 1], found[0, 0, 0])  # one row is continued by itself


@pytest.mark.parametrize("name", ["efficientnet_lite0", "mobilenet_v3_small", "resnet18"])
def test_synchronised_normalisation_keeps_the_activations(name: str) -> None:
    """torch's own conversion would drop those that timm keeps inside its normalisation layers."""
    torch.manual_seed(0)
    backbone = build_backbone(name, output_stride=32).eval()
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = backbone(images)[32]
        converted = synchronise_batch_norm(backbone).eval()
        torch.testing.assert_close(converted(images)[32], expected)
    layers = [module for module in converted.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    assert len(layers) > 10
    assert all(isinstance(layer, nn.SyncBatchNorm) for layer in layers)


def test_momentum_is_set_everywhere() -> None:
    backbone = build_backbone("mobilenet_v3_small", output_stride=32)
    set_batch_norm_momentum(backbone, 0.003)
    layers = [module for module in backbone.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    assert {layer.momentum for layer in layers} == {0.003}


def test_initial_weights_have_hes_deviation() -> None:
    torch.manual_seed(0)
    layer = nn.Sequential(nn.Conv2d(64, 512, 3), nn.Conv2d(512, 512, 3, groups=512))
    initialise_convolutions(layer)
    assert float(layer[0].weight.detach().std()) == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.02)
    assert float(layer[1].weight.detach().std()) == pytest.approx((2 / 9) ** 0.5, rel=0.05)
    assert layer[0].bias is not None
    assert not layer[0].bias.any()


def test_unpooling_puts_every_maximum_back_and_nothing_else() -> None:
    torch.manual_seed(0)
    x = torch.rand(2, 3, 6, 10)
    pooled, switches = pool_with_switches(x)
    back = unpool(pooled, switches)
    where = back != 0
    assert where.sum() == pooled.numel()
    assert torch.equal(back[where], x[where])
    assert torch.equal(pool_with_switches(back)[0], pooled)
    torch.testing.assert_close(back.sum(), pooled.sum())


@pytest.mark.parametrize(("row", "column"), [(0, 0), (3, 4), (5, 9)])
def test_a_single_activation_returns_to_its_place(row: int, column: int) -> None:
    x = torch.zeros(1, 1, 6, 10)
    x[0, 0, row, column] = 1
    assert torch.equal(unpool(*pool_with_switches(x)), x)


@pytest.mark.parametrize("size", [(5, 7), (6, 3), (1, 1), (2, 9)])
def test_odd_sides_come_back_too(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    x = torch.rand(2, 3, *size)
    pooled, switches = pool_with_switches(x)
    height, width = size
    padded = F.pad(x, (0, width % 2, 0, height % 2))
    assert torch.equal(pooled, F.max_pool2d(padded, 2))
    back = unpool(pooled, switches, height=height, width=width)
    where = back != 0
    assert back.shape == x.shape and where.sum() == pooled.numel()
    assert torch.equal(back[where], x[where])
    assert torch.equal(pool_with_switches(back)[0], pooled)


def test_recorded_poolings_know_the_size_before() -> None:
    x = torch.rand(1, 2, 5, 8)
    pooled, pooling = record_pooling(x)
    assert (pooling.height, pooling.width) == (5, 8)
    expected = pool_with_switches(x)
    assert torch.equal(pooled, expected[0]) and torch.equal(pooling.switches_NKhw, expected[1])


def test_a_decoder_undoes_the_poolings_from_the_last_to_the_first() -> None:
    """Without its convolutions, each value comes back to where the maximum of its 8x8 pixels was."""
    torch.manual_seed(0)
    x = image = torch.rand(1, 2, 16, 24)
    poolings = []
    for _ in range(3):
        x, pooling = record_pooling(x)
        poolings.append(pooling)
    decoder = UnpoolingDecoder(((2, 1),) * 3)
    for index in range(3):
        decoder.stages[index] = nn.Identity()
    found = decoder(x, poolings)
    maxima = F.interpolate(F.max_pool2d(image, 8), scale_factor=8.0)
    assert torch.equal(found, torch.where(image == maxima, image, torch.zeros_like(image)))


def test_a_decoder_mirrors_the_widths_of_its_encoder() -> None:
    decoder = UnpoolingDecoder(((4, 2), (8, 3), (16, 1)), kernel_size=5, bias=False, activation=False)
    convolutions = [layer for layer in decoder.modules() if isinstance(layer, nn.Conv2d)]
    widths = [(layer.in_channels, layer.out_channels) for layer in convolutions]
    assert widths == [(16, 8), (8, 8), (8, 8), (8, 4), (4, 4), (4, 4)]
    assert {(layer.kernel_size, layer.bias) for layer in convolutions} == {((5, 5), None)}
    assert not [module for module in decoder.modules() if isinstance(module, nn.ReLU)]
    assert len([module for module in UnpoolingDecoder(((4, 2),)).modules() if isinstance(module, nn.ReLU)]) == 2
