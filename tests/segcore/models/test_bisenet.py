"""BiSeNet: size of the authors' layout, its two paths against plain definitions, auxiliary losses."""

from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segcore.cost import count_multiply_adds, count_parameters, module_multiply_adds
from segcore.models import BiSeNet, BiSeNetConfig, build_model, meta_model
from segcore.models.bisenet import AttentionRefinement, ContextDecoder, FeatureFusion, SpatialPath
from tests.segcore.batch_norm import randomise_statistics

X39 = BiSeNetConfig(backbone="xception39", auxiliary_channels=128)
R18 = BiSeNetConfig()
NARROW = BiSeNetConfig(backbone="xception39", channels=16, auxiliary_channels=8)
MEBIBYTE = 2**20


def conv(inputs: int, outputs: int, side: int = 1) -> int:
    """Parameters of a convolution and its batch normalisation."""
    return inputs * outputs * side**2 + 2 * outputs


def by_layer(trunk: int, channels_16: int, channels_32: int) -> int:
    """Parameters of the authors' layout for 19 classes, without auxiliary classifiers."""
    spatial = conv(3, 64, 7) + 2 * conv(64, 64, 3) + conv(64, 128)
    attention = conv(channels_16, 128, 3) + conv(channels_32, 128, 3) + 2 * conv(128, 128)
    context = conv(channels_32, 128) + attention + 2 * conv(128, 128, 3)
    fusion = conv(256, 256) + 2 * (256 * 256 + 256)
    return trunk + spatial + context + fusion + conv(256, 64, 3) + (64 + 1) * 19


@pytest.mark.parametrize(
    ("config", "trunk", "channels", "expected", "published_mebibytes"),
    [(X39, 299_448, (128, 256), 1_542_475, 5.8), (R18, 11_176_512, (256, 512), 12_894_675, 49.0)],
)
def test_number_of_parameters_and_the_papers_megabytes(
    config: BiSeNetConfig, trunk: int, channels: tuple[int, int], expected: int, published_mebibytes: float
) -> None:
    assert by_layer(trunk, *channels) == expected
    found = count_parameters(meta_model(replace(config, auxiliary_weight=0.0), 19)).total
    assert found == expected
    assert 4 * found / MEBIBYTE == pytest.approx(published_mebibytes, rel=0.02)
    width = config.auxiliary_channels
    auxiliary = 2 * (conv(128, width, 3) + (width + 1) * 19)
    assert count_parameters(meta_model(config, 19)).total == expected + auxiliary


@pytest.mark.parametrize(
    ("config", "giga_multiply_adds", "published"),
    [
        (X39, {(768, 1536): 15.616, (360, 640): 3.065}, {(768, 1536): 14.8, (360, 640): 2.9}),
        (R18, {(768, 1536): 58.344, (360, 640): 11.581}, {(768, 1536): 55.3, (360, 640): 10.8}),
    ],
)
def test_multiply_adds_beside_the_published_ones(
    config: BiSeNetConfig,
    giga_multiply_adds: Mapping[tuple[int, int], float],
    published: Mapping[tuple[int, int], float],
) -> None:
    model = meta_model(config, 19)
    for size, expected in giga_multiply_adds.items():
        assert count_multiply_adds(model, *size) / 1e9 == pytest.approx(expected, abs=6e-4)
        assert expected == pytest.approx(published[size], rel=0.08)


def test_a_map_of_the_spatial_path_has_an_eighth_of_the_size() -> None:
    path = SpatialPath(128).to("meta")
    assert path(torch.empty(1, 3, 65, 98, device="meta")).shape == (1, 128, 9, 13)
    rows, columns = 96 * 192, 64 * 64 * 9
    cost = module_multiply_adds(path, torch.empty(1, 3, 768, 1536, device="meta"))
    assert cost == 16 * rows * 3 * 64 * 49 + 4 * rows * columns + rows * columns + rows * 64 * 128


def normalised(x: Tensor, norm: nn.Module) -> Tensor:
    state = norm.state_dict()
    mean, variance, gain, bias = (
        state[name][:, None, None] for name in ("running_mean", "running_var", "weight", "bias")
    )
    return torch.addcmul(bias, (x - mean) / (variance + 1e-5).sqrt(), gain)


def test_attention_refinement_computes_its_definition() -> None:
    torch.manual_seed(0)
    layer = AttentionRefinement(6, 4).eval()
    randomise_statistics(layer)
    x = torch.randn(2, 6, 5, 7)
    reduced = normalised(F.conv2d(x, layer.reduce.conv.weight, padding=1), layer.reduce.norm).relu()
    scores = torch.einsum("oi,nihw->no", layer.attention.conv.weight[:, :, 0, 0], reduced)[..., None, None] / 35
    expected = reduced * normalised(scores, layer.attention.norm).sigmoid()
    torch.testing.assert_close(layer(x), expected)


def test_feature_fusion_computes_its_definition() -> None:
    torch.manual_seed(0)
    layer = FeatureFusion(8).eval()
    randomise_statistics(layer)
    spatial, context = torch.randn(2, 4, 5, 7), torch.randn(2, 4, 5, 7)
    joined = torch.cat([spatial, context], dim=1)
    x = normalised(F.conv2d(joined, layer.project.conv.weight), layer.project.norm).relu()
    state = {
        name: value.flatten(1) if value.ndim == 4 else value for name, value in layer.attention.state_dict().items()
    }
    hidden = F.linear(x.mean(dim=(2, 3)), state["fc1.weight"], state["fc1.bias"]).relu()
    gates = F.linear(hidden, state["fc2.weight"], state["fc2.bias"]).sigmoid()
    torch.testing.assert_close(layer(spatial, context), x + x * gates[..., None, None])


def test_the_context_path_adds_the_mean_enlarges_and_adds() -> None:
    torch.manual_seed(0)
    decoder = ContextDecoder(6, 8, 4).eval()
    randomise_statistics(decoder)
    x_16, x_32 = torch.randn(2, 6, 6, 8), torch.randn(2, 8, 3, 4)
    tail = decoder.image_pooling.project
    mean = normalised(F.conv2d(x_32.mean(dim=(2, 3), keepdim=True), tail.conv.weight), tail.norm).relu()
    x = F.interpolate(decoder.refinement_32(x_32) + mean, scale_factor=2, mode="bilinear")
    middle = decoder.fuse_16(x)
    x = F.interpolate(decoder.refinement_16(x_16) + middle, scale_factor=2, mode="bilinear")
    found = decoder(x_16, x_32, height=11, width=16)
    torch.testing.assert_close(found[0], middle)
    torch.testing.assert_close(found[1], decoder.fuse_8(x[..., :11, :]))


def test_one_image_in_training_is_refused_with_the_remedies() -> None:
    model = build_model(NARROW, 3)
    with pytest.raises(
        ValueError, match=r"attention refinement was given a training batch of 1 image.*raise the batch"
    ):
        model(torch.randn(1, 3, 64, 64))
    with torch.no_grad():
        assert model.eval()(torch.randn(1, 3, 64, 64)).logits_NCHW.shape == (1, 3, 64, 64)


def test_auxiliary_losses_have_weight_1_and_vanish_in_evaluation() -> None:
    torch.manual_seed(0)
    model = build_model(NARROW, 5).train()
    assert isinstance(model, BiSeNet)
    images, labels = torch.randn(2, 3, 65, 49), torch.randint(0, 5, (2, 65, 49))
    output = model(images)
    losses = [F.cross_entropy(one, labels) for one in (output.logits_NCHW, *output.auxiliary_NCHW)]
    terms = model.loss(output, labels)
    torch.testing.assert_close(terms.total, sum(losses))
    assert list(terms.terms) == ["cross_entropy", "auxiliary_16", "auxiliary_8"]
    ran: list[str] = []
    model.auxiliary.register_forward_hook(lambda *_: ran.append("auxiliary"))
    for classifier in model.auxiliary:
        classifier.register_forward_hook(lambda *_: ran.append("auxiliary"))
    with torch.no_grad():
        assert model.eval()(images).auxiliary_NCHW == () and not ran


@pytest.mark.parametrize("size", [(65, 98), (1, 3), (20, 33)])
def test_any_size_has_scores_of_its_own_size(size: tuple[int, int]) -> None:
    """Smaller than the stride, too."""
    model = meta_model(NARROW, 5)
    assert model(torch.empty(1, 3, *size, device="meta")).logits_NCHW.shape == (1, 5, *size)


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="auxiliary_channels is 0; it must be at least 1"):
        BiSeNetConfig(auxiliary_channels=0)
    with pytest.raises(ValueError, match=r"auxiliary_weight is -1.0; it must not be negative"):
        BiSeNetConfig(auxiliary_weight=-1.0)
    with pytest.raises(ValueError, match="'dfanet_xception_a' ends at stride 16"):
        BiSeNetConfig(backbone="dfanet_xception_a")
    assert (R18.output_stride, R18.enlargement) == (32, 8)
