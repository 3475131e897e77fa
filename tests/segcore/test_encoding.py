"""The encoding layer, against its definition with a tensor of every residual."""

import pytest
import torch
from torch import Tensor, nn

from segcore.cost import module_multiply_adds
from segcore.layers import Encoding


def make_layer(channels: int = 5, num_codewords: int = 4) -> Encoding:
    torch.manual_seed(0)
    return Encoding(channels, num_codewords).double()


def features(height: int = 6, width: int = 7, channels: int = 5) -> Tensor:
    return torch.randn(2, channels, height, width, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def naive(x_NKhw: Tensor, layer: Encoding) -> tuple[Tensor, Tensor]:
    """Encodings and assignments, the latter over locations by codewords."""
    x_NLK = x_NKhw.flatten(2).transpose(1, 2)
    residuals_NLQK = x_NLK[:, :, None] - layer.codewords_QK
    powers_NLQ = (layer.smoothing_Q * (residuals_NLQK**2).sum(dim=3)).exp()
    assignments_NLQ = powers_NLQ / powers_NLQ.sum(dim=2, keepdim=True)
    return (assignments_NLQ[..., None] * residuals_NLQK).sum(dim=1), assignments_NLQ


def test_encodings_are_the_definition() -> None:
    layer, x = make_layer(), features()
    encodings, assignments = naive(x, layer)
    assert layer(x).shape == (2, 4, 5)
    torch.testing.assert_close(layer(x), encodings, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(layer.assignments(x), assignments.transpose(1, 2), rtol=1e-12, atol=1e-12)


def test_every_location_is_shared_out_and_none_has_a_place() -> None:
    layer, x = make_layer(), features()
    shares = layer.assignments(x)
    torch.testing.assert_close(shares.sum(dim=1), torch.ones(2, 42, dtype=torch.float64), rtol=0, atol=1e-14)
    order = torch.randperm(42, generator=torch.Generator().manual_seed(2))
    shuffled = x.flatten(2)[:, :, order].unflatten(2, (14, 3))
    torch.testing.assert_close(layer(shuffled), layer(x), rtol=1e-13, atol=1e-13)
    assert layer(features(1, 1)).shape == layer(features(9, 2)).shape == (2, 4, 5)


def test_encodings_add_up_to_the_features_less_the_codewords_shares() -> None:
    layer, x = make_layer(), features()
    mass_NQ = layer.assignments(x).sum(dim=2)
    expected = x.sum(dim=(2, 3)) - mass_NQ @ layer.codewords_QK
    torch.testing.assert_close(layer(x).sum(dim=1), expected, rtol=1e-12, atol=1e-12)


def test_one_codeword_takes_everything() -> None:
    layer, x = make_layer(num_codewords=1), features()
    torch.testing.assert_close(layer(x)[:, 0], x.sum(dim=(2, 3)) - 42 * layer.codewords_QK[0], rtol=1e-12, atol=1e-12)


def test_a_map_of_one_codeword_has_no_residual_to_it() -> None:
    layer = make_layer()
    with torch.no_grad():
        layer.smoothing_Q.fill_(-1e6)
    x = layer.codewords_QK[2].detach()[None, :, None, None].expand(1, 5, 3, 4)
    torch.testing.assert_close(layer(x)[0, 2], torch.zeros(5, dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close(layer.assignments(x)[0, 2], torch.ones(12, dtype=torch.float64))


def test_very_negative_factors_assign_each_location_to_its_nearest_codeword() -> None:
    """The limit: VLAD."""
    layer, x = make_layer(), features()
    with torch.no_grad():
        layer.codewords_QK.normal_()
        layer.smoothing_Q.fill_(-1e6)
    nearest = torch.cdist(x.flatten(2).transpose(1, 2), layer.codewords_QK).argmin(dim=2)
    assert torch.equal(layer.assignments(x).argmax(dim=1), nearest)
    assert torch.equal(layer.assignments(x).amax(dim=1), torch.ones(2, 42, dtype=torch.float64))


def test_gradients_are_right_for_features_codewords_and_factors() -> None:
    layer = make_layer(channels=3, num_codewords=2)
    x = features(2, 3, channels=3).requires_grad_()

    def encode(x: Tensor, codewords_QK: Tensor, smoothing_Q: Tensor) -> Tensor:
        parameters = {"codewords_QK": codewords_QK, "smoothing_Q": smoothing_Q}
        encodings: Tensor = torch.func.functional_call(layer, parameters, (x,))
        return encodings

    assert torch.autograd.gradcheck(encode, (x, layer.codewords_QK, layer.smoothing_Q))


def test_initial_values() -> None:
    torch.manual_seed(0)
    layer = Encoding(512, 32)
    bound = (512 * 32) ** -0.5
    assert layer.codewords_QK.shape == (32, 512) and layer.smoothing_Q.shape == (32,)
    assert 0.99 * bound < float(layer.codewords_QK.detach().abs().amax()) <= bound
    assert float(layer.smoothing_Q.detach().amin()) >= -1 and float(layer.smoothing_Q.detach().amax()) <= 0
    assert all(isinstance(parameter, nn.Parameter) for parameter in layer.parameters())


def test_autocast_leaves_the_distances_in_float32() -> None:
    torch.manual_seed(0)
    layer = Encoding(64, 8)
    x = (10 + torch.randn(2, 64, 5, 7)).bfloat16()
    expected = layer(x.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        encodings = layer(x)
    assert encodings.dtype == torch.float32
    torch.testing.assert_close(encodings, expected)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_memory_layout_does_not_matter(layout: torch.memory_format) -> None:
    torch.manual_seed(0)
    layer, x = Encoding(16, 4), torch.randn(2, 16, 5, 7)
    torch.testing.assert_close(layer(x.contiguous(memory_format=layout)), naive(x, layer)[0], rtol=1e-4, atol=1e-4)


def test_it_costs_two_matrix_products() -> None:
    assert module_multiply_adds(Encoding(512, 32), torch.empty(1, 512, 60, 60, device="meta")) == 2 * 3600 * 32 * 512
