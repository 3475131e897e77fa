"""What classification does in its own way: pairs, counts that any number of workers merges to the same, scores."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipelines.shards import PreparedDataset, open_dataset, read_part
from pipelines.training.batches import Batch, decoded_image
from pipelines.training.loop import training_step, validate_share
from pipelines.training.tasks import MAX_CLASSES_LOGGED, TASKS, classification_metrics
from pipelines.training.worker import Worker
from segcore.augment import centre_crop
from segcore.networks import build_network
from tests.pipelines.classified_images import prepare_class_folders, tiny_classifier_recipe
from tests.pipelines.train_workers import MEAN, STD, worker_of

TASK = TASKS["classification"]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory, ray_session: None) -> PreparedDataset:
    return open_dataset(prepare_class_folders(tmp_path_factory.mktemp("data")), task="classification")


def rows_of(dataset: PreparedDataset, split: str) -> list[dict[str, Any]]:
    return [row for part in dataset.splits[split].parts for row in read_part(dataset, part).to_pylist()]


def make_worker(dataset: PreparedDataset, *, rank: int, world_size: int) -> Worker:
    """A worker with random weights, the same for every rank, outside Ray."""
    recipe = tiny_classifier_recipe()
    torch.manual_seed(0)
    network = build_network(recipe.model, dataset.num_classes)
    with torch.no_grad():
        network.get_submodule("fc").weight.normal_()
    return worker_of(network, recipe, dataset, rank=rank, world_size=world_size)


def test_the_merged_counts_are_exactly_the_same_for_any_number_of_workers(dataset: PreparedDataset) -> None:
    """90 images are two batches of validation; the scores are those of a plain loop."""
    totals = [
        np.sum([validate_share(make_worker(dataset, rank=rank, world_size=size)) for rank in range(size)], axis=0)
        for size in (1, 2, 3)
    ]
    assert np.array_equal(totals[0], totals[1]) and np.array_equal(totals[0], totals[2])
    assert totals[0][:, 0].tolist() == list(dataset.splits["val"].class_images) == [30, 30, 30]
    worker = make_worker(dataset, rank=0, world_size=1)
    hits, losses = [], []
    for row in rows_of(dataset, "val"):
        crop_3HW = centre_crop(decoded_image(row), worker.job.recipe.augment)  # type: ignore[arg-type]
        image_13HW = (crop_3HW[None] / 255 - MEAN.view(1, 3, 1, 1)) / STD.view(1, 3, 1, 1)
        with torch.inference_mode():
            logits_C = worker.network.eval()(image_13HW)[0]
        hits.append(int(logits_C.argmax()) == row["class_index"])
        losses.append(-float(logits_C.log_softmax(dim=0)[row["class_index"]]))
    metrics = TASK.metrics(totals[0], dataset.class_names)
    assert metrics["val/top1"] == pytest.approx(np.mean(hits), abs=0.03)  # a tie may turn by rounding
    assert metrics["val/cross_entropy"] == pytest.approx(np.mean(losses), rel=1e-3)
    assert metrics["val/top5"] == 1.0
    by_class = [metrics[f"val/accuracy/{name}"] for name in dataset.class_names]
    assert np.mean(by_class) == pytest.approx(metrics["val/top1"])  # classes of equal size


def test_accuracy_by_class_is_left_out_where_classes_are_many_or_empty() -> None:
    counts_C4 = np.zeros((MAX_CLASSES_LOGGED + 1, 4), dtype=np.int64)
    counts_C4[0] = (4, 1, 3, 8_000_000)
    names = tuple(f"class {n}" for n in range(MAX_CLASSES_LOGGED + 1))
    assert classification_metrics(counts_C4, names) == {"val/top1": 0.25, "val/top5": 0.75, "val/cross_entropy": 2.0}
    few = classification_metrics(counts_C4[:3], names[:3])
    assert few["val/accuracy/class 0"] == 0.25 and "val/accuracy/class 1" not in few


def test_a_training_pair_depends_on_row_config_and_generator_alone(dataset: PreparedDataset) -> None:
    config, row = tiny_classifier_recipe().augment, rows_of(dataset, "train")[0]
    pairs = [TASK.training_pair(row, torch.Generator().manual_seed(seed), config, (0, 0, 0)) for seed in (1, 1, 2)]
    assert torch.equal(pairs[0][0], pairs[1][0]) and not torch.equal(pairs[0][0], pairs[2][0])
    assert pairs[0][0].shape == (3, 32, 32) and pairs[0][0].dtype == torch.uint8
    assert pairs[0][1].item() == row["class_index"] and pairs[0][1].dtype == torch.int64


def test_a_step_lowers_the_loss_of_its_own_batch(dataset: PreparedDataset) -> None:
    worker = dataclasses.replace(make_worker(dataset, rank=0, world_size=1))
    pairs = [TASK.validation_pair(row, worker.job.recipe.augment) for row in rows_of(dataset, "train")[:8]]
    batch = Batch(torch.stack([image for image, _ in pairs]), torch.stack([label for _, label in pairs]))
    losses = [training_step(worker, batch) for _ in range(4)]
    assert list(losses[0]) == ["loss"] and not losses[0]["loss"].requires_grad
    assert losses[3]["loss"] < losses[0]["loss"]


def test_a_broken_shard_is_told_by_the_rows_of_a_classification_dataset_too(
    dataset: PreparedDataset, tmp_path: Path
) -> None:
    from pipelines.training.rows import ShardsDatasource

    copy = Path(shutil.copytree(dataset.uri, tmp_path / "data"))
    first, *others = dataset.splits["train"].parts
    Path(copy, first.path).write_bytes(b"not parquet")
    Path(copy, others[0].path).unlink()
    source = ShardsDatasource(
        open_dataset(str(copy), task="classification"),
        split="train",
        seed=0,
        first_epoch=0,
        seen=None,
        image_weights="",
    )
    (task,) = source.get_read_tasks(1)
    tables = {table["row"][0].as_py(): table for table in task()}
    rows, missing, good = tables[0], tables[first.num_rows], tables[first.num_rows + others[0].num_rows]
    assert rows.num_rows == first.num_rows and "is corrupt or was changed" in rows["error"][0].as_py()
    assert missing.num_rows == others[0].num_rows and "is missing" in missing["error"][0].as_py()
    assert set(good["error"].to_pylist()) == {None}
    assert good.column_names == rows.column_names == ["image_id", "image", "class_index", "row", "error"]
    assert good.schema.types == rows.schema.types
