"""The zoo of odd files: what each becomes when it is decoded, and where each ends in a night."""

import re
from pathlib import Path

import numpy as np
import pyarrow.dataset as ds
import pytest

from pipelines import storage
from pipelines.intake.formats import ImageError
from pipelines.intake.headers import MAX_PIXELS
from pipelines.intake.images import decode_image
from pipelines.intake.sources import Source
from pipelines.intake.windows import open_windows
from pipelines.nightly.config import SegmentConfig
from pipelines.segment import segment
from tests.pipelines.tiny_inputs import write_model
from tests.pipelines.zoo.inventory import specimens
from tests.pipelines.zoo.specimen import Specimen

SPECIMENS = {each.name: each for each in specimens()}

pytestmark = [
    # pipelines.intake.headers ignores these at import, but pytest installs its own filters for every test.
    pytest.mark.filterwarnings("ignore::UserWarning:PIL", "ignore::PIL.Image.DecompressionBombWarning"),
    # Ray 2.60 reads its own deprecated settings when a DataContext is copied; goes when Ray drops them.
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.data.context"),
]


def test_the_zoo_is_large() -> None:
    assert len(SPECIMENS) >= 60
    assert sum(bool(each.stage) for each in SPECIMENS.values()) >= 30


@pytest.mark.parametrize("name", SPECIMENS)
def test_each_file_gives_its_row_or_fails_at_its_stage(name: str) -> None:
    specimen = SPECIMENS[name]
    if specimen.stage:
        with pytest.raises(ImageError, match=specimen.message) as caught:
            decode_image(specimen.data)
        assert caught.value.stage == specimen.stage
        return
    decoded = decode_image(specimen.data)
    assert (decoded.source_mode, decoded.orientation) == (specimen.mode, specimen.orientation)
    _check_notes(decoded.notes, specimen)
    height, width = decoded.pixels_HW3.shape[:2]
    stored = (width, height) if specimen.orientation >= 5 else (height, width)
    assert (decoded.source_height, decoded.source_width) == stored
    if specimen.pixels_HW3 is not None:
        assert decoded.pixels_HW3.shape == specimen.pixels_HW3.shape
        difference = np.abs(decoded.pixels_HW3.astype(int) - specimen.pixels_HW3).mean()
        assert difference <= specimen.tolerance


@pytest.mark.parametrize("name", SPECIMENS)
def test_windows_of_each_file_show_the_same_and_what_is_refused_is_refused(name: str) -> None:
    """The checks of whole images hold for those in tiles."""
    specimen = SPECIMENS[name]
    if specimen.stage:
        with pytest.raises(ImageError, match=specimen.message) as caught:
            found = open_windows(Source(data=specimen.data), max_pixels=MAX_PIXELS)
            found.read(slice(0, found.height), slice(0, found.width))
        assert caught.value.stage == specimen.stage
        return
    whole = decode_image(specimen.data)
    found = open_windows(Source(data=specimen.data), max_pixels=MAX_PIXELS)
    middle = (found.width + 1) // 2
    columns = [slice(0, middle), slice(middle, found.width)] if found.width > 1 else [slice(0, 1)]
    halves = [found.read(slice(0, found.height), each) for each in columns]
    np.testing.assert_array_equal(np.concatenate(halves, axis=1), whole.pixels_HW3)
    assert (found.source_mode, found.orientation) == (whole.source_mode, whole.orientation)
    assert sorted(found.notes) == sorted(whole.notes)


def _check_notes(notes: tuple[str, ...], specimen: Specimen) -> None:
    assert len(notes) == len(specimen.notes), notes
    for note, expected in zip(notes, specimen.notes, strict=True):
        assert expected in note


@pytest.mark.slow
def test_a_night_over_the_whole_zoo_puts_every_file_where_it_belongs(tmp_path: Path, ray_session: None) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for name, specimen in SPECIMENS.items():
        (images / name).write_bytes(specimen.data)
    config = SegmentConfig(
        images=str(images),
        model=write_model(tmp_path / "model"),
        tables=str(tmp_path / "tables"),
        tracking_uri=f"sqlite:///{tmp_path / 'mlflow.db'}",
        batch_size=4,
        max_failure_rate=1.0,
    )
    result = segment(config)
    sound = {name for name, specimen in SPECIMENS.items() if not specimen.stage}
    assert (result.num_images, result.num_failures) == (len(sound), len(SPECIMENS) - len(sound))
    predictions, failures = (
        {Path(row["uri"]).name: row for row in ds.dataset(storage.join(config.tables, name)).to_table().to_pylist()}
        for name in ("predictions", "failures")
    )
    assert predictions.keys() == sound and failures.keys() == SPECIMENS.keys() - sound
    for name, row in predictions.items():
        specimen = SPECIMENS[name]
        assert (row["source_mode"], row["orientation"]) == (specimen.mode, specimen.orientation)
        _check_notes(tuple(row["notes"]), specimen)
        if specimen.pixels_HW3 is not None:
            assert (row["height"], row["width"]) == specimen.pixels_HW3.shape[:2]
        assert sum(row["class_pixels"]) == row["height"] * row["width"]
    for name, row in failures.items():
        specimen = SPECIMENS[name]
        assert row["stage"] == specimen.stage and not row["retryable"]
        assert row["error"] in ("ImageError", "PixelBudgetError")
        assert re.search(specimen.message, row["message"])
        assert row["first_bytes_hex"] == specimen.data[:16].hex()
