"""Folded networks against themselves before folding, and everything that must not be folded."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from segcore.backbones import BACKBONES
from segcore.layers import ConvBnAct
from segcore.layers.folding import fold_batch_norm
from segcore.models import DeepLabV3PlusConfig, DFANetConfig, ModelConfig, SegmentationOutput, build_model
from tests.segcore.batch_norm import randomise_statistics


def with_statistics(model: nn.Module) -> nn.Module:
    """Normalisation away from its start: mean 0, variance 1, gain 1, bias 0 would hide everything."""
    torch.manual_seed(0)
    randomise_statistics(model)
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            nn.init.normal_(module.bias, 0, 0.1)
    return model.eval()


def norms_of(model: nn.Module) -> int:
    return sum(isinstance(module, _BatchNorm) for module in model.modules())


@pytest.mark.parametrize("backbone", [name for name, spec in BACKBONES.items() if not spec.network])
def test_every_network_computes_the_same_without_any_normalisation(backbone: str) -> None:
    torch.manual_seed(0)
    config: ModelConfig = (
        DFANetConfig(backbone=backbone)
        if BACKBONES[backbone].last_stride == 16
        else DeepLabV3PlusConfig(backbone=backbone, output_stride=16)
    )
    model = with_statistics(build_model(config, 5))
    model = model.to(memory_format=torch.channels_last)
    norms = norms_of(model)
    images = torch.randn(1, 3, 65, 98)
    with torch.inference_mode():
        expected = model(images).logits_NCHW
        assert fold_batch_norm(model, torch.randn(1, 3, 64, 64)) == norms >= 14  # the decoder has 14, VGG-16 none
        assert norms_of(model) == 0
        found = model(images).logits_NCHW
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


class Forked(nn.Module):
    """Three pairs, one of which runs twice, and what must stay: used twice, running without its norm too, behind its
    norm, changed, given out, trained."""

    def __init__(self) -> None:
        super().__init__()
        self.used_twice, self.norm_of_used_twice = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.runs_twice, self.norm_of_runs_twice = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.shared, self.norm_of_shared = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.norm_before, self.behind = nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)
        self.changed, self.norm_of_changed = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.given_out, self.norm_of_given_out = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.trained, self.norm_of_trained = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.plain = ConvBnAct(4, 4, 3)
        self.other_name = self.plain.norm
        self.with_bias = nn.Sequential(nn.Conv2d(4, 2, 1), nn.BatchNorm2d(2))

    def train(self, mode: bool = True) -> "Forked":
        super().train(mode)
        self.norm_of_trained.train()
        return self

    def forward(self, images_N3HW: Tensor) -> SegmentationOutput:
        x = self.used_twice(images_N3HW)
        x = x + self.norm_of_used_twice(x)
        x = self.norm_of_runs_twice(self.runs_twice(self.norm_of_runs_twice(self.runs_twice(x))))
        x = self.shared(self.norm_of_shared(self.shared(x)))
        x = self.behind(torch.relu(self.norm_before(x)))
        x = self.norm_of_changed(self.changed(x).mul_(2))
        x = self.plain.conv(x)
        assert x.shape[2:] == images_N3HW.shape[2:]  # reading its shape does not use it
        x = self.plain.activation(self.other_name(x))
        given_out = self.given_out(x)
        x = self.norm_of_trained(self.trained(self.norm_of_given_out(given_out)))
        return SegmentationOutput(logits_NCHW=self.with_bias(x), auxiliary_NCHW=(given_out,))


def test_only_a_normalisation_that_alone_takes_the_output_is_folded() -> None:
    torch.manual_seed(0)
    model = with_statistics(Forked())
    before = copy.deepcopy(model)
    images = torch.randn(2, 3, 9, 7)
    assert fold_batch_norm(model, images) == 3
    assert norms_of(model) == norms_of(before) - 3
    assert isinstance(model.get_submodule("norm_of_runs_twice"), nn.Identity)
    assert norms_of(model.get_submodule("plain")) == norms_of(model.get_submodule("with_bias")) == 0
    with torch.no_grad():
        found, expected = model(images), before(images)
    torch.testing.assert_close(found.logits_NCHW, expected.logits_NCHW)
    torch.testing.assert_close(found.auxiliary_NCHW, expected.auxiliary_NCHW)


def test_a_convolution_whose_outer_taps_meet_only_padding_is_folded_whole() -> None:
    torch.manual_seed(0)
    model = with_statistics(ConvBnAct(3, 4, 3, dilation=8))
    before = copy.deepcopy(model)
    assert fold_batch_norm(model, torch.randn(1, 3, 8, 9)) == 1
    images = torch.randn(1, 3, 17, 20)
    with torch.no_grad():
        torch.testing.assert_close(model(images), before(images))


def test_a_network_in_training_is_refused() -> None:
    with pytest.raises(ValueError, match=r"evaluation mode only; call model.eval\(\) first"):
        fold_batch_norm(Forked(), torch.randn(1, 3, 8, 8))
