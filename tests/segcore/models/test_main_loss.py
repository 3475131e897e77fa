"""The loss that a recipe puts in the place of cross-entropy, in every network."""

import dataclasses

import pytest
import torch

from segcore.losses import cross_entropy, focal_loss, ohem_cross_entropy
from segcore.models import DeepLabV3PlusConfig, PSPNetConfig, SegmentationOutput, build_model, meta_model
from segcore.models.main_loss import LOSSES, LossConfig, LossName, MainLoss, set_main_loss
from segcore.region_losses import dice_loss, lovasz_softmax

WEIGHTS = (0.5, 1.0, 4.0)


def case() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 3, 4, 5, generator=generator), torch.randint(0, 3, (2, 4, 5), generator=generator)


@pytest.mark.parametrize("name", LOSSES)
def test_each_name_is_its_loss(name: LossName) -> None:
    logits, labels = case()
    config = LossConfig(main=name, ohem_threshold=0.4, ohem_min_kept=0.25, focal_gamma=1.5)
    expected = {
        "cross_entropy": cross_entropy(logits, labels),
        "ohem": ohem_cross_entropy(logits, labels, threshold=0.4, min_kept=0.25),
        "focal": focal_loss(logits, labels, gamma=1.5),
        "dice": dice_loss(logits, labels),
        "lovasz": lovasz_softmax(logits, labels),
    }[name]
    found = MainLoss(config)(logits, labels)
    assert found.total == expected and found.terms == {name: expected}


def test_a_second_loss_is_added_and_class_weights_reach_the_pixels_of_the_first() -> None:
    logits, labels = case()
    config = LossConfig(second="lovasz", second_weight=0.5, class_weights="inverse_log")
    found = MainLoss(config, WEIGHTS)(logits, labels)
    weighted = cross_entropy(logits, labels, class_weights_C=torch.tensor(WEIGHTS))
    assert found.total == weighted + 0.5 * lovasz_softmax(logits, labels)
    assert set(found.terms) == {"cross_entropy", "lovasz"} and found.terms["cross_entropy"] == weighted


def test_auxiliary_heads_keep_cross_entropy_and_weights_are_no_part_of_the_state() -> None:
    torch.manual_seed(0)
    network = build_model(PSPNetConfig(backbone="resnet18"), 3).eval()
    logits, labels = case()
    output = SegmentationOutput(logits_NCHW=logits, auxiliary_NCHW=(logits + 1,))
    state = set(network.state_dict())
    set_main_loss(network, LossConfig(main="ohem", class_weights="median_frequency"), WEIGHTS)
    terms = network.loss(output, labels)
    weights = torch.tensor(WEIGHTS)
    ohem = ohem_cross_entropy(logits, labels, threshold=0.7, min_kept=1 / 16, class_weights_C=weights)
    assert terms.terms["ohem"] == ohem and terms.terms["auxiliary"] == cross_entropy(logits + 1, labels)
    torch.testing.assert_close(terms.total, ohem + 0.4 * terms.terms["auxiliary"])
    assert set(network.state_dict()) == state


def test_a_data_dependent_decoder_weighs_it_as_its_cross_entropy() -> None:
    config = DeepLabV3PlusConfig(backbone="mobilenet_v3_small", decoder="dupsample")
    weighed = dataclasses.replace(config.dupsample, cross_entropy_weight=3.0)
    network = meta_model(dataclasses.replace(config, dupsample=weighed), 3)
    set_main_loss(network, LossConfig(main="dice"))
    logits, labels = case()
    terms = network.loss(SegmentationOutput(logits_NCHW=logits), labels)
    assert terms.total == 3 * dice_loss(logits, labels) and set(terms.terms) == {"dice"}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"main": "hinge"}, "unknown main loss 'hinge'; known: cross_entropy, ohem"),
        ({"second": "hinge"}, "unknown second loss 'hinge'; known: none, cross_entropy"),
        ({"main": "dice", "second": "dice"}, "main and second loss are both dice"),
        ({"second": "dice", "second_weight": 0.0}, "second_weight is 0.0"),
        ({"class_weights": "both"}, "unknown class_weights 'both'; known: none, median_frequency"),
        (
            {"main": "dice", "second": "lovasz", "class_weights": "inverse_log"},
            "would change nothing in dice and lovasz",
        ),
        ({"main": "ohem", "ohem_threshold": 0.0}, "ohem_threshold is 0.0"),
        ({"main": "ohem", "ohem_min_kept": 1.5}, "ohem_min_kept 1.5"),
        ({"main": "focal", "focal_gamma": -1.0}, "focal_gamma is -1.0"),
        ({"class_weights": "inverse_log", "inverse_log_offset": 1.0}, "inverse_log_offset is 1.0; it must be above 1"),
    ],
)
def test_settings_that_cannot_work_are_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LossConfig(**fields)  # type: ignore[arg-type]
