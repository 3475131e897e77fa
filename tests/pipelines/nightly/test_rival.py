"""A challenger beside the night's model, in a worker and without Ray: images that are shown in tiles."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pipelines.checkpoints import load_model
from pipelines.ensembles import MemberModel, load_member
from pipelines.intake.sources import Source
from pipelines.nightly.challenge import Challenger, confusion_of, confusion_of_runs
from pipelines.nightly.rival import Rival
from pipelines.nightly.rows import WorkItem
from pipelines.nightly.tiles import segment_tiled
from pipelines.pictures import png_bytes
from segcore.inference import InferenceConfig, prepare
from segcore.run_lengths import decode, encode
from segcore.tile_grid import TilingConfig
from segcore.tiling import TiledMap
from tests.pipelines.night_tables import make_run
from tests.pipelines.tiny_inputs import CLASS_NAMES, write_model

HEIGHT, WIDTH = 100, 200
SHOW = partial(segment_tiled, tiling=TilingConfig(tile_px=96, overlap_px=32), batch_size=2, max_pixels=HEIGHT * WIDTH)


def member_model(folder: Path, *, seed: int, inference: InferenceConfig | None = None) -> MemberModel:
    model = write_model(folder, seed=seed)
    return MemberModel(
        model_uri=model,
        model_version="",
        model_folder=model,
        model_digest=load_model(model).digest,
        inference=inference or InferenceConfig(),
    )


def item_of(path: Path, pixels_HW3: NDArray[np.uint8]) -> WorkItem:
    path.write_bytes(png_bytes(pixels_HW3))
    planned = {"work_id": path.stem, "uri": str(path), "size_bytes": path.stat().st_size}
    return WorkItem(
        place=int(path.stem), planned=planned, data=b"", first_bytes=b"", attempts=1, source=Source(uri=str(path))
    )


def looked_at(
    tmp_path: Path, *, challenger: MemberModel, fraction: float = 1.0
) -> tuple[list[WorkItem], dict[int, TiledMap]]:
    """Two images in tiles, by the night's model and then by the challenger."""
    champion = load_member(member_model(tmp_path / "champion", seed=0))
    prepare(champion.model, "cpu")
    pixels = np.random.default_rng(0).integers(0, 256, (2, HEIGHT, WIDTH, 3)).astype(np.uint8)
    items = [item_of(tmp_path / f"{place}.png", pixels[place]) for place in range(2)]
    found = SHOW([champion], items)
    settings = replace(make_run("000001", []).settings, class_names=CLASS_NAMES)
    rival = Rival(Challenger(member=challenger, fraction=fraction, seed=0), settings, device="cpu")
    rival.look_at_tiled(items, found, SHOW)
    return items, found


def test_images_in_tiles_are_compared_in_the_same_tiles(tmp_path: Path) -> None:
    challenger = member_model(tmp_path / "challenger", seed=7)
    items, found = looked_at(tmp_path, challenger=challenger)
    member = load_member(challenger)
    prepare(member.model, "cpu")
    for item in items:
        row, ours = item.comparison, found[item.place]
        assert row is not None and row["error"] == ""
        theirs = SHOW([member], [replace(item, source=Source(uri=item.planned["uri"]))])[item.place]
        ours_HW, theirs_HW = (decode(each.values, each.lengths, height=HEIGHT, width=WIDTH) for each in (ours, theirs))
        assert row["agreement"] == (ours_HW == theirs_HW).mean() and 0 < row["agreement"] < 1
        assert row["confusion"] == confusion_of(ours_HW, theirs_HW, len(CLASS_NAMES))
        assert row["champion_confidence"] == ours.statistics.mean_confidence
        assert row["challenger_confidence"] == theirs.statistics.mean_confidence
        assert row["challenger_ms"] > 0
        assert item.failure is None


def test_images_that_are_not_in_the_sample_are_left_alone(tmp_path: Path) -> None:
    items, _ = looked_at(tmp_path, challenger=member_model(tmp_path / "challenger", seed=7), fraction=0.0)
    assert [item.comparison for item in items] == [None, None]


def test_a_challenger_that_cannot_be_shown_tiles_says_so_in_its_row(tmp_path: Path) -> None:
    small = member_model(tmp_path / "challenger", seed=7, inference=InferenceConfig(short_side_px=64))
    items, _ = looked_at(tmp_path, challenger=small)
    for item in items:
        row: dict[str, Any] = item.comparison or {}
        assert "short_side_px shows the whole image" in row["error"]
        assert (row["agreement"], row["confusion"], item.failure) == (None, [], None)


@pytest.mark.parametrize("classes", [1, 4, 255])
def test_confusion_of_run_lengths_is_that_of_the_masks(classes: int) -> None:
    rng = np.random.default_rng(classes)
    coarse = rng.integers(0, classes, (2, 8, 9), dtype=np.uint8)
    masks = coarse.repeat(3, axis=2)
    masks[1][:, 5:] = rng.integers(0, classes, (8, 22))
    expected = confusion_of(masks[0], masks[1], classes)
    assert confusion_of_runs(encode(masks[0]), encode(masks[1]), classes) == expected
