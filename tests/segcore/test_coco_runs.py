"""COCO's run lengths, as pycocotools reads and writes them."""

import numpy as np
import pytest
from numpy.typing import NDArray
from pycocotools import mask as coco

from segcore.coco_runs import class_runs


def _masks() -> dict[str, NDArray[np.uint8]]:
    rng = np.random.default_rng(0)
    stripes = np.zeros((40, 30), np.uint8)
    stripes[:, ::2] = 7
    return {
        "one pixel": np.array([[3]], np.uint8),
        "one class": np.full((300, 400), 200, np.uint8),
        "noise": rng.integers(0, 5, (37, 41), dtype=np.uint8),
        "columns": stripes,
        "rows": np.ascontiguousarray(stripes.T),
        "blocks": rng.integers(0, 4, (9, 11), dtype=np.uint8).repeat(50, axis=0).repeat(70, axis=1),
        "long and short": np.where(np.arange(200_000).reshape(400, 500) % 90_000 == 17, 1, 0).astype(np.uint8),
    }


@pytest.mark.parametrize("name", _masks())
def test_counts_area_and_box_are_those_of_pycocotools(name: str) -> None:
    mask_HW = _masks()[name]
    found = class_runs(mask_HW)
    assert [runs.class_index for runs in found] == np.unique(mask_HW).tolist()
    for runs in found:
        inside_HW = np.asfortranarray(mask_HW == runs.class_index, dtype=np.uint8)
        theirs = coco.encode(inside_HW)
        assert runs.counts.encode() == theirs["counts"]
        np.testing.assert_array_equal(coco.decode({"size": list(mask_HW.shape), "counts": runs.counts}), inside_HW)
        assert runs.area == coco.area(theirs)
        rows, columns = np.nonzero(inside_HW)
        box = (columns.min(), rows.min(), columns.max() - columns.min() + 1, rows.max() - rows.min() + 1)
        assert runs.box == box
