"""A few images beside their truth and prediction, to look at in MLflow."""

import numpy as np

from pipelines.images import decode_image, decode_labels
from pipelines.pictures import Panel, colourise, png_bytes, strip
from pipelines.serving import ServedModel
from pipelines.shards import PreparedDataset, read_part


def sample_pictures(model: ServedModel, dataset: PreparedDataset, *, split: str, count: int) -> dict[str, bytes]:
    """PNG files by image id: image, truth and prediction side by side, spread over the split's first shard."""
    rows = read_part(dataset, dataset.splits[split].parts[0], columns=("image_id", "image", "label"))
    chosen = np.unique(np.linspace(0, rows.num_rows - 1, min(count, rows.num_rows)).astype(int))
    pictures: dict[str, bytes] = {}
    for row in rows.take(chosen).to_pylist():
        pixels_HW3 = decode_image(row["image"]).pixels_HW3
        prediction_HW = np.asarray(model.predict(pixels_HW3))
        panels = (
            Panel(row["image_id"], pixels_HW3),
            Panel("truth", colourise(decode_labels(row["label"]), dataset.palette)),
            Panel("prediction", colourise(prediction_HW, dataset.palette)),
        )
        pictures[row["image_id"].replace("/", "_")] = png_bytes(strip(panels))
    return pictures
