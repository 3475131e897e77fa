"""A worker's parts, without Ray: grouping by size, and what it does when the network fails."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import Tensor, nn

from pipelines import commits
from pipelines.checkpoints import load_model
from pipelines.commits import PLAN, Run, RunSettings
from pipelines.ensembles import MemberModel
from pipelines.images import DecodedImage
from pipelines.pictures import png_bytes
from pipelines.segment_fetch import fetch_shard, from_stream, to_stream
from pipelines.segment_rows import WorkItem
from pipelines.segment_worker import (
    ShardSegmenter,
    WorkerJob,
    batches_of_one_size,
)
from segcore.inference import InferenceConfig, Member
from tests.pipelines.tiny_inputs import CLASS_NAMES, PALETTE, random_pairs, write_model


def _item(place: int, *, height: int, width: int) -> WorkItem:
    image = DecodedImage(
        pixels_HW3=np.zeros((height, width, 3), dtype=np.uint8),
        source_height=height,
        source_width=width,
        source_mode="RGB",
        orientation=1,
        notes=(),
    )
    return WorkItem(place=place, planned={}, data=b"", first_bytes=b"", attempts=1, image=image)


def _places(batches: list[list[WorkItem]]) -> list[list[int]]:
    return [[item.place for item in batch] for batch in batches]


def test_images_of_one_size_share_a_batch_and_none_is_lost() -> None:
    heights = [4, 8, 4, 8, 4, 4, 8]
    items = [_item(place, height=height, width=4) for place, height in enumerate(heights)]
    batches = list(batches_of_one_size(items, batch_size=3, pending_bytes=10**9))
    assert _places(batches) == [[0, 2, 4], [1, 3, 6], [5]]


def test_waiting_images_stay_below_their_budget() -> None:
    items = [_item(place, height=4 + place % 5, width=10) for place in range(50)]
    waiting = 0
    budget = 6 * 8 * 10 * 3

    def counted() -> Any:
        nonlocal waiting
        for item in items:
            assert item.image is not None
            waiting += item.image.pixels_HW3.nbytes
            assert waiting <= budget + item.image.pixels_HW3.nbytes
            yield item

    seen = []
    for batch in batches_of_one_size(counted(), batch_size=1000, pending_bytes=budget):
        waiting -= sum(item.image.pixels_HW3.nbytes for item in batch if item.image is not None)
        seen += [item.place for item in batch]
    assert sorted(seen) == list(range(50))


def _payload(uris: list[str], sizes: list[int]) -> pa.Table:
    rows = [
        {"work_id": f"w{index}", "uri": uri, "etag": "e", "size_bytes": size, "reason": "new", "shard": 0}
        for index, (uri, size) in enumerate(zip(uris, sizes, strict=True))
    ]
    items = pa.Table.from_pylist(rows, schema=PLAN)
    return pa.table({"shard": [0], "payload": pa.array([to_stream(items)], pa.large_binary())})


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
def worker(tmp_path: Path) -> Iterator[tuple[ShardSegmenter, pa.Table, list[str]]]:
    """A worker in this process, a fetched shard of six images of two sizes, and their URIs."""
    model = write_model(tmp_path / "model")
    uris = []
    for index, (pixels_HW3, _) in enumerate(random_pairs(6, seed=0, sizes=((48, 64), (40, 56)))):
        uris.append(str(tmp_path / f"{index}.png"))
        Path(uris[-1]).write_bytes(png_bytes(pixels_HW3))
    digest = load_model(model).digest
    member = MemberModel(
        model_uri=model, model_version="", model_folder=model, model_digest=digest, inference=InferenceConfig()
    )
    settings = RunSettings(
        run_id="000001",
        run_date="2026-11-20",
        created_at="2026-11-20T03:00:00+00:00",
        images=str(tmp_path),
        model_uri=model,
        model_version="",
        model_folder=model,
        model_digest=digest,
        class_names=CLASS_NAMES,
        palette=PALETTE,
        inference={"mode": "whole", "scales": [1.0]},
        config_digest="c",
        code_commit="abc",
    )
    job = WorkerJob(
        tables=str(tmp_path / "tables"),
        settings=settings,
        members=(member,),
        batch_size=3,
        threads=1,
        decode_threads=2,
        use_gpu=False,
    )
    batch = fetch_shard(_payload(uris, [Path(uri).stat().st_size for uri in uris]))
    plan = from_stream(batch["payload"][0].as_buffer()).select(PLAN.names).cast(PLAN)
    commits.create_run(job.tables, Run(settings=settings, plan=plan))
    threads = torch.get_num_threads()
    yield ShardSegmenter(job), batch, uris
    torch.set_num_threads(threads)  # a worker sets its process's


def test_an_image_on_which_the_network_fails_costs_no_other(
    worker: tuple[ShardSegmenter, pa.Table, list[str]], caplog: pytest.LogCaptureFixture
) -> None:
    segmenter, batch, uris = worker
    segmenter.members = [replace_model(segmenter, FailsOn(segmenter.members[0].model, height=40))]
    report = segmenter(batch).to_pylist()[0]
    assert (report["num_images"], report["num_failures"]) == (3, 3)
    assert "the network failed on a batch of 3 images" in caplog.text
    tables = Path(segmenter.job.tables)
    failures = [row for part in tables.glob("failures/*/*.parquet") for row in pa.parquet.read_table(part).to_pylist()]
    assert sorted(row["uri"] for row in failures) == uris[1::2]
    assert {(row["stage"], row["error"], row["retryable"]) for row in failures} == {("infer", "OutOfMemoryError", True)}


def test_an_image_that_makes_the_scores_nan_is_told_so(worker: tuple[ShardSegmenter, pa.Table, list[str]]) -> None:
    segmenter, batch, _ = worker
    segmenter.members = [replace_model(segmenter, IsNanOn(segmenter.members[0].model, height=40))]
    report = segmenter(batch).to_pylist()[0]
    assert (report["num_images"], report["num_failures"]) == (3, 3)
    parts = Path(segmenter.job.tables).glob("failures/*/*.parquet")
    messages = {row["message"] for part in parts for row in pa.parquet.read_table(part).to_pylist()}
    assert len(messages) == 1 and "scores are not finite" in messages.pop()


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
    worker: tuple[ShardSegmenter, pa.Table, list[str]],
) -> None:
    """As when Ray repeats a call whose worker died after its commit."""
    segmenter, batch, _ = worker
    first = segmenter(batch).to_pylist()[0]
    segmenter.members = [replace_model(segmenter, FailsOn(segmenter.members[0].model, height=48))]
    again = segmenter(batch).to_pylist()[0]
    assert (again["num_images"], again["num_failures"]) == (first["num_images"], first["num_failures"]) == (6, 0)


def test_the_network_keeps_its_threads_beside_decoders_of_one_thread(
    worker: tuple[ShardSegmenter, pa.Table, list[str]],
) -> None:
    segmenter = ShardSegmenter(replace(worker[0].job, threads=3))
    decoders = [segmenter.decoders.submit(torch.get_num_threads) for _ in range(4)]
    assert {each.result() for each in decoders} == {1}
    assert segmenter.network.submit(torch.get_num_threads).result() == 3


def test_a_model_that_changed_since_the_plan_is_refused(
    worker: tuple[ShardSegmenter, pa.Table, list[str]], tmp_path: Path
) -> None:
    write_model(tmp_path / "model", seed=1)
    with pytest.raises(ValueError, match=r"has changed since this work was planned: .*; put the planned model back"):
        ShardSegmenter(worker[0].job)
