"""The whole chain, once, very small: from nothing to masks in tables and two networks side by side."""

import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import duckdb
import pytest

from pipelines import storage, tracking
from pipelines.datasets.scenes import ScenesConfig
from pipelines.demo import DemoConfig, DemoResult, demo
from pipelines.lineage import nights_of_run, origins_of_run, uses_of_dataset
from pipelines.recipes import Recipe, find_recipe
from segcore.models import DeepLabV3PlusConfig, DUpsamplingConfig

pytestmark = pytest.mark.slow  # two trainings and every other stage: two minutes, a sixth of the quick tests

SMALL = DemoConfig(scenes=ScenesConfig(num_train=16, num_val=3, height=64, width=96), epochs=1, num_images=3, workers=1)


def finer_recipe(name: str) -> Recipe:
    """The demo's recipe at output stride 16: solving for the basis of 32 x 32 blocks takes longer than all the rest."""
    recipe = find_recipe(name)
    assert isinstance(recipe.model, DeepLabV3PlusConfig | DUpsamplingConfig)
    return replace(recipe, model=replace(recipe.model, output_stride=16))


@pytest.fixture(scope="module")
def small_networks() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipelines.demo.find_recipe", finer_recipe)
        yield


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory, ray_session: None, small_networks: None) -> DemoResult:
    return demo(replace(SMALL, output=str(tmp_path_factory.mktemp("demo") / "out")))


def test_every_stage_left_its_result(result: DemoResult) -> None:
    for path in (
        "data/manifest.json",
        "label_pca/manifest.json",
        "runs/dupsampling/model/manifest.json",
        "runs/bilinear/model/manifest.json",
        "scores/dupsampling/manifest.json",
        "scores/bilinear/manifest.json",
        "comparison/manifest.json",
        "tables/snapshots/00000001.json",
        "index.html",
    ):
        assert storage.exists(f"{result.output}/{path}"), path
    assert set(result.mean_iou) == {"dupsampling", "bilinear"}


def test_unusual_images_are_segmented_and_broken_files_refused(result: DemoResult) -> None:
    assert (result.num_images, result.num_failures) == (3 + 7, 5)
    tables = f"{result.output}/tables"
    query = (
        "SELECT parse_filename(p.uri), p.height, p.width, list_sum(m.lengths) "
        f"FROM '{tables}/predictions/**/*.parquet' p "
        f"JOIN '{tables}/masks/**/*.parquet' m USING (work_id) ORDER BY 1"
    )
    answer = duckdb.sql(query)
    assert answer is not None
    rows = answer.fetchall()
    assert len(rows) == 10
    assert all((height, width, pixels) == (64, 96, 64 * 96) for _, height, width, pixels in rows)
    assert "rotated-exif.jpg" in {name for name, *_ in rows}


def test_lineage_leads_from_the_masks_to_the_generated_scenes_and_back(result: DemoResult) -> None:
    tracking.connect(f"sqlite:///{result.output}/mlflow.db")
    (origins,) = origins_of_run(f"{result.output}/tables", "000001")
    (training,), (fit,), (preparation,) = origins.trainings, origins.label_pca_fits, origins.preparations
    assert training.name == "dupsampling" and training.status == "FINISHED"
    assert [f"models:/{each.name}/{each.version}" for each in origins.versions] == [
        training.tags[tracking.MODEL_VERSION_TAG]
    ]
    assert fit.parameters["output"] == f"{result.output}/label_pca"
    assert preparation.parameters["output"] == f"{result.output}/data"
    (night,) = nights_of_run(f"{result.output}/tables", "000001")
    uses = uses_of_dataset(origins.dataset_digest)
    assert uses.nights == (night,) and uses.preparations == (preparation,) and uses.label_pca_fits == (fit,)
    assert {run.name for run in uses.trainings} == {"dupsampling", "bilinear"}
    assert {run.name for run in uses.evaluations} == {"dupsampling on val", "bilinear on val"}
    assert night.tags[tracking.SNAPSHOT_TAG] == "1"
    assert night.tags[tracking.MODEL_VERSION_TAG] == training.tags[tracking.MODEL_VERSION_TAG]
    assert night.metrics["num_images"] == result.num_images


def test_links_of_the_first_page_lead_somewhere(result: DemoResult) -> None:
    page = Path(result.output, "index.html")
    links = [part.split('"')[0] for part in page.read_text().split('<a href="')[1:]]
    assert len(links) == 4
    assert all((page.parent / link).is_file() for link in links)


def test_query_that_the_demo_prints_works_as_it_stands(result: DemoResult) -> None:
    assert result.commands[1] in result.closing_line
    done = subprocess.run(result.commands[1], shell=True, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "sixteen-bit.png" in done.stdout or "street-000.jpg" in done.stdout


def test_bucket_is_refused_as_the_place_of_the_demo() -> None:
    with pytest.raises(ValueError, match="s3://bucket/demo' is not a local folder"):
        DemoConfig(output="s3://bucket/demo")


def test_the_same_command_again_trains_and_segments_nothing(result: DemoResult) -> None:
    before = {path: Path(path).stat().st_mtime_ns for path in storage.list_files(f"{result.output}/runs")}
    again = demo(replace(SMALL, output=result.output))
    assert {path: Path(path).stat().st_mtime_ns for path in storage.list_files(f"{result.output}/runs")} == before
    assert (again.num_images, again.num_failures) == (result.num_images, result.num_failures)
    assert again.mean_iou == result.mean_iou
    assert not storage.exists(f"{result.output}/tables/snapshots/00000002.json")
