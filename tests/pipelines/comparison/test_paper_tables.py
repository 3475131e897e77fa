"""Which of our runs stand at which row of the paper, and how runs that differ are told apart."""

import csv
import io
from dataclasses import replace
from typing import Any

import pytest

from pipelines import tracking
from pipelines.comparison.bounds import Bound
from pipelines.comparison.paper_tables import TableLine, find_table, overrides, rows_of, table_lines
from pipelines.comparison.paper_tables_report import beside_table, table_csv, table_notes
from pipelines.comparison.published_tables import TABLES
from pipelines.comparison.runs import ComparedRun
from pipelines.recipes import find_recipe, recipe_to_dict
from tests.pipelines.compared_runs import compared_run

TABLE = TABLES["dupsampling"]


def run_of(recipe_name: str, name: str, *, mean_iou: float = 0.5, **settings: str) -> ComparedRun:
    """A run of a recipe with some settings changed; `model__x` stands for `model.x`."""
    recipe = find_recipe(recipe_name)
    given = {"weights": "timm", "dataset_digest": "d" * 64, "label_pca_digest": "1" * 64}
    changed = {key.replace("__", "."): value for key, value in settings.items()}
    return compared_run(
        name,
        recipe_name=recipe_name,
        model_config=recipe.model,
        settings=tracking.flat_parameters(recipe_to_dict(recipe)) | given | changed,
        scores={"mean_iou": mean_iou},
    )


def lines_of(runs: list[ComparedRun], row: str, **solvers: str) -> list[TableLine]:
    return [line for line in table_lines(runs, TABLE, solvers=solvers) if line.row == row]


def test_an_unknown_table_lists_the_known_ones() -> None:
    with pytest.raises(
        ValueError, match="unknown --table 'fcn'; known: dupsampling, deeplabv3plus, dfanet, encnet, deconvnet"
    ):
        find_table("fcn")


@pytest.mark.parametrize(
    ("recipe_name", "rows"),
    [
        ("voc.table2_conv1_3", ["table2_conv1_3"]),
        ("voc.table2_none", ["table1_dupsampling_os16", "table2_none"]),
        ("voc.table3_xception65_proposed_16", ["table3_xception65_proposed_16"]),
        ("camvid.table3_xception65_proposed_16", ["table2_b3u6c3", "table3_xception65_proposed_16"]),
        ("elsewhere.table2_none", ["table2_none"]),
        ("camvid.dupsampling_resnet50", []),
        ("", []),
    ],
)
def test_a_run_stands_at_every_row_of_its_recipe_s_network(recipe_name: str, rows: list[str]) -> None:
    assert rows_of(compared_run("a", recipe_name=recipe_name), TABLE) == rows


def test_every_row_of_the_paper_is_there_in_order_whether_we_ran_it_or_not() -> None:
    lines = table_lines([], TABLE, solvers={})
    assert [line.row for line in lines] == list(TABLE.rows)
    assert all(line.mean_iou is None and line.decoder_flops is None for line in lines)


def test_runs_that_differ_in_their_seed_alone_are_one_line_with_mean_and_deviation() -> None:
    name = "camvid.table2_conv1_3"
    runs = [run_of(name, f"s{seed}", mean_iou=0.5 + 0.1 * seed, seed=str(seed)) for seed in range(3)]
    (line,) = lines_of(runs, "table2_conv1_3")
    assert (line.variant, len(line.runs)) == ("", 3)
    assert line.mean_iou == pytest.approx(0.6)
    assert line.deviation == pytest.approx(0.1)
    (single,) = lines_of(runs[:1], "table2_conv1_3")
    assert (single.mean_iou, single.deviation) == (0.5, None)


def test_variants_are_lines_of_their_own_named_by_what_flags_changed() -> None:
    name = "camvid.table2_conv1_3"
    runs = [
        run_of(name, "plain"),
        run_of(name, "cold", model__dupsample__temperature="off", seed="4"),
        run_of(name, "free", model__dupsample__freeze_basis="False", epochs="3"),
        run_of(name, "learned", label_pca_digest="2" * 64),
    ]
    assert overrides(runs[1]) == ["temperature off"]
    lines = lines_of(runs, "table2_conv1_3", **{"1" * 64: "pca", "2" * 64: "sgd"})
    assert {line.variant: line.runs[0].name for line in lines} == {
        "": "plain",
        "temperature off": "cold",
        "epochs 3, freeze_basis False": "free",
        "label code sgd": "learned",
    }
    assert [line.runs[0].name for line in lines] == ["plain", "learned", "cold", "free"], (
        "what changed least comes first"
    )


def test_what_no_flag_of_the_recipe_says_is_named_where_it_tells_lines_apart() -> None:
    name = "camvid.table1_bilinear_os16"
    runs = [
        run_of(name, "timm"),
        run_of(name, "none", weights="none"),
        run_of(name, "cold", weights="none", model__aspp_dropout="0.5"),
    ]
    lines = lines_of(runs, "table1_bilinear_os16")
    assert [line.variant for line in lines] == ["aspp_dropout 0.5", "weights none", "weights timm"]
    other = replace(run_of(name, "other data"), scored_digest="f" * 64)
    named = [line.variant for line in lines_of([runs[0], other], "table1_bilinear_os16")]
    assert named == ["scored on dataset eeeeeeee", "scored on dataset ffffffff"]


def test_csv_has_the_paper_s_figures_and_ours_unscaled() -> None:
    runs = [run_of("voc.table2_none", name, mean_iou=iou, seed=name) for name, iou in (("1", 0.7), ("2", 0.72))]
    (line,) = lines_of(runs, "table2_none")
    (row,) = csv.DictReader(io.StringIO(table_csv([replace(line, bound=Bound(mean_iou=0.99, num_images=7))]).decode()))
    shown: dict[str, Any] = {name: row[name] for name in ("table", "row", "recipe", "variant", "runs", "num_runs")}
    assert shown == {
        "table": "2",
        "row": "table2_none",
        "recipe": "voc.table2_none",
        "variant": "",
        "runs": "1; 2",
        "num_runs": "2",
    }
    assert (float(row["paper_mean_iou"]), int(row["paper_decoder_flops"]), row["paper_bound"]) == (
        0.7315,
        8 * 10**8,
        "",
    )
    assert float(row["mean_iou"]) == pytest.approx(0.71)
    assert (float(row["bound"]), row["bound_images"]) == (0.99, "7")
    assert int(row["decoder_flops"]) == pytest.approx(0.796e9, rel=1e-3)


def test_reasons_for_missing_bounds_are_said_once() -> None:
    runs = [run_of("voc.table2_none", "a")]
    lines = [replace(line, bound=Bound(mean_iou=None, note="it is gone")) for line in lines_of(runs, "table2_none")]
    assert table_notes(lines * 2) == ["No mIoU* of a: it is gone."]


def test_runs_of_other_recipes_alone_are_refused_and_named() -> None:
    runs = [compared_run("old"), compared_run("own", recipe_name="camvid.dupsampling_resnet50")]
    with pytest.raises(ValueError, match=r"old \(no recipe recorded\), own \(camvid.dupsampling_resnet50\)"):
        beside_table("dupsampling", runs, None, split="val", num_bound_images=1)
