"""The files of an evaluation folder: score tables that anything reads, pictures, and a page that shows them.

<output>/scores.json          every score of the split, by name
<output>/classes.parquet      one row per class: IoU, accuracy, pixels
<output>/confusion.parquet    one row per (true class, predicted class): pixels
<output>/images.parquet       one row per image (`scoring.IMAGES_SCHEMA`)
<output>/confusion.png, iou.png, overlays/*.jpg
<output>/index.html           all of it on one page
<output>/manifest.json        written last, by `evaluate`
"""

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipelines import storage
from pipelines.evaluation.scoring import SplitScores, class_maps, decode_pair, read_rows
from pipelines.pages import Cell, Facts, Gallery, Legend, Paragraph, Picture, Section, Table, number_cell, render_page
from pipelines.pictures import Panel, confusion_heat_map, errors, fit_width, iou_chart, jpeg_bytes, overlay, strip
from pipelines.shards import PreparedDataset
from segcore.inference import Member
from segcore.metrics import Scores, confusion_matrix, scores

PANEL_WIDTH_PX = 480
SPEED_LABELS = {
    "network_images_per_second": "images/s, network of one worker",
    "images_per_second": "images/s, end to end",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Example:
    """One image of the split beside its truth, the prediction and the wrong pixels.

    Attributes:
        rank: `best`, `median` or `worst`, with a number: `worst-2`.
        image_id: of the image.
        mean_iou: of this image alone.
        panels: caption and JPEG each: image, truth, prediction, wrong pixels.
        strip_jpeg: the four side by side.
    """

    rank: str
    image_id: str
    mean_iou: float
    panels: tuple[tuple[str, bytes], ...]
    strip_jpeg: bytes

    @property
    def file_name(self) -> str:
        """Of the picture, below the evaluation folder."""
        return f"overlays/{self.rank}-{self.image_id.replace('/', '_')}.jpg"


def choose_examples(mean_iou: Sequence[float | None], *, count: int) -> dict[str, int]:
    """Pick the best, the median and the worst images: rank name -> index, no image twice.

    Args:
        mean_iou: of each image; None where it has no valid pixel, and then it is not picked.
        count: images per kind; at most a third of all, but one.
    """
    scored = [(-value, index) for index, value in enumerate(mean_iou) if value is not None]
    ranked = [index for _, index in sorted(scored)]
    count = min(count, max(1, len(ranked) // 3))
    middle = len(ranked) // 2
    median = ranked[max(0, middle - count // 2) : middle - count // 2 + count]
    chosen: dict[str, int] = {}
    for kind, indices in (("best", ranked[:count]), ("worst", ranked[::-1][:count]), ("median", median)):
        fresh = [index for index in indices if index not in chosen.values()]
        chosen |= {f"{kind}-{number}": index for number, index in enumerate(fresh, start=1)}
    return chosen


def draw_examples(
    dataset: PreparedDataset,
    split: str,
    result: SplitScores,
    *,
    members: Sequence[Member],
    count: int,
) -> list[Example]:
    """Predict the chosen images again, here, and draw them; only these travel, not every class map."""
    mean_iou = result.images["mean_iou"].to_pylist()
    examples: list[Example] = []
    for rank, index in choose_examples(mean_iou, count=count).items():
        part, row = result.places[index]
        encoded = read_rows(dataset, split, part=part, start=row, stop=row + 1).to_pylist()[0]
        image_3HW, labels_HW = decode_pair(encoded)
        predictions_HW = class_maps(members, image_3HW[None], image_ids=[encoded["image_id"]])[0]
        pixels_HW3 = np.ascontiguousarray(image_3HW.permute(1, 2, 0).numpy())
        here = scores(confusion_matrix(labels_HW, predictions_HW, num_classes=dataset.num_classes))
        panels = (
            Panel(encoded["image_id"], pixels_HW3),
            Panel("truth", overlay(pixels_HW3, labels_HW, dataset.palette)),
            Panel(
                f"prediction, mIoU {100 * here.mean_iou:.1f} %", overlay(pixels_HW3, predictions_HW, dataset.palette)
            ),
            Panel("wrong pixels", errors(pixels_HW3, labels_HW, predictions_HW)),
        )
        narrow = [Panel(panel.caption, fit_width(panel.pixels_HW3, width=PANEL_WIDTH_PX)) for panel in panels]
        examples.append(
            Example(
                rank=rank,
                image_id=encoded["image_id"],
                mean_iou=here.mean_iou,
                panels=tuple((panel.caption, jpeg_bytes(panel.pixels_HW3)) for panel in narrow),
                strip_jpeg=jpeg_bytes(strip(narrow)),
            )
        )
    return examples


def scores_by_name(result: Scores, class_names: Sequence[str]) -> dict[str, float]:
    """Scores as fractions of 1 by name; a class that occurs nowhere has no IoU and is left out."""
    named = {
        "mean_iou": result.mean_iou,
        "pixel_accuracy": result.pixel_accuracy,
        "mean_accuracy": result.mean_accuracy,
        "frequency_weighted_iou": result.frequency_weighted_iou,
    }
    named |= {f"iou/{name}": float(value) for name, value in zip(class_names, result.iou_C, strict=True)}
    return {name: value for name, value in named.items() if not math.isnan(value)}


def write_report(
    output: str,
    result: SplitScores,
    *,
    dataset: PreparedDataset,
    split: str,
    title: str,
    speeds: dict[str, float],
    origins: dict[str, str],
    examples: Sequence[Example],
) -> dict[str, dict[str, Any]]:
    """Write every file but the manifest.

    Args:
        output: URI of the folder.
        result: what was measured.
        dataset: its class table and palette.
        split: name.
        title: of the page.
        speeds: images per second, by name.
        origins: where model and data come from, for the page.
        examples: pictures of single images.

    Returns:
        SHA-256 and size of each file, by relative path.
    """
    total = scores(result.confusion_CC)
    names = dataset.class_names
    content: dict[str, bytes] = {
        "scores.json": storage.json_bytes(
            {**scores_by_name(total, names), **{f"speed/{k}": v for k, v in speeds.items()}}
        ),
        "images.parquet": _parquet(result.images),
        "classes.parquet": _parquet(_class_table(result.confusion_CC, total, names)),
        "confusion.parquet": _parquet(_confusion_table(result.confusion_CC, names)),
        "confusion.png": confusion_heat_map(result.confusion_CC, names),
        "iou.png": iou_chart([(split, total.iou_C)], names),
        **{example.file_name: example.strip_jpeg for example in examples},
    }
    content["index.html"] = _page(
        result,
        total,
        dataset=dataset,
        split=split,
        title=title,
        speeds=speeds,
        origins=origins,
        examples=examples,
        charts=content,
    )
    for name, data in content.items():
        storage.write_atomic(storage.join(output, name), data)
    return {name: {"sha256": storage.sha256(data), "num_bytes": len(data)} for name, data in content.items()}


def _class_table(confusion_CC: NDArray[np.int64], total: Scores, names: Sequence[str]) -> pa.Table:
    return pa.table(
        {
            "class_index": pa.array(range(len(names)), pa.int32()),
            "class_name": list(names),
            "iou": pa.array(total.iou_C, pa.float64(), from_pandas=True),
            "accuracy": pa.array(total.accuracy_C, pa.float64(), from_pandas=True),
            "true_pixels": confusion_CC.sum(axis=1),
            "predicted_pixels": confusion_CC.sum(axis=0),
        }
    )


def _confusion_table(confusion_CC: NDArray[np.int64], names: Sequence[str]) -> pa.Table:
    truth, predicted = np.indices(confusion_CC.shape)
    return pa.table(
        {
            "true_index": truth.ravel().astype(np.int32),
            "predicted_index": predicted.ravel().astype(np.int32),
            "true_class": [names[index] for index in truth.ravel().tolist()],
            "predicted_class": [names[index] for index in predicted.ravel().tolist()],
            "pixels": confusion_CC.ravel(),
        }
    )


def _parquet(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()


def _page(
    result: SplitScores,
    total: Scores,
    *,
    dataset: PreparedDataset,
    split: str,
    title: str,
    speeds: dict[str, float],
    origins: dict[str, str],
    examples: Sequence[Example],
    charts: dict[str, bytes],
) -> bytes:
    percent = [
        ("mean IoU", total.mean_iou),
        ("pixel accuracy", total.pixel_accuracy),
        ("mean accuracy", total.mean_accuracy),
        ("frequency-weighted IoU", total.frequency_weighted_iou),
    ]
    facts = [(name, f"{100 * value:.2f} %") for name, value in percent]
    facts.append(("images", f"{result.images.num_rows:,}"))
    facts += [(SPEED_LABELS[name], f"{value:.1f}") for name, value in speeds.items()]
    speed_note = (
        "Network: one worker from pixels to class map, its first pass left out. End to end: all workers, "
        "with reading, decoding and scoring, from the first row to the last; start-up and loading the model left out."
    )
    sections = [
        Section(title="", blocks=(Facts(facts=tuple(facts)), Paragraph(text=speed_note))),
        Section(
            title="Classes",
            blocks=(
                _class_block(result.confusion_CC, total, dataset.class_names),
                Gallery(pictures=tuple(Picture(data=charts[name], card=True) for name in ("iou.png", "confusion.png"))),
            ),
        ),
        *_example_sections(examples, dataset),
        Section(title="Origins", blocks=(_origin_table(origins),)),
    ]
    subtitle = f"Split {split!r}: {result.images.num_rows:,} images, {int(result.confusion_CC.sum()):,} labelled pixels"
    return render_page(title, sections, subtitle=subtitle, footer="Written by jobs/evaluate.py. " + READ_ME)


READ_ME = (
    "The same numbers stand in scores.json, classes.parquet, confusion.parquet and images.parquet beside this page."
)


def _class_block(confusion_CC: NDArray[np.int64], total: Scores, names: Sequence[str]) -> Table:
    all_pixels = max(int(confusion_CC.sum()), 1)
    rows = []
    for index, name in enumerate(names):
        wrong_C = confusion_CC[index].copy()
        wrong_C[index] = 0
        taken_for = (
            f"{names[int(wrong_C.argmax())]} ({100 * wrong_C.max() / confusion_CC[index].sum():.1f} %)"
            if wrong_C.any()
            else "-"
        )
        rows.append(
            (
                Cell(text=name),
                number_cell(total.iou_C[index], scale=100, digits=2),
                number_cell(total.accuracy_C[index], scale=100, digits=2),
                number_cell(confusion_CC[index].sum() / all_pixels, scale=100, digits=2),
                number_cell(confusion_CC[:, index].sum() / all_pixels, scale=100, digits=2),
                Cell(text=taken_for),
            )
        )
    columns = (
        "class",
        "IoU, %",
        "accuracy (recall), %",
        "share of truth, %",
        "share of predictions, %",
        "most often taken for",
    )
    return Table(columns=columns, rows=tuple(rows), numeric=(1, 2, 3, 4))


def _example_sections(examples: Sequence[Example], dataset: PreparedDataset) -> list[Section]:
    titles = {"best": "Best images", "median": "Median images", "worst": "Worst images"}
    legend = Legend(class_names=dataset.class_names, palette=dataset.palette)
    sections = []
    for kind, title in titles.items():
        galleries = [
            Gallery(
                pictures=tuple(Picture(data=data, caption=caption) for caption, data in example.panels),
                min_width_px=290,
            )
            for example in examples
            if example.rank.startswith(kind)
        ]
        if galleries:
            sections.append(Section(title=f"{title}, by their own mIoU", blocks=(legend, *galleries)))
    return sections


def _origin_table(origins: dict[str, str]) -> Table:
    return Table(
        columns=("what", "value"), rows=tuple((Cell(text=name), Cell(text=value)) for name, value in origins.items())
    )
