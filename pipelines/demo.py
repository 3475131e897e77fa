"""The whole main job on generated scenes: nothing is downloaded, nothing runs before or after it.

    <output>/data            prepared scenes                <output>/label_pca       basis of their label blocks
    <output>/runs/*          two trained networks           <output>/scores/*        their evaluations
    <output>/images          a folder as a bucket has them  <output>/tables          masks, predictions, failures
    <output>/comparison      both networks side by side     <output>/mlflow.db       runs and registered models
    <output>/index.html      the way to all of it

Every stage finds what an earlier start finished, so the same command continues after an interruption.
"""

import dataclasses
import logging
import os
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from pipelines import storage
from pipelines.cluster import actor_cluster
from pipelines.compare import CompareConfig, compare
from pipelines.datasets.scenes import ScenesConfig
from pipelines.demo_images import write_mixed_folder
from pipelines.evaluate import EvaluateConfig, EvaluateResult, evaluate
from pipelines.fit_label_pca import FitLabelPCAConfig, fit_label_pca
from pipelines.nightly.config import SegmentConfig
from pipelines.pages import (
    Block,
    Cell,
    Code,
    Facts,
    Gallery,
    Paragraph,
    Picture,
    Section,
    Table,
    number_cell,
    render_page,
    write_page,
)
from pipelines.prepare import PrepareConfig, prepare
from pipelines.recipes import Recipe, find_recipe
from pipelines.segment import segment
from pipelines.tables.commits import newest_snapshot
from pipelines.tables.runs import Snapshot
from pipelines.train import TrainConfig, TrainResult, train
from segcore.networks import label_pca_size

logger = logging.getLogger(__name__)

EXPERIMENT = "demo"
RECIPES = {"dupsampling": "scenes.dupsampling_mobilenetv3", "bilinear": "scenes.deeplab_v3plus_mobilenetv3"}
REGISTERED_NAME = "demo-street"
"""In MLflow, of the first of the two networks: the one that segments."""
FIRST_MIXED_SCENE = 1_000_000
"""Seed of the segmented images' first scene: none of them was trained on."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DemoConfig:
    """How large the demonstration is."""

    output: str = "demo"
    """Folder for everything."""
    scenes: ScenesConfig = field(default_factory=ScenesConfig)
    """The generated images."""
    epochs: int | None = None
    """Visits of every training image; default: the recipes'."""
    num_images: int = 24
    """Ordinary images in the folder to segment, beside the unusual and the broken ones."""
    workers: int = 1
    """Actors that evaluate and segment."""
    threads: int = 2
    """CPU threads of each."""

    def __post_init__(self) -> None:
        if "://" in self.output:
            raise ValueError(
                f"--output {self.output!r} is not a local folder; the demonstration keeps MLflow in a file"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class DemoResult:
    """What the demonstration left.

    Attributes:
        output: the folder.
        num_images, num_failures: of the segmented folder.
        mean_iou: by network.
        seconds: by stage.
        query: SQL over the tables.
        commands: three things to do next, each for a shell.
    """

    output: str
    num_images: int
    num_failures: int
    mean_iou: dict[str, float]
    seconds: dict[str, float]
    commands: tuple[str, str, str]

    @property
    def closing_line(self) -> str:
        scores = ", ".join(f"{name} {100 * value:.2f} %" for name, value in self.mean_iou.items())
        page, query, runs = self.commands
        return (
            f"\ndone in {sum(self.seconds.values()):.0f} s: mIoU {scores}; {self.num_images} images segmented, "
            f"{self.num_failures} refused with a reason\n\nThree things to do next:\n"
            f"  1. look at the page          {page}\n"
            f"  2. ask the tables with SQL   {query}\n"
            f"  3. browse the runs           {runs}"
        )


def demo(config: DemoConfig) -> DemoResult:
    """Prepare, fit, train two networks, evaluate both, segment a folder, compare.

    Raises:
        ValueError: the folder cannot be written, or holds a demonstration with other settings.
    """
    output = storage.absolute(config.output)
    storage.check_writable(output)
    clock = StageClock()
    with actor_cluster(workers=config.workers, threads=config.threads):
        trained, evaluated = _learn(config, output, clock)
        snapshot = _segment(config, output, trained["dupsampling"], clock)
    with clock.stage("compare"):
        compare(
            CompareConfig(
                experiment=EXPERIMENT,
                output=storage.join(output, "comparison"),
                data=storage.join(output, "data"),
                tracking_uri=_tracking_uri(output),
            )
        )
    result = DemoResult(
        output=output,
        num_images=_num_rows(snapshot, "predictions"),
        num_failures=_num_rows(snapshot, "failures"),
        mean_iou={name: each.scores["mean_iou"] for name, each in evaluated.items()},
        seconds=clock.seconds,
        commands=_commands(output),
    )
    write_page(storage.join(output, "index.html"), _home_page(result, snapshot, list(evaluated)))
    return result


class StageClock:
    """Seconds by stage, each said as it ends."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time the block."""
        logger.info("demo: %s", name)
        started = time.monotonic()
        yield
        self.seconds[name] = time.monotonic() - started
        logger.info("demo: %s took %.1f s", name, self.seconds[name])


def _learn(
    config: DemoConfig, output: str, clock: StageClock
) -> tuple[dict[str, TrainResult], dict[str, EvaluateResult]]:
    """From nothing to two evaluated networks."""
    data, label_pca = storage.join(output, "data"), storage.join(output, "label_pca")
    recipes = {name: _recipe(recipe, config) for name, recipe in RECIPES.items()}
    size = label_pca_size(recipes["dupsampling"].model)
    assert size is not None
    with clock.stage("prepare scenes"):
        tracking_uri = _tracking_uri(output)
        prepare(PrepareConfig(dataset=config.scenes, output=data, experiment=EXPERIMENT, tracking_uri=tracking_uri))
    with clock.stage("fit_label_pca"):
        fit_label_pca(
            FitLabelPCAConfig(
                data=data,
                output=label_pca,
                block_side=size.block_side,
                num_components=size.num_components,
                experiment=EXPERIMENT,
                tracking_uri=tracking_uri,
            )
        )
    trained: dict[str, TrainResult] = {}
    evaluated: dict[str, EvaluateResult] = {}
    for name, recipe in recipes.items():
        with clock.stage(f"train {name}"):
            trained[name] = train(
                TrainConfig(
                    recipe=recipe,
                    data=data,
                    output=storage.join(output, "runs"),
                    name=name,
                    label_pca=label_pca if name == "dupsampling" else None,
                    experiment=EXPERIMENT,
                    tracking_uri=_tracking_uri(output),
                    register=REGISTERED_NAME if name == "dupsampling" else None,
                )
            )
    for name, result in trained.items():
        with clock.stage(f"evaluate {name}"):
            evaluated[name] = evaluate(
                EvaluateConfig(
                    model=result.model_folder,
                    data=data,
                    output=storage.join(output, "scores", name),
                    workers=config.workers,
                    threads=config.threads,
                    experiment=EXPERIMENT,
                    tracking_uri=_tracking_uri(output),
                )
            )
    return trained, evaluated


def _recipe(name: str, config: DemoConfig) -> Recipe:
    """The recipe, or a shorter one with as much less warm-up."""
    recipe = find_recipe(name)
    if config.epochs is None:
        return recipe
    steps = config.epochs * recipe.steps_per_epoch(num_images=config.scenes.num_train, num_workers=1)
    warmup_steps = min(recipe.optim.warmup_steps, steps // 4)
    return dataclasses.replace(
        recipe, epochs=config.epochs, optim=dataclasses.replace(recipe.optim, warmup_steps=warmup_steps)
    )


def _segment(config: DemoConfig, output: str, trained: TrainResult, clock: StageClock) -> Snapshot:
    """Segment a mixed folder with the registered model; returns the newest snapshot of the tables."""
    images, tables = storage.join(output, "images"), storage.join(output, "tables")
    with clock.stage("segment"):
        write_mixed_folder(
            images,
            num_plain=config.num_images,
            seed=FIRST_MIXED_SCENE + config.scenes.seed,
            height=config.scenes.height,
            width=config.scenes.width,
        )
        segment(
            SegmentConfig(
                images=images,
                model=trained.model_uri,
                tables=tables,
                workers=config.workers,
                threads=config.threads,
                experiment=EXPERIMENT,
                tracking_uri=_tracking_uri(output),
            )
        )
    return newest_snapshot(tables)


def _home_page(result: DemoResult, snapshot: Snapshot, networks: list[str]) -> bytes:
    facts = [(f"mIoU, {name}", f"{100 * value:.1f} %") for name, value in result.mean_iou.items()]
    facts.append(("images segmented", str(result.num_images)))
    facts.append(("files refused, with a reason", str(result.num_failures)))
    intro = (
        "Two networks with one small backbone at output stride 32, trained from random weights for a few minutes on "
        "generated scenes: one expands its coarse map by the label PCA's basis (DUpsampling), one bilinearly."
    )
    night = f"tables/runs/{snapshot.run_ids[-1]}/page.html"
    pages = [
        ("The two networks side by side, with the same images by each", "comparison/index.html"),
        ("The folder that was segmented: masks, and what was refused and why", night),
    ]
    for name in networks:
        pages.append((f"Evaluation of {name}: classes, confusion, best and worst images", f"scores/{name}/index.html"))
    folders = (
        ("data", "prepared dataset: Parquet shards and a manifest"),
        ("label_pca", "basis of the label blocks, and its recovery scores"),
        ("runs/*/model", "model folders"),
        ("tables", "predictions, masks and failures, for DuckDB, pandas, Spark"),
        ("mlflow.db", "MLflow runs and registered models"),
    )
    things: tuple[Block, ...] = (
        Paragraph(text="Ask the tables with SQL:"),
        Code(text=result.commands[1]),
        Paragraph(text="Browse the runs:"),
        Code(text=result.commands[2]),
    )
    page_rows = tuple((Cell(text=text, link=link),) for text, link in pages)
    folder_rows = tuple((Cell(text=path), Cell(text=what)) for path, what in folders)
    stage_rows = tuple((Cell(text=name), number_cell(seconds)) for name, seconds in result.seconds.items())
    samples = [_sample(result.output, name) for name in networks]
    sections = [
        Section(title="", blocks=(Facts(facts=tuple(facts)), Paragraph(text=intro))),
        Section(
            title="An image by each, of median score", blocks=(Gallery(pictures=tuple(samples), min_width_px=900),)
        ),
        Section(title="Pages", blocks=(Table(columns=("page",), rows=page_rows),)),
        Section(title="Next", blocks=things),
        Section(title="What lies where", blocks=(Table(columns=("path", "what"), rows=folder_rows),)),
        Section(title="Seconds by stage", blocks=(Table(columns=("stage", "seconds"), rows=stage_rows, numeric=(1,)),)),
    ]
    return render_page("Demonstration", sections, subtitle=result.output, footer="Written by jobs/demo.py.")


def _sample(output: str, network: str) -> Picture:
    """Image, truth, prediction and wrong pixels of the image in the middle of an evaluation."""
    uris = storage.list_files(storage.join(output, "scores", network, "overlays"))
    median = [uri for uri in uris if uri.rsplit("/", 1)[1].startswith("median")]
    return Picture(data=storage.read_bytes((median or uris)[0]), caption=network, card=True)


def _num_rows(snapshot: Snapshot, table: str) -> int:
    return sum(int(file["num_rows"]) for file in snapshot.files if file["table"] == table)


def _commands(output: str) -> tuple[str, str, str]:
    """Shell commands that work as they stand, from the current folder."""
    python = _from_here(sys.executable)
    predictions = f"{_from_here(output)}/tables/predictions/**/*.parquet"
    query = (
        "SELECT parse_filename(uri) AS file, source_mode, round(mean_confidence, 3) AS confidence "
        f"FROM '{predictions}' ORDER BY mean_confidence LIMIT 8"
    )
    script = f"import duckdb; duckdb.sql('''{query}''').show()"
    quoted = shlex.quote(script) if set(script) & set('"$`\\!') else f'"{script}"'  # the second is easier to read
    mlflow = _from_here(str(Path(sys.executable).parent / "mlflow"))
    return (
        f"{_from_here(output)}/index.html",
        f"{shlex.quote(python)} -c {quoted}",
        f"{shlex.quote(mlflow)} ui --backend-store-uri {shlex.quote(f'sqlite:///{_from_here(output)}/mlflow.db')}",
    )


def _from_here(path: str) -> str:
    """A path as short as it can be written from the current folder."""
    relative = os.path.relpath(path)
    return path if relative.startswith("..") else relative


def _tracking_uri(output: str) -> str:
    return f"sqlite:///{output}/mlflow.db"
