"""Which runs are one row, what it is called, and which rows nothing beats."""

import pytest

from pipelines.comparison.columns import COLUMNS
from pipelines.comparison.rows import find_row, group_rows, mean_iou, pareto_front
from pipelines.comparison.runs import ComparedRun, warnings
from tests.pipelines.compared_runs import compared_run


def seeded(name: str, seed: int, score: float = 0.5, **settings: str) -> ComparedRun:
    return compared_run(name, scores={"mean_iou": score}, settings={"epochs": "3", "seed": str(seed)} | settings)


def test_runs_that_differ_in_their_seed_alone_are_one_row_with_mean_and_deviation() -> None:
    runs = [seeded("wide-seed2", 2, 0.6), seeded("narrow", 1, 0.45, epochs="9"), seeded("wide-seed1", 1, 0.4)]
    wide, narrow = group_rows(runs)
    assert [run.name for run in wide.runs] == ["wide-seed1", "wide-seed2"], "by seed"
    assert (wide.name, narrow.name) == ("wide", "narrow"), "best mean first"
    assert wide.mean_iou == pytest.approx(0.5)
    assert wide.deviation(mean_iou) == pytest.approx(0.1 * 2**0.5)
    assert (narrow.mean_iou, narrow.deviation(mean_iou)) == (0.45, None)
    assert wide.best_run.name == "wide-seed2"
    assert COLUMNS[0].cell(wide).text == "50.00 ± 14.14"
    assert COLUMNS[0].cell(narrow).text == "45.00"


def test_seeds_are_no_reason_for_a_warning() -> None:
    assert warnings([seeded("a", 1), seeded("b", 2)]) == []


@pytest.mark.parametrize("change", ["scored_digest", "scored_by", "recipe_name"])
def test_what_else_differs_makes_rows(change: str) -> None:
    assert len(group_rows([seeded("a", 1), compared_run("b", **{change: "other"})])) == 2


def test_a_seed_that_was_trained_twice_is_compared_and_not_averaged() -> None:
    rows = group_rows([seeded("a", 1), seeded("b", 2), seeded("c", 1), seeded("d", 2)])
    assert sorted([run.name for run in row.runs] for row in rows) == [["a", "b"], ["c", "d"]]


def test_seeds_can_be_kept_apart() -> None:
    rows = group_rows([seeded("a-1", 1, 0.4), seeded("a-2", 2, 0.6)], seeds_together=False)
    assert [row.name for row in rows] == ["a-2", "a-1"]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("enet-seed1", "enet-seed2"), "enet"),
        (("enet-s1", "enet-s10"), "enet"),
        (("enet-1", "enet-10"), "enet"),
        (("run1", "run2"), "run"),
        (("classes-1", "classes-2"), "classes"),
        (("enet first", "enet second"), "enet"),
        (("left", "lemon"), "camvid.enet"),
        (("resnet50", "resnet50b"), "camvid.enet"),
    ],
)
def test_a_row_is_called_what_its_runs_have_in_common(names: tuple[str, str], expected: str) -> None:
    runs = [
        compared_run(name, settings={"seed": str(seed)}, recipe_name="camvid.enet") for seed, name in enumerate(names)
    ]
    assert group_rows(runs)[0].name == expected


def test_rows_of_one_name_are_told_apart() -> None:
    runs = [seeded(f"a-{seed}", seed, epochs=str(seed // 2)) for seed in range(4)]
    assert sorted(row.name for row in group_rows(runs)) == ["a (a-0-01)", "a (a-2-01)"]


def test_a_row_is_found_by_its_name_and_a_run_of_several_by_its_own() -> None:
    rows = group_rows([seeded("a-1", 1), seeded("a-2", 2)])
    assert find_row(rows, "a") is rows[0]
    assert [run.name for run in find_row(rows, "a-2").runs] == ["a-2"]
    with pytest.raises(ValueError, match=r"--pair names 'b', which is no row and no run .*: a, a-1, a-2"):
        find_row(rows, "b")


def test_the_front_is_what_no_other_beats_in_cost_and_gain() -> None:
    costs, gains = [5.0, 1.0, 3.0, 3.0, 9.0, 1.0], [0.7, 0.4, 0.6, 0.5, 0.7, 0.4]
    assert pareto_front(costs, gains) == [1, 5, 2, 0], "equals stand beside each other; dearer at the same gain is out"
    assert pareto_front([2.0], [0.1]) == [0]
