"""One shard of `prepare`: read its images, check them, write its part and then its record. Runs in a Ray task.

The record is the shard's commit: a part without a record, or whose bytes differ from it, is written again.
"""

import dataclasses
import hashlib
import logging
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipelines import storage
from pipelines.datasets.listing import ClassifiedImage, ClassTable, Cut, Entry, MappedImage, PreparedImage, Sample
from pipelines.fault_points import fault_point
from pipelines.intake.formats import ImageError, is_plain_gray_png
from pipelines.intake.images import DecodedImage, decode_image
from pipelines.intake.labels import decode_labels, encode_labels_png
from pipelines.intake.levels import channel_sums, label_counts
from pipelines.shards import FORMAT_VERSION, SCHEMAS, TRAINING_COLUMNS, parquet_bytes, parse_part, part_path
from pipelines.store_errors import StoreUnavailableError
from segcore import Task

PROGRESS_FOLDER = "_progress"
_SOURCE_COLUMNS = (*TRAINING_COLUMNS["segmentation"], "source")

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Shard:
    """A deterministic cut of one split, before it is read."""

    split: str
    index: int
    samples: tuple[Entry, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardJob:
    """What every shard of a run shares.

    Attributes:
        output: the dataset's folder, absolute.
        plan_digest: names the run; a record of another plan is not believed.
        task: chooses the schema of a row.
        num_classes: C.
        make_rows: reads and checks a sample, adds it to the statistics, and returns its rows: `segmentation_rows`,
            `crop_rows` or `mapped_rows` with their settings, or `classification_rows`. Picklable.
        resume: look for parts of an earlier run.
        mix_seed: the rows of a part are put in the order of `mixed` with this seed; None leaves them in that of the
            samples.
    """

    output: str
    plan_digest: str
    task: Task
    num_classes: int
    make_rows: "RowMaker"
    resume: bool
    mix_seed: int | None = None


@dataclass(kw_only=True, slots=True)
class Statistics:
    """Additive state: exact integer sums over pixels, so that no order of shards changes a digit.

    Attributes:
        class_pixels_C: pixels of each class, ignored ones left out; zeros in a classification dataset.
        class_images_C: images that hold each class.
        num_pixels: pixels of all images, ignored ones included.
        channel_sums, channel_square_sums: of 8-bit red, green, blue. Python integers: they cannot overflow.
        notes: how many images each kind of treatment met.
    """

    class_pixels_C: list[int]
    class_images_C: list[int]
    num_pixels: int = 0
    channel_sums: list[int] = field(default_factory=lambda: [0, 0, 0])
    channel_square_sums: list[int] = field(default_factory=lambda: [0, 0, 0])
    notes: dict[str, int] = field(default_factory=dict)

    @classmethod
    def zero(cls, num_classes: int) -> "Statistics":
        """Nothing seen."""
        return cls(class_pixels_C=[0] * num_classes, class_images_C=[0] * num_classes)

    def update(self, image: DecodedImage, labels_HW: NDArray[np.uint8]) -> list[int]:
        """Add an image and its label map; returns its own `class_pixels`."""
        self._add_pixels(image)
        own: list[int] = label_counts(labels_HW)[: len(self.class_pixels_C)].tolist()
        self.class_pixels_C = _added(self.class_pixels_C, own)
        self.class_images_C = _added(self.class_images_C, [int(count > 0) for count in own])
        return own

    def update_class(self, image: DecodedImage, class_index: int) -> None:
        """Add an image of one class."""
        self._add_pixels(image)
        self.class_images_C[class_index] += 1

    def _add_pixels(self, image: DecodedImage) -> None:
        sums, square_sums = channel_sums(image.pixels_HW3)
        self.channel_sums = _added(self.channel_sums, sums)
        self.channel_square_sums = _added(self.channel_square_sums, square_sums)
        self.num_pixels += image.pixels_HW3.shape[0] * image.pixels_HW3.shape[1]
        self.note(image.notes)

    def note(self, notes: Iterable[str]) -> None:
        """Count one image for each kind of note; what follows in brackets is not part of the kind."""
        self.notes = dict(Counter(self.notes) + Counter(note.split(" (")[0] for note in notes))

    def merge(self, other: "Statistics") -> None:
        """Add what another state has seen."""
        self.class_pixels_C = _added(self.class_pixels_C, other.class_pixels_C)
        self.class_images_C = _added(self.class_images_C, other.class_images_C)
        self.num_pixels += other.num_pixels
        self.channel_sums = _added(self.channel_sums, other.channel_sums)
        self.channel_square_sums = _added(self.channel_square_sums, other.channel_square_sums)
        self.notes = dict(Counter(self.notes) + Counter(other.notes))

    def mean_and_std(self) -> tuple[list[float], list[float]]:
        """Channel mean and standard deviation with levels from 0 to 1, rounded once, from exact fractions."""
        n = self.num_pixels
        means = [total / (255 * n) for total in self.channel_sums]
        variances = [
            (n * squares - total * total) / (255 * n) ** 2
            for total, squares in zip(self.channel_sums, self.channel_square_sums, strict=True)
        ]
        return means, [variance**0.5 for variance in variances]


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardRecord:
    """What became of a shard; `num_rows` 0 means that there is no part file."""

    split: str
    index: int
    num_rows: int
    num_bytes: int
    sha256: str
    statistics: Statistics
    failures: tuple[dict[str, str], ...]


def prepare_shard(shard: Shard, job: ShardJob) -> ShardRecord:
    """Write one shard's part and record, unless an earlier run has done so. The same bytes whoever writes them."""
    if job.resume and (finished := _finished(shard, job)) is not None:
        return finished
    cv2.setNumThreads(1)  # the task has one logical CPU; OpenCV would take all cores
    statistics = Statistics.zero(job.num_classes)
    rows: list[dict[str, Any]] = []
    failures: list[dict[str, str]] = []
    for sample in shard.samples:
        try:
            rows += job.make_rows(sample, statistics)
        except _UnusableError as failure:
            failures.append(failure.row(sample))
    if job.mix_seed is not None:
        rows.sort(key=lambda row: mixed(row["image_id"], seed=job.mix_seed))
    data = parquet_bytes(rows, SCHEMAS[job.task]) if rows else b""
    if rows:
        storage.write_atomic(storage.join(job.output, part_path(shard.split, shard.index)), data)
    fault_point("prepare.part")
    record = ShardRecord(
        split=shard.split,
        index=shard.index,
        num_rows=len(rows),
        num_bytes=len(data),
        sha256=storage.sha256(data),
        statistics=statistics,
        failures=tuple(failures),
    )
    content = {
        "plan_digest": job.plan_digest,
        "format_version": FORMAT_VERSION,
        "record": dataclasses.asdict(record),
    }
    storage.write_atomic(_record_uri(shard, job), storage.json_bytes(content))
    return record


def mixed(image_id: str, *, seed: int | None) -> bytes:
    """Sorts images into an order without order, always the same one."""
    return hashlib.sha256(f"{seed}/{image_id}".encode()).digest()


class _UnusableError(Exception):
    """Stays within this module: a sample that goes to the failures, and which of its files is at fault."""

    def __init__(self, stage: str, uri: str, reason: str) -> None:
        super().__init__(reason)
        self.stage, self.uri, self.reason = stage, uri, reason

    def row(self, sample: Entry) -> dict[str, str]:
        """A row of SHARD_FAILURES_SCHEMA."""
        names = {"image_id": sample.image_id, "split": sample.split}
        return names | {"source": self.uri, "stage": self.stage, "reason": self.reason}


Row = dict[str, Any]
RowMaker = Callable[[Any, Statistics], list[Row]]
"""A sample and the statistics of its shard -> its rows."""


def classification_rows(sample: ClassifiedImage, statistics: Statistics) -> list[Row]:
    """One row of CLASSIFICATION_SCHEMA."""
    try:
        image_bytes = storage.read_bytes(sample.image_uri)
    except OSError as error:
        raise _unreadable(sample.image_uri, error) from error
    image = _decoded(image_bytes, sample.image_uri)
    statistics.update_class(image, sample.class_index)
    height, width = image.pixels_HW3.shape[:2]
    row = {
        "image_id": sample.image_id,
        "image": image_bytes,
        "class_index": sample.class_index,
        "height": height,
        "width": width,
        "source": sample.image_uri,
        "image_sha256": storage.sha256(image_bytes),
    }
    return [row]


def segmentation_rows(
    sample: Sample,
    statistics: Statistics,
    *,
    class_table: ClassTable,
    read: Callable[[Sample], tuple[bytes, bytes]],
) -> list[Row]:
    """One row of SHARD_SCHEMA."""
    try:
        image_bytes, label_bytes = read(sample)
    except OSError as error:
        uri = sample.label_uri if sample.label_uri in str(error) else sample.image_uri
        raise _unreadable(uri, error) from error
    except ImageError as error:  # of a label that the importer decoded, to make class indices of something else
        raise _UnusableError(error.stage, sample.label_uri, f"label: {error}") from error
    return [_segmentation_row(sample, image_bytes, label_bytes, statistics, class_table)]


def crop_rows(image: PreparedImage, statistics: Statistics, *, class_table: ClassTable, cut: Cut) -> list[Row]:
    """A row of SHARD_SCHEMA for each crop; its source ends in `#xywh=` and the window, as media fragments do."""
    source = _prepared_row(image)
    pixels_HW3 = _decoded(source["image"], image.part_uri).pixels_HW3
    labels_HW = decode_labels(source["label"]).astype(np.uint8)
    crops, notes = cut(pixels_HW3, labels_HW, image_id=image.image_id, split=image.split)
    statistics.note(notes)
    rows = []
    for crop in crops:
        uri = f"{source['source']}#xywh={','.join(map(str, crop.window))}"
        sample = Sample(image_id=crop.image_id, split=image.split, image_uri=uri, label_uri=uri)
        rows.append(_segmentation_row(sample, crop.image, crop.label, statistics, class_table))
    return rows


def mapped_rows(
    image: MappedImage, statistics: Statistics, *, class_table: ClassTable, targets: dict[str, tuple[int, ...]]
) -> list[Row]:
    """The row of SHARD_SCHEMA of an image whose labels get the classes of a mixed dataset."""
    source = _prepared_row(image)
    targets_256 = np.array(targets[image.dataset], dtype=np.uint8)
    label = encode_labels_png(targets_256[decode_labels(source["label"])])
    sample = Sample(image_id=image.image_id, split=image.split, image_uri=source["source"], label_uri=image.part_uri)
    return [_segmentation_row(sample, source["image"], label, statistics, class_table)]


def _prepared_row(image: PreparedImage | MappedImage) -> Row:
    try:
        row: Row = _prepared_part(image.part_uri, image.part_sha256).slice(image.row, 1).to_pylist()[0]
    except OSError as error:
        raise _unreadable(image.part_uri, error) from error
    except ValueError as error:  # it was changed
        raise _UnusableError("fetch", image.part_uri, str(error)) from error
    return row


@lru_cache(maxsize=1)  # the images of a shard lie one after the other in a part or two
def _prepared_part(uri: str, sha256: str) -> pa.Table:
    return parse_part(storage.read_bytes(uri), name=uri, sha256=sha256, columns=_SOURCE_COLUMNS)


def _segmentation_row(
    sample: Sample, image_bytes: bytes, label_bytes: bytes, statistics: Statistics, class_table: ClassTable
) -> Row:
    image = _decoded(image_bytes, sample.image_uri)
    try:
        values_HW = decode_labels(label_bytes)
        labels_HW = class_table.class_indices(values_HW)
        _check_sizes(image, labels_HW)
    except ImageError as error:
        raise _UnusableError(error.stage, sample.label_uri, f"label: {error}") from error
    kept = labels_HW is values_HW or (values_HW.dtype == labels_HW.dtype and np.array_equal(values_HW, labels_HW))
    return {
        "image_id": sample.image_id,
        "image": image_bytes,
        # A file that is what we would write, if not byte for byte, is kept: encoding takes a third of a pair's time.
        "label": label_bytes if kept and is_plain_gray_png(label_bytes) else encode_labels_png(labels_HW),
        "height": labels_HW.shape[0],
        "width": labels_HW.shape[1],
        "class_pixels": statistics.update(image, labels_HW),
        "source": sample.image_uri,
        "image_sha256": storage.sha256(image_bytes),
    }


def _unreadable(uri: str, error: OSError) -> _UnusableError:
    if isinstance(error, StoreUnavailableError):
        raise error  # the file may be fine: the shard is tried again, and then the job stops
    return _UnusableError("fetch", uri, f"cannot be read: {type(error).__name__}: {error}")


def _decoded(image_bytes: bytes, uri: str) -> DecodedImage:
    try:
        return decode_image(image_bytes)
    except ImageError as error:
        raise _UnusableError(error.stage, uri, f"image: {error}") from error


def _check_sizes(image: DecodedImage, labels_HW: NDArray[np.uint8]) -> None:
    height, width = image.pixels_HW3.shape[:2]
    if labels_HW.shape == (height, width):
        return
    found = f"its size is {labels_HW.shape[0]} x {labels_HW.shape[1]}, the image's {height} x {width} (height x width)"
    if image.orientation >= 5 and labels_HW.shape == (image.source_height, image.source_width):
        raise ImageError(
            f"{found} after EXIF orientation {image.orientation}: the label was drawn on the image as stored; "
            "turn the label as the orientation says, or remove the orientation from the image",
            "validate",
        )
    raise ImageError(
        f"{found}; a label needs one value per pixel of its image: export it again at that size", "validate"
    )


def _finished(shard: Shard, job: ShardJob) -> ShardRecord | None:
    """The record of an earlier run, if it belongs to this plan and its part is whole; files may have been mended since
    a pair of it failed, so that such a shard is done again."""
    try:
        content = storage.read_json(_record_uri(shard, job))
    except FileNotFoundError:
        return None
    if content.get("plan_digest") != job.plan_digest or content.get("format_version") != FORMAT_VERSION:
        return None
    if content["record"]["failures"]:
        return None
    fields = content["record"]
    record = ShardRecord(**(fields | {"statistics": Statistics(**fields["statistics"]), "failures": ()}))
    uri = storage.join(job.output, part_path(shard.split, shard.index))
    try:
        intact = storage.sha256(storage.read_bytes(uri)) == record.sha256
    except FileNotFoundError:
        intact = False
    if not intact:
        logger.warning("part %s differs from its record and is written again", uri)
    return record if intact else None


def _record_uri(shard: Shard, job: ShardJob) -> str:
    return storage.join(job.output, PROGRESS_FOLDER, f"{shard.split}-{shard.index:05d}.json")


def _added(left: list[int], right: list[int]) -> list[int]:
    return [a + b for a, b in zip(left, right, strict=True)]
