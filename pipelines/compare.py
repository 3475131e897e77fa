"""Compare the trained networks of an MLflow experiment: one table, one page.

<output>/comparison.csv      one row per run: scores, per-class IoU, size, cost, speed, what differs
<output>/rows.csv            one row per network: means and standard deviations over its seeds
<output>/pairs.csv           one row per pair of networks on the same images: difference, interval, p, verdict
<output>/classes_moved.csv   from one network to another: each class's IoU
<output>/images_moved.csv    likewise: the images whose IoU moved most
<output>/index.html          all of it, with charts, the same images by each network, and the images that moved
<output>/comparison.md       its words and tables
<output>/<table>.csv         with --table: the runs beside the rows of a paper's table, also on the page
<output>/manifest.json       written last

All but the manifest are also artifacts of an MLflow run of the same experiment.
"""

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipelines import storage, tracking
from pipelines.comparison.moved import Movement, draw_moves, find_movement
from pipelines.comparison.page import Comparison, comparison_sections
from pipelines.comparison.paper_tables import find_table
from pipelines.comparison.paper_tables_report import BesideTable, beside_table
from pipelines.comparison.pictures import SameImage, examine_models
from pipelines.comparison.report import (
    class_moves_csv,
    csv_bytes,
    image_moves_csv,
    pairs_csv,
    rows_csv,
    terminal_tables,
)
from pipelines.comparison.rows import ComparedRow, find_row, group_rows
from pipelines.comparison.runs import ComparedRun, describe_run, differing_fields, finished_runs, unique_names, warnings
from pipelines.comparison.significance import ImageScores, load_image_scores, row_pairs
from pipelines.manifests import code_commit, write_manifest
from pipelines.markdown import render_markdown
from pipelines.pages import render_page
from pipelines.shards import PreparedDataset, open_dataset

logger = logging.getLogger(__name__)

KIND = "comparison"
JOB = "compare"


@dataclass(frozen=True, kw_only=True, slots=True)
class CompareConfig:
    """Which runs, on which images."""

    experiment: str
    """MLflow experiment whose finished training runs are compared."""
    output: str
    """Folder or URI for the page and the CSV."""
    data: str | None = None
    """Prepared dataset for the pictures and the speed; default: the one that the newest run was trained on."""
    split: str = "val"
    """Split whose evaluations count, and whose images are shown."""
    num_images: int = 6
    """Images to show, spread evenly over the split."""
    runs: tuple[str, ...] = ()
    """Names of the runs to compare; default all."""
    filter: str = ""
    """More that must hold of the runs, in MLflow's filter language: "params.weights = 'timm'"."""
    seeds_apart: bool = False
    """Give each run a row of its own; default: runs that differ in their seed alone are one row."""
    pair: tuple[str, str] | None = None
    """From which network or run to which one the classes and images moved; default: from the second best to the
    best."""
    num_moved: int = 50
    """Images to show of those whose IoU moved most between the two."""
    threads: int = 1
    """CPU threads for the pictures, the speed and mIoU*."""
    table: str | None = None
    """Lay the runs beside a paper's rows: dupsampling (runs of the recipes <dataset>.table...), deeplabv3plus, dfanet,
    encnet or deconvnet."""
    num_bound_images: int = 200
    """Images whose labels --table dupsampling measures mIoU* with, spread evenly over the split."""
    tracking_uri: str | None = None
    """MLflow server or SQLite file; default MLFLOW_TRACKING_URI, or sqlite:///mlflow.db here."""

    def __post_init__(self) -> None:
        if self.num_images < 0 or self.threads < 1:
            raise ValueError(
                f"--num-images is {self.num_images} and --threads {self.threads}; give 0 or more, and 1 or more"
            )
        if self.num_bound_images < 1:
            raise ValueError(f"--num-bound-images is {self.num_bound_images}; give 1 or more")
        if self.num_moved < 0:
            raise ValueError(f"--num-moved is {self.num_moved}; give 0 or more")
        if self.table is not None:
            find_table(self.table)


@dataclass(frozen=True, kw_only=True, slots=True)
class CompareResult:
    """What a comparison left: the folder, the MLflow run that has it too, and the tables for the terminal."""

    output: str
    num_runs: int
    tables: str
    run_id: str

    @property
    def page(self) -> str:
        """URI of the page."""
        return storage.join(self.output, "index.html")

    @property
    def closing_line(self) -> str:
        return f"{self.tables}\ncompared {self.num_runs} run(s); page {self.page}"


def compare(config: CompareConfig) -> CompareResult:
    """Compare the finished training runs of an experiment.

    Raises:
        ValueError: there is no such experiment, run or finished run (the message lists what there is); MLflow refuses
            the filter, or does not answer; a dataset that was asked for cannot be read; no run is of a row of the
            table.
    """
    tracking.connect(config.tracking_uri)
    storage.check_writable(config.output)
    trainings = tracking.find_runs(experiment=config.experiment, job="train", condition=config.filter)
    records = finished_runs(trainings, experiment=config.experiment, names=config.runs, condition=config.filter)
    evaluations = tracking.find_runs(experiment=config.experiment, job="evaluate")
    runs, left_out = _described(records, evaluations, config)
    described = {run.run_id for run in runs}
    dataset = _dataset(config, [record for record in records if record.run_id in described])
    rows = group_rows(runs, seeds_together=not config.seeds_apart)
    pair = _pair(config, rows)
    parameters = dataclasses.asdict(config) | {"tracking_uri": None, "compared": ", ".join(run.name for run in runs)}
    with tracking.tracked_run(
        experiment=config.experiment,
        name=f"comparison of {len(rows)}",
        job=JOB,
        parameters=parameters,
        tags={},
        work={"output": config.output, "runs": sorted(described)},
    ) as run:
        return _compare(config, rows, dataset, pair, left_out, run)


def _compare(
    config: CompareConfig,
    rows: list[ComparedRow],
    dataset: PreparedDataset | None,
    pair: tuple[str, str] | None,
    notes: list[str],
    tracked: tracking.TrackedRun,
) -> CompareResult:
    rows, images = _examined(config, rows, dataset)
    runs = [run for row in rows for run in row.runs]
    beside = _beside(config, runs, dataset)
    scores, unscored = load_image_scores(runs)
    pairs, unpaired = row_pairs(rows, scores)
    movement, unmoved = _movement(config, rows, pair, scores, dataset)
    notes = [*notes, *warnings(runs), *unscored, *unpaired, *unmoved]
    for note in notes:
        logger.warning("%s", note)
    comparison = Comparison(
        experiment=config.experiment,
        rows=rows,
        pairs=pairs,
        movement=movement,
        images=images,
        dataset=dataset,
        split=config.split,
        notes=notes,
        threads=config.threads,
        paper=beside.section if beside else None,
    )
    files = {"comparison.csv": csv_bytes(runs), "rows.csv": rows_csv(rows), **_rendered(comparison)}
    if pairs:
        files["pairs.csv"] = pairs_csv(pairs)
    if movement is not None:
        files |= {"classes_moved.csv": class_moves_csv(movement), "images_moved.csv": image_moves_csv(movement)}
    if beside is not None:
        files[f"{config.table}.csv"] = beside.csv
    _write(config, runs, files, tracked)
    tables = terminal_tables(rows, pairs) + (f"\n{beside.terminal}" if beside else "")
    return CompareResult(output=config.output, num_runs=len(runs), tables=tables, run_id=tracked.run_id)


def _write(
    config: CompareConfig, runs: Sequence[ComparedRun], files: Mapping[str, bytes], tracked: tracking.TrackedRun
) -> None:
    """The files, to MLflow too, and the manifest last."""
    for name, data in files.items():
        storage.write_atomic(storage.join(config.output, name), data)
        tracked.log_bytes(name, data)
    content = {
        "experiment": config.experiment,
        "runs": {run.name: run.run_id for run in runs},
        "differing": sorted(differing_fields(runs)),
        "files": {name: storage.sha256(data) for name, data in files.items()},
        "mlflow_run_id": tracked.run_id,
        "code_commit": code_commit(),
    }
    write_manifest(config.output, kind=KIND, content=content)


def _rendered(comparison: Comparison) -> dict[str, bytes]:
    sections = comparison_sections(comparison)
    title, subtitle = comparison.title, comparison.subtitle
    footer = "Written by jobs/compare.py; the tables are in the CSV files beside it."
    return {
        "index.html": render_page(title, sections, subtitle=subtitle, footer=footer),
        "comparison.md": render_markdown(title, sections, subtitle=subtitle, footer=footer),
    }


def _examined(
    config: CompareConfig, rows: list[ComparedRow], dataset: PreparedDataset | None
) -> tuple[list[ComparedRow], list[SameImage]]:
    """The rows with what was measured here, and pictures by the best run of each."""
    if dataset is None:
        return rows, []
    measured, images = examine_models(
        [run for row in rows for run in row.runs],
        dataset,
        drawn={row.best_run.run_id for row in rows},
        split=config.split,
        num_images=config.num_images,
        threads=config.threads,
    )
    known = {run.run_id: run for run in measured}
    return [dataclasses.replace(row, runs=tuple(known[run.run_id] for run in row.runs)) for row in rows], images


def _beside(config: CompareConfig, runs: list[ComparedRun], dataset: PreparedDataset | None) -> BesideTable | None:
    if config.table is None:
        return None
    return beside_table(
        config.table,
        runs,
        dataset,
        split=config.split,
        num_bound_images=config.num_bound_images,
        threads=config.threads,
    )


def _pair(config: CompareConfig, rows: Sequence[ComparedRow]) -> tuple[str, str] | None:
    """Names of the two between which things moved; None where there is one row alone.

    Raises:
        ValueError: one that was asked for is not there.
    """
    if config.pair is not None:
        for name in config.pair:
            find_row(rows, name)
        return config.pair
    return (rows[1].name, rows[0].name) if len(rows) > 1 else None


def _movement(
    config: CompareConfig,
    rows: Sequence[ComparedRow],
    pair: tuple[str, str] | None,
    scores: Mapping[str, ImageScores],
    dataset: PreparedDataset | None,
) -> tuple[Movement | None, list[str]]:
    """What moved between the two, and why not where nothing can be said or shown."""
    if pair is None:
        return None, []
    first, second = (find_row(rows, name) for name in pair)
    try:
        movement = find_movement(first, second, scores, count=config.num_moved)
    except ValueError as error:
        return None, [f"What moved from {first.name} to {second.name} is not known: {error}"]
    if not movement.images or dataset is None:
        return movement, []
    run, _ = movement.shown
    if (run.scored_digest, run.class_names) != (dataset.digest, dataset.class_names):
        return movement, [
            f"No pictures of the images that moved from {first.name} to {second.name}: they were scored on dataset "
            f"{run.scored_digest[:12]}, and {dataset.uri} is {dataset.digest[:12]}; give --data"
        ]
    notes = []
    if any(run.shown for run in movement.shown):
        notes = [
            "The evaluations showed images otherwise than plainly, as the masks of the images that moved are drawn."
        ]
    drawn = draw_moves(movement.images, *movement.shown, dataset, split=config.split, threads=config.threads)
    return dataclasses.replace(movement, pictures=tuple(drawn)), notes


def _described(
    records: Sequence[tracking.RunRecord], evaluations: Sequence[tracking.RunRecord], config: CompareConfig
) -> tuple[list[ComparedRun], list[str]]:
    """The runs whose model folders can still be read, and a line for each of the others.

    Raises:
        ValueError: no model folder can be read.
    """
    runs: list[ComparedRun] = []
    left_out: list[str] = []
    for record in records:
        try:
            runs.append(describe_run(record, evaluations, split=config.split))
        except ValueError as error:
            left_out.append(f"Run {record.name!r} is left out, its model cannot be read: {error}")
    if not runs:
        raise ValueError(" ".join(left_out))
    return unique_names(runs), left_out


def _dataset(config: CompareConfig, records: Sequence[tracking.RunRecord]) -> PreparedDataset | None:
    """The dataset for pictures and speed; one that nobody asked for by name may be gone."""
    if config.data is not None:
        dataset = open_dataset(config.data)
        dataset.part_uris(config.split)
        return dataset
    data = records[-1].parameters.get("data", "")
    try:
        dataset = open_dataset(data)
        dataset.part_uris(config.split)
    except (ValueError, OSError) as error:
        logger.warning("no pictures and no speeds: %s; give --data and --split", error)
        return None
    return dataset
