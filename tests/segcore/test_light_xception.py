"""Xception A and B: published sizes, features by stride, blocks against their definition."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segcore.backbones import BACKBONES, LightXception, build_backbone
from segcore.backbones.light_xception import LightXceptionBlock, PlainSeparableConv
from segcore.cost import count_parameters, module_multiply_adds
from segcore.models import MODELS, DeepLabV3PlusConfig, DUpsamplingConfig
from tests.segcore.batch_norm import randomise_statistics

LIGHT = [name for name, spec in BACKBONES.items() if spec.last_stride == 16 and not spec.network]


def on_meta(name: str) -> LightXception:
    with torch.device("meta"):
        return LightXception(name)


@pytest.mark.parametrize("name", LIGHT)
@pytest.mark.parametrize("size", [(65, 98), (1, 3), (512, 1024)])
def test_features_have_their_strides_and_channels(name: str, size: tuple[int, int]) -> None:
    backbone = on_meta(name).eval()
    features = backbone(torch.empty(1, 3, *size, device="meta"))
    assert list(features) == list(backbone.channels) == [2, 4, 8, 16]
    for stride, feature in features.items():
        assert feature.shape == (1, backbone.channels[stride], *(-(-length // stride) for length in size))


@pytest.mark.parametrize(
    ("name", "channels", "parameters", "giga_multiply_adds", "published"),
    [
        ("dfanet_xception_a", (8, 48, 96, 192), 354_008, 1.658, 1.6),
        ("dfanet_xception_b", (8, 32, 64, 128), 206_232, 0.845, 0.83),
    ],
)
def test_classifiers_have_the_published_size(
    name: str, channels: tuple[int, ...], parameters: int, giga_multiply_adds: float, published: float
) -> None:
    backbone = on_meta(name)
    assert tuple(backbone.channels.values()) == channels
    fc = nn.Linear(channels[-1], 1000, device="meta")
    assert count_parameters(backbone).total + count_parameters(fc).total == parameters
    found = module_multiply_adds(backbone, torch.empty(1, 3, 1024, 1024, device="meta")) / 1e9
    assert found == pytest.approx(giga_multiply_adds, abs=6e-4)
    assert found == pytest.approx(published, rel=0.04)


@pytest.mark.parametrize("name", LIGHT)
def test_only_the_first_block_of_a_stage_has_a_stride_and_a_projection(name: str) -> None:
    backbone = on_meta(name)
    blocks = {key: module for key, module in backbone.named_modules() if isinstance(module, LightXceptionBlock)}
    assert [key.removeprefix("stages.").split(".") for key in blocks] == [
        [f"enc{stage}", str(index)] for stage, repeats in ((2, 4), (3, 6), (4, 4)) for index in range(repeats)
    ]
    for key, block in blocks.items():
        convs = [module for module in block.convs if isinstance(module, PlainSeparableConv)]
        assert [conv.depthwise.stride[0] for conv in convs] == ([2, 1, 1] if key.endswith(".0") else [1, 1, 1])
        assert [conv.pointwise.out_channels for conv in convs] == [convs[2].pointwise.out_channels // 4] * 2 + [
            convs[2].pointwise.out_channels
        ]
        assert isinstance(block.skip, nn.Sequential if key.endswith(".0") else nn.Identity)


def plain_block(block: LightXceptionBlock, x: Tensor) -> Tensor:
    """The block's formula, from its tensors."""
    state = block.state_dict()

    def normalised(y: Tensor, name: str) -> Tensor:
        mean, variance, gain, bias = (
            state[f"{name}.{leaf}"][:, None, None] for leaf in ("running_mean", "running_var", "weight", "bias")
        )
        return torch.addcmul(bias, (y - mean) / (variance + 1e-5).sqrt(), gain)

    strided = "skip.0.weight" in state
    y = x
    for index in range(3):
        depthwise = state[f"convs.{index}.depthwise.weight"]
        y = F.conv2d(y, depthwise, stride=2 if strided and index == 0 else 1, padding=1, groups=len(depthwise))
        y = normalised(F.conv2d(y, state[f"convs.{index}.pointwise.weight"]), f"convs.{index}.norm")
        y = y.relu() if index < 2 else y
    skip = normalised(F.conv2d(x[..., ::2, ::2], state["skip.0.weight"]), "skip.1") if strided else x
    return torch.relu(y + skip)


@pytest.mark.parametrize(("in_channels", "strided"), [(5, True), (16, False)])
def test_a_block_computes_its_definition_and_leaves_its_input_alone(in_channels: int, strided: bool) -> None:
    torch.manual_seed(0)
    block = LightXceptionBlock(in_channels, 16, strided=strided).eval()
    randomise_statistics(block)
    x = torch.randn(2, in_channels, 9, 7)
    before = x.clone()
    with torch.no_grad():
        torch.testing.assert_close(block(x), plain_block(block, x))
    assert torch.equal(x, before)


@pytest.mark.parametrize("name", LIGHT)
def test_no_strided_pointwise_convolution_is_so_narrow_that_onednn_corrupts_memory(name: str) -> None:
    """The crash itself is not for a test: it takes the interpreter with it, or not."""
    strided = [
        module
        for module in on_meta(name).modules()
        if isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1) and module.stride == (2, 2)
    ]
    assert len(strided) == 2 and all(module.in_channels >= 16 for module in strided)


def test_gradients_pass_what_is_done_in_place() -> None:
    torch.manual_seed(0)
    block = LightXceptionBlock(4, 8, strided=True).double().eval()
    randomise_statistics(block)
    x = torch.randn(1, 4, 5, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(block, (x,))


@pytest.mark.parametrize("name", LIGHT)
def test_catalogue_says_what_a_classifier_of_ours_expects(name: str) -> None:
    spec = BACKBONES[name]
    assert spec.timm_name is None
    assert (spec.mean, spec.std) == (BACKBONES["resnet50"].mean, BACKBONES["resnet50"].std)
    assert spec.classifier_prefixes == ("fc.",)


def test_networks_refuse_backbones_that_end_at_another_stride() -> None:
    message = "'dfanet_xception_b' ends at stride 16, and this network needs one that ends at 32; known: resnet18, "
    for config_type in (DeepLabV3PlusConfig, DUpsamplingConfig):
        with pytest.raises(ValueError, match=message):
            config_type(backbone="dfanet_xception_b")
    with pytest.raises(ValueError, match=message):
        build_backbone("dfanet_xception_b", output_stride=16)
    message = "'resnet18' ends at stride 32, and this network needs one that ends at 16; known: dfanet_xception_a, "
    with pytest.raises(ValueError, match=message):
        MODELS["dfanet"](backbone="resnet18")
    with pytest.raises(ValueError, match=message):
        LightXception("resnet18")
    with pytest.raises(ValueError, match="unknown backbone 'xception'; known: dfanet_xception_a, dfanet_xception_b$"):
        LightXception("xception")
