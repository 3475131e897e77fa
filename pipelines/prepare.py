"""Turn a raw dataset into a prepared one: Parquet shards per split, checked pair by pair, and a manifest.

1. List the samples (an image and its label map, or an image and its class), put those of a split in an order drawn
   from a hash of their ids, and cut it into shards. The order is mixed once, here, so that a reader who shuffles shards
   and a small buffer sees mixed batches though videos were listed frame by frame; and it depends on ids alone, not on
   how a folder happens to be listed.
   Images of prepared datasets (to be cut into crops, or mixed with others) stay as they lie there, which have been
   mixed already; the rows of a part are mixed then.
2. One Ray task per shard writes a part and then its record (`pipelines.prepare_shard`). A run that was killed is
   continued by the same command: shards with a record and an intact part are skipped.
3. Integer statistics are merged, `failures.parquet` and last `manifest.json` are written.

Output is byte-identical for any number of workers and any number of interruptions.
"""

import dataclasses
import hashlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice, takewhile
from typing import TYPE_CHECKING, Any

from pipelines import manifests, storage
from pipelines.artifact_runs import ArtifactRun
from pipelines.cluster import ray_cluster, task_results
from pipelines.datasets import DatasetConfig, Listing, list_dataset
from pipelines.datasets.listing import (
    ClassificationListing,
    CropListing,
    DatasetListing,
    Entry,
    MappedImage,
    MixedListing,
    Sample,
)
from pipelines.fault_points import fault_point
from pipelines.palettes import PaletteChoice, shown_palette
from pipelines.prepare_shard import (
    PROGRESS_FOLDER,
    RowMaker,
    Shard,
    ShardJob,
    ShardRecord,
    Statistics,
    classification_rows,
    crop_rows,
    mapped_rows,
    mixed,
    prepare_shard,
    segmentation_rows,
)
from pipelines.progress import progress
from pipelines.shards import FORMAT_VERSION, KIND, SHARD_FAILURES_SCHEMA, open_dataset, parquet_bytes, part_path
from pipelines.store_errors import StoreUnavailableError
from segcore import IGNORE_INDEX, Task

if TYPE_CHECKING:
    from pipelines.tracking import TrackedRun

FAILURES_FILE = "failures.parquet"
PLAN_FILE = "plan.json"
FIRST_SPLITS = ("train", "val", "test")
MAX_IMAGES_PER_PART = 4096  # the names of a shard's samples travel with its task and stay below 1 MB
FAILURES_SHOWN = 5

_OF_PREPARED = (CropListing, MixedListing)
"""Their images lie in parts that were mixed before: they keep their order, and the rows of a new part are mixed."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class PrepareConfig:
    """What to prepare, and where to."""

    dataset: DatasetConfig
    """Layout of the raw data."""
    output: str
    """Folder or URI of the prepared dataset: new, empty, or begun by the same command."""
    images_per_part: int = 64
    """Images per Parquet file, at most 4096. A file is read whole, so that 5 to 50 MB are a good size. `object_crops`:
    images whose crops make a file; 8 to 16 are enough."""
    max_failures: float = 0.01
    """Share of images or pairs that may be unusable (they are listed in failures.parquet) before the job stops."""
    palette: PaletteChoice = "distinct"
    """Colours of the classes in pictures: those that colour-blind people can tell apart, or the dataset's official ones
    (PASCAL VOC's where it has none). Colours of your own class table are always kept."""
    shuffle_seed: int = 0
    """Another seed gives another order of the images within their split."""
    workers: int | None = None
    """Ray tasks at a time. None: as many as the cluster has logical CPUs."""
    experiment: str = "segpipe"
    """MLflow experiment."""
    tracking_uri: str | None = None
    """MLflow server or SQLite file that shall hold a run of this job; default MLFLOW_TRACKING_URI, or no run."""

    def __post_init__(self) -> None:
        """Refuse numbers that make no sense."""
        if not 1 <= self.images_per_part <= MAX_IMAGES_PER_PART:
            raise ValueError(f"--images-per-part is {self.images_per_part}, expected 1 to {MAX_IMAGES_PER_PART}")
        if not 0 <= self.max_failures <= 1:
            raise ValueError(f"--max-failures is {self.max_failures}, expected a share from 0 to 1 (0.01 = 1 %)")
        if self.workers is not None and self.workers < 1:
            raise ValueError(f"--workers is {self.workers}, expected at least 1")


@dataclass(frozen=True, kw_only=True, slots=True)
class PrepareResult:
    """Where the prepared dataset is, and what is in it."""

    uri: str
    num_images: dict[str, int]
    num_failures: int
    already_complete: bool
    unit: str = "pairs"

    @property
    def closing_line(self) -> str:
        """One line for the terminal."""
        images = ", ".join(f"{split} {count}" for split, count in self.num_images.items())
        failures = storage.join(self.uri, FAILURES_FILE)
        left_out = f"; {self.num_failures} {self.unit} left out, see {failures}" if self.num_failures else ""
        done = "already prepared by this command, nothing to do" if self.already_complete else "prepared"
        return f"{done}: {self.uri} ({images} images{left_out})"


def prepare(config: PrepareConfig) -> PrepareResult:
    """Prepare a dataset, or finish one that the same command began.

    Raises:
        ValueError: the source is missing or empty, the output cannot be written or belongs to another command, or more
            pairs than `max_failures` allows are unusable.
    """
    listing = list_dataset(config.dataset)
    output = storage.absolute(config.output)
    plan = make_plan(listing, config)
    complete = storage.exists(storage.join(output, manifests.MANIFEST))
    finished_digest = ""
    if complete:
        _check_same_plan(output, manifests.read_manifest(output, kind=KIND).get("plan"), plan)
        storage.remove_tree(storage.join(output, PROGRESS_FOLDER))  # a run killed between manifest and cleaning
        finished_digest = open_dataset(output, task=listing.task).digest
    with _artifact_run(config, output, plan).opened(finished_digest=finished_digest) as run:
        if not complete:
            job = ShardJob(
                output=output,
                plan_digest=manifests.digest(plan),
                task=listing.task,
                num_classes=len(listing.class_table.names),
                make_rows=_row_maker(listing),
                resume=_begin(output, plan),
                mix_seed=config.shuffle_seed if isinstance(listing, _OF_PREPARED) else None,
            )
            records, failures = _run(config, listing, job)
            _finish(output, plan, listing, records, failures)
        result = _result(output, listing, already_complete=complete)
        if run is not None:
            _log(run, result, listing)
    return result


def _artifact_run(config: PrepareConfig, output: str, plan: dict[str, Any]) -> ArtifactRun:
    return ArtifactRun(
        tracking_uri=config.tracking_uri,
        experiment=config.experiment,
        job="prepare",
        output=output,
        parameters={
            **{name: plan[name] for name in ("dataset", "config", "images_per_part", "shuffle_seed", "num_pairs")},
            "max_failures": config.max_failures,
            "workers": config.workers,
        },
        work={"plan": manifests.digest(plan)},
    )


def _log(run: "TrackedRun", result: PrepareResult, listing: Listing) -> None:
    """What the dataset is, so that the runs which read it lead here."""
    from pipelines import tracking  # as in `artifact_runs`

    dataset = open_dataset(result.uri, task=listing.task)
    run.log_once(
        {"num_failures": result.num_failures}
        | {f"num_images/{split}": float(count) for split, count in result.num_images.items()}
    )
    code_commit = manifests.read_manifest(result.uri, kind=KIND)["code_commit"]
    run.set_tags({tracking.DATASET_DIGEST_TAG: dataset.digest, tracking.CODE_TAG: code_commit})


def _row_maker(listing: Listing) -> RowMaker:
    if isinstance(listing, ClassificationListing):
        return classification_rows
    if isinstance(listing, CropListing):
        return partial(crop_rows, class_table=listing.class_table, cut=listing.cut)
    if isinstance(listing, MixedListing):
        return partial(mapped_rows, class_table=listing.class_table, targets=listing.targets)
    return partial(segmentation_rows, class_table=listing.class_table, read=listing.read)


def make_plan(listing: Listing, config: PrepareConfig) -> dict[str, Any]:
    """Everything that the output's bytes depend on, apart from the files' content: JSON values only."""
    names = hashlib.sha256()
    for entry in (*listing.samples, *listing.unpaired):
        fields = {field.name: getattr(entry, field.name) for field in dataclasses.fields(entry)}  # asdict, but quick
        names.update(storage.json_bytes(fields))
    own = listing.class_table.palette
    shown = shown_palette(own, choice=config.palette, given=listing.palette_given)
    return {
        "dataset": listing.name,
        "config": listing.config,
        "class_table": dataclasses.asdict(listing.class_table),
        **({} if shown == own else {"palette": shown}),
        "images_per_part": config.images_per_part,
        "shuffle_seed": config.shuffle_seed,
        "num_pairs": len(listing.samples) + len(listing.unpaired),
        "pairs_sha256": names.hexdigest(),
    }


def cut_into_shards(listing: Listing, config: PrepareConfig) -> Iterator[Shard]:
    """The shards of every split; the same for the same ids, seed and size, however the samples were listed.

    Images of a prepared dataset stay in their order, so that a task reads few of its parts; samples that are read
    together stay neighbours, for the same reason.
    """
    together = listing.together if isinstance(listing, DatasetListing) else None

    def position(sample: Entry) -> tuple[bytes, bytes]:
        own = mixed(sample.image_id, seed=config.shuffle_seed)
        if together is None or not isinstance(sample, Sample):
            return b"", own
        return mixed(together(sample), seed=config.shuffle_seed), own

    for split in _split_names(listing):
        own: list[Entry] = [sample for sample in listing.samples if sample.split == split]
        samples = iter(own if isinstance(listing, _OF_PREPARED) else sorted(own, key=position))
        index = 0
        while chunk := tuple(islice(samples, config.images_per_part)):
            yield Shard(split=split, index=index, samples=_by_part(chunk))
            index += 1


def _by_part(samples: tuple[Entry, ...]) -> tuple[Entry, ...]:
    """Images of several datasets, those of a part after one another: a task keeps one part at a time."""
    mapped = [sample for sample in samples if isinstance(sample, MappedImage)]
    return tuple(sorted(mapped, key=lambda image: (image.part_uri, image.row))) or samples


def _begin(output: str, plan: dict[str, Any]) -> bool:
    """Claim the output folder for this plan; True where an earlier run of the same plan has begun."""
    storage.check_writable(output)
    plan_uri = storage.join(output, PROGRESS_FOLDER, PLAN_FILE)
    if not storage.exists(plan_uri) and (strangers := storage.list_files(output)):
        raise ValueError(
            f"{output!r} holds other files ({strangers[0]} and {len(strangers) - 1} more); "
            "give --output a new or empty folder"
        )
    if storage.create_exclusive(plan_uri, storage.json_bytes(plan)):
        return False
    _check_same_plan(output, storage.read_json(plan_uri), plan)
    logger.info("continuing an earlier run in %s", output)
    return True


def _check_same_plan(output: str, found: dict[str, Any] | None, expected: dict[str, Any]) -> None:
    # Through JSON, where tuples are lists.
    if manifests.digest(found) == manifests.digest(expected):
        return
    known = found or {}
    differing = [
        key
        for key in {**known, **expected}
        if found is None or manifests.digest(known.get(key)) != manifests.digest(expected.get(key))
    ]
    raise ValueError(
        f"{output!r} was begun or finished with other settings: {', '.join(differing)} differ "
        "(pairs_sha256: other files were listed; palette: --palette official keeps a dataset's own colours); give "
        "another --output, or remove that folder to prepare it anew"
    )


def _run(config: PrepareConfig, listing: Listing, job: ShardJob) -> tuple[list[ShardRecord], list[dict[str, str]]]:
    """Prepare every shard, a bounded number at a time; returns the records and all failures, in a fixed order."""
    failures = [
        {"image_id": entry.image_id, "split": entry.split, "source": entry.uri, "stage": "list", "reason": entry.reason}
        for entry in listing.unpaired
    ]
    num_pairs = len(listing.samples) + len(listing.unpaired)
    allowed = int(config.max_failures * num_pairs)
    records: list[ShardRecord] = []
    if len(failures) <= allowed:
        shards = takewhile(lambda _: len(failures) <= allowed, cut_into_shards(listing, config))
        with (
            ray_cluster(num_cpus_needed=config.workers or 1, why=f"{config.workers or 1} prepare tasks"),
            progress(f"prepare {listing.name}", total=len(listing.samples), unit="images") as advance,
        ):
            for shard, record in task_results(
                prepare_shard, shards, job, workers=config.workers, try_again=[StoreUnavailableError]
            ):
                records.append(record)
                fault_point("prepare.recorded")
                failures.extend(record.failures)
                advance(len(shard.samples))
    failures.sort(key=lambda row: (row["split"], row["image_id"], row["reason"]))
    if not failures and not any(record.num_rows for record in records):
        raise ValueError(
            f"none of the {num_pairs} images holds an object that is large enough, so there is no crop; "
            "give a smaller --min-object-px, or other --object-classes"
        )
    if len(failures) > allowed or not any(record.num_rows for record in records):
        _refuse(failures, f"{num_pairs} {listing.unit}", allowed=allowed, config=config, output=job.output)
    order = {split: position for position, split in enumerate(_split_names(listing))}
    return sorted(records, key=lambda record: (order[record.split], record.index)), failures


def _refuse(failures: list[dict[str, str]], of_all: str, *, allowed: int, config: PrepareConfig, output: str) -> None:
    uri = storage.join(output, FAILURES_FILE)
    storage.write_atomic(uri, parquet_bytes(failures, SHARD_FAILURES_SCHEMA))
    shown = "".join(f"\n  {row['source']}: {row['reason']}" for row in failures[:FAILURES_SHOWN])
    raise ValueError(
        f"{len(failures)} of {of_all} cannot be used, more than the {allowed} that --max-failures "
        f"{config.max_failures:g} allows. The first:{shown}\nAll that were found before the job stopped are in {uri}. "
        "Mend the files and run the same command, which continues; or allow more with --max-failures"
    )


def _finish(
    output: str,
    plan: dict[str, Any],
    listing: Listing,
    records: list[ShardRecord],
    failures: list[dict[str, str]],
) -> None:
    failures_bytes = parquet_bytes(failures, SHARD_FAILURES_SCHEMA)
    storage.write_atomic(storage.join(output, FAILURES_FILE), failures_bytes)
    table = listing.class_table
    by_split = {split: Statistics.zero(len(table.names)) for split in _split_names(listing)}
    for record in records:
        by_split[record.split].merge(record.statistics)
    total = Statistics.zero(len(table.names))
    for statistics in by_split.values():
        total.merge(statistics)
    normalised = "train" if by_split.get("train", total).num_pixels and "train" in by_split else None
    mean, std = (by_split[normalised] if normalised else total).mean_and_std()
    if listing.task == "segmentation":
        _refuse_one_class(total, listing)
    _warn(total, listing)
    storage.remove_unfinished(output)
    content = {
        "format_version": FORMAT_VERSION,
        "task": listing.task,
        "plan": plan,
        "class_names": table.names,
        "palette": plan.get("palette", table.palette),
        "ignore_index": IGNORE_INDEX,
        "channel_mean": mean,
        "channel_std": std,
        "channel_statistics_of": normalised or "all splits",
        "num_images": sum(record.num_rows for record in records),
        "num_failures": len(failures),
        "failures": {"path": FAILURES_FILE, "sha256": storage.sha256(failures_bytes)},
        "notes": total.notes,
        "splits": [_split_entry(split, statistics, records, listing.task) for split, statistics in by_split.items()],
        "code_commit": manifests.code_commit(),
    }
    manifests.write_manifest(output, kind=KIND, content=content)
    storage.remove_tree(storage.join(output, PROGRESS_FOLDER))


def _split_entry(split: str, statistics: Statistics, records: list[ShardRecord], task: Task) -> dict[str, Any]:
    counts = {"segmentation": "class_pixels", "classification": "class_images"}[task]
    own = [record for record in records if record.split == split]
    return {
        "name": split,
        "num_images": sum(record.num_rows for record in own),
        counts: getattr(statistics, f"{counts}_C"),
        "parts": [
            {
                "path": part_path(split, record.index),
                "num_rows": record.num_rows,
                "num_bytes": record.num_bytes,
                "sha256": record.sha256,
            }
            for record in own
            if record.num_rows
        ],
    }


def _refuse_one_class(total: Statistics, listing: Listing) -> None:
    names, present = listing.class_table.names, [count > 0 for count in total.class_pixels_C]
    if len(names) > 1 and sum(present) == 1 and sum(total.class_pixels_C) < total.num_pixels:
        raise ValueError(
            f"every label pixel is {names[present.index(True)]!r} or ignored, so there is nothing to learn; black and "
            "white masks hold 0 and 255, and this class table ignores 255: store class indices (0 and 1), or name the "
            "value 255 in the class table and take it out of `ignore`"
        )


def _warn(total: Statistics, listing: Listing) -> None:
    absent = [name for name, images in zip(listing.class_table.names, total.class_images_C, strict=True) if not images]
    if absent and not isinstance(listing, CropListing):  # whose classes that are no objects may be nowhere
        logger.warning("no image holds the class %s: check the class table and the files", ", ".join(absent))
    for note, count in sorted(total.notes.items()):
        if note.startswith("EXIF orientation") and listing.task == "segmentation":
            logger.warning("%d images: %s; their labels must show the image upright", count, note)
        elif isinstance(listing, CropListing):
            logger.warning("%d images: %s", count, note)


def _result(output: str, listing: Listing, *, already_complete: bool) -> PrepareResult:
    dataset = open_dataset(output, task=listing.task)
    return PrepareResult(
        uri=output,
        num_images={name: split.num_images for name, split in dataset.splits.items()},
        num_failures=manifests.read_manifest(output, kind=KIND)["num_failures"],
        already_complete=already_complete,
        unit=listing.unit,
    )


def _split_names(listing: Listing) -> list[str]:
    """train, val, test first, so far as they are there; then others by name."""
    found = {sample.split for sample in listing.samples}
    return [split for split in FIRST_SPLITS if split in found] + sorted(found - set(FIRST_SPLITS))
