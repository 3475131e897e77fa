from pathlib import Path

import numpy as np
import pytest

from pipelines.datasets.scenes import draw_scene
from pipelines.demo_images import broken_files, unusual_files, write_mixed_folder
from pipelines.intake.formats import ImageError
from pipelines.intake.images import decode_image

SCENES = [draw_scene(index, height=64, width=96)[0] for index in range(6)]


@pytest.mark.parametrize(
    ("name", "mode", "orientation"),
    [
        ("rotated-exif.jpg", "RGB", 6),
        ("grayscale.png", "L", 1),
        ("transparent-rgba.png", "RGBA", 1),
        ("sixteen-bit.png", "I;16", 1),
        ("palette.png", "P", 1),
        ("modern.webp", "RGB", 1),
        ("UPPERCASE.JPG", "RGB", 1),
    ],
)
def test_unusual_files_are_what_their_names_say(name: str, mode: str, orientation: int) -> None:
    image = decode_image(unusual_files(SCENES)[name])
    assert (image.source_mode, image.orientation, image.pixels_HW3.shape) == (mode, orientation, (64, 96, 3))


def test_rotated_file_shows_its_scene_upright() -> None:
    shown = decode_image(unusual_files(SCENES)["rotated-exif.jpg"])
    assert (shown.source_height, shown.source_width) == (96, 64)
    assert np.abs(shown.pixels_HW3.astype(int) - SCENES[0]).mean() < 8


@pytest.mark.parametrize("name", ["truncated.jpg", "bit-flipped.png", "empty.jpg", "notes.txt", "web-page.jpg"])
def test_broken_files_are_refused(name: str) -> None:
    with pytest.raises(ImageError):
        decode_image(broken_files(SCENES[0])[name])


def test_folder_is_written_once(tmp_path: Path) -> None:
    assert write_mixed_folder(str(tmp_path), num_plain=2, seed=7, height=64, width=96) == 5
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert len(before) == 2 + 7 + 5
    write_mixed_folder(str(tmp_path), num_plain=2, seed=7, height=64, width=96)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before
