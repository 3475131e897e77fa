"""One worker's share of a validation, and the scores that become metrics."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from pipelines.shards import PreparedDataset, open_dataset, read_part
from pipelines.training.batches import Batch, decoded
from pipelines.training.loop import recompute_from_batches, stops_early, training_step, validate_share
from pipelines.training.state import Progress
from pipelines.training.tasks import segmentation_metrics
from pipelines.training.worker import Worker, normalised
from segcore.label_blocks import BlockStatistics
from segcore.label_pca import solve
from segcore.metrics import confusion_matrix
from segcore.models import DeepLabV3PlusConfig, DUpsampleConfig, build_model
from segcore.optim import build_optimiser, poly_schedule
from tests.pipelines.learnable_dataset import tiny_recipe, write_learnable_dataset
from tests.pipelines.train_workers import MEAN, STD, worker_of


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    return open_dataset(write_learnable_dataset(tmp_path_factory.mktemp("data")))


def make_worker(dataset: PreparedDataset, *, rank: int = 0, world_size: int = 1) -> Worker:
    """A worker with random weights, the same for every rank, outside Ray."""
    recipe = tiny_recipe()
    assert isinstance(recipe.model, DeepLabV3PlusConfig)
    # with its decoder, whose class maps vary within an image whatever the weights
    model = dataclasses.replace(recipe.model, low_level_features=(4,), low_level_channels=8)
    recipe = dataclasses.replace(recipe, model=model)
    torch.manual_seed(0)
    network = build_model(model, dataset.num_classes)
    with torch.no_grad():
        for parameter in network.get_submodule("head.classifier").parameters():
            parameter.normal_() if parameter.ndim > 1 else parameter.zero_()  # a bias would decide alone
    return worker_of(network, recipe, dataset, rank=rank, world_size=world_size)


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_the_merged_confusion_does_not_depend_on_the_number_of_workers(
    dataset: PreparedDataset, world_size: int
) -> None:
    """Against a plain loop over all validation images, at two sizes."""
    network = make_worker(dataset).network.eval()
    expected_CC = np.zeros((dataset.num_classes, dataset.num_classes), dtype=np.int64)
    for part in dataset.splits["val"].parts:
        for row in read_part(dataset, part).to_pylist():
            image_3HW, labels_HW = decoded(row)
            with torch.inference_mode():
                image_13HW = (image_3HW[None] / 255 - MEAN.view(1, 3, 1, 1)) / STD.view(1, 3, 1, 1)
                predictions_HW = network(image_13HW).logits_NCHW[0].argmax(dim=0).numpy()
            expected_CC += confusion_matrix(labels_HW.numpy(), predictions_HW, num_classes=dataset.num_classes)
    shares = [validate_share(make_worker(dataset, rank=rank, world_size=world_size)) for rank in range(world_size)]
    merged_CC = np.sum(shares, axis=0)
    assert merged_CC.sum() == expected_CC.sum() == sum(dataset.splits["val"].class_pixels)
    assert (expected_CC.sum(axis=0) > 200).sum() >= 2  # the random network predicts several classes
    # Normalising uint8 in another order of operations may turn a tie; a wrong image would turn hundreds of pixels.
    assert np.abs(merged_CC - expected_CC).sum() <= 20


def test_images_are_normalised_by_the_backbone_s_mean_and_deviation(dataset: PreparedDataset) -> None:
    images_N3HW = torch.randint(0, 256, (2, 3, 4, 5), dtype=torch.uint8)
    expected = (images_N3HW.double() / 255 - MEAN.view(1, 3, 1, 1)) / STD.view(1, 3, 1, 1)
    assert torch.allclose(normalised(make_worker(dataset), images_N3HW).double(), expected, atol=1e-5)


def test_metrics_leave_out_classes_that_occur_nowhere() -> None:
    confusion_CC = np.array([[3, 1, 0], [0, 4, 0], [0, 0, 0]])
    metrics = segmentation_metrics(confusion_CC, ("sky", "road", "never"))
    assert metrics["val/iou/sky"] == 0.75 and metrics["val/iou/road"] == 0.8
    assert metrics["val/mean_iou"] == pytest.approx(0.775) and metrics["val/pixel_accuracy"] == 0.875
    assert "val/iou/never" not in metrics


def test_the_best_score_survives_worse_epochs_and_unvalidated_ones() -> None:
    from pipelines.training.loop import _advanced

    state = Progress(epochs=0, best_score=-1.0, best_epoch=-1, seconds=0.0)
    for score in (-1.0, 0.5, -1.0, 0.4, float("nan")):
        state = _advanced(state, score, seconds=2.0)
    assert state == Progress(epochs=5, best_score=0.5, best_epoch=1, seconds=10.0, stale=2)
    assert _advanced(state, 0.5, seconds=1.0).best_epoch == 5  # of equals the later
    assert _advanced(state, 0.5, seconds=1.0).stale == 3, "an equal score is no better one"
    assert _advanced(state, 0.6, seconds=1.0).stale == 0


def test_patience_counts_validations_and_0_never_ends() -> None:
    state = Progress(epochs=5, best_score=0.5, best_epoch=1, seconds=0.0, stale=3)
    ends = {
        patience: stops_early(dataclasses.replace(tiny_recipe(), patience=patience), state) for patience in range(5)
    }
    assert ends == {0: False, 1: True, 2: True, 3: True, 4: False}


@pytest.mark.parametrize(("asked", "used"), [(2, 2), (9, 4)])
def test_batch_normalisation_is_recomputed_from_training_batches_at_most_an_epoch(
    dataset: PreparedDataset, asked: int, used: int
) -> None:
    plain = make_worker(dataset)
    recipe = dataclasses.replace(plain.job.recipe, batch_norm_batches=asked)
    said: list[str] = []
    board = SimpleNamespace(say=SimpleNamespace(remote=said.append))
    worker = dataclasses.replace(plain, job=dataclasses.replace(plain.job, recipe=recipe), board=board)
    generator = torch.Generator().manual_seed(0)
    images = [torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8, generator=generator) for _ in range(9)]
    recompute_from_batches(worker, iter([Batch(image, torch.zeros(2, 64, 64)) for image in images]))
    maps = [worker.network.get_submodule("backbone.body.conv_stem")(normalised(worker, one)) for one in images[:used]]
    stem = worker.network.get_submodule("backbone.body.bn1")
    torch.testing.assert_close(stem.running_mean, torch.stack([x.mean(dim=(0, 2, 3)) for x in maps]).mean(dim=0))
    torch.testing.assert_close(stem.running_var, torch.stack([x.var(dim=(0, 2, 3)) for x in maps]).mean(dim=0))
    assert said == [f"batch normalisation: means and variances computed anew from {used} training batches"]


@pytest.mark.parametrize("code_loss_weight", [0.0, 0.5])
def test_a_step_reports_the_loss_and_the_terms_of_a_sum(dataset: PreparedDataset, code_loss_weight: float) -> None:
    plain = make_worker(dataset)
    settings = DUpsampleConfig(num_components=4, code_loss_weight=code_loss_weight)
    assert isinstance(plain.job.recipe.model, DeepLabV3PlusConfig)
    model = dataclasses.replace(plain.job.recipe.model, decoder="dupsample", dupsample=settings)
    statistics = BlockStatistics.zero(model.enlargement, dataset.num_classes)
    labels = torch.from_numpy(np.tile(np.arange(64, dtype=np.uint8) // 23, (2, 64, 1)))
    statistics.update(labels[0].numpy())
    network = build_model(model, dataset.num_classes, label_pca=solve(statistics, num_components=4))
    optimiser = build_optimiser(network, plain.job.recipe.optim)
    schedule = poly_schedule(optimiser, plain.job.recipe.optim, total_steps=4)
    worker = dataclasses.replace(plain, network=network, replica=network, optimiser=optimiser, schedule=schedule)
    found = training_step(worker, Batch(torch.zeros(2, 3, 64, 64, dtype=torch.uint8), labels))
    if code_loss_weight == 0:
        assert set(found) == {"loss"}
        return
    assert set(found) == {"loss", "loss_cross_entropy", "loss_code"}
    total = found["loss_cross_entropy"] + code_loss_weight * found["loss_code"]
    torch.testing.assert_close(found["loss"], total)
    assert not found["loss"].requires_grad
