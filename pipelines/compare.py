"""Compare the trained networks of an MLflow experiment: one table, one page.

<output>/comparison.csv   one row per run: scores, per-class IoU, size, cost, speed, what differs
<output>/index.html       the same, with a chart and the same images by each model
<output>/<table>.csv      with --table: the runs beside the rows of a paper's table, also on the page
<output>/manifest.json    written last
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from pipelines import storage, tracking
from pipelines.comparison.paper_tables import find_table
from pipelines.comparison.paper_tables_report import beside_table
from pipelines.comparison.pictures import SameImage, examine_models
from pipelines.comparison.report import comparison_page, csv_bytes, terminal_tables
from pipelines.comparison.runs import ComparedRun, describe_run, differing_fields, finished_runs, unique_names, warnings
from pipelines.manifests import code_commit, write_manifest
from pipelines.shards import PreparedDataset, open_dataset

logger = logging.getLogger(__name__)

KIND = "comparison"


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
    threads: int = 1
    """CPU threads for the pictures, the speed and mIoU*."""
    table: str | None = None
    """Lay the runs beside a paper's table: dupsampling, for runs of the recipes <dataset>.table..."""
    num_bound_images: int = 200
    """Images whose labels --table measures mIoU* with, spread evenly over the split."""
    tracking_uri: str | None = None
    """MLflow server or SQLite file; default MLFLOW_TRACKING_URI, or sqlite:///mlflow.db here."""

    def __post_init__(self) -> None:
        if self.num_images < 0 or self.threads < 1:
            raise ValueError(
                f"--num-images is {self.num_images} and --threads {self.threads}; give 0 or more, and 1 or more"
            )
        if self.num_bound_images < 1:
            raise ValueError(f"--num-bound-images is {self.num_bound_images}; give 1 or more")
        if self.table is not None:
            find_table(self.table)


@dataclass(frozen=True, kw_only=True, slots=True)
class CompareResult:
    """What a comparison left: the folder, and the table for the terminal."""

    output: str
    num_runs: int
    tables: str

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
        ValueError: there is no such experiment, run or finished run (the message lists what there is); a dataset that
            was asked for cannot be read; no run is of a row of the table; MLflow does not answer.
    """
    tracking.connect(config.tracking_uri)
    storage.check_writable(config.output)
    trainings = tracking.find_runs(experiment=config.experiment, job="train")
    records = finished_runs(trainings, experiment=config.experiment, names=config.runs)
    evaluations = tracking.find_runs(experiment=config.experiment, job="evaluate")
    runs, left_out = _described(records, evaluations, config)
    described = {run.run_id for run in runs}
    dataset = _dataset(config, [record for record in records if record.run_id in described])
    beside = None
    if config.table is not None:
        beside = beside_table(
            config.table,
            runs,
            dataset,
            split=config.split,
            num_bound_images=config.num_bound_images,
            threads=config.threads,
        )
    images: list[SameImage] = []
    if dataset is not None:
        runs, images = examine_models(
            runs, dataset, split=config.split, num_images=config.num_images, threads=config.threads
        )
    runs = sorted(runs, key=lambda run: -run.scores.get("mean_iou", -1.0))
    notes = [*left_out, *warnings(runs)]
    for note in notes:
        logger.warning("%s", note)
    files = {
        "comparison.csv": csv_bytes(runs),
        "index.html": comparison_page(
            config.experiment,
            runs,
            images,
            dataset=dataset,
            split=config.split,
            notes=notes,
            threads=config.threads,
            paper=beside.section if beside else None,
        ),
    }
    if beside is not None:
        files[f"{config.table}.csv"] = beside.csv
    for name, data in files.items():
        storage.write_atomic(storage.join(config.output, name), data)
    content = {
        "experiment": config.experiment,
        "runs": {run.name: run.run_id for run in runs},
        "differing": sorted(differing_fields(runs)),
        "files": {name: storage.sha256(data) for name, data in files.items()},
        "code_commit": code_commit(),
    }
    write_manifest(config.output, kind=KIND, content=content)
    tables = terminal_tables(runs) + (f"\n{beside.terminal}" if beside else "")
    return CompareResult(output=config.output, num_runs=len(runs), tables=tables)


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
