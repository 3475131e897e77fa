"""Examine a dataset before anything is trained on it: a raw layout, or one that `prepare` wrote.

1. List the pairs, as `prepare` does, and cut them into slices in the order of the listing.
2. One Ray task per slice reads its pairs and writes down what is in them (`pipelines.health.facts`).
3. The slices' rows are put together in order, and the checks make findings of them.
4. Tasks measure what labels keep when they are enlarged by 8, 16 and 32, and draw the examples.
5. Tables, page and last the manifest are written.

The same dataset, limits and code give the same files for any number of workers.

    <output>/index.html         for a person
    <output>/findings.parquet   FINDINGS_SCHEMA: what is wrong, how often, and what to do
    <output>/images.parquet     IMAGES_SCHEMA: the facts of every pair
    <output>/recovery.parquet   RECOVERY_SCHEMA: bounds of mIoU
    <output>/manifest.json      written last
"""

import dataclasses
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Union

import numpy as np
import pyarrow as pa
import tyro

from pipelines import manifests, storage
from pipelines.artifact_runs import ArtifactRun
from pipelines.cluster import packed_table, ray_cluster, task_results, unpacked_table
from pipelines.datasets import DatasetConfig, list_dataset
from pipelines.datasets.listing import DatasetListing, Sample, Unpaired
from pipelines.exit_codes import UNHEALTHY, JobStoppedError
from pipelines.health.class_checks import check_classes
from pipelines.health.duplicates import check_duplicates
from pipelines.health.examples import Drawn, draw
from pipelines.health.facts import examine_samples
from pipelines.health.file_checks import check_files
from pipelines.health.findings import FINDINGS_SCHEMA, Example, Finding, Severity, counted, in_order
from pipelines.health.image_checks import check_images
from pipelines.health.label_checks import check_labels
from pipelines.health.limits import Limits
from pipelines.health.prepared import PreparedConfig, list_prepared
from pipelines.health.recovery import BLOCK_SIDES, RECOVERY_SCHEMA, choose_sample, recovery_bounds
from pipelines.health.report import PICTURES_SHOWN, doctor_page
from pipelines.health.survey import Survey, survey_of
from pipelines.palettes import PaletteChoice, shown_palette
from pipelines.progress import progress
from pipelines.shards import parquet_bytes
from pipelines.store_errors import StoreUnavailableError

if TYPE_CHECKING:
    from pipelines.tracking import TrackedRun

    DoctorSource = Any
else:  # the subcommands: those of `prepare`, and one more
    DoctorSource = Union[DatasetConfig, Annotated[PreparedConfig, tyro.conf.subcommand("prepared")]]  # noqa: UP007

KIND = "dataset_report"
PAGE, FINDINGS_FILE, IMAGES_FILE, RECOVERY_FILE = "index.html", "findings.parquet", "images.parquet", "recovery.parquet"
IMAGES_PER_TASK = 64

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class DoctorConfig:
    """What to examine, and where the report goes."""

    dataset: DoctorSource
    """Layout of the data."""
    output: str
    """Folder or URI of the report: new, empty, or that of an earlier report, which is replaced."""
    strict: bool = False
    """End with exit code 5 on warnings too."""
    palette: PaletteChoice = "distinct"
    """Colours of the classes on the page, as for `prepare`."""
    recovery_images: int = 32
    """Labels that fit, and as many that score, what enlargement leaves of labels; 0 leaves it out."""
    limits: Limits = field(default_factory=Limits)
    """From where on something is reported."""
    workers: int | None = None
    """Ray tasks at a time. None: as many as the cluster has logical CPUs."""
    experiment: str = "segpipe"
    """MLflow experiment."""
    tracking_uri: str | None = None
    """MLflow server or SQLite file that shall hold a run of this job; default MLFLOW_TRACKING_URI, or no run."""

    def __post_init__(self) -> None:
        """Refuse numbers that make no sense."""
        if self.recovery_images < 0:
            raise ValueError(f"--recovery-images is {self.recovery_images}, expected at least 0")
        if self.workers is not None and self.workers < 1:
            raise ValueError(f"--workers is {self.workers}, expected at least 1")


@dataclass(frozen=True, kw_only=True, slots=True)
class DoctorResult:
    """Where the report is, and what it says."""

    uri: str
    num_pairs: int
    findings: tuple[Finding, ...]

    @property
    def counts(self) -> dict[Severity, int]:
        """Findings by severity."""
        return counted(self.findings)

    @property
    def closing_line(self) -> str:
        """One line for the terminal."""
        counts = ", ".join(f"{count} {severity}{'s' * (count != 1)}" for severity, count in self.counts.items())
        worst = f" ({', '.join(finding.code for finding in self.findings[:4])})" if self.findings else ""
        return f"{self.num_pairs} pairs examined: {counts}{worst}; see {storage.join(self.uri, PAGE)}"


def doctor(config: DoctorConfig) -> DoctorResult:
    """Examine a dataset, and end with an exit code of its own where it is not sound.

    Raises:
        JobStoppedError: the report is written, and there are errors, or with `strict` warnings.
        ValueError: as `examine_dataset`.
    """
    return sound(examine_dataset(config), strict=config.strict)


def sound(result: DoctorResult, *, strict: bool) -> DoctorResult:
    """The same result, where it says nothing that ends the job.

    Raises:
        JobStoppedError: it has errors, or where `strict` warnings.
    """
    if result.counts["error"] or (strict and result.counts["warning"]):
        raise JobStoppedError(result.closing_line, UNHEALTHY)
    return result


def examine_dataset(config: DoctorConfig) -> DoctorResult:
    """Examine a dataset and write the report, whatever is found.

    Raises:
        ValueError: the source is missing, empty or not for segmentation, or the output holds other files.
    """
    listing, left_out = _listing(config)
    output = storage.absolute(config.output)
    _claim(output)
    parameters = {
        "dataset": listing.name,
        "config": listing.config,
        "limits": dataclasses.asdict(config.limits),
        "recovery_images": config.recovery_images,
        "num_pairs": len(listing.samples) + len(listing.unpaired),
    }
    run = ArtifactRun(
        tracking_uri=config.tracking_uri,
        experiment=config.experiment,
        job="doctor",
        output=output,
        parameters=parameters | {"strict": config.strict, "workers": config.workers},
        work=parameters,
    )
    with (
        run.opened() as tracked,
        ray_cluster(num_cpus_needed=config.workers or 1, why=f"{config.workers or 1} doctor tasks"),
    ):
        survey = _survey(listing, left_out, config)
        findings, judged = find(survey, config.limits)
        recovery = _recovery(survey, listing, config)
        page = _page(survey, listing, findings, recovery, config, judged=judged)
        files = {
            IMAGES_FILE: _table_bytes(survey.table),
            FINDINGS_FILE: parquet_bytes([finding.row() for finding in findings], FINDINGS_SCHEMA),
            RECOVERY_FILE: parquet_bytes(recovery, RECOVERY_SCHEMA),
            PAGE: page,
        }
        result = DoctorResult(uri=output, num_pairs=survey.table.num_rows, findings=tuple(findings))
        _write(output, files, parameters, result)
        if tracked is not None:
            _log(tracked, files[PAGE], result)
    return result


def find(survey: Survey, limits: Limits) -> tuple[list[Finding], bool]:
    """Every finding, in order; and whether the labels fit the class table well enough to judge the classes."""
    verdict = check_labels(survey, limits)
    findings = [*verdict.findings, *check_files(survey, explained=verdict.explained)]
    if verdict.classes_can_be_judged and len(survey.labelled()):
        findings += check_classes(survey, limits)
    findings += [*check_images(survey, limits), *check_duplicates(survey, limits)]
    return in_order(findings), verdict.classes_can_be_judged


def _listing(config: DoctorConfig) -> tuple[DatasetListing, tuple[Unpaired, ...]]:
    if isinstance(config.dataset, PreparedConfig):
        listing, left_out = list_prepared(config.dataset)
    else:
        found, left_out = list_dataset(config.dataset), ()
        if not isinstance(found, DatasetListing):
            raise ValueError(
                f"{found.name!r} is no dataset of images with label maps, which the doctor examines; for crops, "
                "prepare them first and examine the result: python jobs/doctor.py prepared --data ..."
            )
        listing = found
    if not listing.samples:
        raise ValueError(f"{listing.name!r} lists no pair of image and label; check the paths")
    return listing, left_out


def _claim(output: str) -> None:
    """Make room for a report: the folder is empty, or holds an earlier report, whose manifest goes first."""
    storage.check_writable(output)
    own = {storage.join(output, name) for name in (PAGE, FINDINGS_FILE, IMAGES_FILE, RECOVERY_FILE, manifests.MANIFEST)}
    strangers = [uri for uri in storage.list_files(output) if uri not in own]
    manifest = storage.join(output, manifests.MANIFEST)
    if not strangers and storage.exists(manifest):
        manifests.read_manifest(output, kind=KIND)  # of another kind: refused
        storage.remove_file(manifest)
    if strangers:
        raise ValueError(
            f"{output!r} holds other files ({strangers[0]} and {len(strangers) - 1} more); "
            "give --output a new or empty folder, or that of an earlier report"
        )


def _survey(listing: DatasetListing, left_out: tuple[Unpaired, ...], config: DoctorConfig) -> Survey:
    starts = range(0, len(listing.samples), IMAGES_PER_TASK)
    slices: dict[int, bytes] = {}
    with progress(f"examine {listing.name}", total=len(listing.samples), unit="pairs") as advance:
        for (start, samples), rows in task_results(
            _examine_slice,
            ((start, listing.samples[start : start + IMAGES_PER_TASK]) for start in starts),
            listing.read,
            listing.class_table,
            workers=config.workers,
            try_again=[StoreUnavailableError],
        ):
            slices[start] = rows
            advance(len(samples))
    return survey_of(listing, (unpacked_table(slices[start]) for start in starts), left_out)


def _examine_slice(piece: tuple[int, tuple[Sample, ...]], *arguments: Any) -> bytes:
    return packed_table(examine_samples(piece[1], *arguments))


def _recovery(survey: Survey, listing: DatasetListing, config: DoctorConfig) -> list[dict[str, Any]]:
    sample = choose_sample(survey, listing.samples, num_images=config.recovery_images)
    if sample is None:
        return []
    found = dict(
        task_results(
            recovery_bounds, iter(BLOCK_SIDES), sample, listing.read, listing.class_table, workers=config.workers
        )
    )
    return [row for side in BLOCK_SIDES for row in found[side]]


def _page(
    survey: Survey,
    listing: DatasetListing,
    findings: Sequence[Finding],
    recovery: Sequence[dict[str, Any]],
    config: DoctorConfig,
    *,
    judged: bool,
) -> bytes:
    """Draw the examples, and the page around them."""
    places = np.unique(np.linspace(0, len(listing.samples) - 1, PICTURES_SHOWN).round().astype(int))
    some = [
        Example(image_ids=(listing.samples[place].image_id,), text=listing.samples[place].split) for place in places
    ]
    wanted = {ids for finding in findings for ids in _pictured(finding)} | {example.image_ids for example in some}
    named = {image_id for ids in wanted for image_id in ids}
    by_id = {sample.image_id: sample for sample in listing.samples if sample.image_id in named}
    pieces: Iterator[tuple[Sample, ...]] = (tuple(by_id[image_id] for image_id in ids) for ids in sorted(wanted))
    own = listing.class_table
    palette = shown_palette(own.palette, choice=config.palette, given=listing.palette_given)
    table = dataclasses.replace(own, palette=palette)
    pictures: dict[tuple[str, ...], Drawn | None] = {
        tuple(sample.image_id for sample in samples): drawn
        for samples, drawn in task_results(draw, pieces, listing.read, table, workers=config.workers)
    }
    return doctor_page(survey, findings, recovery, some, pictures, name=listing.name, palette=palette, judged=judged)


def _pictured(finding: Finding) -> list[tuple[str, ...]]:
    return [example.image_ids for example in finding.examples if example.image_ids][:PICTURES_SHOWN]


def _table_bytes(table: pa.Table) -> bytes:
    """A Parquet file of a table; `parquet_bytes` takes rows, and stores small row groups for blobs."""
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", compression_level=3, version="2.6")
    data: bytes = sink.getvalue().to_pybytes()
    return data


def _write(output: str, files: dict[str, bytes], parameters: dict[str, Any], result: DoctorResult) -> None:
    for name, data in files.items():
        storage.write_atomic(storage.join(output, name), data)
    content = parameters | {
        "num_findings": result.counts,
        "codes": {finding.code: finding.count for finding in result.findings},
        "files": {name: {"sha256": storage.sha256(data), "num_bytes": len(data)} for name, data in files.items()},
        "code_commit": manifests.code_commit(),
    }
    manifests.write_manifest(output, kind=KIND, content=content)


def _log(run: "TrackedRun", page: bytes, result: DoctorResult) -> None:
    from pipelines import tracking  # as in `artifact_runs`

    run.log_once(
        {"num_pairs": float(result.num_pairs)} | {f"num_{name}s": float(count) for name, count in result.counts.items()}
    )
    run.log_bytes(PAGE, page)
    run.set_tags({tracking.CODE_TAG: manifests.code_commit()})
