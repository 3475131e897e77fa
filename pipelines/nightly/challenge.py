"""A challenger beside the night's model: on a seeded sample of the images, what would it have said, and how fast?

Each compared image leaves a row in the table `comparisons`, in the commit of its shard (`pipelines.tables.commits`).
Nothing that the challenger does changes what the champion leaves: where it fails, the row says so.

Agreement is between two models, not with the truth: it tells how much would change, not which one is right. For that
there are `evaluate`, and a person who looks at the images with the lowest agreement.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipelines.ensembles import MemberModel, member_from_dict
from pipelines.tables.commits import read_settings
from pipelines.tables.reader import read_batches
from segcore.metrics import confusion_matrix, scores

Runs = tuple[NDArray[np.uint8], NDArray[np.int32]]
"""Classes and lengths, see `segcore.run_lengths`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Challenger:
    """Who is compared with the night's model, on which images.

    Attributes:
        member: the challenger.
        fraction: of the images, 0 to 1.
        seed: another one samples other images.
    """

    member: MemberModel
    fraction: float
    seed: int

    def samples(self, work_id: str) -> bool:
        """Whether an image is compared: a property of its identity, so that whoever does it again does the same."""
        drawn = hashlib.sha256(f"{self.seed}\0{work_id}".encode()).digest()[:8]
        return int.from_bytes(drawn, "big") < self.fraction * 2**64

    def to_dict(self) -> dict[str, Any]:
        """JSON values; `challenger_from_dict` reads them."""
        return {"member": self.member.to_dict(), "fraction": self.fraction, "seed": self.seed}


def challenger_from_dict(values: Mapping[str, Any]) -> Challenger | None:
    """Inverse of `Challenger.to_dict`; None of an empty mapping: a run without one."""
    if not values:
        return None
    return Challenger(
        member=member_from_dict(values["member"]), fraction=float(values["fraction"]), seed=int(values["seed"])
    )


def confusion_of(champion_HW: NDArray[np.uint8], challenger_HW: NDArray[np.uint8], num_classes: int) -> list[int]:
    """Pixels by the champion's class (rows) and the challenger's (columns), row-major, C * C numbers."""
    counts: list[int] = confusion_matrix(champion_HW, challenger_HW, num_classes=num_classes).ravel().tolist()
    return counts


def confusion_of_runs(champion: Runs, challenger: Runs, num_classes: int) -> list[int]:
    """The same from two masks of one image as run lengths, which are never drawn: images may be huge."""
    ends, others_ends = (np.cumsum(lengths, dtype=np.int64) for _, lengths in (champion, challenger))
    all_ends = np.union1d(ends, others_ends)
    pixels = np.diff(all_ends, prepend=0)
    rows = champion[0][np.searchsorted(ends, all_ends)].astype(np.int64)
    columns = challenger[0][np.searchsorted(others_ends, all_ends)]
    counts = np.bincount(rows * num_classes + columns, weights=pixels, minlength=num_classes**2)  # exact below 2**53
    return [int(count) for count in counts]


@dataclass(frozen=True, kw_only=True, slots=True)
class Evidence:
    """What compared images say of two models.

    Attributes:
        num_images: compared.
        num_errors: images on which the challenger failed; counted in none of the figures below.
        agreement: share of pixels with one class in both.
        mean_iou: of the challenger's classes against the champion's, as if those were the truth.
        iou_C: the same per class; NaN for a class that neither found.
        champion_confidence, challenger_confidence: mean over images of the mean largest probability.
        champion_ms, challenger_ms: median milliseconds of an image in the network.
        run_ids: the nights that they come from.
    """

    num_images: int
    num_errors: int
    agreement: float
    mean_iou: float
    iou_C: tuple[float, ...]
    champion_confidence: float
    challenger_confidence: float
    champion_ms: float
    challenger_ms: float
    run_ids: tuple[str, ...]

    def metrics(self) -> dict[str, float]:
        """By name, for MLflow; NaN where no image was compared."""
        return {
            "challenger/num_images": float(self.num_images),
            "challenger/num_errors": float(self.num_errors),
            "challenger/agreement": self.agreement,
            "challenger/mean_iou": self.mean_iou,
            "challenger/confidence": self.challenger_confidence,
            "challenger/champion_confidence": self.champion_confidence,
            "challenger/infer_ms": self.challenger_ms,
            "challenger/champion_infer_ms": self.champion_ms,
        }


EVIDENCE_COLUMNS = (
    "run_id",
    "champion_digest",
    "challenger_digest",
    "confusion",
    "champion_confidence",
    "challenger_confidence",
    "champion_ms",
    "challenger_ms",
    "error",
)


def gather(parts: Iterable[pa.Table], *, champion_digest: str, challenger_digest: str) -> Evidence:
    """Add up rows of `comparisons`, one part in memory at a time.

    Args:
        parts: tables with `EVIDENCE_COLUMNS` at least.
        champion_digest, challenger_digest: of the two models; rows of others are passed over.
    """
    confusion: NDArray[np.int64] | None = None
    numbers: dict[str, list[NDArray[np.float64]]] = {name: [] for name in EVIDENCE_COLUMNS[4:8]}
    run_ids: set[str] = set()
    num_errors = 0
    for part in parts:
        rows = _rows_of(part, champion_digest, challenger_digest)
        run_ids |= set(rows["run_id"].to_pylist())
        failed_N = np.array([bool(error) for error in rows["error"].to_pylist()], dtype=bool)
        num_errors += int(failed_N.sum())
        rows = rows.filter(pa.array(~failed_N))
        if not rows.num_rows:
            continue
        flat = np.array(rows["confusion"].to_pylist(), dtype=np.int64).sum(axis=0)
        confusion = flat if confusion is None else confusion + flat
        for name, values in numbers.items():
            values.append(rows[name].to_numpy().astype(np.float64))
    if confusion is None:
        return _nothing(num_errors, run_ids)
    return _evidence(confusion, {name: np.concatenate(each) for name, each in numbers.items()}, num_errors, run_ids)


def night_evidence(tables: str, run_id: str) -> Evidence | None:
    """What a run's comparisons say, of the challenger that its plan names; None without one."""
    settings = read_settings(tables, run_id)
    challenger = challenger_from_dict(settings.challenger)
    if challenger is None:
        return None
    batches = read_batches(tables, "comparisons", columns=EVIDENCE_COLUMNS, run_id=run_id)
    return gather(
        (pa.Table.from_batches([batch]) for batch in batches),
        champion_digest=settings.model_digest,
        challenger_digest=challenger.member.model_digest,
    )


def _rows_of(part: pa.Table, champion_digest: str, challenger_digest: str) -> pa.Table:
    pairs = zip(part["champion_digest"].to_pylist(), part["challenger_digest"].to_pylist(), strict=True)
    return part.filter(pa.array([pair == (champion_digest, challenger_digest) for pair in pairs], pa.bool_()))


def _evidence(
    confusion: NDArray[np.int64], numbers: Mapping[str, NDArray[np.float64]], num_errors: int, run_ids: set[str]
) -> Evidence:
    num_classes = round(len(confusion) ** 0.5)
    found = scores(confusion.reshape(num_classes, num_classes))
    return Evidence(
        num_images=len(numbers["champion_ms"]),
        num_errors=num_errors,
        agreement=found.pixel_accuracy,
        mean_iou=found.mean_iou,
        iou_C=tuple(found.iou_C.tolist()),
        champion_confidence=float(numbers["champion_confidence"].mean()),
        challenger_confidence=float(numbers["challenger_confidence"].mean()),
        champion_ms=float(np.median(numbers["champion_ms"])),
        challenger_ms=float(np.median(numbers["challenger_ms"])),
        run_ids=tuple(sorted(run_ids)),
    )


def _nothing(num_errors: int, run_ids: set[str]) -> Evidence:
    nan = float("nan")
    return Evidence(
        num_images=0,
        num_errors=num_errors,
        agreement=nan,
        mean_iou=nan,
        iou_C=(),
        champion_confidence=nan,
        challenger_confidence=nan,
        champion_ms=nan,
        challenger_ms=nan,
        run_ids=tuple(sorted(run_ids)),
    )
