"""Parameter groups and the poly schedule, against their formulas."""

import pytest
import torch
from torch import nn

from segcore.backbones import build_backbone
from segcore.optim import OptimConfig, build_optimiser, layers_above, parameter_groups, poly_schedule


class Tiny(nn.Module):
    """One of everything that the groups tell apart."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, groups=4, bias=False))
        self.decoder = nn.Sequential(nn.Conv2d(4, 4, 1, groups=2), nn.Conv2d(4, 8, 3, groups=4), nn.BatchNorm2d(8))
        self.temperature = nn.Parameter(torch.tensor(1.0))
        self.basis = nn.Parameter(torch.ones(8, 2), requires_grad=False)


def names(model: nn.Module, group: dict[str, object]) -> set[str]:
    members = {id(parameter) for parameter in group["params"]}  # type: ignore[attr-defined]
    return {name for name, parameter in model.named_parameters() if id(parameter) in members}


def test_groups_tell_backbone_from_decoder_and_decayed_from_not() -> None:
    model = Tiny()
    groups = {
        str(group["name"]): group
        for group in parameter_groups(model, OptimConfig(learning_rate=0.01, decoder_multiplier=10, weight_decay=0.5))
    }
    assert {name: names(model, group) for name, group in groups.items()} == {
        "backbone": {"backbone.0.weight"},
        "backbone, no decay": {"backbone.0.bias", "backbone.1.weight", "backbone.1.bias", "backbone.2.weight"},
        "decoder": {"decoder.0.weight"},
        "decoder, no decay": {
            "decoder.0.bias",
            "decoder.1.weight",
            "decoder.1.bias",
            "decoder.2.weight",
            "decoder.2.bias",
        },
        "scalar, no decay": {"temperature"},
    }
    for name, group in groups.items():
        assert group["lr"] == pytest.approx(0.1 if name.startswith("decoder") else 0.01)
        assert group["weight_decay"] == (0.0 if name.endswith("no decay") else 0.5)


def test_frozen_parameters_are_left_out_and_stay() -> None:
    model = Tiny()
    model.backbone.requires_grad_(False)
    groups = parameter_groups(model, OptimConfig())
    assert [group["name"] for group in groups] == ["decoder, no decay", "decoder", "scalar, no decay"]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimiser = build_optimiser(model, OptimConfig(weight_decay=0.1))
    model.temperature.grad = torch.tensor(1.0)
    optimiser.step()
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {"temperature"}
    model.requires_grad_(False)
    with pytest.raises(ValueError, match="unfreeze"):
        build_optimiser(model, OptimConfig())


def test_both_optimisers_take_their_settings() -> None:
    sgd = build_optimiser(Tiny(), OptimConfig(momentum=0.8, nesterov=True))
    assert isinstance(sgd, torch.optim.SGD)
    assert sgd.defaults["momentum"] == 0.8 and sgd.defaults["nesterov"]
    adamw = build_optimiser(Tiny(), OptimConfig(optimiser="adamw", momentum=0.8))
    assert isinstance(adamw, torch.optim.AdamW)
    assert adamw.defaults["betas"] == (0.8, 0.999)


def rates(config: OptimConfig, total_steps: int) -> list[list[float]]:
    """Learning rate of each group at steps 0 to total_steps."""
    optimiser = build_optimiser(Tiny(), config)
    schedule = poly_schedule(optimiser, config, total_steps=total_steps)
    found = []
    for _ in range(total_steps + 1):
        found.append([group["lr"] for group in optimiser.param_groups])
        optimiser.step()
        schedule.step()
    return found


def test_poly_schedule_falls_to_zero_by_its_power() -> None:
    found = rates(OptimConfig(learning_rate=0.02, decoder_multiplier=10), 10)
    for step, (backbone, _, decoder, *_) in enumerate(found):
        assert backbone == pytest.approx(0.02 * (1 - step / 10) ** 0.9)
        assert decoder == pytest.approx(10 * backbone)
    assert found[0][0] == 0.02
    assert found[5][0] == pytest.approx(0.02 * 0.5359, rel=1e-4)
    assert found[10][0] == 0


def test_warmup_rises_linearly_and_then_joins_the_poly_curve() -> None:
    config = OptimConfig(learning_rate=1.0, decoder_multiplier=1, warmup_steps=4, power=1.0)
    found = [groups[0] for groups in rates(config, 8)]
    poly = [1 - step / 8 for step in range(9)]
    assert found == pytest.approx([0.25 * poly[0], 0.5 * poly[1], 0.75 * poly[2], *poly[3:]])


def test_a_restored_schedule_goes_on_where_it_stopped() -> None:
    config = OptimConfig()
    optimiser = build_optimiser(Tiny(), config)
    schedule = poly_schedule(optimiser, config, total_steps=10)
    for _ in range(3):
        optimiser.step()
        schedule.step()
    again = build_optimiser(Tiny(), config)
    again_schedule = poly_schedule(again, config, total_steps=10)
    again.load_state_dict(optimiser.state_dict())
    again_schedule.load_state_dict(schedule.state_dict())
    for each, its_schedule in ((optimiser, schedule), (again, again_schedule)):
        each.step()
        its_schedule.step()
    assert [group["lr"] for group in again.param_groups] == [group["lr"] for group in optimiser.param_groups]
    assert again.param_groups[0]["lr"] == pytest.approx(0.001 * 0.6**0.9)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"optimiser": "adam"}, "unknown optimiser 'adam'; known: sgd, adamw"),
        ({"optimiser": "adamw", "nesterov": True}, "nesterov is for sgd"),
        ({"nesterov": True, "momentum": 0.0}, "nesterov needs momentum"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0; it must be positive"),
        ({"weight_decay": -1.0}, "neither may be negative"),
        ({"momentum": 1.0}, r"must be in \[0, 1\)"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OptimConfig(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("total_steps", [0, 5])
def test_a_schedule_shorter_than_its_warmup_is_refused(total_steps: int) -> None:
    config = OptimConfig(warmup_steps=5)
    with pytest.raises(ValueError, match=f"total_steps is {total_steps} and warmup_steps is 5"):
        poly_schedule(build_optimiser(Tiny(), config), config, total_steps=total_steps)


def test_layers_of_the_backbone_learn_more_slowly_the_further_they_lie_from_the_decoder() -> None:
    """The stem has no index and is one layer; each block is one, and the decoder learns as without."""
    with torch.device("meta"):
        backbone = build_backbone("resnet18", output_stride=16)
    model = nn.Module()
    model.backbone, model.decoder = backbone, nn.Conv2d(512, 4, 1, device="meta")
    config = OptimConfig(learning_rate=0.1, decoder_multiplier=10, layer_decay=0.5)
    rates = {name: group["lr"] for group in parameter_groups(model, config) for name in names(model, group)}
    blocks = [f"layer{stage}.{block}" for stage in (1, 2, 3, 4) for block in (0, 1)]
    for name, rate in rates.items():
        if name.startswith("backbone.body."):
            place = next((number for number, block in enumerate(blocks, start=2) if f".{block}." in name), 1)
            assert rate == pytest.approx(0.1 * 0.5 ** (len(blocks) + 2 - place)), name
        else:
            assert rate == pytest.approx(1.0)
    assert len(set(rates.values())) == len(blocks) + 2
    whole = {id(each) for group in parameter_groups(model, config) for each in group["params"]}  # type: ignore[attr-defined]
    assert whole == {id(each) for each in model.parameters()}


def test_without_a_layer_decay_the_groups_are_those_of_before() -> None:
    model = Tiny()
    assert len(parameter_groups(model, OptimConfig())) == 5


@pytest.mark.parametrize(
    ("name", "num_layers"),
    [("resnet18", 9), ("mobilenet_v2", 18), ("vgg16", 13), ("vgg16_bn", 13), ("xception65", 23), ("xception39", 17)],
)
def test_every_kind_of_backbone_has_its_layers(name: str, num_layers: int) -> None:
    with torch.device("meta"):
        above = layers_above(build_backbone(name, output_stride=16))
    assert set(above.values()) == set(range(1, num_layers + 1))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"layer_decay": 0.0}, "layer_decay is 0.0"),
        ({"layer_decay": 1.5}, "layer_decay is 1.5"),
        ({"clip_gradient_norm": -1.0}, "clip_gradient_norm is -1.0"),
    ],
)
def test_layer_decays_and_limits_that_cannot_work_are_refused(fields: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OptimConfig(**fields)  # type: ignore[arg-type]
