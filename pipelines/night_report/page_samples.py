"""Contact sheets of a run: which images are shown, and the images under their masks.

The rows of a run pass once, and a few of them are kept; only these images are read again, from where they lie. The same
run, seed and images give the same sheets.
"""

import dataclasses
import heapq
import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipelines import storage
from pipelines.intake.images import decode_image
from pipelines.night_report.page_rows import SAMPLE_COLUMNS
from pipelines.night_report.statistics import prefix_of
from pipelines.pages import Block, Gallery, LayeredPicture, Legend, Paragraph, Section
from pipelines.pictures import fit_width, indexed_png_bytes, jpeg_bytes, shrink_mask
from pipelines.tables.reader import read_table, table_files
from pipelines.tables.runs import Snapshot
from segcore.run_lengths import decode

logger = logging.getLogger(__name__)

PICTURE_WIDTH_PX = 480
JPEG_QUALITY = 82
MAX_SAMPLE_PIXELS = 50_000_000
"""Larger images are not read again for a small picture."""
DRAWING_THREADS = 4
VISIBLE_FRACTION = 0.01
"""A class that takes less of an image is hard to see in its picture."""

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleCounts:
    """How many images a sheet shows at most; every class is shown once whatever it takes."""

    random: int = 12
    uncertain: int = 12
    changed: int = 12


@dataclass(slots=True)
class _Lowest:
    """The rows with the lowest keys so far; of equal keys, the lowest work ids."""

    limit: int
    rows: list[tuple[Any, str, Row]] = field(default_factory=list)

    def offer(self, keys_N: NDArray[Any], rows: pa.Table, path: str) -> None:
        places = np.argsort(keys_N, kind="stable")[: self.limit]
        taken = rows.select(SAMPLE_COLUMNS).take(places).to_pylist()
        found = [
            (keys_N[place], row["work_id"], row | {"path": path}) for place, row in zip(places, taken, strict=True)
        ]
        self.rows = heapq.nsmallest(self.limit, [*self.rows, *found], key=lambda each: each[:2])

    def chosen(self) -> list[Row]:
        return [row for _, _, row in self.rows]


class SampleChooser:
    """Keeps the rows that the sheets will show, while all rows of a run pass.

    Args:
        counts: images per sheet.
        seed: of the random sheet.
        images: the listed folder.
        prefix_depth: of the metrics' prefixes.
        earlier: mean class fractions of each prefix over earlier nights.
    """

    def __init__(
        self,
        counts: SampleCounts,
        *,
        seed: int,
        images: str,
        prefix_depth: int,
        earlier: Mapping[str, NDArray[np.float64]],
    ) -> None:
        self.seed = seed
        self.images = images
        self.prefix_depth = prefix_depth
        self.earlier = earlier
        self.random = _Lowest(counts.random)
        self.uncertain = _Lowest(counts.uncertain)
        self.changed = _Lowest(counts.changed)
        self.best_of_class: dict[int, tuple[float, Row]] = {}

    def visit(self, rows: pa.Table, path: str) -> None:
        """Rows with `SAMPLE_COLUMNS` of one file."""
        seeded = [storage.sha256(f"{self.seed}/{work_id}".encode()) for work_id in rows["work_id"].to_pylist()]
        self.random.offer(np.array(seeded), rows, path)
        self.uncertain.offer(rows["mean_confidence"].to_numpy(), rows, path)
        fractions = rows["class_fraction"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
        fraction_NC = fractions.reshape(rows.num_rows, -1).astype(np.float64)
        self._offer_changed(rows, fraction_NC, path)
        for index, place in enumerate(fraction_NC.argmax(axis=0)):
            fraction = float(fraction_NC[place, index])
            if fraction > 0 and (index not in self.best_of_class or fraction > self.best_of_class[index][0]):
                row = rows.select(SAMPLE_COLUMNS).slice(place, 1).to_pylist()[0]
                self.best_of_class[index] = (fraction, row | {"path": path})

    def _offer_changed(self, rows: pa.Table, fraction_NC: NDArray[np.float64], path: str) -> None:
        uris = rows["uri"].to_pylist()
        before = [self.earlier.get(prefix_of(uri, self.images, depth=self.prefix_depth)) for uri in uris]
        known = [place for place, fraction_C in enumerate(before) if fraction_C is not None]
        if known:
            before_NC = np.array([before[place] for place in known])
            moved_N = 0.5 * np.abs(fraction_NC[known] - before_NC).sum(axis=1)
            self.changed.offer(-moved_N, rows.take(known), path)

    def covering(self) -> list[tuple[Row, list[int]]]:
        """Few images that together show every class that occurs, and the classes that each is there for.

        An image shows the classes of which it holds `VISIBLE_FRACTION`; a class that takes less everywhere is shown by
        the image that holds most of it. The image that shows most of what is missing comes next.
        """
        rows = {row["work_id"]: row for _, row in self.best_of_class.values()}
        shows: dict[str, set[int]] = {
            work_id: {index for index, fraction in enumerate(row["class_fraction"]) if fraction >= VISIBLE_FRACTION}
            for work_id, row in rows.items()
        }
        for index, (_, row) in self.best_of_class.items():
            shows[row["work_id"]].add(index)
        missing = set(self.best_of_class)
        chosen: list[tuple[Row, list[int]]] = []
        while missing:
            work_id = max(sorted(shows), key=lambda each: len(shows[each] & missing))
            chosen.append((rows[work_id], sorted(shows[work_id] & missing)))
            missing -= shows[work_id]
        return chosen


def sample_sections(
    tables: str, run_id: str, snapshot: Snapshot, chooser: SampleChooser, *, palette: Sequence[tuple[int, int, int]]
) -> list[Section]:
    """The sheets; an image that is gone or has changed leaves a line."""
    names = snapshot.class_names
    covering = chooser.covering()
    sheets: list[tuple[str, str, list[tuple[Row, str]]]] = [
        ("Random images", f"Drawn with seed {chooser.seed}.", [(row, "") for row in chooser.random.chosen()]),
        (
            "Least confident",
            "Lowest mean confidence first; the first to look at, and to label.",
            [(row, "") for row in chooser.uncertain.chosen()],
        ),
        (
            "Biggest change of class areas",
            "Furthest from the mean of the same camera's earlier nights; the part of the image that would have to "
            "change its class.",
            [(row, f"{-100 * moved:.0f} % moved") for moved, _, row in chooser.changed.rows],
        ),
        (
            "Every class",
            "Each class that occurs is in one of these at least.",
            [(row, "for " + ", ".join(names[index] for index in indices)) for row, indices in covering],
        ),
    ]
    pictures = draw_samples(
        tables, run_id, snapshot, [row for _, _, rows in sheets for row, _ in rows], palette=palette
    )
    absent = [name for index, name in enumerate(names) if index not in chooser.best_of_class]
    sections = []
    for title, text, rows in sheets:
        if title == "Every class" and absent:
            text += f" Nowhere in this run: {', '.join(absent)}."
        if rows:
            sections.append(_sheet(title, text, rows, pictures, names, palette, chooser.images))
    return sections


def _sheet(
    title: str,
    text: str,
    rows: Sequence[tuple[Row, str]],
    pictures: Mapping[str, tuple[bytes, bytes] | str],
    class_names: Sequence[str],
    palette: Sequence[tuple[int, int, int]],
    images: str,
) -> Section:
    shown: list[LayeredPicture] = []
    problems: list[Paragraph] = []
    classes: set[int] = set()
    for row, remark in rows:
        picture = pictures[row["work_id"]]
        if isinstance(picture, str):
            problems.append(Paragraph(text=f"{row['uri']}: {picture}"))
            continue
        confidence = f"confidence {100 * row['mean_confidence']:.0f} %"
        facts = [row["uri"].removeprefix(images).lstrip("/"), confidence, *([remark] if remark else []), *row["notes"]]
        shown.append(LayeredPicture(data=picture[0], layer=picture[1], caption="; ".join(facts)))
        classes |= {index for index, fraction in enumerate(row["class_fraction"]) if fraction > 0}
    legend = Legend(
        class_names=tuple(class_names[index] for index in sorted(classes)),
        palette=tuple(palette[index] for index in sorted(classes)),
        ignored=False,
    )
    blocks: tuple[Block, ...] = (Paragraph(text=text), *problems)
    if shown:
        blocks = (Paragraph(text=text), legend, Gallery(pictures=tuple(shown), min_width_px=290), *problems)
    return Section(title=title, blocks=blocks)


def draw_samples(
    tables: str, run_id: str, snapshot: Snapshot, rows: Sequence[Row], *, palette: Sequence[tuple[int, int, int]]
) -> dict[str, tuple[bytes, bytes] | str]:
    """JPEG of each image and indexed PNG of its mask, both small, by work id; or why there are none."""
    wanted = {row["work_id"]: row for row in rows}
    masks = _read_masks(tables, run_id, snapshot, list(wanted.values()))

    def draw(row: Row) -> tuple[bytes, bytes] | str:
        try:
            return _draw(row, masks.get(row["work_id"]), palette)
        except Exception as error:  # the bucket moves on, and object stores raise their own types
            logger.warning("no sample picture of %s", row["uri"], exc_info=True)
            return str(error) or type(error).__name__

    with ThreadPoolExecutor(DRAWING_THREADS) as pool:
        return dict(zip(wanted, pool.map(draw, wanted.values()), strict=True))


def _draw(row: Row, mask: Row | None, palette: Sequence[tuple[int, int, int]]) -> tuple[bytes, bytes]:
    """The image and its mask.

    Raises:
        ValueError: the image is too large to be shown, has another size than its mask, or has none.
    """
    height, width = row["height"], row["width"]
    if height * width > MAX_SAMPLE_PIXELS:
        raise ValueError(f"{height} x {width} pixels are too many for a sample; its mask is in the tables")
    if mask is None:
        raise ValueError("its mask is no longer in the tables")
    values, lengths = np.asarray(mask["values"], dtype=np.uint8), np.asarray(mask["lengths"], dtype=np.int32)
    mask_HW = decode(values, lengths, height=height, width=width)
    pixels_HW3 = decode_image(storage.read_bytes(row["uri"])).pixels_HW3
    if pixels_HW3.shape[:2] != mask_HW.shape:
        found = "{} x {}".format(*pixels_HW3.shape[:2])
        raise ValueError(f"it had {height} x {width} pixels when it was segmented and has {found} now")
    picture_HW3 = fit_width(pixels_HW3, width=PICTURE_WIDTH_PX)
    layer_HW = shrink_mask(mask_HW, height=picture_HW3.shape[0], width=picture_HW3.shape[1])
    return jpeg_bytes(picture_HW3, quality=JPEG_QUALITY), indexed_png_bytes(layer_HW, palette)


def _read_masks(tables: str, run_id: str, snapshot: Snapshot, rows: Sequence[Row]) -> dict[str, Row]:
    """Masks by work id; each from the file beside the one that its prediction is in, where there is such a file."""
    ids_of_path: dict[str, list[str]] = {}
    for row in rows:
        ids_of_path.setdefault(row["path"].replace("predictions", "masks", 1), []).append(row["work_id"])
    of_run = table_files(snapshot, "masks", run_id=run_id)
    found: dict[str, Row] = {}
    for path, work_ids in ids_of_path.items():
        beside = [file for file in of_run if file["path"] == path]
        masks = read_table(
            tables,
            "masks",
            columns=("work_id", "values", "lengths"),
            filter=pc.field("work_id").isin(work_ids),
            snapshot=dataclasses.replace(snapshot, files=tuple(beside or of_run)),
        )
        found |= {mask["work_id"]: mask for mask in masks.to_pylist()}
    return found
