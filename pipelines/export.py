"""What other tools read: masks of chosen images (indexed PNG, COCO run lengths, GeoJSON polygons), and models.

An export of masks is a folder: the masks, `images.csv` (one line per chosen image, in the order asked for, with its
file), and `manifest.json` last. The same command on the same snapshot gives the same bytes. Nothing is overwritten: a
file that is there must have these bytes already, of an export that was interrupted. Models: `pipelines.model_export`.
"""

import csv
import io
import json
import logging
import os
import posixpath
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import tyro

from pipelines import manifests, storage
from pipelines.model_export.config import ModelExportConfig
from pipelines.pictures import indexed_png_bytes
from pipelines.progress import progress
from pipelines.tables.geojson import Affine, feature_collection, read_world_file
from pipelines.tables.mask_reader import Mask, find_masks, mask_index
from pipelines.tables.reader import open_snapshot
from pipelines.tables.runs import Snapshot
from pipelines.tables.selection import select_images
from segcore.coco_runs import class_runs
from segcore.mask_polygons import class_polygons

if TYPE_CHECKING:  # masks are exported without PyTorch and MLflow, which take seconds
    from pipelines.model_export.run import ModelExportResult

KIND = "export"
MASKS_AT_ONCE = 64

logger = logging.getLogger(__name__)

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class SelectionConfig:
    """Which masks, and where to."""

    tables: str
    """Folder or URI of the tables that jobs/segment.py wrote."""
    output: str
    """Folder or URI of the export: new, empty, or begun by the same command."""
    where: str = ""
    """Condition on the columns of predictions, in DuckDB's SQL: "mean_confidence < 0.6 AND run_date = '2026-11-20'".
    Empty: all images."""
    order_by: str = ""
    """Columns or expressions: "mean_confidence" gives the least confident first."""
    limit: int | None = None
    """Images at most, the first in that order."""
    snapshot: int | None = None
    """Number of the snapshot; default: the newest."""

    def __post_init__(self) -> None:
        """Refuse numbers that make no sense."""
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"--limit is {self.limit}; give 1 or more")


Selection = tyro.conf.OmitArgPrefixes[SelectionConfig]


@dataclass(frozen=True, kw_only=True, slots=True)
class PngConfig:
    """One indexed PNG per mask, pixel values are class indices, colours the class table's."""

    selection: Selection


@dataclass(frozen=True, kw_only=True, slots=True)
class CocoConfig:
    """One coco.json with run lengths per class, which pycocotools decodes to the same pixels. It is made in memory."""

    selection: Selection


@dataclass(frozen=True, kw_only=True, slots=True)
class GeojsonConfig:
    """One GeoJSON file per mask, a MultiPolygon per class. Simplified polygons are not exact to the pixel."""

    selection: Selection
    affine: tuple[float, float, float, float, float, float] | None = None
    """Six numbers a b c d e f for all images: x = a * column + b * row + c, y = d * column + e * row + f, where (0, 0)
    is the upper left corner. Default: pixel coordinates, x to the right, y down."""
    world_files: bool = False
    """Take the transform from the world file beside each image (a.jgw of a.jpg, or a.wld)."""
    simplify_px: float = 1.0
    """How far lines may stray from the pixels' edges; neighbouring classes then overlap or leave gaps that wide. 0
    follows every pixel, and makes files several times larger."""

    def __post_init__(self) -> None:
        """Refuse what does not go together."""
        if self.affine and self.world_files:
            raise ValueError("--affine and --world-files both give coordinates; give one of them")
        if self.simplify_px < 0:
            raise ValueError(f"--simplify-px is {self.simplify_px}; give 0 or more")


MaskExportConfig = PngConfig | CocoConfig | GeojsonConfig
ExportConfig = MaskExportConfig | ModelExportConfig
FORMATS: dict[str, Callable[..., MaskExportConfig]] = {"png": PngConfig, "coco": CocoConfig, "geojson": GeojsonConfig}
"""Of masks."""
SUBCOMMANDS: dict[str, Callable[..., ExportConfig]] = {**FORMATS, "model": ModelExportConfig}
"""Subcommands of jobs/export.py."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportResult:
    """Where the export is, and what is in it."""

    output: str
    num_images: int
    num_without_mask: int

    @property
    def closing_line(self) -> str:
        dropped = f"; {self.num_without_mask} more have no mask any longer" if self.num_without_mask else ""
        return f"exported the masks of {self.num_images} images to {self.output}{dropped}"


def export_any(config: ExportConfig) -> "ExportResult | ModelExportResult":
    """Export a model, or the masks of the chosen images: `pipelines.model_export.run`, `export`."""
    if not isinstance(config, ModelExportConfig):
        return export(config)
    from pipelines.model_export.run import export_model  # imports PyTorch and MLflow

    return export_model(config)


def export(config: MaskExportConfig) -> ExportResult:
    """Export the masks of the chosen images.

    Raises:
        ValueError: there are no tables, the SQL is wrong, the output holds something else, or a world file is missing.
    """
    selection = config.selection
    tables, output = storage.absolute(selection.tables), storage.absolute(selection.output)
    snapshot = open_snapshot(tables, selection.snapshot)
    storage.check_writable(output)
    stated = _stated(config, snapshot)
    if storage.exists(storage.join(output, manifests.MANIFEST)):
        return _finished(output, stated)
    rows = select_images(tables, snapshot, where=selection.where, order_by=selection.order_by, limit=selection.limit)
    if not rows:
        logger.warning("no image fulfils --where %r; the export is empty", selection.where)
    names = dict(zip([row["work_id"] for row in rows], file_names(rows), strict=True))
    files = _WRITERS[type(config)](config, tables, output, snapshot, rows, names)
    _write_new(output, "images.csv", _images_csv(rows, files))
    counts = {"num_images": len(files), "num_without_mask": len(rows) - len(files)}
    content = stated | counts | {"code_commit": manifests.code_commit()}
    manifests.write_manifest(output, kind=KIND, content=content)
    return ExportResult(output=output, **counts)


def file_names(rows: Sequence[Row]) -> list[str]:
    """A relative path without suffix for each image: its own below the folder that all share.

    Images that would share one (a.jpg and a.png; one image under two models) get the start of their work id as well.
    """
    paths = [(row["uri"].partition("://")[2] or row["uri"]).lstrip("/") for row in rows]
    folders = {posixpath.dirname(path) for path in paths}
    shared = posixpath.commonpath(folders) if folders else ""
    stems = [posixpath.splitext(posixpath.relpath(path, shared or "."))[0] for path in paths]
    stems = ["/".join("_" if part in ("", ".", "..") else part for part in stem.split("/")) for stem in stems]
    count = Counter(stems)
    return [
        stem if count[stem] == 1 else f"{stem}-{row['work_id'][:12]}" for stem, row in zip(stems, rows, strict=True)
    ]


def _stated(config: MaskExportConfig, snapshot: Snapshot) -> dict[str, Any]:
    """What an export is made of, as its manifest has it."""
    settings = asdict(config)
    del settings["selection"]["output"]
    return {
        "format": next(name for name, kind in FORMATS.items() if kind is type(config)),
        "config": json.loads(json.dumps(settings)),
        "snapshot": snapshot.number,
        "class_names": list(snapshot.class_names),
        "palette": [list(colour) for colour in snapshot.palette],
    }


def _finished(output: str, stated: dict[str, Any]) -> ExportResult:
    manifest = manifests.read_manifest(output, kind=KIND)
    different = [name for name, value in stated.items() if manifest.get(name) != value]
    if different:
        raise ValueError(
            f"{output!r} holds a finished export with another {', '.join(different)}; give another --output, or "
            f"--snapshot {manifest.get('snapshot')} for the same one"
        )
    logger.info("exported already by this command: %s", output)
    return ExportResult(output=output, num_images=manifest["num_images"], num_without_mask=manifest["num_without_mask"])


def _export_png(
    config: PngConfig, tables: str, output: str, snapshot: Snapshot, rows: Sequence[Row], names: dict[str, str]
) -> dict[str, str]:
    def write(mask: Mask) -> tuple[str, str]:
        file = f"{names[mask.work_id]}.png"
        _write_new(output, file, indexed_png_bytes(mask.pixels(), snapshot.palette))
        return mask.work_id, file

    return dict(_for_each_mask(tables, snapshot, rows, write))


def _export_geojson(
    config: GeojsonConfig, tables: str, output: str, snapshot: Snapshot, rows: Sequence[Row], names: dict[str, str]
) -> dict[str, str]:
    row_of_id = {row["work_id"]: row for row in rows}
    affine = Affine(**dict(zip("abcdef", config.affine, strict=True))) if config.affine else None

    def write(mask: Mask) -> tuple[str, str]:
        row = row_of_id[mask.work_id]
        if config.world_files and row["orientation"] != 1:
            raise ValueError(
                f"{row['uri']} is turned by its EXIF orientation {row['orientation']}, its world file is not; leave it "
                'out with --where "orientation = 1"'
            )
        data = feature_collection(
            class_polygons(mask.pixels(), simplify_px=config.simplify_px),
            snapshot.class_names,
            affine=read_world_file(row["uri"]) if config.world_files else affine,
            properties={"uri": row["uri"], "work_id": mask.work_id},
        )
        file = f"{names[mask.work_id]}.geojson"
        _write_new(output, file, data)
        return mask.work_id, file

    return dict(_for_each_mask(tables, snapshot, rows, write))


def _export_coco(
    config: CocoConfig, tables: str, output: str, snapshot: Snapshot, rows: Sequence[Row], names: dict[str, str]
) -> dict[str, str]:
    runs_of_id = dict(_for_each_mask(tables, snapshot, rows, lambda mask: (mask.work_id, class_runs(mask.pixels()))))
    found = [row for row in rows if row["work_id"] in runs_of_id]
    images = [
        {"id": number, "file_name": row["uri"], "height": row["height"], "width": row["width"]}
        | {"work_id": row["work_id"]}
        for number, row in enumerate(found, start=1)
    ]
    annotations: list[dict[str, Any]] = []
    for image in images:
        for runs in runs_of_id[image["work_id"]]:
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image["id"],
                    "category_id": runs.class_index + 1,
                    "segmentation": {"size": [image["height"], image["width"]], "counts": runs.counts},
                    "area": runs.area,
                    "bbox": runs.box,
                    "iscrowd": 0,
                }
            )
    categories = [{"id": index + 1, "name": name} for index, name in enumerate(snapshot.class_names)]
    content = {"images": images, "categories": categories, "annotations": annotations}
    _write_new(output, "coco.json", storage.json_bytes(content))
    return dict.fromkeys(runs_of_id, "coco.json")


_WRITERS: dict[type, Callable[..., dict[str, str]]] = {
    PngConfig: _export_png,
    CocoConfig: _export_coco,
    GeojsonConfig: _export_geojson,
}
"""Each writes the masks that there are, and returns the file of each work id."""


def _for_each_mask(
    tables: str, snapshot: Snapshot, rows: Sequence[Row], work: Callable[[Mask], tuple[str, Any]]
) -> Iterator[tuple[str, Any]]:
    """Do something with every mask, in threads, with few masks in memory."""
    days = {row["run_date"].isoformat() for row in rows}
    masks = find_masks(mask_index(tables, snapshot=snapshot, run_dates=days), [row["work_id"] for row in rows])
    with ThreadPoolExecutor(os.cpu_count()) as pool, progress("export", total=len(rows), unit="masks") as advance:
        while some := list(islice(masks, MASKS_AT_ONCE)):
            yield from pool.map(work, some)
            advance(len(some))


def _images_csv(rows: Sequence[Row], files: dict[str, str]) -> bytes:
    """A line per chosen image, in order; an image whose mask was dropped has no file."""
    text = io.StringIO()
    columns = ["file", *(rows[0] if rows else ())]
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        writer.writerow([files.get(row["work_id"], ""), *row.values()])
    return text.getvalue().encode()


def _write_new(output: str, path: str, data: bytes) -> None:
    """Create a file, or find it there with these bytes.

    Raises:
        ValueError: it is there with others.
    """
    uri = storage.join(output, path)
    if not storage.create_exclusive(uri, data) and storage.read_bytes(uri) != data:
        raise ValueError(
            f"{uri} is there already and differs: it is of another export, or no export at all; give an empty --output"
        )
