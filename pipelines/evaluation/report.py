"""The files of an evaluation folder: score tables that anything reads, pictures, and a page that shows them.

<output>/scores.json          every score of the split, by name
<output>/classes.parquet      one row per class: IoU with its interval, boundary IoU, accuracy, pixels
<output>/confusion.parquet    one row per (true class, predicted class): pixels
<output>/images.parquet       one row per image (`scoring.IMAGES_SCHEMA`)
<output>/trimaps.parquet      one row per distance from a border: mean IoU of the pixels within it
<output>/calibration.parquet  one row per bin of confidence: pixels, accuracy
<output>/groups.parquet       one row per group of images: by size, by folder, by a table of the user's
<output>/protocols.parquet, images-<protocol>.parquet, protocols.png   with --protocols
<output>/confusion.png, iou.png, trimaps.png, reliability.png, overlays/*.jpg
<output>/learning.png         where MLflow knows the model's training
<output>/index.html           all of it on one page
<output>/manifest.json        written last, by `evaluate`
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipelines import storage
from pipelines.charts import (
    confusion_heat_map,
    iou_chart,
    learning_chart,
    protocol_chart,
    reliability_chart,
    trimap_chart,
)
from pipelines.evaluation.groups import ImageGroup
from pipelines.evaluation.page import (
    border_section,
    class_section,
    group_sections,
    learning_section,
    origin_section,
    overview,
    protocol_section,
)
from pipelines.evaluation.scoring import SplitScores, class_maps, decode_pair
from pipelines.evaluation.slices import read_rows
from pipelines.evaluation.tables import (
    Summary,
    calibration_table,
    class_table,
    confusion_table,
    group_table,
    parquet_of,
    protocol_table,
    scores_by_name,
    summarise,
    trimap_table,
)
from pipelines.pages import Gallery, Legend, Picture, Section, render_page
from pipelines.pictures import Panel, classes_in, errors, fit_width, jpeg_bytes, overlay, strip, with_legend
from pipelines.shards import PreparedDataset
from segcore.inference import Member
from segcore.metrics import confusion_matrix, scores

PANEL_WIDTH_PX = 480


@dataclass(frozen=True, kw_only=True, slots=True)
class Example:
    """One image of the split beside its truth, the prediction and the wrong pixels.

    Attributes:
        rank: `best`, `median` or `worst`, with a number: `worst-2`.
        image_id: of the image.
        mean_iou: of this image alone.
        panels: caption and JPEG each: image, truth, prediction, wrong pixels.
        strip_jpeg: the four side by side, above the names of their classes.
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
                strip_jpeg=jpeg_bytes(
                    with_legend(
                        strip(narrow),
                        dataset.class_names,
                        dataset.palette,
                        classes=classes_in(labels_HW, predictions_HW),
                    )
                ),
            )
        )
    return examples


def write_report(
    output: str,
    results: Mapping[str, SplitScores],
    *,
    dataset: PreparedDataset,
    split: str,
    title: str,
    speeds: dict[str, float],
    origins: dict[str, str],
    examples: Sequence[Example],
    groups: Sequence[ImageGroup],
    learning: Sequence[tuple[str, Mapping[str, Sequence[tuple[int, float]]]]] = (),
) -> tuple[dict[str, float], dict[str, dict[str, Any]]]:
    """Write every file but the manifest.

    Args:
        output: URI of the folder.
        results: what was measured, by protocol; of several the first one is shown in full.
        dataset: its class table and palette.
        split: name.
        title: of the page.
        speeds: images per second, by name.
        origins: where model and data come from, for the page.
        examples: pictures of single images.
        groups: of images that are scored by themselves.
        learning: name and metric histories of the models' trainings, as `learning_chart` takes them.

    Returns:
        The first protocol's scores by name; SHA-256 and size of each file, by relative path.
    """
    first, *others = results
    result, names = results[first], dataset.class_names
    summaries = {name: summarise(each) for name, each in results.items()}
    summary = summaries[first]
    named = scores_by_name(summary, names)
    by_group = group_table(summary.counts_N3C, groups)
    content: dict[str, bytes] = {
        "scores.json": storage.json_bytes({**named, **{f"speed/{k}": v for k, v in speeds.items()}}),
        "groups.parquet": parquet_of(by_group),
        **_tables(result, summary, names),
        **_charts(result, summary, names, split),
        **{example.file_name: example.strip_jpeg for example in examples},
    }
    sections = [overview(summary, result.images.num_rows, speeds)]
    if others:
        protocols = protocol_table(results, summaries)
        content["protocols.parquet"] = parquet_of(protocols)
        content |= {f"images-{name}.parquet": parquet_of(results[name].images) for name in others}
        content["protocols.png"] = protocol_chart(
            list(results),
            [1 / each.network_images_per_second for each in results.values()],
            [each.total.mean_iou for each in summaries.values()],
        )
        sections.append(protocol_section(protocols, content))
    sections += [
        class_section(result.confusion_CC, summary, names, content),
        border_section(summary, content),
        *group_sections(by_group),
        *_example_sections(examples, dataset),
    ]
    if any(points for _, histories in learning for points in histories.values()):
        content["learning.png"] = learning_chart(learning)
        sections.append(learning_section(content["learning.png"]))
    sections.append(origin_section(origins))
    subtitle = f"Split {split!r}: {result.images.num_rows:,} images, {int(result.confusion_CC.sum()):,} labelled pixels"
    content["index.html"] = render_page(
        title, sections, subtitle=subtitle, footer="Written by jobs/evaluate.py. " + READ_ME
    )
    for name, data in content.items():
        storage.write_atomic(storage.join(output, name), data)
    return named, {name: {"sha256": storage.sha256(data), "num_bytes": len(data)} for name, data in content.items()}


def _tables(result: SplitScores, summary: Summary, names: Sequence[str]) -> dict[str, bytes]:
    return {
        "images.parquet": parquet_of(result.images),
        "classes.parquet": parquet_of(class_table(result.confusion_CC, summary, names)),
        "confusion.parquet": parquet_of(confusion_table(result.confusion_CC, names)),
        "trimaps.parquet": parquet_of(trimap_table(summary)),
        "calibration.parquet": parquet_of(calibration_table(summary.calibration)),
    }


def _charts(result: SplitScores, summary: Summary, names: Sequence[str], split: str) -> dict[str, bytes]:
    widths, within = zip(*summary.trimaps, strict=True)
    return {
        "confusion.png": confusion_heat_map(result.confusion_CC, names),
        "iou.png": iou_chart([(split, summary.total.iou_C)], names),
        "trimaps.png": trimap_chart(widths, [each.mean_iou for each in within], everywhere=summary.total.mean_iou),
        "reliability.png": reliability_chart(summary.calibration),
    }


READ_ME = (
    "The same numbers stand in scores.json and the Parquet tables beside this page; docs/evaluation.md explains them."
)


def _example_sections(examples: Sequence[Example], dataset: PreparedDataset) -> list[Section]:
    titles = {"best": "Best images", "median": "Median images", "worst": "Worst images"}
    legend = Legend(class_names=dataset.class_names, palette=dataset.palette)
    sections = []
    for kind, title in titles.items():
        galleries = [
            Gallery(
                pictures=tuple(Picture(data=data, caption=caption) for caption, data in example.panels),
                min_width_px=270,  # four beside each other
            )
            for example in examples
            if example.rank.startswith(kind)
        ]
        if galleries:
            sections.append(Section(title=f"{title}, by their own mIoU", blocks=(legend, *galleries)))
    return sections
