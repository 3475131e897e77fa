"""One network as the start of another: the stages of one training."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from segcore.models import DeepLabV3PlusConfig
from segcore.networks import build_network, start_from_whole

PLAIN = DeepLabV3PlusConfig(
    backbone="mobilenet_v3_small", output_stride=32, aspp_channels=8, low_level_features=(), decoder_channels=8
)


def state_of(config: DeepLabV3PlusConfig, *, seed: int, num_classes: int = 4) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    return build_network(config, num_classes).state_dict()


def test_the_same_network_is_taken_over_whole() -> None:
    network = build_network(PLAIN, 4)
    given = state_of(PLAIN, seed=5)
    assert start_from_whole(network, given) == ((), ())
    found = network.state_dict()
    assert found.keys() == given.keys() and all(torch.equal(found[name], given[name]) for name in given)


def test_layers_that_the_other_network_does_not_have_keep_their_values_and_are_named() -> None:
    wider = replace(PLAIN, low_level_features=(4,), low_level_channels=8)
    torch.manual_seed(1)
    network = build_network(wider, 4)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    given = state_of(PLAIN, seed=5)
    start = start_from_whole(network, given)
    assert start.untouched and set(start.untouched) == before.keys() - given.keys()
    assert set(start.unused) == given.keys() - before.keys()
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[name] if name in start.untouched else given[name]), name
    reverse = start_from_whole(build_network(PLAIN, 4), before)
    assert set(reverse.unused) == set(start.untouched) and reverse.untouched == start.unused


def test_tensors_of_another_shape_are_refused_and_nothing_is_changed() -> None:
    network = build_network(PLAIN, 4)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    message = r"2 tensor\(s\) of another shape: head.classifier.weight \(5, 8, 1, 1\) instead of \(4, 8, 1, 1\), head"
    with pytest.raises(ValueError, match=message):
        start_from_whole(network, state_of(PLAIN, seed=5, num_classes=5))
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
