"""Settings of a recipe that cannot work together are refused when it is made."""

import dataclasses
from typing import Any

import pytest

from pipelines.recipes import find_recipe, recipe_to_dict
from segcore.class_balance import SamplingConfig
from segcore.copy_paste import CopyPasteConfig
from segcore.models import DeepLabV3PlusConfig, DUpsampleConfig
from segcore.models.main_loss import LossConfig
from tests.pipelines.learnable_dataset import tiny_recipe

CODE_ALONE = DeepLabV3PlusConfig(
    backbone="mobilenet_v3_small",
    decoder="dupsample",
    dupsample=DUpsampleConfig(cross_entropy_weight=0.0, code_loss_weight=1.0, temperature="off"),
)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"accumulation": 0}, "accumulation is 0; it must be 1 or more"),
        ({"ema_decay": 1.0}, "ema_decay is 1.0; give 0"),
        ({"patience": -1}, "patience is -1"),
        ({"patience": 2, "batch_norm_batches": 3}, "patience 2 and batch_norm_batches 3 exclude each other"),
        ({"model": CODE_ALONE, "loss": LossConfig(main="dice")}, "cross_entropy_weight is 0"),
    ],
)
def test_settings_that_exclude_each_other_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(tiny_recipe(), **fields)


@pytest.mark.parametrize(
    "fields",
    [
        {"loss": LossConfig(main="focal")},
        {"sampling": SamplingConfig(method="rare_class")},
        {"copy_paste": CopyPasteConfig(classes=("car",))},
    ],
)
def test_what_needs_label_maps_is_refused_for_a_classifier(fields: dict[str, Any]) -> None:
    (name,) = fields
    with pytest.raises(ValueError, match=f"{name} is set and the network is an image classifier"):
        dataclasses.replace(find_recipe("crops.mobilenet_v3_small"), **fields)


def test_the_defaults_change_nothing_and_are_stored() -> None:
    stored = recipe_to_dict(tiny_recipe())
    assert stored["loss"]["main"] == "cross_entropy" and stored["loss"]["second"] == "none"
    assert stored["sampling"]["method"] == "none" and stored["copy_paste"]["classes"] == ()
    assert (stored["accumulation"], stored["ema_decay"], stored["patience"]) == (1, 0.0, 0)
    assert (stored["optim"]["layer_decay"], stored["optim"]["clip_gradient_norm"]) == (1.0, 0.0)
