"""A fake dataset as on the Hugging Face Hub: data/<split>-00000-of-00001.parquet with encoded images and labels."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

FILE = pa.struct([pa.field("bytes", pa.binary()), pa.field("path", pa.string())])
CLASSES = "names: {1: road, 2: sky}\nignore: [0]\n"


def encoded(pixels: NDArray[Any], kind: str = "PNG") -> bytes:
    """An image file."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def make_hf_parquet(
    root: Path,
    *,
    rows: tuple[tuple[str, int], ...] = (("train", 7), ("validation", 3)),
    row_group_size: int = 2,
    label_column: str = "label",
) -> Path:
    """Files of some rows in row groups; row r's image is of gray level r, its labels are 0, 1 and 2. Returns `root`."""
    (root / "data").mkdir(parents=True)
    for split, count in rows:
        images = [{"bytes": encoded(np.full((12, 16, 3), row, np.uint8)), "path": f"{row}.png"} for row in range(count)]
        labels_HW = (np.arange(12 * 16).reshape(12, 16) % 3).astype(np.uint8)
        labels = [{"bytes": encoded(labels_HW), "path": None}] * count
        schema = pa.schema([("image", FILE), (label_column, FILE), ("scene", pa.string())])
        table = pa.table([images, labels, ["street"] * count], schema=schema)
        pq.write_table(table, root / "data" / f"{split}-00000-of-00001.parquet", row_group_size=row_group_size)
    (root / "classes.yaml").write_text(CLASSES)
    return root
