"""Xception39: layout of the authors' code, blocks against their definition. Strides: `test_backbones.py`."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segcore.backbones import BACKBONES, build_backbone, load_backbone_weights
from segcore.backbones.light_xception import LightXceptionBlock, PlainSeparableConv
from segcore.classifier import Classifier, ClassifierConfig
from segcore.cost import count_parameters, module_multiply_adds
from tests.segcore.batch_norm import randomise_statistics


def separable(inputs: int, outputs: int) -> int:
    """Parameters of a depthwise and a pointwise convolution and one normalisation."""
    return 9 * inputs + inputs * outputs + 2 * outputs


def block(inputs: int, outputs: int, *, first: bool) -> int:
    width = outputs // 4
    convs = separable(inputs, width) + separable(width, width) + separable(width, outputs)
    return convs + (separable(inputs, outputs) if first else 0)


def test_size_is_that_of_the_authors_layout() -> None:
    expected = 3 * 8 * 9 + 16
    for before, after, num_blocks in ((8, 64, 4), (64, 128, 8), (128, 256, 4)):
        expected += block(before, after, first=True) + (num_blocks - 1) * block(after, after, first=False)
    with torch.device("meta"):
        backbone = build_backbone("xception39", output_stride=32)
    assert count_parameters(backbone).total == expected == 299_448
    assert backbone.channels == {2: 8, 4: 8, 8: 64, 16: 128, 32: 256}
    cost = module_multiply_adds(backbone, torch.empty(1, 3, 224, 224, device="meta"))
    assert cost / 1e9 == pytest.approx(0.0395, abs=6e-5)


def test_stages_have_4_8_and_4_blocks_of_which_the_first_is_strided() -> None:
    with torch.device("meta"):
        backbone = build_backbone("xception39", output_stride=32)
    blocks = {name: module for name, module in backbone.body.named_modules() if isinstance(module, LightXceptionBlock)}
    assert list(blocks) == [
        f"stages.stage{stage}.{index}" for stage, repeats in ((1, 4), (2, 8), (3, 4)) for index in range(repeats)
    ]
    for name, module in blocks.items():
        first = name.endswith(".0")
        strides = [conv.depthwise.stride[0] for conv in module.convs if isinstance(conv, PlainSeparableConv)]
        assert strides == [2 if first else 1, 1, 1]
        assert isinstance(module.skip, PlainSeparableConv if first else nn.Identity)


def plain_separable(state: dict[str, Tensor], name: str, x: Tensor, *, stride: int, dilation: int) -> Tensor:
    depthwise = state[f"{name}.depthwise.weight"]
    y = F.conv2d(x, depthwise, stride=stride, padding=dilation, dilation=dilation, groups=len(depthwise))
    y = F.conv2d(y, state[f"{name}.pointwise.weight"])
    mean, variance, gain, bias = (
        state[f"{name}.norm.{leaf}"][:, None, None] for leaf in ("running_mean", "running_var", "weight", "bias")
    )
    return torch.addcmul(bias, (y - mean) / (variance + 1e-5).sqrt(), gain)


@pytest.mark.parametrize("dilations", [(1, 1), (1, 2), (2, 4)])
def test_a_first_block_computes_its_definition_and_leaves_its_input_alone(dilations: tuple[int, int]) -> None:
    torch.manual_seed(0)
    layer = LightXceptionBlock(5, 16, strided=True, separable_skip=True, dilations=dilations).eval()
    randomise_statistics(layer)
    state = layer.state_dict()
    x = torch.randn(2, 5, 9, 7)
    before = x.clone()
    (first, rest), stride = dilations, 2 if dilations == (1, 1) else 1
    y = plain_separable(state, "convs.0", x, stride=stride, dilation=first).relu()
    y = plain_separable(state, "convs.1", y, stride=1, dilation=rest).relu()
    y = plain_separable(state, "convs.2", y, stride=1, dilation=rest)
    expected = torch.relu(y + plain_separable(state, "skip", x, stride=stride, dilation=first))
    with torch.no_grad():
        torch.testing.assert_close(layer(x), expected)
    assert torch.equal(x, before)


def test_a_trained_classifier_fills_the_backbone() -> None:
    torch.manual_seed(0)
    classifier = Classifier(ClassifierConfig(backbone="xception39"), 7)
    state = {name.removeprefix("backbone.body."): value for name, value in classifier.state_dict().items()}
    backbone = build_backbone("xception39", output_stride=8)
    load_backbone_weights(backbone, state)
    assert torch.equal(backbone.body.state_dict()["stages.stage3.0.skip.pointwise.weight"],
                       state["stages.stage3.0.skip.pointwise.weight"])  # fmt: skip
    with pytest.raises(ValueError, match="does not fit backbone 'xception39'.*a classifier of ours on it"):
        load_backbone_weights(backbone, {})
    assert BACKBONES["xception39"].timm_name is None
