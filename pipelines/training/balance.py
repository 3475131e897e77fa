"""What a run takes from its training labels before it starts: class weights, visits of images, donors of rare classes.

The pixels of each class in each image stand in the shards' column `class_pixels`; only that column is fetched. The sums
over the split are held against the manifest, since parts are verified as a whole, when their images are read.

    <run>/image_weights.safetensors   share of an epoch's visits of each image, where the recipe samples
    <run>/donors.parquet              rows of the images whose pixels are pasted, where it copies and pastes

Both are written once, before the run is claimed: a run that is continued reads them.
"""

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import safetensors.numpy
from numpy.typing import NDArray

from pipelines import storage
from pipelines.recipes.recipe import Recipe
from pipelines.shards import SHARD_SCHEMA, PreparedDataset, parquet_bytes, read_part
from pipelines.training.visits import IMAGE_WEIGHTS, IMAGE_WEIGHTS_FILE
from segcore.class_balance import image_weights, inverse_log_weights, median_frequency_weights

DONORS_FILE = "donors.parquet"
READING_THREADS = 16
COUNTS_COLUMN = "class_pixels"

logger = logging.getLogger(__name__)


def class_weights_of(recipe: Recipe, dataset: PreparedDataset, split: str) -> tuple[float, ...]:
    """Weight of each class in the recipe's loss, from the labels of a split; none where it has no weights.

    Raises:
        ValueError: a part is missing, or its counts of pixels are.
    """
    if recipe.loss.class_weights == "none":
        return ()
    if recipe.loss.class_weights == "inverse_log":
        class_pixels_C = np.array(dataset.split(split).class_pixels)
        return tuple(inverse_log_weights(class_pixels_C, offset=recipe.loss.inverse_log_offset))
    class_pixels_NC = read_class_pixels(dataset, split)
    return tuple(median_frequency_weights(class_pixels_NC, class_pixels_NC.sum(axis=1)))


def check_class_names(recipe: Recipe, dataset: PreparedDataset) -> None:
    """Refuse names of classes that the dataset does not have.

    Raises:
        ValueError: the message lists those that it has.
    """
    _indices(recipe.sampling.hard_classes, dataset, "--sampling.hard-classes")
    _indices(recipe.copy_paste.classes, dataset, "--copy-paste.classes")


def _indices(names: Sequence[str], dataset: PreparedDataset, flag: str) -> tuple[int, ...]:
    unknown = [name for name in names if name not in dataset.class_names]
    if unknown:
        raise ValueError(
            f"{flag} names {', '.join(map(repr, unknown))}, and the dataset has no such class; "
            f"it has {', '.join(map(repr, dataset.class_names))}"
        )
    return tuple(dataset.class_names.index(name) for name in names)


def write_balance(recipe: Recipe, dataset: PreparedDataset, split: str, run_folder: str) -> None:
    """Write what the workers of a new run will read, as far as the recipe asks for it.

    Raises:
        ValueError: no image shows a class that is asked for, or a part is missing or has changed.
    """
    if recipe.sampling.method == "none" and not recipe.copy_paste.classes:
        return
    class_pixels_NC = read_class_pixels(dataset, split)
    if recipe.sampling.method != "none":
        hard = _indices(recipe.sampling.hard_classes, dataset, "--sampling.hard-classes")
        weights_N = image_weights(class_pixels_NC, recipe.sampling, hard_indices=hard)
        uri = storage.join(run_folder, IMAGE_WEIGHTS_FILE)
        storage.write_atomic(uri, safetensors.numpy.save({IMAGE_WEIGHTS: weights_N}))
        logger.info(
            "sampling %s: of %d images %d have half of the visits",
            recipe.sampling.method,
            len(weights_N),
            int(np.searchsorted(np.cumsum(np.sort(weights_N)[::-1]), 0.5) + 1),
        )
    if recipe.copy_paste.classes:
        chosen = choose_donors(class_pixels_NC, recipe, dataset)
        storage.write_atomic(storage.join(run_folder, DONORS_FILE), _donor_rows(dataset, split, chosen))
        logger.info("copy-paste: %d images are donors of %s", len(chosen), ", ".join(recipe.copy_paste.classes))


def read_class_pixels(dataset: PreparedDataset, split: str) -> NDArray[np.int64]:
    """Pixels of each class in each image of a split, in the order of its parts: (images, C).

    Raises:
        ValueError: a part is missing, has no such column, or its counts are not those of the manifest.
    """
    uris = dataset.part_uris(split)
    with ThreadPoolExecutor(READING_THREADS) as pool:
        parts = list(pool.map(_counts_of_part, uris))
    class_pixels_NC = np.concatenate(parts) if parts else np.zeros((0, dataset.num_classes), dtype=np.int64)
    told = dataset.split(split)
    expected = (told.num_images, dataset.num_classes)
    if class_pixels_NC.shape != expected or class_pixels_NC.sum(axis=0).tolist() != list(told.class_pixels):
        raise ValueError(
            f"the column {COUNTS_COLUMN!r} of split {split!r} in {dataset.uri} holds {class_pixels_NC.shape} counts "
            f"with the sums {class_pixels_NC.sum(axis=0).tolist()}; the manifest says {expected} and "
            f"{list(told.class_pixels)}: run jobs/prepare.py again into a new folder"
        )
    return class_pixels_NC


def _counts_of_part(uri: str) -> NDArray[np.int64]:
    filesystem, path = storage.arrow_filesystem(uri)
    try:
        with filesystem.open_input_file(path) as file:
            part = pq.ParquetFile(file)
            if COUNTS_COLUMN not in part.schema_arrow.names:
                raise ValueError(
                    f"shard {uri} has no column {COUNTS_COLUMN!r}, from which class weights, sampling and copy-paste "
                    "follow; run jobs/prepare.py again into a new folder"
                )
            rows = part.read(columns=[COUNTS_COLUMN])[COUNTS_COLUMN].to_pylist()
    except FileNotFoundError:
        raise ValueError(f"shard {uri} is missing; restore it, or run jobs/prepare.py again") from None
    except pa.ArrowInvalid as error:
        raise ValueError(f"shard {uri} is corrupt ({error}); restore it, or run jobs/prepare.py again") from error
    return np.array(rows, dtype=np.int64)


def choose_donors(class_pixels_NC: NDArray[np.int64], recipe: Recipe, dataset: PreparedDataset) -> list[int]:
    """Numbers of the images to paste from, in order: of each class the first ones that show enough of it.

    `prepare` has put images in an order that is as good as random; the first ones lie in the fewest parts.

    Raises:
        ValueError: no image shows enough of one of the classes.
    """
    config = recipe.copy_paste
    share = -(-config.donors // len(config.classes))
    chosen: set[int] = set()
    for name, index in zip(config.classes, _indices(config.classes, dataset, "--copy-paste.classes"), strict=True):
        showing = np.flatnonzero(class_pixels_NC[:, index] >= config.min_pixels).tolist()
        if not showing:
            raise ValueError(
                f"no training image shows {name!r} with {config.min_pixels} pixels or more, so there is nothing to "
                "paste; leave it out of --copy-paste.classes, or give a smaller --copy-paste.min-pixels"
            )
        chosen |= set([number for number in showing if number not in chosen][:share])
    return sorted(chosen)[: max(config.donors, len(config.classes))]


def _donor_rows(dataset: PreparedDataset, split: str, chosen: list[int]) -> bytes:
    rows = []
    start = 0
    for part in dataset.splits[split].parts:
        here = [number - start for number in chosen if start <= number < start + part.num_rows]
        start += part.num_rows
        if here:
            rows += read_part(dataset, part).take(here).to_pylist()
    return parquet_bytes(rows, SHARD_SCHEMA)
