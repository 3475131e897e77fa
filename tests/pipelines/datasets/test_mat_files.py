"""Label maps in MATLAB files."""

import io
import math
import struct
from typing import Any

import numpy as np
import pytest
from scipy.io import loadmat, savemat

from pipelines.datasets import mat_files
from pipelines.datasets.mat_files import read_label_map
from pipelines.intake.formats import ImageError
from tests.data.voc.make import sbd_structure

MAP_HW = np.arange(12, dtype=np.uint16).reshape(3, 4) * 40


def mat(content: dict[str, Any], **options: Any) -> bytes:
    file = io.BytesIO()
    savemat(file, content, **options)
    return file.getvalue()


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("dtype", ["u1", "u2", "i4", "i8", "f4", "f8"])
def test_maps_come_out_as_scipy_wrote_them(compressed: bool, dtype: str) -> None:
    content = {"a_first_one": "text", "LabelMap": (MAP_HW // 2).astype(dtype), "other": 1.0}
    values_HW = read_label_map(mat(content, do_compression=compressed), variable="LabelMap")
    assert values_HW.dtype == np.uint16
    assert np.array_equal(values_HW, MAP_HW // 2)


@pytest.mark.parametrize("shape", [(1, 1), (1, 3), (3, 1), (5, 7)])
def test_small_maps_lie_in_their_tag(shape: tuple[int, int]) -> None:
    labels_HW = np.arange(math.prod(shape), dtype=np.uint8).reshape(shape)
    assert np.array_equal(read_label_map(mat({"m": labels_HW}), variable="m"), labels_HW)


def test_the_other_byte_order_is_read() -> None:
    words = struct.pack(">2I", 14, 6 * 8 + 8)  # a matrix of 56 bytes: flags, dimensions, name, values
    words += struct.pack(">4I", 6, 8, 11, 0) + struct.pack(">2I2i", 5, 8, 1, 2)
    words += struct.pack(">HH", 1, 1) + b"m\0\0\0" + struct.pack(">2I4H", 4, 4, 7, 459, 0, 0)
    data = b"MATLAB 5.0".ljust(124) + struct.pack(">H", 0x0100) + b"MI" + words
    assert read_label_map(data, variable="m").tolist() == [[7, 459]]
    assert loadmat(io.BytesIO(data))["m"].tolist() == [[7, 459]]


def test_maps_in_a_structure_and_of_floats_are_read() -> None:
    data = mat({"GTcls": {"Boundaries": [np.eye(9), "x"], "Segmentation": MAP_HW.astype(np.float64), "Present": 0}})
    assert np.array_equal(read_label_map(data, variable="GTcls", field="Segmentation"), MAP_HW)


@pytest.mark.parametrize(
    ("data", "message", "stage"),
    [
        (b"", "truncated or broken", "decode"),
        (b"<html>not found</html>" * 20, "truncated or broken", "decode"),
        (mat({"LabelMap": MAP_HW})[:-20], "truncated or broken", "decode"),
        (mat({"LabelMap": MAP_HW}, do_compression=True)[:-20], "truncated or broken", "decode"),
        (b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM" + bytes(400), "has version 7.3, expected 5 to 7", "decode"),
        (mat({"labels": MAP_HW}), "has no LabelMap; expected it to hold the label map", "validate"),
        (mat({"LabelMap": "road"}), "has no numbers and the dimensions", "validate"),
        (mat({"LabelMap": np.zeros((2, 2, 2))}), r"dimensions \(2, 2, 2\), expected a matrix", "validate"),
        (mat({"LabelMap": np.zeros((0, 0))}), r"dimensions \(0, 0\), expected a matrix", "validate"),
        (mat({"LabelMap": np.array([[1j]])}), r"numbers and the dimensions \(1, 1\), expected a matrix", "validate"),
        (mat({"LabelMap": np.array([[0.5, 1.0]])}), "values from 0.5 to 1.0, expected integers", "validate"),
        (mat({"LabelMap": np.array([[-1, 1]])}), "values from -1 to 1, expected integers from 0", "validate"),
        (mat({"LabelMap": np.array([[np.nan, 1]])}), "expected integers from 0", "validate"),
    ],
)
def test_what_holds_no_label_map_is_refused(data: bytes, message: str, stage: str) -> None:
    with pytest.raises(ImageError, match=message) as refused:
        read_label_map(data, variable="LabelMap")
    assert refused.value.stage == stage


def test_a_structure_without_the_field_is_refused() -> None:
    for content in ({"GTcls": {"Boundaries": 0}}, {"GTcls": MAP_HW}):
        with pytest.raises(ImageError, match="has no GTcls.Segmentation"):
            read_label_map(mat(content), variable="GTcls", field="Segmentation")


def test_flipped_bytes_and_missing_ends_are_refused_or_read_and_nothing_else() -> None:
    random = np.random.default_rng(0)
    labels_HW = (np.arange(140) % 21).astype(np.uint8).reshape(10, 14)
    wholes = [mat(sbd_structure(labels_HW), do_compression=compressed) for compressed in (False, True)]
    refused = 0
    for turn in range(2000):
        data = bytearray(wholes[turn % 2])
        for position in random.integers(0, len(data), random.integers(1, 6)):
            data[position] = random.integers(0, 256)
        end = random.integers(0, len(data)) if turn % 5 == 0 else len(data)
        try:
            values_HW = read_label_map(bytes(data[:end]), variable="GTcls", field="Segmentation")
        except ImageError:
            refused += 1
        else:
            assert values_HW.ndim == 2
    assert refused > 500


def test_a_variable_that_unpacks_to_too_much_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    data = mat({"LabelMap": np.zeros((100, 100), dtype=np.uint8)}, do_compression=True)
    monkeypatch.setattr(mat_files, "MAX_UNPACKED_BYTES", 5000)
    with pytest.raises(ImageError, match="is cut off, or has more than 5000 bytes"):
        read_label_map(data, variable="LabelMap")
