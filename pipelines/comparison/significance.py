"""Whether one network of a comparison beats another on the same images, or whether other images might say otherwise.

Every evaluation keeps the counts of each image (`images.parquet`, an artifact of its MLflow run). Rows whose networks
met the same images are compared in pairs by a paired bootstrap (`segcore.bootstrap`), and the p-values of all pairs are
held together to Holm's levels.
"""

import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipelines import tracking
from pipelines.comparison.rows import ComparedRow, mean_iou
from pipelines.comparison.runs import ComparedRun
from pipelines.evaluation.scoring import COUNTS, image_counts
from pipelines.evaluation.tables import MIN_IMAGES
from segcore.bootstrap import LEVEL, PairedDifference, adjusted_p_values, paired_bootstrap_of_seeds

IMAGES_FILE = "images.parquet"
DRAWS = 5000
"""More than an evaluation's 1,000: the smallest p-value, 2 / (draws + 1), is multiplied by the number of pairs."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ImageScores:
    """What one evaluation found of each image.

    Attributes:
        image_ids: in the split's order.
        counts_N3C: `segcore.metrics.class_counts` of each.
        mean_iou_N: of each image by itself; NaN where all of it is ignored.
    """

    image_ids: tuple[str, ...]
    counts_N3C: NDArray[np.int64]
    mean_iou_N: NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class RowPair:
    """Two rows on the same images.

    Attributes:
        first, second: the rows; the second is the better one, or an equal.
        difference: the second's scores minus the first's.
        adjusted_p: of its mean IoU, for all pairs of the comparison together.
    """

    first: ComparedRow
    second: ComparedRow
    difference: PairedDifference
    adjusted_p: float

    @property
    def seeds(self) -> str:
        """Whether every seed of the better row beats every seed of the other."""
        first, second = (row.values(mean_iou) for row in (self.first, self.second))
        if min(len(first), len(second)) < 2:
            return "one seed"
        return "apart" if min(second) > max(first) or max(second) < min(first) else "overlap"

    @property
    def verdict(self) -> str:
        """In words. "No difference" of equal scores; where other images might have turned the sign, none is shown."""
        if self.difference.mean_iou_interval == (0.0, 0.0):
            return "no difference"
        if not self.adjusted_p < 1 - LEVEL:
            return "no difference shown"
        doubt = {"apart": "", "overlap": ", but seeds overlap", "one seed": " (one seed)"}[self.seeds]
        return f"{self.second.name} is better{doubt}"


def load_image_scores(runs: Iterable[ComparedRun]) -> tuple[dict[str, ImageScores], list[str]]:
    """What each run's evaluation found of each image, by the training's run id, and a note for those without."""
    found: dict[str, ImageScores] = {}
    notes: list[str] = []
    unevaluated: list[str] = []
    for run in runs:
        if not run.evaluation_id:
            unevaluated.append(run.name)
            continue
        try:
            found[run.run_id] = _image_scores(tracking.read_artifact(run.evaluation_id, IMAGES_FILE))
        except ValueError as error:
            notes.append(f"No scores by image of {run.name}, which is therefore in no pair: {error}")
    if unevaluated:
        notes.append(
            f"No scores by image of {', '.join(unevaluated)}: there is no evaluation. Without it nothing says whether "
            "a difference is more than the choice of images; score the models with jobs/evaluate.py."
        )
    return found, notes


def row_pairs(rows: Sequence[ComparedRow], images: Mapping[str, ImageScores]) -> tuple[list[RowPair], list[str]]:
    """Every pair of rows that were scored on the same images, and a note for the pairs that were not.

    Args:
        rows: best first.
        images: from `load_image_scores`; rows of which a run is missing are in no pair.
    """
    scored = [row for row in rows if all(run.run_id in images for run in row.runs)]
    differences: list[tuple[ComparedRow, ComparedRow, PairedDifference]] = []
    notes: list[str] = []
    for second, first in combinations(scored, 2):
        try:
            differences.append((first, second, row_difference(first, second, images)))
        except ValueError as error:
            notes.append(f"{second.name} and {first.name} are not compared by image: {error}")
    adjusted = adjusted_p_values([difference.mean_iou_p for _, _, difference in differences])
    return [
        RowPair(first=first, second=second, difference=difference, adjusted_p=p)
        for (first, second, difference), p in zip(differences, adjusted, strict=True)
    ], notes


def row_difference(
    first: ComparedRow, second: ComparedRow, images: Mapping[str, ImageScores], *, draws: int = DRAWS
) -> PairedDifference:
    """The second row's scores minus the first's, means over the seeds, with intervals over the choice of images.

    Raises:
        ValueError: they were not scored on the same images with the same labels, or on one image alone.
    """
    first_SN3C, second_SN3C = ([images[run.run_id].counts_N3C for run in row.runs] for row in (first, second))
    ids = {images[run.run_id].image_ids for row in (first, second) for run in row.runs}
    if len(ids) > 1:
        raise ValueError("they were scored on different images; evaluate both on one split of one dataset")
    if len(first_SN3C[0]) < MIN_IMAGES:
        raise ValueError(f"they were scored on {len(first_SN3C[0])} image, of which nothing can be drawn")
    return paired_bootstrap_of_seeds(first_SN3C, second_SN3C, draws=draws)


def _image_scores(data: bytes) -> ImageScores:
    """Read an `images.parquet`.

    Raises:
        ValueError: it is of a version without counts.
    """
    table = pq.read_table(io.BytesIO(data))
    missing = [name for name in COUNTS if name not in table.column_names]
    if missing:
        raise ValueError(f"its evaluation is of an older version, without {', '.join(missing)}; evaluate again")
    return ImageScores(
        image_ids=tuple(table["image_id"].to_pylist()),
        counts_N3C=image_counts(table),
        mean_iou_N=np.asarray(table["mean_iou"].cast(pa.float64()).to_numpy(zero_copy_only=False), dtype=np.float64),
    )
