"""Which rows of a shard an epoch visits, and how often, where the recipe samples.

An epoch has as many visits as the split has images, and visits are numbered in the order of the images: image i, which
is visited k_i times, has the numbers from k_0 + ... + k_(i-1) on. What a checkpoint says was seen are visits. Without
sampling every k is 1 and a visit's number is its image's.

Ray's reader processes import this module: nothing heavy here.
"""

from functools import lru_cache

import numpy as np
import pyarrow as pa
import safetensors.numpy
from numpy.typing import NDArray

from pipelines import storage
from segcore.class_balance import visits_of_epoch

IMAGE_WEIGHTS_FILE = "image_weights.safetensors"
IMAGE_WEIGHTS = "image_weights"
REPEAT = "repeat"
"""Column that the reader adds where it samples: 0 for an image's first visit of the epoch, 1 for its second."""


@lru_cache(maxsize=2)
def _image_weights(uri: str) -> NDArray[np.float64]:
    return safetensors.numpy.load(storage.read_bytes(uri))[IMAGE_WEIGHTS]


@lru_cache(maxsize=4)  # a process reads one epoch, and begins the next
def _visits(uri: str, seed: int, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Visits of each image, and the number of its first one."""
    visits_N = visits_of_epoch(_image_weights(uri), seed=seed, epoch=epoch)
    return visits_N, np.cumsum(visits_N) - visits_N


def visited_rows(
    rows: pa.Table, *, start: int, image_weights: str, seed: int, epoch: int
) -> tuple[pa.Table, NDArray[np.int64]]:
    """A shard's rows as often as the epoch visits them, with the column `REPEAT`, and the number of each visit.

    Repetitions of an image lie as far apart as one shard allows: first every image once, then those that come again.

    Args:
        rows: of the whole shard.
        start: number of its first image in the split.
        image_weights: URI of the file that `pipelines.training.balance` wrote.
        seed, epoch: see `visits_of_epoch`.
    """
    visits_N, first_N = _visits(image_weights, seed, epoch)
    visits, first = visits_N[start : start + rows.num_rows], first_N[start : start + rows.num_rows]
    index = np.repeat(np.arange(rows.num_rows), visits)
    repeat = np.arange(len(index)) - np.repeat(np.cumsum(visits) - visits, visits)
    order = np.lexsort((index, repeat))
    index, repeat = index[order], repeat[order]
    return rows.take(pa.array(index)).append_column(REPEAT, pa.array(repeat, pa.int64())), first[index] + repeat
