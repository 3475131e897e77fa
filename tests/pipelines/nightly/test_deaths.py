"""Nights with images that kill every worker which decodes them, or whose decoding never ends."""

import io
import os
import signal
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.dataset as ds
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from pipelines import storage
from pipelines.intake.images import decode_image
from pipelines.nightly import worker as segment_worker
from pipelines.nightly.config import SegmentConfig
from pipelines.nightly.worker_job import WorkerJob
from pipelines.segment import segment
from pipelines.tables.commits import newest_snapshot
from tests.pipelines.tiny_inputs import random_pairs, write_model

pytestmark = [
    pytest.mark.slow,
    # Ray 2.60 reads its own deprecated settings when a DataContext is copied; goes when Ray drops them.
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.data.context"),
]

DEADLY = "this picture ends the process"
ENDLESS = "this picture is never done"


def _write_images(folder: Path, comments: dict[int, str], *, count: int) -> None:
    folder.mkdir()
    for index, (pixels_HW3, _) in enumerate(random_pairs(count, seed=0)):
        info = PngInfo()
        info.add_text("Comment", comments.get(index, "harmless"))
        file = io.BytesIO()
        Image.fromarray(pixels_HW3).save(file, "PNG", pnginfo=info)
        (folder / f"{index:02d}.png").write_bytes(file.getvalue())


def _mortal_segmenter(diary: str) -> type:
    """A worker whose decoder crashes and hangs as a C library does: local, so that Ray carries it to its processes."""

    class MortalSegmenter(segment_worker.ShardSegmenter):
        def __init__(self, job: WorkerJob) -> None:
            super().__init__(job)
            note("worker")

            def treacherous(data: bytes, *, max_pixels: int) -> Any:
                if DEADLY.encode() in data:
                    note("death")
                    os.kill(os.getpid(), signal.SIGKILL)
                if ENDLESS.encode() in data:
                    time.sleep(10**6)
                return decode_image(data, max_pixels=max_pixels)

            vars(segment_worker)["decode_image"] = treacherous  # in the worker's process alone

    def note(word: str) -> None:
        with open(diary, "a") as file:
            file.write(f"{word}\n")

    return MortalSegmenter


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SegmentConfig:
    monkeypatch.setattr(segment_worker, "ShardSegmenter", _mortal_segmenter(str(tmp_path / "diary")))
    return SegmentConfig(
        images=str(tmp_path / "images"),
        model=write_model(tmp_path / "model"),
        tables=str(tmp_path / "tables"),
        tracking_uri=f"sqlite:///{tmp_path / 'mlflow.db'}",
        page=False,
    )


def _failures_of_finished_night(config: SegmentConfig, *, num_images: int) -> list[dict[str, Any]]:
    """Rows of `failures`, after a look at what every night must leave."""
    predictions, failures = (
        ds.dataset(storage.join(config.tables, name)).to_table().to_pylist() for name in ("predictions", "failures")
    )
    assert len({row["uri"] for row in predictions}) == len(predictions) == num_images
    assert not Path(config.tables, "runs", "000001", "attempts").exists()
    assert newest_snapshot(config.tables).run_ids == ("000001",)
    assert segment(config).run_ids == (), "they are not tried again"
    return sorted(failures, key=lambda row: str(row["uri"]))


def test_an_image_that_kills_its_worker_ends_in_failures_and_the_night_ends_by_itself(
    config: SegmentConfig, tmp_path: Path, ray_session: None
) -> None:
    _write_images(tmp_path / "images", {9: DEADLY}, count=24)
    result = segment(replace(config, images_per_shard=6))
    assert (result.num_images, result.num_failures, result.snapshot) == (23, 1, 1)
    (row,) = _failures_of_finished_night(config, num_images=23)
    assert (Path(row["uri"]).name, row["error"], row["stage"]) == ("09.png", "WorkerDied", "decode")
    assert not row["retryable"] and row["attempts"] == 3
    assert Counter((tmp_path / "diary").read_text().split()) == {"worker": 4, "death": 3}


def test_images_whose_decoding_never_ends_cost_workers_and_the_night_ends_by_itself(
    config: SegmentConfig, tmp_path: Path, ray_session: None
) -> None:
    endless = range(1, 2 + segment_worker.MAX_ABANDONED_THREADS)
    _write_images(tmp_path / "images", dict.fromkeys(endless, ENDLESS), count=12)
    result = segment(replace(config, images_per_shard=12, image_seconds=10.0))
    assert (result.num_images, result.num_failures) == (12 - len(endless), len(endless))
    rows = _failures_of_finished_night(config, num_images=12 - len(endless))
    assert [Path(row["uri"]).name for row in rows] == [f"{index:02d}.png" for index in endless]
    assert {(row["error"], row["stage"], row["retryable"]) for row in rows} == {("TimeoutError", "decode", False)}
    assert Counter((tmp_path / "diary").read_text().split()) == {"worker": 2}, "one gave itself up"
