"""RefineNet: sizes of its layouts, and its parts against plain definitions."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segcore.backbones import BACKBONES
from segcore.cost import count_multiply_adds, count_parameters
from segcore.models import RefineNetConfig, build_model, meta_model
from segcore.models.refinenet import ChainedPooling, Fusion, RefineBlock, ResidualUnit

PAPER, PORT = RefineNetConfig(), RefineNetConfig(num_pools=4)
NARROW = RefineNetConfig(backbone="resnet18", width=8, coarsest_width=16)


@pytest.mark.parametrize(
    ("config", "num_classes", "expected"),
    [
        (PAPER, 21, 109_794_901),
        (PAPER, 19, 109_790_291),
        (PORT, 21, 118_052_437),
        (RefineNetConfig(backbone="resnet50"), 21, 90_802_773),
    ],
)
def test_number_of_parameters(config: RefineNetConfig, num_classes: int, expected: int) -> None:
    assert count_parameters(meta_model(config, num_classes)).total == expected


def test_the_port_s_layout_without_the_units_biases_has_the_size_that_is_often_quoted() -> None:
    model = meta_model(PORT, 21)
    biases = {name: value for name, value in model.named_parameters() if name.startswith("blocks.") and value.ndim == 1}
    assert len(biases) == 4 * (2 + 3) and all(name.endswith("first.bias") for name in biases)
    count = sum(value.numel() for value in biases.values())
    assert count == 5 * 512 + 15 * 256
    assert count_parameters(model).total - count == 118_046_037


@pytest.mark.parametrize(
    ("config", "num_classes", "side", "expected"), [(PAPER, 21, 512, 236.323865), (PORT, 21, 512, 262.898975)]
)
def test_multiply_adds(config: RefineNetConfig, num_classes: int, side: int, expected: float) -> None:
    assert count_multiply_adds(meta_model(config, num_classes), side, side) / 1e9 == pytest.approx(expected, rel=1e-5)


def test_pools_cost_a_convolution_each() -> None:
    found = [count_multiply_adds(meta_model(config, 21), 512, 512) for config in (PAPER, PORT)]
    area = {32: 16**2, 16: 32**2, 8: 64**2, 4: 128**2}
    expected = 2 * 9 * (512**2 * area[32] + 256**2 * (area[16] + area[8] + area[4]))
    assert found[1] - found[0] == expected


def convolved(convolution: nn.Module, x: Tensor) -> Tensor:
    assert isinstance(convolution, nn.Conv2d)
    return F.conv2d(x, convolution.weight, convolution.bias, padding=1)


def test_a_residual_unit_is_its_formula_and_leaves_its_input_alone() -> None:
    torch.manual_seed(0)
    unit = ResidualUnit(4).double()
    x = torch.randn(2, 4, 6, 5, dtype=torch.float64, requires_grad=True)
    before = x.detach().clone()
    found = unit(x)
    torch.testing.assert_close(found, x + convolved(unit.second, F.relu(convolved(unit.first, F.relu(x)))))
    assert torch.equal(x, before)
    assert torch.autograd.gradcheck(unit, (x,))


@pytest.mark.parametrize("num_pools", [1, 2, 4])
def test_chained_pooling_starts_from_one_relu_and_pools_its_own_results(num_pools: int) -> None:
    torch.manual_seed(0)
    chain = ChainedPooling(4, num_pools=num_pools).double()
    x = torch.randn(2, 4, 9, 7, dtype=torch.float64)
    total = last = F.relu(x)
    for convolution in chain.convolutions:
        windows = F.pad(last, (2, 2, 2, 2), value=-float("inf")).unfold(2, 5, 1).unfold(3, 5, 1)
        last = convolved(convolution, windows.amax(dim=(-2, -1)))
        total = total + last
    torch.testing.assert_close(chain(x), total)


def test_fusion_enlarges_the_coarser_map_behind_its_convolution() -> None:
    torch.manual_seed(0)
    fusion = Fusion(3, 5).double()
    fine, coarse = torch.randn(1, 3, 9, 8, dtype=torch.float64), torch.randn(1, 5, 5, 4, dtype=torch.float64)
    enlarged = F.interpolate(convolved(fusion.coarse, coarse), scale_factor=2, mode="bilinear", align_corners=False)
    torch.testing.assert_close(fusion(fine, coarse), convolved(fusion.fine, fine) + enlarged[..., :9, :8])


def test_a_block_runs_its_parts_in_the_paper_s_order() -> None:
    torch.manual_seed(0)
    block = RefineBlock(6, 4, 5, num_pools=2)
    assert (len(block.before), len(block.after), len(block.pooling.convolutions)) == (2, 3, 2)
    feature, coarse = torch.randn(1, 6, 8, 8), torch.randn(1, 5, 4, 4)
    x = convolved(block.adapt, feature)
    for unit in block.before:
        x = unit(x)
    assert block.fusion is not None
    x = block.pooling(block.fusion(x, coarse))
    for unit in block.after:
        x = unit(x)
    torch.testing.assert_close(block(feature, coarse), x)


def test_blocks_go_from_coarse_to_fine_and_the_coarsest_is_wider() -> None:
    model = meta_model(PAPER, 21)
    assert [block.adapt.in_channels for block in model.blocks] == [2048, 1024, 512, 256]
    assert [block.adapt.out_channels for block in model.blocks] == [512, 256, 256, 256]
    assert [block.fusion and block.fusion.coarse.in_channels for block in model.blocks] == [None, 512, 256, 256]
    assert not [layer for layer in model.blocks.modules() if isinstance(layer, nn.BatchNorm2d)]


def test_the_scores_are_those_of_the_four_blocks_in_a_row() -> None:
    torch.manual_seed(0)
    model = build_model(NARROW, 3).eval()
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        features = model.backbone(images)
        x = None
        for stride, block in zip((32, 16, 8, 4), model.get_submodule("blocks").children(), strict=True):
            x = block(features[stride], x)
        assert x is not None
        scores = convolved(model.get_submodule("head.classifier"), x)
        expected = F.interpolate(scores, scale_factor=4, mode="bilinear", align_corners=False)
        torch.testing.assert_close(model(images).logits_NCHW, expected)


def test_at_the_start_the_scores_are_small() -> None:
    """He's deviation everywhere would give scores of hundreds."""
    torch.manual_seed(0)
    model = build_model(RefineNetConfig(backbone="resnet18", width=64, coarsest_width=128), 5).eval()
    with torch.no_grad():
        scores = model(torch.randn(1, 3, 96, 96)).logits_NCHW
    assert 0.01 < float(scores.std()) < 10


def test_dropout_comes_on_the_two_coarsest_features_and_before_the_classifier() -> None:
    torch.manual_seed(0)
    model = build_model(NARROW, 3)
    seen: list[Tensor] = []
    model.dropout.register_forward_hook(lambda module, inputs, output: seen.append(output))
    model.train()(torch.randn(2, 3, 64, 64))
    assert [tuple(x.shape[1:]) for x in seen] == [(512, 2, 2), (256, 4, 4), (8, 16, 16)]
    assert all(0.2 < float((x == 0).float().mean()) < 0.9 for x in seen)


@pytest.mark.parametrize("backbone", [name for name, spec in BACKBONES.items() if spec.last_stride == 32])
def test_every_backbone_is_refined(backbone: str) -> None:
    model = meta_model(RefineNetConfig(backbone=backbone, width=8, coarsest_width=16), 4)
    assert model(torch.empty(1, 3, 65, 90, device="meta")).logits_NCHW.shape == (1, 4, 65, 90)


@pytest.mark.parametrize("name", ["width", "coarsest_width", "num_pools"])
def test_settings_below_one_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} is 0; it must be at least 1"):
        RefineNetConfig(**{name: 0})  # type: ignore[arg-type]
