"""Squeeze and excitation, against the formula and torchvision's block."""

import pytest
import torch
from torch import Tensor
from torchvision.ops import SqueezeExcitation as TorchvisionSqueezeExcitation

from segcore.cost import count_parameters, module_multiply_adds
from segcore.layers import SqueezeExcitation


def make(channels: int = 32, reduction: int = 16) -> SqueezeExcitation:
    torch.manual_seed(0)
    return SqueezeExcitation(channels, reduction).double()


def features(height: int = 5, width: int = 6, channels: int = 32) -> Tensor:
    return torch.randn(2, channels, height, width, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def test_it_is_the_formula_and_torchvision_s_block() -> None:
    block, x = make(), features()
    (weight1, bias1), (weight2, bias2) = ((layer.weight[:, :, 0, 0], layer.bias) for layer in (block.fc1, block.fc2))
    assert bias1 is not None and bias2 is not None
    mean_NK = x.mean(dim=(2, 3))
    hidden = (mean_NK @ weight1.T + bias1).clamp(min=0)
    gates_NK = 1 / (1 + (-(hidden @ weight2.T + bias2)).exp())
    torch.testing.assert_close(block(x), x * gates_NK[:, :, None, None], rtol=1e-12, atol=1e-12)
    theirs = TorchvisionSqueezeExcitation(32, 2).double()
    theirs.load_state_dict(block.state_dict())
    torch.testing.assert_close(block(x), theirs(x), rtol=1e-12, atol=1e-12)


def test_gates_do_not_depend_on_places_and_are_one_number_per_channel() -> None:
    block, x = make().requires_grad_(False), features()
    order = torch.randperm(30, generator=torch.Generator().manual_seed(2))
    shuffled = x.flatten(2)[:, :, order].unflatten(2, (6, 5))
    torch.testing.assert_close(block.gates(shuffled), block.gates(x), rtol=1e-12, atol=1e-12)
    assert block.gates(x).shape == (2, 32, 1, 1) and block.gates(x).min() > 0 and block.gates(x).max() < 1
    ratio = block(x) / x
    torch.testing.assert_close(ratio, ratio[..., :1, :1].expand_as(ratio), rtol=1e-12, atol=1e-12)
    assert float((ratio[0] - ratio[1]).abs().max()) > 1e-4  # each image has its own


def test_zero_weights_halve_the_map() -> None:
    block, x = make(), features()
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.zero_()
    assert torch.equal(block(x), x / 2)


@pytest.mark.parametrize(("channels", "reduction", "inner"), [(256, 16, 16), (64, 4, 16), (8, 16, 1)])
def test_parameters_and_cost(channels: int, reduction: int, inner: int) -> None:
    block = SqueezeExcitation(channels, reduction)
    assert count_parameters(block).total == 2 * channels * inner + channels + inner
    assert module_multiply_adds(block, torch.empty(1, channels, 7, 9, device="meta")) == 2 * channels * inner


def test_single_images_train() -> None:
    block = SqueezeExcitation(4, 2).train()
    block(torch.rand(1, 4, 1, 1)).sum().backward()
    assert all(parameter.grad is not None for parameter in block.parameters())
