"""What moved from one network to another: classes, and images with their truth, both masks and the difference."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipelines.checkpoints import load_model
from pipelines.comparison.pictures import image_pixels, page_picture, torch_threads
from pipelines.comparison.rows import ComparedRow
from pipelines.comparison.runs import ComparedRun
from pipelines.comparison.significance import ImageScores, row_difference
from pipelines.ensembles import member_of
from pipelines.evaluation.scoring import class_maps, decode_pair
from pipelines.pictures import Pixels, errors, overlay
from pipelines.progress import progress
from pipelines.shards import PreparedDataset, read_part
from segcore import IGNORE_INDEX
from segcore.bootstrap import PairedDifference
from segcore.inference import InferenceConfig, Member, prepare

GAINED = (0, 114, 178)
LOST = (230, 159, 0)
BOTH_WRONG = (204, 121, 167)
"""Okabe and Ito's blue, orange and reddish purple, which colour-blind people tell apart."""
PANEL_WIDTH_PX = 320


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassMove:
    """One class from the first row to the second: fractions of 1; NaN where a row has no IoU of it."""

    name: str
    first: float
    second: float
    difference: float
    low: float
    high: float
    p: float


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageMove:
    """One image from the first run to the second.

    Attributes:
        image_id: of the split.
        first, second: mean IoU of this image by each, over the classes of its truth or prediction, fractions of 1.
    """

    image_id: str
    first: float
    second: float

    @property
    def difference(self) -> float:
        """The second minus the first."""
        return self.second - self.first


@dataclass(frozen=True, kw_only=True, slots=True)
class MovedImage:
    """An image that moved, and JPEGs: truth, both masks over the image, and where they differ."""

    move: ImageMove
    panels: tuple[tuple[str, bytes], ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Movement:
    """From one row to another.

    Attributes:
        first, second: the rows.
        shown: the run of each whose images and masks are compared.
        classes: what became of each class's IoU, over all seeds.
        images: the images that moved most between the two runs.
        pictures: of them, as far as they could be drawn.
    """

    first: ComparedRow
    second: ComparedRow
    shown: tuple[ComparedRun, ComparedRun]
    classes: tuple[ClassMove, ...]
    images: tuple[ImageMove, ...]
    pictures: tuple[MovedImage, ...] = ()


def find_movement(
    first: ComparedRow, second: ComparedRow, images: Mapping[str, ImageScores], *, count: int
) -> Movement:
    """What moved, without pictures.

    Args:
        first, second: rows of one class table.
        images: what each run's evaluation found of each image, by run id.
        count: of images, at most.

    Raises:
        ValueError: the rows have no scores by image, or not of the same images and classes.
    """
    for row in (first, second):
        without = [run.name for run in row.runs if run.run_id not in images]
        if without:
            raise ValueError(f"there are no scores by image of {', '.join(without)}")
    if first.runs[0].class_names != second.runs[0].class_names:
        raise ValueError(f"{first.name} and {second.name} have different class tables")
    difference = row_difference(first, second, images)
    shown = first.best_run, second.best_run
    return Movement(
        first=first,
        second=second,
        shown=shown,
        classes=tuple(class_moves(first, second, difference, first.runs[0].class_names)),
        images=tuple(image_moves(images[shown[0].run_id], images[shown[1].run_id], count=count)),
    )


def class_moves(
    first: ComparedRow, second: ComparedRow, difference: PairedDifference, class_names: Sequence[str]
) -> list[ClassMove]:
    """Every class, those that moved most first; those without a difference last.

    Args:
        first, second: rows.
        difference: the second's scores minus the first's.
        class_names: of both.
    """
    moves = []
    for index, name in enumerate(class_names):
        before, after = (row.mean(lambda run, name=name: run.iou(name)) for row in (first, second))  # type: ignore[misc]
        low, high = difference.iou_C2[index].tolist()
        moves.append(
            ClassMove(
                name=name,
                first=np.nan if before is None else before,
                second=np.nan if after is None else after,
                difference=float(difference.iou_C[index]),
                low=low,
                high=high,
                p=float(difference.iou_p_C[index]),
            )
        )
    return sorted(moves, key=lambda move: -abs(np.nan_to_num(move.difference, nan=0.0)))


def image_moves(first: ImageScores, second: ImageScores, *, count: int) -> list[ImageMove]:
    """The images whose mean IoU moved most, most first; none that did not move.

    Args:
        first, second: of the same images in the same order.
        count: at most.
    """
    differences_N = np.nan_to_num(np.abs(second.mean_iou_N - first.mean_iou_N))
    order = np.argsort(-differences_N, kind="stable")[:count]
    return [
        ImageMove(
            image_id=first.image_ids[index],
            first=float(first.mean_iou_N[index]),
            second=float(second.mean_iou_N[index]),
        )
        for index in order.tolist()
        if differences_N[index] > 0
    ]


def draw_moves(
    moves: Sequence[ImageMove],
    first: ComparedRun,
    second: ComparedRun,
    dataset: PreparedDataset,
    *,
    split: str,
    threads: int = 1,
) -> list[MovedImage]:
    """Segment the images by both models, each loaded once, and lay the masks beside the truth.

    Args:
        moves: in the order wanted; images that the split does not have are left out.
        first, second: runs with the dataset's class table.
        dataset, split: where the images are.
        threads: CPU threads.
    """
    members: list[Member] = []
    for run in (first, second):
        bundle = load_model(run.model_folder)
        prepare(bundle.model, "cpu")
        members.append(member_of(bundle, InferenceConfig()))
    drawn: dict[str, tuple[tuple[str, bytes], ...]] = {}
    wanted = {move.image_id: move for move in moves}
    with torch_threads(threads), progress("draw images that moved", total=len(wanted), unit="images") as advance:
        for row in _rows_by_id(dataset, split, list(wanted)):
            image_3HW, labels_HW = decode_pair(row)
            masks = [class_maps([member], image_3HW[None], image_ids=[row["image_id"]])[0] for member in members]
            names = (first.name, second.name)
            drawn[row["image_id"]] = _panels(
                wanted[row["image_id"]], image_pixels(image_3HW), labels_HW, masks, names, dataset
            )
            advance(1)
    return [MovedImage(move=move, panels=drawn[move.image_id]) for move in moves if move.image_id in drawn]


def difference_picture(
    pixels_HW3: Pixels,
    labels_HW: NDArray[np.integer],
    first_HW: NDArray[np.integer],
    second_HW: NDArray[np.integer],
) -> Pixels:
    """The image in grey; blue where the second mask alone is right, orange where the first alone is, purple where they
    differ and neither is; ignored pixels black and hatched.

    Raises:
        ValueError: sizes differ.
    """
    shown = errors(pixels_HW3, labels_HW, labels_HW)  # grey, and hatched where ignored
    differ_HW = (first_HW != second_HW) & (labels_HW != IGNORE_INDEX)
    shown[differ_HW] = BOTH_WRONG
    shown[differ_HW & (second_HW == labels_HW)] = GAINED
    shown[differ_HW & (first_HW == labels_HW)] = LOST
    return shown


def _panels(
    move: ImageMove,
    pixels_HW3: Pixels,
    labels_HW: NDArray[np.uint8],
    masks: Sequence[NDArray[np.uint8]],
    names: tuple[str, str],
    dataset: PreparedDataset,
) -> tuple[tuple[str, bytes], ...]:
    pictures = {
        f"{move.image_id}: truth": overlay(pixels_HW3, labels_HW, dataset.palette),
        f"{names[0]}, {100 * move.first:.1f} %": overlay(pixels_HW3, masks[0], dataset.palette),
        f"{names[1]}, {100 * move.second:.1f} %": overlay(pixels_HW3, masks[1], dataset.palette),
        f"difference, {100 * move.difference:+.1f} points": difference_picture(pixels_HW3, labels_HW, *masks),
    }
    return tuple((caption, page_picture(pixels, width=PANEL_WIDTH_PX)) for caption, pixels in pictures.items())


def _rows_by_id(dataset: PreparedDataset, split: str, image_ids: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Rows of these images, in the split's order; shards without any are read but not decoded."""
    wanted = pa.array(image_ids, pa.string())
    for part in dataset.split(split).parts:
        table = read_part(dataset, part, columns=("image_id", "image", "label"))
        yield from table.filter(pc.is_in(table["image_id"], value_set=wanted)).to_pylist()
