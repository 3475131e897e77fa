"""COCO's run lengths, as pycocotools reads and writes them."""

import numpy as np
import pytest
from numpy.typing import NDArray
from pycocotools import mask as coco

from segcore.coco_runs import class_runs, counts_to_spans, paint_spans, spans_area, union_of_spans, unpack_counts


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


@pytest.mark.parametrize("name", _masks())
def test_packed_and_plain_counts_give_back_their_mask(name: str) -> None:
    mask_HW = _masks()[name]
    height, width = mask_HW.shape
    for class_index in np.unique(mask_HW):
        inside_HW = np.asfortranarray(mask_HW == class_index, dtype=np.uint8)
        packed = coco.encode(inside_HW)["counts"].decode()
        counts = unpack_counts(packed)
        assert coco.frPyObjects({"size": [height, width], "counts": counts.tolist()}, height, width)["counts"] == (
            packed.encode()
        )
        spans = counts_to_spans(counts, height=height, width=width)
        found_WH = np.zeros((width, height), np.uint8)
        paint_spans(found_WH, spans, 1)
        np.testing.assert_array_equal(found_WH.T, inside_HW)
        assert spans_area(spans) == inside_HW.sum()


def test_union_is_that_of_pycocotools() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        masks = [np.asfortranarray(rng.random((23, 17)) < share, dtype=np.uint8) for share in (0.1, 0.5, 0.02, 0.0)]
        rles = [coco.encode(mask) for mask in masks]
        parts = [counts_to_spans(unpack_counts(rle["counts"].decode()), height=23, width=17) for rle in rles]
        spans = union_of_spans(parts)
        found_WH = np.zeros((17, 23), np.uint8)
        paint_spans(found_WH, spans, 1)
        np.testing.assert_array_equal(found_WH.T, coco.decode(coco.merge(rles)))
        assert spans_area(spans) == coco.area(coco.merge(rles))
        assert (spans[1:, 0] > spans[:-1, 1]).all()
    assert union_of_spans([]).shape == (0, 2)


@pytest.mark.parametrize(
    ("packed", "message"),
    [
        ("5 3", "a character outside '0' to 'o'"),
        ("5x", "a character outside '0' to 'o'"),
        ("0P", "end within a number"),
        ("PPPPPPPP0", "a number of more than 7 characters"),
    ],
)
def test_text_that_is_no_packed_counts_is_refused(packed: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        unpack_counts(packed)


def test_counts_that_do_not_fit_the_image_are_refused() -> None:
    with pytest.raises(ValueError, match="counts hold 11 pixels; expected 3 x 4 = 12"):
        counts_to_spans([10, 1], height=3, width=4)
    with pytest.raises(ValueError, match="counts hold 12 pixels; .* and no count below 0"):
        counts_to_spans([10, -1, 3], height=3, width=4)
    with pytest.raises(ValueError, match="counts hold 0 pixels"):
        counts_to_spans(unpack_counts(""), height=3, width=4)
