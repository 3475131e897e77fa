"""Score a model on a split with Ray Data: slices of shards in, one set of counts and one row per image out.

1. The driver cuts the split's shards into slices of rows.
2. Reading tasks verify a shard and pass on the encoded rows of a slice: bytes, not decoded pictures.
3. Actors hold the model; they decode in threads while the network runs, and send back sums and one row per image.
4. The driver adds the sums. They are integers, so neither the number of workers nor their order changes the result.

Where several protocols are asked for, each image is decoded once and shown in every one of these ways before the next.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import ray.data
import torch
from numpy.typing import NDArray
from ray.data import ActorPoolStrategy
from torch import Tensor

from pipelines.cluster import packed_table, unpacked_table, worker_environment
from pipelines.ensembles import MemberModel, load_member
from pipelines.evaluation.slices import PLACE, cut_slices, read_slice
from pipelines.fault_points import fault_point
from pipelines.shards import PreparedDataset
from pipelines.training.batches import decoded, decoding_threads, ordered_ahead
from segcore.boundaries import BoundaryConfig
from segcore.inference import Member, predict_ensemble, prepare
from segcore.metrics import class_counts, class_iou, mean_of_present
from segcore.segmentation_counts import SegmentationCounts

IMAGES_SCHEMA = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("valid_pixels", pa.int64(), nullable=False),
        pa.field("mean_iou", pa.float64()),
        pa.field("pixel_accuracy", pa.float64()),
        pa.field("intersection", pa.list_(pa.int64()), nullable=False),
        pa.field("union", pa.list_(pa.int64()), nullable=False),
        pa.field("network_ms", pa.float64(), nullable=False),
        pa.field("intersection_C", pa.list_(pa.int64()), nullable=False),
        pa.field("truth_C", pa.list_(pa.int64()), nullable=False),
        pa.field("prediction_C", pa.list_(pa.int64()), nullable=False),
    ]
)
"""One row per image. `mean_iou` is over the classes that the image's truth or prediction holds; it and `pixel_accuracy`
are null where every pixel is ignored. The lists have one entry per class, in pixels: summed over any rows, they give
the scores of these images (`segcore.metrics.scores_of_counts` of the last three). `intersection` is `intersection_C`,
and `union` follows too: older readers know them."""

COUNTS = ("intersection_C", "truth_C", "prediction_C")
"""The columns of IMAGES_SCHEMA that `image_counts` reads."""

_SCORED_SCHEMA = pa.schema([*PLACE, *IMAGES_SCHEMA])
_CHUNK_SCHEMA = pa.schema(
    [
        pa.field("protocol", pa.string()),
        pa.field("counts", pa.list_(pa.int64())),
        pa.field("images", pa.binary()),
        pa.field("num_images", pa.int64()),
        pa.field("network_seconds", pa.float64()),
        pa.field("network_images", pa.int64()),
        pa.field("network_inputs", pa.int64()),
        pa.field("began", pa.float64()),
        pa.field("ended", pa.float64()),
        pa.field("error", pa.string()),
    ]
)
DECODING_THREADS = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoringConfig:
    """How a split is scored.

    Attributes:
        workers: actors that hold the model.
        threads: CPU threads of each one's network.
        batch_size: images per forward pass, where neighbours have one size.
        use_gpu: one GPU per actor.
        boundaries: what is counted near borders.
    """

    workers: int
    threads: int
    batch_size: int
    use_gpu: bool
    boundaries: BoundaryConfig = field(default_factory=BoundaryConfig)


@dataclass(frozen=True, kw_only=True, slots=True)
class SplitScores:
    """What scoring a split by one protocol gives.

    Attributes:
        counts: of all its pixels.
        images: one row per image (`IMAGES_SCHEMA`), in the split's order.
        places: (part, row) of each image.
        network_seconds: spent in forward passes up to the class map, summed over the workers, each one's first apart.
        network_images: images of those passes.
        network_inputs: network inputs of all images: see `Predictions.num_inputs_N`.
        busy_seconds: from the first worker's first row to the last worker's last: reading, decoding and scoring
            included, start-up apart; of all protocols together.
    """

    counts: SegmentationCounts
    images: pa.Table
    places: list[tuple[int, int]]
    network_seconds: float
    network_images: int
    network_inputs: int
    busy_seconds: float

    @property
    def confusion_CC(self) -> NDArray[np.int64]:
        """Pixels, rows truth, columns prediction."""
        return self.counts.confusion_CC

    @property
    def network_images_per_second(self) -> float:
        """Of one worker, network alone; NaN where each worker ran once."""
        return self.network_images / self.network_seconds if self.network_images else float("nan")

    @property
    def images_per_second(self) -> float:
        """Of all workers together, everything but start-up."""
        return float(self.images.num_rows / self.busy_seconds)


def score_split(
    dataset: PreparedDataset,
    split: str,
    *,
    protocols: Mapping[str, Sequence[MemberModel]],
    config: ScoringConfig,
    advance: Callable[[int], None],
) -> dict[str, SplitScores]:
    """Score every image of a split by each protocol; Ray must run.

    Args:
        dataset: with the models' class table.
        split: name of one of its splits.
        protocols: by name, the models whose class probabilities are averaged, one or more, and how each is shown an
            image; the models are the same in all of them.
        config: how.
        advance: called with the number of images just done.

    Returns:
        By name, in the order of the protocols.

    Raises:
        ValueError: a shard, an image or a model folder is broken.
    """
    slices = cut_slices(
        [part.num_rows for part in dataset.splits[split].parts], workers=config.workers, batch_size=config.batch_size
    )
    work = ray.data.from_items(slices, override_num_blocks=len(slices))
    encoded = work.map_batches(
        partial(read_slice, dataset=dataset, split=split),
        batch_size=1,
        batch_format="pyarrow",
        num_cpus=0.5,  # reading waits more than it works; and Ray Data would fuse it into the actors if it asked for 1
    )
    scored = encoded.map_batches(
        Scorer,
        fn_constructor_args=(dict(protocols), dataset.num_classes, config),
        compute=ActorPoolStrategy(size=config.workers),
        batch_size=None,
        batch_format="pyarrow",
        num_cpus=config.threads,
        num_gpus=1 if config.use_gpu else 0,
        runtime_env=worker_environment(use_gpu=config.use_gpu),
    )
    chunks: list[dict[str, Any]] = []
    for chunk in scored.iter_rows():
        if chunk["error"] is not None:
            raise ValueError(chunk["error"])
        chunks.append(chunk)
        if chunk["protocol"] == next(iter(protocols)):
            advance(int(chunk["num_images"]))
    num_images = dataset.splits[split].num_images
    return {
        name: _merged(
            [chunk for chunk in chunks if chunk["protocol"] == name],
            SegmentationCounts.zero(dataset.num_classes, config.boundaries),
            num_images=num_images,
        )
        for name in protocols
    }


@dataclass(slots=True)
class _Tally:
    """What a slice adds to one protocol."""

    counts: SegmentationCounts
    records: list[dict[str, Any]] = field(default_factory=list)
    network_seconds: float = 0.0
    network_images: int = 0
    network_inputs: int = 0

    def chunk(self, protocol: str, began: float) -> dict[str, Any]:
        """A row of `_CHUNK_SCHEMA`."""
        return {
            "protocol": protocol,
            "counts": self.counts.flat(),
            "images": packed_table(pa.Table.from_pylist(self.records, schema=_SCORED_SCHEMA)),
            "num_images": len(self.records),
            "network_seconds": self.network_seconds,
            "network_images": self.network_images,
            "network_inputs": self.network_inputs,
            "began": began,
            "ended": time.time(),
        }


class Scorer:
    """An actor with the models: encoded rows in, one row per protocol with their sums out."""

    def __init__(self, protocols: Mapping[str, Sequence[MemberModel]], num_classes: int, config: ScoringConfig) -> None:
        torch.set_num_threads(config.threads)
        self.config = config
        self.num_classes = num_classes
        loaded = [load_member(member) for member in next(iter(protocols.values()))]
        for member in loaded:
            prepare(member.model, "cuda" if config.use_gpu else "cpu")
        self.protocols = {
            name: [replace(one, config=each.inference) for one, each in zip(loaded, members, strict=True)]
            for name, members in protocols.items()
        }
        self.warm: set[str] = set()

    def __call__(self, rows: pa.Table) -> pa.Table:
        """Score a table of `ENCODED_SCHEMA`.

        Returns:
            A row per protocol: its name, `counts` (`SegmentationCounts.flat`), `images` (an Arrow stream of
            `_SCORED_SCHEMA`) and timing; or one with an `error`.
        """
        began = time.time()
        fault_point("evaluate.slice")
        problem = next((text for text in rows["error"].to_pylist() if text is not None), None)
        if problem is None:
            try:
                return self._score(rows, began)
            except ValueError as error:
                problem = str(error)
        return pa.Table.from_pylist([{"error": problem}], schema=_CHUNK_SCHEMA)

    def _score(self, rows: pa.Table, began: float) -> pa.Table:
        tallies = {
            name: _Tally(SegmentationCounts.zero(self.num_classes, self.config.boundaries)) for name in self.protocols
        }
        for group, images_N3HW, labels_NHW in self._batches(rows):
            for name, tally in tallies.items():
                self._show(name, tally, group, images_N3HW, labels_NHW)
        chunks = [tally.chunk(name, began) for name, tally in tallies.items()]
        return pa.Table.from_pylist(chunks, schema=_CHUNK_SCHEMA)

    def _show(
        self,
        protocol: str,
        tally: _Tally,
        group: list[dict[str, Any]],
        images_N3HW: Tensor,
        labels_NHW: NDArray[np.uint8],
    ) -> None:
        """Predict images of one size by a protocol, and add what they count."""
        started = time.perf_counter()
        image_ids = [row["image_id"] for row in group]
        found = predict_ensemble(self.protocols[protocol], images_N3HW, image_ids=image_ids, with_confidence=True)
        elapsed = time.perf_counter() - started
        tally.network_inputs += int(found.num_inputs_N.sum())
        if protocol in self.warm:  # the first pass allocates and chooses algorithms
            tally.network_seconds += elapsed
            tally.network_images += len(group)
        self.warm.add(protocol)
        assert found.confidence_NHW is not None
        for index, (row, labels_HW) in enumerate(zip(group, labels_NHW, strict=True)):
            image_CC = tally.counts.update(labels_HW, found.predictions_NHW[index], found.confidence_NHW[index])
            tally.records.append(image_record(row, labels_HW, image_CC, network_ms=1000 * elapsed / len(group)))

    def _batches(self, rows: pa.Table) -> Iterator[tuple[list[dict[str, Any]], Tensor, NDArray[np.uint8]]]:
        """Decode ahead of the network, and join neighbours of one size up to the batch."""
        columns = rows.select(["part", "row", "image_id"]).to_pylist()
        size = self.config.batch_size
        groups = (rows.slice(start, size).to_pylist() for start in range(0, rows.num_rows, size))
        position = 0
        with decoding_threads(DECODING_THREADS) as pool:
            for pairs in ordered_ahead(pool, decode_pair, groups, ahead=2):
                facts = columns[position : position + len(pairs)]
                position += len(pairs)
                for first, last in _runs_of_one_size([labels_HW.shape for _, labels_HW in pairs]):
                    images_N3HW = torch.stack([image for image, _ in pairs[first:last]])
                    labels_NHW = np.stack([labels_HW for _, labels_HW in pairs[first:last]])
                    yield facts[first:last], images_N3HW, labels_NHW


def class_maps(members: Sequence[Member], images_N3HW: Tensor, *, image_ids: Sequence[str] = ()) -> NDArray[np.uint8]:
    """Class maps (N, H, W) of uint8 RGB images, as `segment` would write them."""
    return predict_ensemble(members, images_N3HW, image_ids=image_ids).predictions_NHW


def decode_pair(row: dict[str, Any]) -> tuple[Tensor, NDArray[np.uint8]]:
    """Image (3, H, W) and labels (H, W) of a shard's row.

    Raises:
        ValueError: one of the two cannot be decoded; the message names the image.
    """
    try:
        image_3HW, labels_HW = decoded(row)
    except ValueError as error:
        raise ValueError(f"image {row['image_id']!r} of the prepared dataset is broken: {error}") from error
    return image_3HW, labels_HW.numpy()


def image_record(
    row: dict[str, Any], labels_HW: NDArray[np.uint8], image_CC: NDArray[np.int64], *, network_ms: float
) -> dict[str, Any]:
    """A row of `_SCORED_SCHEMA`.

    Args:
        row: `part`, `row` and `image_id`.
        labels_HW: its truth.
        image_CC: its confusion.
        network_ms: its share of the forward pass.
    """
    counts_3C = class_counts(image_CC)
    intersection_C, truth_C, prediction_C = (row_C.tolist() for row_C in counts_3C)
    valid_pixels = int(image_CC.sum())
    return {
        "part": row["part"],
        "row": row["row"],
        "image_id": row["image_id"],
        "height": labels_HW.shape[0],
        "width": labels_HW.shape[1],
        "valid_pixels": valid_pixels,
        "mean_iou": float(mean_of_present(class_iou(counts_3C))) if valid_pixels else None,
        "pixel_accuracy": sum(intersection_C) / valid_pixels if valid_pixels else None,
        "intersection": intersection_C,
        "union": (counts_3C[1] + counts_3C[2] - counts_3C[0]).tolist(),
        "network_ms": network_ms,
        "intersection_C": intersection_C,
        "truth_C": truth_C,
        "prediction_C": prediction_C,
    }


def image_counts(images: pa.Table) -> NDArray[np.int64]:
    """Counts (N, 3, C) of a table of `IMAGES_SCHEMA`, as `segcore.bootstrap` wants them."""
    columns = [images[name].to_pylist() for name in COUNTS]
    return np.stack([np.asarray(column, dtype=np.int64) for column in columns], axis=1)


def _runs_of_one_size(shapes: list[tuple[int, ...]]) -> list[tuple[int, int]]:
    """Bounds of runs of equal neighbours."""
    bounds = [index for index in range(1, len(shapes)) if shapes[index] != shapes[index - 1]]
    return list(zip([0, *bounds], [*bounds, len(shapes)], strict=True))


def _merged(chunks: list[dict[str, Any]], counts: SegmentationCounts, *, num_images: int) -> SplitScores:
    """Chunks of one protocol, and counts of nothing."""
    num_classes, widths = len(counts.confusion_CC), counts.boundaries.config
    for chunk in chunks:
        counts.merge(SegmentationCounts.from_flat(np.asarray(chunk["counts"], dtype=np.int64), num_classes, widths))
    scored = pa.concat_tables([unpacked_table(chunk["images"]) for chunk in chunks])
    scored = scored.sort_by([("part", "ascending"), ("row", "ascending")])
    places = list(zip(scored["part"].to_pylist(), scored["row"].to_pylist(), strict=True))
    assert len(places) == len(set(places)) == num_images, "Ray Data lost or repeated rows"
    return SplitScores(
        counts=counts,
        images=scored.select(IMAGES_SCHEMA.names).cast(IMAGES_SCHEMA),
        places=places,
        network_seconds=sum(chunk["network_seconds"] for chunk in chunks),
        network_images=sum(chunk["network_images"] for chunk in chunks),
        network_inputs=sum(chunk["network_inputs"] for chunk in chunks),
        busy_seconds=max(chunk["ended"] for chunk in chunks) - min(chunk["began"] for chunk in chunks),
    )
