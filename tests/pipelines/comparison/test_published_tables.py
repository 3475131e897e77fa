"""The papers' rows name recipes that exist, say what is missing, and cost what our networks cost."""

import csv
import io

import pytest

from pipelines.comparison.paper_tables import TableLine, find_table, names_recipes, rows_of, table_lines
from pipelines.comparison.paper_tables_report import beside_table
from pipelines.comparison.published_tables import CODE, TABLE, TABLES, UNCONFIRMED
from pipelines.comparison.runs import ComparedRun
from pipelines.recipes import RECIPES, find_recipe
from segcore.networks import segmentation_config
from tests.pipelines.compared_runs import compared_run

NAMED = [name for name, table in TABLES.items() if names_recipes(table)]


def run_of(recipe_name: str, name: str = "a", **changes: object) -> ComparedRun:
    network = segmentation_config(find_recipe(recipe_name).model)
    return compared_run(name, recipe_name=recipe_name, model_config=network, **changes)


def line_of(table: str, row: str, *runs: ComparedRun) -> TableLine:
    (line,) = (line for line in table_lines(runs, find_table(table), solvers={}) if line.row == row)
    return line


def test_the_five_papers_are_there_and_but_one_name_their_recipes() -> None:
    assert list(TABLES) == ["dupsampling", "deeplabv3plus", "dfanet", "encnet", "deconvnet"]
    assert NAMED == ["deeplabv3plus", "dfanet", "encnet", "deconvnet"]


@pytest.mark.parametrize("name", TABLES)
def test_rows_are_whole(name: str) -> None:
    for row in find_table(name).rows.values():
        assert set(row.recipes) <= set(RECIPES)
        assert row.source in (TABLE, CODE)
        assert row.mean_iou is None or 0.3 < row.mean_iou < 0.95, "fractions of 1"
        assert row.several_scales is None or row.recipes
        assert row.size_px is None or (row.recipes and row.cost_g), "a size is there to count ours beside theirs"


def test_figures_that_nobody_could_read_are_missing_and_said_to_be() -> None:
    unread = {key for name in NAMED for key, row in find_table(name).rows.items() if row.mean_iou is None}
    assert unread == {"fcn_8s", "deconvnet", "deconvnet_crf", "edeconvnet"}
    assert all(UNCONFIRMED in find_table("deconvnet").rows[key].missing for key in unread)


@pytest.mark.parametrize(
    ("table", "row", "recipe", "per_multiply_add"),
    [
        ("dfanet", "dfanet_a_half", "cityscapes.dfanet_a_half", 1),
        ("dfanet", "segnet", "cityscapes.segnet_vgg16", 2),
        ("deeplabv3plus", "voc_xception65", "voc.deeplab_v3plus_xception65", 1),
    ],
)
def test_our_network_costs_what_the_paper_prints_at_its_size(
    table: str, row: str, recipe: str, per_multiply_add: int
) -> None:
    line = line_of(table, row, run_of(recipe))
    assert line.paper.cost_g is not None and line.multiply_adds is not None
    assert per_multiply_add * line.multiply_adds == pytest.approx(line.paper.cost_g * 1e9, rel=0.03)


def test_a_run_stands_where_its_recipe_is_named_and_as_it_was_scored() -> None:
    table, recipe = find_table("deeplabv3plus"), "voc.deeplab_v3plus_xception65"
    assert rows_of(run_of(recipe), table) == ["voc_xception65", "voc_test_deeplab_v3plus"]
    shown = ("scales (0.5, 1.0)", "flip True", "output_stride 8")
    assert rows_of(run_of(recipe, shown=shown), table) == ["voc_xception65_scales", "voc_test_deeplab_v3plus"]
    assert rows_of(run_of("camvid.small_dfanet_a"), find_table("dfanet")) == ["dfanet_a", "ablation_a"]
    assert rows_of(run_of("camvid.small_enet_encoder"), find_table("dfanet")) == []


def test_a_row_says_what_it_lacks() -> None:
    assert line_of("deeplabv3plus", "ade20k_xception65_scales").missing == (
        "no run of ade20k.deeplab_v3plus_xception65 at several scales (evaluate --recipe-inference)"
    )
    assert line_of("dfanet", "sq").missing == "no recipe here"
    one = line_of("dfanet", "ablation_b", run_of("camvid.dfanet_b"))
    assert one.missing == "one seed"
    two = line_of(
        "dfanet", "ablation_b", *(run_of("camvid.dfanet_b", str(s), settings={"seed": str(s)}) for s in (1, 2))
    )
    assert two.missing == "" and len(two.runs) == 2
    assert "prints no mIoU" in line_of("dupsampling", "table3_resnet50_vanilla_2_16").missing


def test_runs_beside_a_paper_need_no_dataset_where_it_prints_no_bound() -> None:
    runs = [
        run_of("camvid.small_dfanet_b", f"s{seed}", settings={"seed": str(seed)}, images_per_second=4.0)
        for seed in (1, 2)
    ]
    beside = beside_table("dfanet", runs, None, split="val", num_bound_images=1)
    rows = {row["row"]: row for row in csv.DictReader(io.StringIO(beside.csv.decode()))}
    ours = rows["dfanet_b"]
    assert (ours["recipe"], ours["runs"], ours["num_runs"]) == ("camvid.small_dfanet_b", "s1; s2", "2")
    assert (float(ours["paper_mean_iou"]), float(ours["mean_iou"])) == (0.671, 0.5)
    assert int(ours["paper_cost"]) == 2_100_000_000
    assert int(ours["multiply_adds"]) == pytest.approx(2.055e9, rel=1e-3)
    assert (float(ours["paper_milliseconds"]), float(ours["milliseconds"])) == (8, 250)
    assert rows["icnet"]["missing"].endswith("no run of cityscapes.icnet") and rows["icnet"]["mean_iou"] == ""
    assert "Beside Li et al., DFANet" in beside.terminal
    with pytest.raises(ValueError, match=r"its recipes are called .*cityscapes\.dfanet_a, camvid\.dfanet_a"):
        beside_table("dfanet", [run_of("camvid.small_unet")], None, split="val", num_bound_images=1)
