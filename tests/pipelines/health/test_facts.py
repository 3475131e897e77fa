"""What the doctor writes down of an image does not depend on how it is stored."""

import io
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from pipelines.datasets.listing import ClassTable, Sample
from pipelines.health.facts import examine

CLASS_TABLE = ClassTable(names=("sky", "road"), palette=((0, 0, 0), (255, 255, 255)), values=(0, 1))


def row_of(pixels_HW3: NDArray[np.uint8], file_format: str, **settings: Any) -> dict[str, Any]:
    image, label = io.BytesIO(), io.BytesIO()
    Image.fromarray(pixels_HW3).save(image, file_format, **settings)
    Image.fromarray(np.zeros(pixels_HW3.shape[:2], dtype=np.uint8)).save(label, "PNG")
    sample = Sample(image_id="one", split="train", image_uri="one", label_uri="one.png")
    return examine(sample, lambda _: (image.getvalue(), label.getvalue()), CLASS_TABLE)


@pytest.mark.parametrize("size", [(100, 90), (256, 300), (361, 481), (1030, 1100)])
def test_a_picture_has_the_same_facts_as_jpeg_and_as_png(size: tuple[int, int]) -> None:
    height, width = size
    coarse_hw3 = np.random.default_rng(height).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    coarse_hw3[0], coarse_hw3[-1] = 0, 255
    pixels_HW3 = np.asarray(Image.fromarray(coarse_hw3).resize((width, height), Image.Resampling.BICUBIC))
    rows = [row_of(pixels_HW3, "PNG"), row_of(pixels_HW3, "JPEG", quality=90)]
    for row in rows:
        assert not row["faults"]
        assert (row["height"], row["width"], row["is_gray"]) == (height, width, False)
    png, jpeg = rows
    for name, tolerance in {"brightness": 0.003, "contrast": 0.003, "dark_share": 0.01, "bright_share": 0.01}.items():
        assert png[name] == pytest.approx(jpeg[name], abs=tolerance), name
    luma_HW = pixels_HW3 @ np.array([0.299, 0.587, 0.114]) / 255
    assert png["brightness"] == pytest.approx(luma_HW.mean(), abs=0.003)
    assert png["contrast"] == pytest.approx(luma_HW.std(), abs=0.01)
    assert (png["perceptual_hash"] ^ jpeg["perceptual_hash"]).bit_count() <= 2


@pytest.mark.parametrize("side", [120, 1100])
def test_a_gray_picture_in_three_channels_is_gray_whatever_its_size(side: int) -> None:
    gray_HW = np.asarray(
        Image.fromarray(np.random.default_rng(side).integers(0, 256, (8, 8), dtype=np.uint8)).resize((side, side))
    )
    assert row_of(gray_HW[..., None].repeat(3, axis=2), "JPEG")["is_gray"]
