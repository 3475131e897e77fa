"""A worker's parts, without Ray: grouping by size; what it does when the network, a decoder or the process fails."""

import os
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipelines.checkpoints import load_model
from pipelines.ensembles import MemberModel
from pipelines.intake.images import DecodedImage, decode_image
from pipelines.intake.windows import ImageWindows
from pipelines.nightly import attempts
from pipelines.nightly import worker as segment_worker
from pipelines.nightly.rows import ShardRows, WorkItem
from pipelines.nightly.worker import ShardSegmenter
from pipelines.nightly.worker_job import ShardReport, WorkerJob
from pipelines.pictures import png_bytes
from pipelines.tables import commits
from pipelines.tables.runs import Run
from segcore.inference import InferenceConfig, Member
from tests.pipelines.night_tables import SETTINGS
from tests.pipelines.planned_shards import planned_shard
from tests.pipelines.skipping_clock import LIMIT, SkippingClock
from tests.pipelines.tiny_inputs import CLASS_NAMES, PALETTE, random_pairs, write_model


class FailsOn(nn.Module):
    """A network that gives up images of one height, as one that runs out of memory does."""

    def __init__(self, network: nn.Module, height: int) -> None:
        super().__init__()
        self.network = network
        self.height = height

    def forward(self, images_N3HW: Tensor) -> Any:
        if images_N3HW.shape[-2] == self.height:
            raise torch.OutOfMemoryError("out of memory")
        return self.network(images_N3HW)


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[tuple[ShardSegmenter, list[str]]]:
    """A worker in this process, whose run has one shard of six images of two sizes, and their URIs."""
    model = write_model(tmp_path / "model")
    uris = []
    for index, (pixels_HW3, _) in enumerate(random_pairs(6, seed=0, sizes=((48, 64), (40, 56)))):
        uris.append(str(tmp_path / f"{index}.png"))
        Path(uris[-1]).write_bytes(png_bytes(pixels_HW3))
    digest = load_model(model).digest
    member = MemberModel(
        model_uri=model, model_version="", model_folder=model, model_digest=digest, inference=InferenceConfig()
    )
    settings = replace(
        SETTINGS,
        images=str(tmp_path),
        model_uri=model,
        model_version="",
        model_folder=model,
        model_digest=digest,
        class_names=CLASS_NAMES,
        palette=PALETTE,
    )
    job = WorkerJob(
        tables=str(tmp_path / "tables"),
        settings=settings,
        members=(member,),
        batch_size=3,
        threads=1,
        decode_threads=2,
        image_seconds=60.0,
        use_gpu=False,
    )
    plan = planned_shard(uris, [Path(uri).stat().st_size for uri in uris])
    commits.create_run(job.tables, Run(settings=settings, plan=plan))
    threads = torch.get_num_threads()
    yield ShardSegmenter(job), uris
    torch.set_num_threads(threads)  # a worker sets its process's


def report_of(segmenter: ShardSegmenter) -> ShardReport:
    """Of the only shard of the segmenter's run."""
    (row,) = segmenter(pa.table({"shards": [[0]]})).to_pylist()
    return ShardReport.from_json(row["report"])


def failures_of(segmenter: ShardSegmenter) -> list[dict[str, Any]]:
    parts = Path(segmenter.job.tables).glob("failures/*/*.parquet")
    return [row for part in parts for row in pa.parquet.read_table(part).to_pylist()]


def predictions_of(segmenter: ShardSegmenter) -> list[dict[str, Any]]:
    parts = Path(segmenter.job.tables).glob("predictions/*/*.parquet")
    return [row for part in parts for row in pa.parquet.read_table(part).to_pylist()]


def test_an_image_on_which_the_network_fails_costs_no_other(
    worker: tuple[ShardSegmenter, list[str]], caplog: pytest.LogCaptureFixture
) -> None:
    segmenter, uris = worker
    segmenter.members = [replace_model(segmenter, FailsOn(segmenter.members[0].model, height=40))]
    report = report_of(segmenter)
    assert (report.num_images, report.num_failures) == (3, 3)
    assert "the network failed on a batch of 3 images" in caplog.text
    failures = failures_of(segmenter)
    assert sorted(row["uri"] for row in failures) == uris[1::2]
    assert {(row["stage"], row["error"], row["retryable"]) for row in failures} == {("infer", "OutOfMemoryError", True)}


def test_an_image_that_makes_the_scores_nan_is_told_so(worker: tuple[ShardSegmenter, list[str]]) -> None:
    segmenter, _ = worker
    segmenter.members = [replace_model(segmenter, IsNanOn(segmenter.members[0].model, height=40))]
    report = report_of(segmenter)
    assert (report.num_images, report.num_failures) == (3, 3)
    messages = {row["message"] for row in failures_of(segmenter)}
    assert len(messages) == 1 and "scores are not finite" in messages.pop()


def _rows_of_another_run(
    segmenter: ShardSegmenter, pixels_HW3: NDArray[np.uint8], folder: Path, **tiling: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Prediction and mask of one image under other tiles; it is the only one of its run."""
    path = folder / "another.png"
    path.write_bytes(png_bytes(pixels_HW3))
    run_id = f"{int(segmenter.job.settings.run_id) + 1:06d}"
    settings = replace(segmenter.job.settings, run_id=run_id, tiling=tiling)
    segmenter.job = replace(segmenter.job, settings=settings)
    plan = planned_shard([str(path)], [path.stat().st_size])
    commits.create_run(segmenter.job.tables, Run(settings=settings, plan=plan))
    segmenter.plan = commits.PlannedShards(segmenter.job.tables, run_id)
    report = report_of(segmenter)
    assert (report.num_images, report.num_failures) == (1, 0)
    day = f"run_date={settings.run_date}/part-{run_id}-00000.parquet"
    prediction, mask = (
        pa.parquet.read_table(Path(segmenter.job.tables, table, day)).to_pylist()[0]
        for table in ("predictions", "masks")
    )
    return prediction, mask


def test_a_large_image_is_shown_in_tiles_and_so_is_one_that_does_not_fit_the_device(
    worker: tuple[ShardSegmenter, list[str]], tmp_path: Path
) -> None:
    segmenter, _ = worker
    ((pixels_HW3, _),) = random_pairs(1, seed=3, sizes=((100, 200),))
    whole, whole_mask = _rows_of_another_run(segmenter, pixels_HW3, tmp_path)
    assert (whole["num_tiles"], whole["notes"]) == (1, [])
    tiled, tiled_mask = _rows_of_another_run(
        segmenter, pixels_HW3, tmp_path, above_px=19_999, tile_px=96, overlap_px=32
    )
    assert (tiled["num_tiles"], tiled["notes"]) == (10, ["shown in 2 x 5 tiles of 68 x 72 pixels"])
    assert (tiled["height"], tiled["width"], sum(tiled["class_pixels"])) == (100, 200, 20_000)
    assert tiled["mean_brightness"] == pytest.approx(whole["mean_brightness"], abs=1e-9)
    assert sum(tiled_mask["lengths"]) == 20_000 and tiled_mask != whole_mask

    segmenter.members = [replace_model(segmenter, FailsOn(segmenter.members[0].model, height=100))]
    rescued, rescued_mask = _rows_of_another_run(segmenter, pixels_HW3, tmp_path, tile_px=96, overlap_px=32)
    assert rescued["notes"] == [tiled["notes"][0], "as a whole the device had no memory for it (OutOfMemoryError)"]
    assert {**rescued_mask, "work_id": ""} == {**tiled_mask, "work_id": ""}


class IsNanOn(FailsOn):
    """A network whose scores are not numbers for images of one height."""

    def forward(self, images_N3HW: Tensor) -> Any:
        output = self.network(images_N3HW)
        if images_N3HW.shape[-2] == self.height:
            output.logits_NCHW[:, 0, 0, 0] = float("nan")
        return output


def replace_model(segmenter: ShardSegmenter, model: nn.Module) -> Member:
    return replace(segmenter.members[0], model=model.eval())


def test_a_shard_that_is_committed_already_is_not_computed_again(
    worker: tuple[ShardSegmenter, list[str]],
) -> None:
    """As when Ray repeats a call whose worker died after its commit."""
    segmenter, _ = worker
    first = report_of(segmenter)
    segmenter.members = [replace_model(segmenter, FailsOn(segmenter.members[0].model, height=48))]
    again = report_of(segmenter)
    assert (again.num_images, again.num_failures) == (first.num_images, first.num_failures) == (6, 0)


def test_the_network_has_threads_of_its_own(
    worker: tuple[ShardSegmenter, list[str]],
) -> None:
    segmenter = ShardSegmenter(replace(worker[0].job, threads=3))
    assert segmenter.network.submit(torch.get_num_threads).result() == 3


def test_a_model_that_changed_since_the_plan_is_refused(
    worker: tuple[ShardSegmenter, list[str]], tmp_path: Path
) -> None:
    write_model(tmp_path / "model", seed=1)
    with pytest.raises(ValueError, match=r"has changed since this work was planned: .*; put the planned model back"):
        ShardSegmenter(worker[0].job)


def test_a_batch_that_fails_is_halved(worker: tuple[ShardSegmenter, list[str]]) -> None:
    """As long as the halves fail: what fits the device is not taken apart further."""
    segmenter, _ = worker
    segmenter.job = replace(segmenter.job, batch_size=3)
    network = FitsTwo(segmenter.members[0].model)
    segmenter.members = [replace_model(segmenter, network)]
    report = report_of(segmenter)
    assert (report.num_images, report.num_failures) == (6, 0)
    assert network.sizes == [3, 1, 2] * 2


class FitsTwo(nn.Module):
    """A network on a device that has room for two images."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.sizes: list[int] = []

    def forward(self, images_N3HW: Tensor) -> Any:
        self.sizes.append(len(images_N3HW))
        if len(images_N3HW) > 2:
            raise torch.OutOfMemoryError("out of memory")
        return self.network(images_N3HW)


def test_an_image_whose_mask_cannot_be_encoded_fails_at_encode(
    worker: tuple[ShardSegmenter, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    segmenter, uris = worker
    add_prediction = ShardRows.add_prediction

    def short_of_memory(rows: Any, item: WorkItem, *arguments: Any, infer_ms: float) -> None:
        add_prediction(rows, item, *arguments, infer_ms=infer_ms)
        if item.place == 2:
            raise MemoryError("no room for the row")

    monkeypatch.setattr(ShardRows, "add_prediction", short_of_memory)
    report = report_of(segmenter)
    assert (report.num_images, report.num_failures) == (5, 1)
    assert [(row["uri"], row["stage"], row["error"]) for row in failures_of(segmenter)] == [
        (uris[2], "encode", "MemoryError")
    ]


class Died(BaseException):
    """The process is gone: nothing after the line that raises it is done."""


def kills(data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the process die when a file with this content is decoded."""

    def deadly(content: bytes, *, max_pixels: int) -> DecodedImage:
        if content == data:
            raise Died
        return decode_image(content, max_pixels=max_pixels)

    monkeypatch.setattr(segment_worker, "decode_image", deadly)


def test_an_image_that_kills_its_worker_is_found_and_all_others_are_segmented(
    worker: tuple[ShardSegmenter, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, uris = worker
    kills(Path(uris[4]).read_bytes(), monkeypatch)
    for _ in range(3):
        with pytest.raises(Died):
            report_of(ShardSegmenter(first.job))
    report = report_of(ShardSegmenter(first.job))
    assert (report.num_images, report.num_failures) == (5, 1)
    row = failures_of(first)[0]
    assert (row["uri"], row["stage"], row["error"], row["attempts"], row["retryable"]) == (
        uris[4], "decode", "WorkerDied", 3, False
    )  # fmt: skip
    assert row["first_bytes_hex"] == Path(uris[4]).read_bytes()[:16].hex()


def in_tiles(segmenter: ShardSegmenter, **changes: Any) -> WorkerJob:
    """A job in which the three larger images of the shard, 48 x 64, are shown in tiles."""
    tiling = {"above_px": 40 * 56, "tile_px": 64, "overlap_px": 0}
    return replace(segmenter.job, settings=replace(segmenter.job.settings, tiling=tiling), **changes)


def test_an_image_in_tiles_that_kills_its_worker_is_found_and_all_others_are_segmented(
    worker: tuple[ShardSegmenter, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, uris = worker
    deadly = decode_image(Path(uris[4]).read_bytes()).pixels_HW3
    read = ImageWindows.read

    def reading(windows: ImageWindows, rows: slice, columns: slice) -> NDArray[np.uint8]:
        pixels_HW3 = read(windows, rows, columns)
        if np.array_equal(pixels_HW3, deadly):
            raise Died
        return pixels_HW3

    monkeypatch.setattr(ImageWindows, "read", reading)
    job = in_tiles(first)
    for _ in range(3):
        with pytest.raises(Died):
            report_of(ShardSegmenter(job))
    report = report_of(ShardSegmenter(job))
    assert (report.num_images, report.num_failures) == (5, 1)
    (row,) = failures_of(first)
    assert (row["uri"], row["stage"], row["error"], row["attempts"]) == (uris[4], "infer", "WorkerDied", 3)
    notes = [row["notes"] for row in predictions_of(first)]
    assert notes.count(["shown in 1 x 1 tiles of 48 x 64 pixels"]) == 2 and notes.count([]) == 3


def test_an_image_in_tiles_whose_reading_does_not_end_is_left_behind(
    worker: tuple[ShardSegmenter, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, uris = worker
    clock, over = SkippingClock(monkeypatch), threading.Event()
    stuck = decode_image(Path(uris[2]).read_bytes()).pixels_HW3
    read = ImageWindows.read

    def reading(windows: ImageWindows, rows: slice, columns: slice) -> NDArray[np.uint8]:
        pixels_HW3 = read(windows, rows, columns)
        if np.array_equal(pixels_HW3, stuck):
            clock.skip(LIMIT + 1)  # not too long yet: it has 48 * 64 / (40 * 56) times as long
            assert not over.wait(timeout=0.1)
            clock.skip(LIMIT)
            over.wait(timeout=60)
        return pixels_HW3

    monkeypatch.setattr(ImageWindows, "read", reading)
    report = report_of(ShardSegmenter(in_tiles(first, image_seconds=LIMIT, decode_threads=1)))
    assert (report.num_images, report.num_failures) == (5, 1)
    (row,) = failures_of(first)
    assert (row["uri"], row["stage"], row["error"], row["retryable"]) == (uris[2], "decode", "TimeoutError", False)
    assert f"decoding took more than {LIMIT * 48 * 64 / (40 * 56):g} s" in row["message"]
    following = attempts.begin(first.job.tables, first.job.settings.run_id, 0)
    assert following.failure("w2") is not None, "later attempts leave it alone"
    over.set()


def test_what_a_network_raises_on_tiles_ends_in_rows(worker: tuple[ShardSegmenter, list[str]]) -> None:
    segmenter, _ = worker
    segmenter.job = in_tiles(segmenter)
    segmenter.members = [replace_model(segmenter, Bug(segmenter.members[0].model, height=48))]
    report = report_of(segmenter)
    assert (report.num_images, report.num_failures) == (3, 3)
    assert {(row["stage"], row["error"], row["retryable"]) for row in failures_of(segmenter)} == {
        ("infer", "KeyError", True)
    }


class Bug(FailsOn):
    """A network with a mistake that shows in images of one height."""

    def forward(self, images_N3HW: Tensor) -> Any:
        if images_N3HW.shape[-2] == self.height:
            raise KeyError("no such layer")
        return self.network(images_N3HW)


def test_a_shard_without_trouble_leaves_one_marker(worker: tuple[ShardSegmenter, list[str]]) -> None:
    segmenter, _ = worker
    report_of(segmenter)
    report_of(segmenter)  # which finds the commit
    assert [path.name for path in Path(segmenter.job.tables).rglob("attempts/*/*")] == ["1.json"]


class Stuck:
    """Decoding of some files does not end before the test does, and takes longer than the limit at once."""

    def __init__(self, uris: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self.files = {Path(uri).read_bytes() for uri in uris}
        self.over = threading.Event()
        self.clock = SkippingClock(monkeypatch)
        monkeypatch.setattr(segment_worker, "decode_image", self)

    def __call__(self, content: bytes, *, max_pixels: int) -> DecodedImage:
        if content in self.files:
            self.clock.skip(LIMIT + 1)  # of the only thread that decodes
            self.over.wait(timeout=60)
        return decode_image(content, max_pixels=max_pixels)


def test_an_image_whose_decoding_does_not_end_is_left_behind(
    worker: tuple[ShardSegmenter, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, uris = worker
    stuck = Stuck(uris[1:3], monkeypatch)
    segmenter = ShardSegmenter(replace(first.job, image_seconds=LIMIT, decode_threads=1))
    report = report_of(segmenter)
    assert (report.num_images, report.num_failures) == (4, 2)
    rows = failures_of(segmenter)
    assert [row["uri"] for row in rows] == uris[1:3]
    assert {(row["stage"], row["error"], row["retryable"]) for row in rows} == {("decode", "TimeoutError", False)}
    assert "more than 60 s; if this machine is slow, raise --image-seconds" in rows[0]["message"]
    stuck.over.set()


def test_a_worker_with_too_many_stuck_threads_ends_itself_and_the_next_leaves_its_images_alone(
    worker: tuple[ShardSegmenter, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, uris = worker
    codes: list[int] = []

    def leave(code: int) -> None:
        codes.append(code)
        raise Died

    monkeypatch.setattr(os, "_exit", leave)
    monkeypatch.setattr(segment_worker, "MAX_ABANDONED_THREADS", 1)
    stuck = Stuck(uris[:3], monkeypatch)
    job = replace(first.job, image_seconds=LIMIT, decode_threads=1)
    with pytest.raises(Died):
        report_of(ShardSegmenter(job))
    assert codes == [segment_worker.EXIT_GAVE_UP]
    following = attempts.begin(job.tables, job.settings.run_id, 0)
    assert not following.is_careful and not following.suspects
    assert [following.failure(f"w{index}") is not None for index in range(3)] == [True, True, False]
    following.gives_up()
    report = report_of(ShardSegmenter(job))
    assert (report.num_images, report.num_failures) == (3, 3)
    assert {row["error"] for row in failures_of(first)} == {"TimeoutError"}
    stuck.over.set()


def test_a_careful_attempt_begins_in_a_process_without_stuck_threads(
    worker: tuple[ShardSegmenter, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _ = worker
    attempts.begin(first.job.tables, first.job.settings.run_id, 0)  # and dies

    def leave(code: int) -> None:
        raise Died

    monkeypatch.setattr(os, "_exit", leave)
    segmenter = ShardSegmenter(replace(first.job, image_seconds=0.1))
    over = threading.Event()
    call = segmenter.decoders.submit(lambda: over.wait(timeout=60))
    with pytest.raises(TimeoutError):
        segmenter.decoders.result(call)
    with pytest.raises(Died):
        report_of(segmenter)
    over.set()
    assert report_of(ShardSegmenter(first.job)).num_images == 6


def test_a_worker_whose_gpu_is_lost_ends_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    def lost() -> None:
        raise torch.AcceleratorError("an illegal memory access was encountered")

    codes: list[int] = []
    monkeypatch.setattr(torch.cuda, "synchronize", lost)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(os, "_exit", codes.append)
    segment_worker._check_device()
    assert codes == [segment_worker.EXIT_DEVICE_LOST]
