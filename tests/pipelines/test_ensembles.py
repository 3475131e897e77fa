"""Which models a job asks, what identifies them together, and what is refused."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from pipelines import tracking
from pipelines.checkpoints import load_model
from pipelines.ensembles import (
    MemberModel,
    class_difference,
    ensemble_digest,
    ensemble_uri,
    find_members,
    load_member,
    member_from_dict,
)
from segcore.dense_crf import DenseCRFConfig
from segcore.inference import InferenceConfig
from segcore.models import DFANetConfig, build_model
from tests.pipelines.tiny_inputs import CLASS_NAMES, save_tiny_model, write_model

PROPOSALS = InferenceConfig(mode="proposals", crop_px=64)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Two model folders; the first one's recipe shows proposals, the other's says nothing."""
    folder = tmp_path_factory.mktemp("ensembles")
    return write_model(folder / "first", inference=PROPOSALS), write_model(folder / "second", seed=1)


def members_of(*models: str, given: InferenceConfig | None = None, recipe: bool = False) -> tuple[MemberModel, ...]:
    resolved = [tracking.resolve_model(model) for model in models]
    return find_members(resolved, given or InferenceConfig(), recipe_inference=recipe)[0]


def test_every_member_is_shown_images_by_its_own_recipe_or_all_by_the_flags(models: tuple[str, str]) -> None:
    assert [each.inference for each in members_of(*models, recipe=True)] == [PROPOSALS, InferenceConfig()]
    given = InferenceConfig(flip=True)
    assert [each.inference for each in members_of(*models, given=given)] == [given, given]
    with pytest.raises(ValueError, match="exclude each other"):
        members_of(*models, given=given, recipe=True)


def test_classes_that_one_model_alone_has_can_be_left_out(models: tuple[str, str], tmp_path: Path) -> None:
    more = write_model(tmp_path / "more", class_names=("background", *CLASS_NAMES))
    with pytest.raises(ValueError, match="class 0 is 'sky' there and 'background' here"):
        members_of(more, models[0])
    resolved = [tracking.resolve_model(model) for model in (more, models[0])]
    members, card = find_members(resolved, InferenceConfig(), recipe_inference=False, leave_out=["background"])
    assert (card.class_names, card.palette) == (CLASS_NAMES, load_model(more).card.palette[1:])
    assert [member.leave_out for member in members] == [("background",), ()]
    assert [load_member(member).classes for member in members] == [(1, 2, 3, 4), ()]
    assert all(member_from_dict(json.loads(json.dumps(member.to_dict()))) == member for member in members)
    assert members[0].identity()["leave_out"] == ["background"] and "leave_out" not in members[1].identity()
    with pytest.raises(ValueError, match="no model has the class 'grass' to leave out; .* the first has sky, road"):
        find_members(resolved[1:], InferenceConfig(), recipe_inference=False, leave_out=["grass"])
    with pytest.raises(ValueError, match="all classes are left out: sky, road, .*; leave at least one"):
        find_members(resolved[1:], InferenceConfig(), recipe_inference=False, leave_out=CLASS_NAMES)


def test_the_crf_is_the_first_models(models: tuple[str, str], tmp_path: Path) -> None:
    crf = DenseCRFConfig(iterations=5)
    sharp = write_model(tmp_path / "sharp", inference=InferenceConfig(crf=crf))
    assert [each.inference.crf for each in members_of(sharp, models[0], recipe=True)] == [crf, DenseCRFConfig()]
    assert len(members_of(*models, given=InferenceConfig(crf=crf))) == 2
    with pytest.raises(ValueError, match="model 2 of the ensemble has a CRF"):
        members_of(models[0], sharp, recipe=True)


def test_one_model_keeps_its_digest_and_an_ensemble_has_one_of_its_own(models: tuple[str, str]) -> None:
    first, second = members_of(*models)
    assert ensemble_digest([first]) == first.model_digest == load_model(models[0]).digest
    digests = {ensemble_digest(each) for each in ([first], [second], [first, second], [first, first])}
    assert len(digests) == 4
    assert ensemble_digest([first, second]) == ensemble_digest([replace(first, inference=PROPOSALS), second])
    assert ensemble_uri([first, second]) == f"{models[0]} + {models[1]}"


def test_a_member_comes_back_from_json(models: tuple[str, str]) -> None:
    for member in members_of(*models, recipe=True):
        assert member_from_dict(json.loads(json.dumps(member.to_dict()))) == member


def test_a_loaded_member_has_its_models_normalisation_and_a_changed_folder_is_refused(
    models: tuple[str, str], tmp_path: Path
) -> None:
    (member,) = members_of(models[0], recipe=True)
    loaded, card = load_member(member), load_model(models[0]).card
    assert (loaded.mean, loaded.std, loaded.config) == (card.mean, card.std, PROPOSALS)
    with pytest.raises(ValueError, match=r"second' has changed since this work was planned: .* put the planned model"):
        load_member(replace(member, model_folder=models[1]))


def test_an_output_stride_that_a_member_does_not_have_is_refused_before_anything_starts(
    models: tuple[str, str], tmp_path: Path
) -> None:
    config = DFANetConfig(backbone="dfanet_xception_b", classifier_classes=10, decoder_channels=8)
    assert len(members_of(models[0], given=InferenceConfig(output_stride=8))) == 1
    other = save_tiny_model(tmp_path / "dfanet", config, build_model(config, 4))
    with pytest.raises(ValueError, match="has output stride 64 alone; leave out output stride 8"):
        members_of(models[0], other, given=InferenceConfig(output_stride=8))


def test_the_difference_of_class_tables_is_said_in_words() -> None:
    assert class_difference(("a", "b"), ("a", "b", "c")) == "2 classes there and 3 here"
    assert class_difference(("a", "b"), ("a", "c")) == "2 classes there and 2 here; class 1 is 'b' there and 'c' here"
