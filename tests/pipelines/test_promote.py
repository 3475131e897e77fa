"""Promotion: what evidence is asked for, what moves, what is written down."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipelines import promote as promotion
from pipelines import tracking
from pipelines.ensembles import MemberModel
from pipelines.nightly.challenge import Challenger, Evidence, challenger_from_dict, confusion_of, gather
from pipelines.promote import Evaluations, PromoteConfig, promote
from pipelines.tracking import ModelVersion
from segcore.inference import InferenceConfig


def _member() -> MemberModel:
    return MemberModel(
        model_uri="models:/street/3",
        model_version="3",
        model_folder="/models/street",
        model_digest="c" * 64,
        inference=InferenceConfig(flip=True),
    )


def _rows(confusions: list[list[int]], **columns: list[object]) -> pa.Table:
    count = len(confusions)
    values: dict[str, list[object]] = {
        "run_id": ["000001"] * count,
        "champion_digest": ["a"] * count,
        "challenger_digest": ["b"] * count,
        "champion_confidence": [0.5] * count,
        "challenger_confidence": [0.75] * count,
        "champion_ms": [10.0] * count,
        "challenger_ms": [30.0] * count,
        "error": [""] * count,
    }
    table = {"confusion": confusions, **values, **columns}
    return pa.table(table)


def test_the_sample_is_a_property_of_the_image_and_has_its_size() -> None:
    challenger = Challenger(member=_member(), fraction=0.1, seed=3)
    ids = [f"work-{number}" for number in range(20_000)]
    chosen = [work_id for work_id in ids if challenger.samples(work_id)]
    assert len(chosen) == pytest.approx(2000, abs=150)
    again = challenger_from_dict(challenger.to_dict())
    assert again == challenger and [work_id for work_id in ids if again.samples(work_id)] == chosen
    other = Challenger(member=_member(), fraction=0.1, seed=4)
    assert len({work_id for work_id in ids if other.samples(work_id)} & set(chosen)) < 300
    assert challenger_from_dict({}) is None


def test_evidence_adds_confusions_and_passes_over_other_models_and_errors() -> None:
    first, second = np.array([[0, 0, 1]], np.uint8), np.array([[0, 1, 1]], np.uint8)
    confusion = confusion_of(first, second, 2)
    assert confusion == [1, 1, 0, 1]
    parts = [
        _rows([confusion, confusion], champion_ms=[10.0, 20.0]),
        _rows([[9, 0, 0, 9]], champion_digest=["other"]),
        _rows([[0, 0, 0, 0]], error=["RuntimeError: out of memory"], run_id=["000002"]),
    ]
    found = gather(parts, champion_digest="a", challenger_digest="b")
    assert (found.num_images, found.num_errors, found.run_ids) == (2, 1, ("000001", "000002"))
    assert found.agreement == pytest.approx(4 / 6)
    assert found.iou_C == pytest.approx((1 / 2, 1 / 2)) and found.mean_iou == pytest.approx(0.5)
    assert (found.champion_ms, found.challenger_ms) == (15.0, 30.0)
    assert found.metrics()["challenger/agreement"] == found.agreement
    nothing = gather([], champion_digest="a", challenger_digest="b")
    assert nothing.num_images == 0 and np.isnan(nothing.mean_iou)


class Registry:
    """Aliases and descriptions in memory, in place of MLflow's."""

    def __init__(self) -> None:
        self.versions = {
            number: ModelVersion(version=number, model_digest=digest, run_id="", description=f"trained as {number}")
            for number, digest in (("1", "a"), ("2", "b"))
        }
        self.aliases = {"champion": "1", "challenger": "2"}
        self.descriptions: dict[str, str] = {}

    def of_alias(self, name: str, alias: str) -> ModelVersion | None:
        return self.versions[self.aliases[alias]] if name == "street" and alias in self.aliases else None

    def move(self, name: str, alias: str, version: str) -> None:
        self.aliases[alias] = version

    def describe(self, name: str, version: str, description: str) -> None:
        self.descriptions[version] = description


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[Registry]:
    registry = Registry()
    monkeypatch.setattr(tracking, "connect", lambda uri: "")
    monkeypatch.setattr(tracking, "version_of_alias", registry.of_alias)
    monkeypatch.setattr(tracking, "move_alias", registry.move)
    monkeypatch.setattr(tracking, "describe_version", registry.describe)
    yield registry


def _evidence(monkeypatch: pytest.MonkeyPatch, *, images: int, scores: tuple[float, float] | None) -> None:
    rows = _rows([[90, 10, 5, 95]] * images)
    found: Evidence = gather([rows], champion_digest="a", challenger_digest="b")
    pair = scores and Evaluations(data="0123 val", champion=scores[0], challenger=scores[1])
    monkeypatch.setattr(promotion, "nightly_evidence", lambda *args: found)
    monkeypatch.setattr(promotion, "find_evaluations", lambda *args: pair)


def test_the_alias_moves_with_the_evidence_and_the_one_before_is_kept(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    _evidence(monkeypatch, images=120, scores=(0.70, 0.72))
    shown = promote(PromoteConfig(name="street", tables="t", dry_run=True))
    assert not shown.moved and registry.aliases["champion"] == "1" and not registry.descriptions
    result = promote(PromoteConfig(name="street", tables="t"))
    assert result.moved and result.version == "2"
    assert registry.aliases == {"champion": "2", "challenger": "2", "previous": "1"}
    text = registry.descriptions["2"]
    assert text.startswith("trained as 2\n") and "70.00 % before, 72.00 % with this version" in text
    assert "120 images" in text and "92.50 % of pixels" in text and "| 10.0 | 30.0 |" in text
    assert promote(PromoteConfig(name="street", tables="t")).moved is False  # it is the champion already
    assert "models:/street@champion" in result.closing_line


@pytest.mark.parametrize(
    ("images", "scores", "message"),
    [(99, None, "99 images were compared .* --min-images 100"), (120, (0.7, 0.6), "60.00 % mIoU and the champion 70")],
)
def test_without_evidence_or_against_it_nothing_moves_but_by_force(
    registry: Registry,
    monkeypatch: pytest.MonkeyPatch,
    images: int,
    scores: tuple[float, float] | None,
    message: str,
) -> None:
    _evidence(monkeypatch, images=images, scores=scores)
    with pytest.raises(ValueError, match=message):
        promote(PromoteConfig(name="street", tables="t"))
    assert registry.aliases["champion"] == "1"
    assert promote(PromoteConfig(name="street", tables="t", force=True)).moved
    assert "Forced: " in registry.descriptions["2"]


def test_the_first_champion_needs_no_comparison(registry: Registry) -> None:
    del registry.aliases["champion"]
    assert promote(PromoteConfig(name="street")).moved
    assert registry.aliases == {"challenger": "2", "champion": "2"}


def test_unknown_models_and_tables_are_refused(registry: Registry, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no model 'road' with the alias 'challenger'"):
        promote(PromoteConfig(name="road"))
    with pytest.raises(ValueError, match="no published tables"):
        promote(PromoteConfig(name="street", tables=str(tmp_path)))
    with pytest.raises(ValueError, match="both 'champion'"):
        PromoteConfig(name="street", source="champion")
