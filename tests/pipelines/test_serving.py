"""Served models: what comes in, and large images in tiles."""

import io

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from PIL import Image

from pipelines.checkpoints import load_model
from pipelines.intake.formats import ImageError
from pipelines.pictures import png_bytes
from pipelines.serving import IMAGE_COLUMN, ServedModel
from segcore.inference import InferenceConfig, Member
from segcore.run_lengths import decode
from segcore.tile_grid import TilingConfig
from segcore.tiling import TiledImage, TiledMap, predict_tiled
from tests.pipelines.tiny_inputs import write_model

TILING = TilingConfig(above_px=128 * 128, tile_px=128, overlap_px=32)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> ServedModel:
    return ServedModel(load_model(write_model(tmp_path_factory.mktemp("served") / "model")), TILING)


def _noise(height: int, width: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def _frame(*cells: object) -> pd.DataFrame:
    return pd.DataFrame({IMAGE_COLUMN: list(cells)})


def test_files_and_arrays_of_one_image_give_one_class_map(served: ServedModel) -> None:
    image = _noise(40, 56)
    single = np.asarray(served.predict(image))
    assert single.shape == (40, 56) and single.dtype == np.uint8 and len(np.unique(single)) > 1
    for found in served.predict(_frame(png_bytes(image), image)):
        np.testing.assert_array_equal(found, single)


def test_large_images_are_shown_in_tiles_as_a_night_shows_them(served: ServedModel) -> None:
    image = _noise(150, 201)
    member = Member(
        model=served.bundle.model, mean=served.bundle.card.mean, std=served.bundle.card.std, config=InferenceConfig()
    )
    tiled = TiledImage(height=150, width=201, read=lambda rows, columns: image[rows, columns])
    ((_, night),) = predict_tiled([member], [tiled], config=TILING)
    assert isinstance(night, TiledMap) and night.grid == (2, 3)
    expected = decode(night.values, night.lengths, height=150, width=201)
    whole = np.asarray(ServedModel(served.bundle).predict(image))
    assert (expected != whole).any()  # else nothing shows which way was taken
    np.testing.assert_array_equal(served.predict(image), expected)
    (from_file,) = served.predict(_frame(png_bytes(image)))
    np.testing.assert_array_equal(from_file, expected)


def test_a_large_photo_is_shown_upright(served: ServedModel) -> None:
    image, file = _noise(150, 201), io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rows are columns
    Image.fromarray(image).save(file, "PNG", exif=exif)
    (found,) = served.predict(_frame(file.getvalue()))
    np.testing.assert_array_equal(found, served.predict(np.ascontiguousarray(np.rot90(image, -1))))


@pytest.mark.parametrize(
    ("cell", "message"),
    [("iVBOR", "a cell of column 'image' is a str; give the bytes of an image"), (b"text", "the file is plain text")],
)
def test_what_is_no_image_is_refused(served: ServedModel, cell: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        served.predict(_frame(cell))
    assert issubclass(ImageError, ValueError)


def test_a_broken_large_image_raises(served: ServedModel) -> None:
    with pytest.raises(ImageError):
        served.predict(_frame(png_bytes(_noise(150, 201))[:-2000]))
