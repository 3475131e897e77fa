"""An actor's own code, in this process: several protocols of one model give what each gives alone."""

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pytest
import torch

from pipelines import tracking
from pipelines.ensembles import MemberModel, find_members
from pipelines.evaluation.protocols import protocol_members
from pipelines.evaluation.scoring import Scorer, ScoringConfig, image_counts
from pipelines.evaluation.slices import read_rows
from pipelines.shards import open_dataset
from segcore.inference import InferenceConfig
from segcore.metrics import class_counts
from segcore.segmentation_counts import SegmentationCounts
from tests.pipelines.tiny_inputs import random_pairs, write_dataset, write_model

CONFIG = ScoringConfig(workers=1, threads=1, batch_size=1, use_gpu=False)


@pytest.fixture(autouse=True)
def threads_are_put_back() -> Iterator[None]:
    """`Scorer` sets them for its process."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def encoded(tmp_path_factory: pytest.TempPathFactory) -> pa.Table:
    folder = tmp_path_factory.mktemp("scoring")
    pairs = random_pairs(3, seed=4, sizes=((48, 64), (40, 70)))
    dataset = open_dataset(write_dataset(folder, pairs, images_per_part=3))
    rows = read_rows(dataset, "val", part=0, start=0, stop=3)
    return rows.append_column("error", pa.nulls(3, pa.string()))


@pytest.fixture(scope="module")
def members(tmp_path_factory: pytest.TempPathFactory) -> tuple[MemberModel, ...]:
    model = tracking.resolve_model(write_model(tmp_path_factory.mktemp("scoring_model")))
    return find_members([model], InferenceConfig(window_px=32), recipe_inference=False)[0]


def scored(encoded: pa.Table, members: tuple[MemberModel, ...], *names: str) -> dict[str, dict[str, Any]]:
    chunks = Scorer(protocol_members(members, names), 4, CONFIG)(encoded).to_pylist()
    assert [chunk["error"] for chunk in chunks] == [None] * len(names)
    return {chunk["protocol"]: chunk for chunk in chunks}


def images_of(chunk: dict[str, Any]) -> pa.Table:
    return pa.ipc.open_stream(chunk["images"]).read_all()


def test_protocols_in_one_pass_count_what_each_counts_alone(
    encoded: pa.Table, members: tuple[MemberModel, ...]
) -> None:
    together = scored(encoded, members, "sliding", "single")
    assert list(together) == ["sliding", "single"]
    for name, chunk in together.items():
        alone = scored(encoded, members, name)[name]
        assert chunk["counts"] == alone["counts"] and chunk["num_images"] == 3
        assert images_of(chunk).drop_columns("network_ms").equals(images_of(alone).drop_columns("network_ms"))
        assert chunk["network_images"] == 2, "the first pass of each protocol is not timed"
    assert together["sliding"]["counts"] != together["single"]["counts"]
    assert (together["single"]["network_inputs"], together["sliding"]["network_inputs"]) == (3, 3 * 2 * 3)


def test_all_counts_of_a_slice_are_of_the_same_pixels(encoded: pa.Table, members: tuple[MemberModel, ...]) -> None:
    chunk = scored(encoded, members, "single")["single"]
    counts = SegmentationCounts.from_flat(torch.tensor(chunk["counts"]).numpy(), 4, CONFIG.boundaries)
    images = images_of(chunk)
    assert image_counts(images).sum(axis=0).tolist() == class_counts(counts.confusion_CC).tolist()
    assert sum(images["valid_pixels"].to_pylist()) == counts.confusion_CC.sum() == counts.calibration.counts_3B[2].sum()
    assert counts.calibration.counts_3B[1].sum() == counts.confusion_CC.trace()
    assert counts.boundaries.bands_BCC.sum() <= counts.confusion_CC.sum()


def test_a_broken_row_is_one_row_with_its_error_for_all_protocols(
    encoded: pa.Table, members: tuple[MemberModel, ...]
) -> None:
    place = encoded.column_names.index("label")
    broken = encoded.set_column(place, "label", pa.array([b"no PNG"] * 3, pa.binary()))
    chunks = Scorer(protocol_members(members, ("single", "sliding")), 4, CONFIG)(broken).to_pylist()
    assert len(chunks) == 1 and "image 'scene/000' of the prepared dataset is broken" in chunks[0]["error"]
