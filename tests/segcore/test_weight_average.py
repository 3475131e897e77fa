"""The moving average of a network's weights, against timm's and a loop."""

import copy

import pytest
import torch
from timm.utils.model_ema import ModelEmaV3
from torch import nn

from segcore.weight_average import average_decay, update_average


def small_network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2))


def disturb(network: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in network.state_dict().values():
            if value.is_floating_point():
                value.add_(torch.randn(value.shape, generator=generator))
            else:
                value += 1


def test_the_average_is_timms_with_its_warm_up() -> None:
    network = small_network()
    averaged, theirs = copy.deepcopy(network), ModelEmaV3(network, decay=0.9, use_warmup=True)
    for step in range(1, 60):
        disturb(network, step)
        update_average(averaged, network, step=step, decay=0.9)
        theirs.update(network, step=step)
    for name, value in theirs.module.state_dict().items():
        torch.testing.assert_close(averaged.state_dict()[name], value, msg=name)
    assert int(averaged.state_dict()["1.num_batches_tracked"]) == 59


def test_the_average_is_the_weighted_sum_of_all_states() -> None:
    network = small_network()
    averaged, states = copy.deepcopy(network), []
    shares: list[float] = []
    for step in range(1, 30):
        disturb(network, step)
        update_average(averaged, network, step=step, decay=0.8)
        states.append(network.state_dict()["0.weight"].double().clone())
        decay = average_decay(step, decay=0.8)
        shares = [share * decay for share in shares] + [1 - decay]
    assert sum(shares) == pytest.approx(1), "of the initial weights nothing is left"
    expected = sum(share * state for share, state in zip(shares, states, strict=True))
    torch.testing.assert_close(averaged.state_dict()["0.weight"].double(), expected, rtol=1e-5, atol=1e-6)


def test_the_decay_grows_to_its_limit() -> None:
    decays = [average_decay(step, decay=0.999) for step in (1, 2, 1000, 31_000, 32_000, 10**6)]
    assert decays == pytest.approx([0, 0.370039, 0.99, 0.998986, 0.999, 0.999], abs=1e-5)
