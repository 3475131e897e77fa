"""ENet: published sizes, its blocks against plain definitions, and its two stages."""

from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segcore.backbones import backbone_state
from segcore.cost import count_multiply_adds, count_parameters
from segcore.models import ENetConfig, build_model, load_pretrained, meta_model
from segcore.models.enet import (
    Bottleneck,
    DownsamplingBottleneck,
    InitialBlock,
    Layout,
    UpsamplingBottleneck,
    _style,
)
from tests.segcore.batch_norm import randomise_statistics

WHOLE, ENCODER = ENetConfig(), ENetConfig(stage="encoder")
LAYOUTS: tuple[Layout, ...] = ("paper", "davidtvs")


def conv(x: Tensor, convolution: nn.Module, *, stride: int = 1, dilation: int = 1) -> Tensor:
    assert isinstance(convolution, nn.Conv2d)
    return F.conv2d(x, convolution.weight, stride=stride, padding=convolution.padding, dilation=dilation)


def norm(x: Tensor, layer: nn.Module, epsilon: float = 1e-3) -> Tensor:
    assert isinstance(layer, nn.BatchNorm2d)
    return F.batch_norm(x, layer.running_mean, layer.running_var, layer.weight, layer.bias, eps=epsilon)


def prelu(x: Tensor, layer: nn.Module) -> Tensor:
    assert isinstance(layer, nn.PReLU)
    return torch.where(x > 0, x, layer.weight.reshape(1, -1, 1, 1) * x)


def evaluated(block: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    randomise_statistics(block)
    for layer in block.modules():
        if isinstance(layer, nn.PReLU):
            nn.init.uniform_(layer.weight, 0, 0.5)
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.normal_(layer.bias, 0, 0.1)
    return block.double().eval()


@pytest.mark.parametrize(
    ("config", "num_classes", "expected"),
    [
        (ENetConfig(layout="davidtvs"), 19, 351_660),
        (ENetConfig(layout="davidtvs"), 11, 350_508),
        (WHOLE, 19, 355_015),
        (ENCODER, 19, 323_050),
    ],
)
def test_number_of_parameters(config: ENetConfig, num_classes: int, expected: int) -> None:
    assert count_parameters(meta_model(config, num_classes)).total == expected


@pytest.mark.parametrize("layout", LAYOUTS)
def test_multiply_adds(layout: Layout) -> None:
    model = meta_model(ENetConfig(layout=layout), 19)
    assert count_multiply_adds(model, 360, 640) == 1_774_252_800
    assert count_multiply_adds(model, 512, 1024) / 1e9 == pytest.approx(4.037, abs=5e-4)


def test_the_encoder_has_one_slope_per_channel_the_decoder_none_and_no_convolution_a_bias() -> None:
    model = meta_model(WHOLE, 19)
    slopes = {name: module.num_parameters for name, module in model.named_modules() if isinstance(module, nn.PReLU)}
    assert sum(slopes.values()) == 3_704 and all(name.startswith("backbone.") for name in slopes)
    assert Counter(slopes.values()) == {4: 2, 16: 1 + 2 + 8, 64: 1 + 4, 32: 2 * 12 + 4 + 4, 128: 1 + 16}
    rectifiers = [name for name, module in model.named_modules() if isinstance(module, nn.ReLU)]
    assert len(rectifiers) == 3 * 5 and all(name.startswith("upsampling.") for name in rectifiers)
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d | nn.ConvTranspose2d)]
    assert all(module.bias is None for module in convolutions)
    single = [
        module for module in meta_model(ENetConfig(layout="davidtvs"), 19).modules() if isinstance(module, nn.PReLU)
    ]
    assert len(single) == 93 and {module.num_parameters for module in single} == {1}


def test_the_blocks_are_those_of_table_1() -> None:
    encoder = meta_model(WHOLE, 19).get_submodule("backbone")
    for stage in ("stage2", "stage3"):
        kinds = []
        for block in encoder.get_submodule(stage):  # type: ignore[attr-defined]
            first = block.main[0]
            kinds.append(first.dilation[0] if first.kernel_size == (3, 3) else first.kernel_size)
            assert block.dropout.p == 0.1
        assert kinds == [1, 2, (5, 1), 4, 1, 8, (5, 1), 16]
    early = [module.p for name, module in encoder.named_modules() if isinstance(module, nn.Dropout2d) and "1" in name]
    assert early[:5] == [0.01] * 5


def test_the_first_block_normalises_what_it_joins() -> None:
    """Each part by itself here; together in the paper."""
    block = evaluated(InitialBlock(_style("paper", decoder=False)))
    together = nn.BatchNorm2d(16, eps=1e-3).double().eval()
    parts = (block.get_submodule("convolved.1"), block.get_submodule("pooled_norm"))
    names = ("weight", "bias", "running_mean", "running_var")
    state = {name: torch.cat([getattr(part, name) for part in parts]) for name in names}
    together.load_state_dict(state, strict=False)
    x = torch.randn(2, 3, 8, 12, dtype=torch.float64)
    joined = torch.cat(
        [F.conv2d(x, block.get_parameter("convolved.0.weight"), stride=2, padding=1), F.max_pool2d(x, 2)], 1
    )
    torch.testing.assert_close(block(x), prelu(together(joined), block.get_submodule("activation")))


@pytest.mark.parametrize("dilation", [1, 4, 16])
def test_a_bottleneck_is_its_definition(dilation: int) -> None:
    block = evaluated(Bottleneck(16, _style("paper", decoder=False), dilation=dilation))
    part = block.get_submodule
    x = torch.randn(2, 16, 9, 20, dtype=torch.float64)
    new = prelu(norm(conv(x, part("reduce.0")), part("reduce.1")), part("reduce.2"))
    new = prelu(norm(conv(new, part("main.0"), dilation=dilation), part("main.1")), part("main.2"))
    new = norm(conv(new, part("expand.0")), part("expand.1"))
    torch.testing.assert_close(block(x), prelu(x + new, part("activation")))


def test_an_asymmetric_bottleneck_is_a_separable_5x5_convolution_in_the_paper_and_two_units_in_davidtvs_s() -> None:
    block = evaluated(Bottleneck(16, _style("paper", decoder=False), asymmetric=True))
    rows, columns = (block.get_parameter(f"main.{index}.weight") for index in (0, 1))
    assert rows.shape == (4, 4, 5, 1) and columns.shape == (4, 4, 1, 5)
    x = torch.randn(1, 4, 9, 10, dtype=torch.float64)
    whole = torch.einsum("omx,miy->oiyx", columns[:, :, 0], rows[..., 0])
    found = block.get_submodule("main.1")(block.get_submodule("main.0")(x))
    torch.testing.assert_close(found, F.conv2d(x, whole, padding=2))
    theirs = Bottleneck(16, _style("davidtvs", decoder=False), asymmetric=True)
    assert [type(layer) for layer in theirs.main] == 2 * [nn.Conv2d, nn.BatchNorm2d, nn.PReLU]


def test_downsampling_adds_the_pooled_map_behind_which_channels_are_zero() -> None:
    block = evaluated(DownsamplingBottleneck(16, 64, _style("paper", decoder=False)))
    part = block.get_submodule
    x = torch.randn(2, 16, 8, 12, dtype=torch.float64)
    new = prelu(norm(conv(x, part("reduce.0"), stride=2), part("reduce.1")), part("reduce.2"))
    new = prelu(norm(conv(new, part("main.0")), part("main.1")), part("main.2"))
    new = norm(conv(new, part("expand.0")), part("expand.1"))
    pooled, indices = F.max_pool2d(x, 2, return_indices=True)
    shortcut = torch.cat([pooled, torch.zeros(2, 48, 4, 6, dtype=torch.float64)], dim=1)
    found, switches = block(x)
    torch.testing.assert_close(found, prelu(shortcut + new, part("activation")))
    assert torch.equal(switches, indices)


def test_upsampling_puts_the_shortcut_where_the_encoder_s_maxima_were() -> None:
    block = evaluated(UpsamplingBottleneck(64, 16, _style("paper", decoder=True)))
    part = block.get_submodule
    _, switches = F.max_pool2d(torch.randn(2, 16, 8, 12), 2, return_indices=True)
    x = torch.randn(2, 64, 4, 6, dtype=torch.float64)
    new = F.relu(norm(conv(x, part("reduce.0")), part("reduce.1")))
    new = F.conv_transpose2d(new, block.get_parameter("main.0.weight"), stride=2)
    new = norm(conv(F.relu(norm(new, part("main.1"))), part("expand.0")), part("expand.1"))
    shortcut = F.max_unpool2d(norm(conv(x, part("shortcut.0")), part("shortcut.1")), switches, (2, 2))
    torch.testing.assert_close(block(x, switches), F.relu(shortcut + new))


def test_whole_channels_are_dropped_in_training() -> None:
    torch.manual_seed(0)
    block = Bottleneck(64, _style("paper", decoder=False), dropout=0.5).train()
    x = torch.randn(4, 64, 6, 6)
    difference = block.dropout(torch.ones_like(x))
    per_channel = difference.flatten(2)
    assert torch.equal(per_channel, per_channel[:, :, :1].expand_as(per_channel))
    assert 0.3 < float((per_channel[:, :, 0] == 0).float().mean()) < 0.7
    assert torch.equal(block.eval()(x), block(x))


def test_the_decoder_unpools_with_its_own_stage_s_switches() -> None:
    """The decoder's shortcuts alone: without its convolutions' parts a value stands where the encoder's maximum was."""
    torch.manual_seed(0)
    model = build_model(WHOLE, 3).eval()
    images = torch.randn(1, 3, 32, 48)
    with torch.no_grad():
        for name in ("up4", "up5"):
            model.get_parameter(f"upsampling.{name}.expand.1.weight").zero_()
        maps = model.backbone(images)
        fine, coarse = maps.switches_NKhw
        assert (fine.shape[1:], coarse.shape[1:]) == ((16, 8, 12), (64, 4, 6))
        up4 = model.get_submodule("upsampling.up4")(maps.coarse_NKhw, coarse)
        active = up4.flatten(2) > 0
        assert active.sum() > 100
        where = torch.zeros_like(active).scatter(2, coarse.flatten(2), True)
        assert not (active & ~where).any()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_whole_network_starts_from_the_encoder_s_training(layout: Layout) -> None:
    torch.manual_seed(0)
    encoder = build_model(ENetConfig(stage="encoder", layout=layout), 5)
    encoder.train()(torch.randn(2, 3, 32, 32))  # running statistics
    whole = build_model(ENetConfig(layout=layout), 5)
    own = {name: tensor.clone() for name, tensor in whole.state_dict().items()}
    trained = encoder.state_dict()
    common = {name for name in trained if name in own}
    assert common == {name for name in own if name.startswith("backbone.")}  # no head of one shape meets the other's
    load_pretrained(whole, backbone_state(trained))
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, trained[name] if name in common else own[name]), name
    images = torch.randn(1, 3, 32, 48)
    with torch.no_grad():
        maps = [model.eval().backbone(images).coarse_NKhw for model in (encoder, whole)]
    assert torch.equal(*maps)


def test_another_encoder_is_refused_and_changes_nothing() -> None:
    whole = build_model(WHOLE, 5)
    before = {name: tensor.clone() for name, tensor in whole.state_dict().items()}
    other = backbone_state(build_model(ENetConfig(layout="davidtvs"), 5).state_dict())
    with pytest.raises(ValueError, match="does not fit backbone 'enet'.*of another shape.*trained network 'enet'"):
        load_pretrained(whole, other)
    assert all(torch.equal(tensor, before[name]) for name, tensor in whole.state_dict().items())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backbone": "resnet18"}, "network 'enet' has an encoder of its own and not 'resnet18'; leave its backbone"),
        ({"backbone": "espnet"}, "backbone 'espnet' is the encoder of network 'espnet' alone"),
        ({"stage": "decoder"}, "unknown stage 'decoder'; known: encoder, whole"),
        ({"layout": "keras"}, "unknown layout 'keras'; known: paper, davidtvs"),
        ({"decoder": "dupsample"}, "would enlarge by 2 only"),
    ],
)
def test_settings_out_of_range_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ENetConfig(**changes)  # type: ignore[arg-type]
