"""One optimiser step: parts of a batch, limited gradients, the moving average, the recipe's loss."""

import copy
import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipelines.shards import PreparedDataset, open_dataset
from pipelines.training.batches import Batch
from pipelines.training.loop import parts_of, training_step
from pipelines.training.worker import Worker, normalised
from segcore import IGNORE_INDEX
from segcore.losses import focal_loss
from segcore.models import LossTerms, SegmentationOutput
from segcore.models.heads import BilinearHead, pointwise
from segcore.models.main_loss import LossConfig, set_main_loss
from segcore.optim import OptimConfig
from segcore.region_losses import lovasz_softmax
from tests.pipelines.learnable_dataset import tiny_recipe, write_learnable_dataset
from tests.pipelines.train_workers import worker_of


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    return open_dataset(write_learnable_dataset(tmp_path_factory.mktemp("data")))


class Plain(nn.Module):
    """A network without batch normalisation and dropout, in double precision."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 8, 4, stride=4), nn.ReLU())
        self.head = BilinearHead(pointwise(8), num_classes, enlargement=4)

    def forward(self, images_N3HW: Tensor) -> SegmentationOutput:
        height, width = images_N3HW.shape[-2:]
        output: SegmentationOutput = self.head(self.backbone(images_N3HW), height=height, width=width)
        return output

    def loss(self, output: SegmentationOutput, labels_NHW: Tensor) -> LossTerms:
        return self.head.loss(output, labels_NHW)


def make_worker(dataset: PreparedDataset, **fields: Any) -> Worker:
    optim = OptimConfig(learning_rate=0.1, momentum=0.0, weight_decay=0.0)
    recipe = dataclasses.replace(tiny_recipe(), **({"optim": optim} | fields))
    torch.manual_seed(0)
    network = Plain(dataset.num_classes)
    set_main_loss(network, recipe.loss)
    network.double().register_forward_pre_hook(lambda module, inputs: (inputs[0].double(),))
    return worker_of(network.train(), recipe, dataset, rank=0, world_size=1)


def unequal_batch() -> Batch:
    """Seven images whose numbers of valid pixels differ much, one without any."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (7, 3, 32, 48), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, 3, (7, 32, 48), dtype=torch.uint8, generator=generator)
    for index in range(7):
        labels[index, : 5 * index] = IGNORE_INDEX
    labels[6] = IGNORE_INDEX
    return Batch(images, labels)


def gradients(worker: Worker) -> dict[str, Tensor]:
    return {name: each.grad for name, each in worker.network.named_parameters() if each.grad is not None}


@pytest.mark.parametrize(("parts", "loss"), [(2, LossConfig()), (3, LossConfig(main="focal")), (20, LossConfig())])
def test_parts_of_a_batch_have_the_gradients_of_the_whole(
    dataset: PreparedDataset, parts: int, loss: LossConfig
) -> None:
    whole, cut = (make_worker(dataset, accumulation=count, loss=loss) for count in (1, parts))
    one, two = (training_step(worker, unequal_batch()) for worker in (whole, cut))
    torch.testing.assert_close(one["loss"], two["loss"], rtol=1e-10, atol=0)
    assert gradients(whole).keys() == gradients(cut).keys()
    for name, gradient in gradients(whole).items():
        assert float((gradient - gradients(cut)[name]).norm()) < 1e-10 * float(gradient.norm()), name
    for name, value in whole.network.state_dict().items():
        torch.testing.assert_close(cut.network.state_dict()[name], value, rtol=1e-10, atol=1e-12)


def test_a_part_weighs_its_valid_pixels_and_of_a_classifier_its_images() -> None:
    batch = unequal_batch()
    parts = parts_of(batch, 3)
    assert [len(part.images_N3HW) for part, _ in parts] == [3, 2, 2]
    valid = [int((part.labels != IGNORE_INDEX).sum()) for part, _ in parts]
    assert [weight for _, weight in parts] == pytest.approx([each / sum(valid) for each in valid])
    classes = Batch(batch.images_N3HW, torch.full((7,), IGNORE_INDEX))  # of 1000 classes, 255 is one
    assert [weight for _, weight in parts_of(classes, 3)] == pytest.approx([3 / 7, 2 / 7, 2 / 7])
    nothing = Batch(batch.images_N3HW, torch.full_like(batch.labels, IGNORE_INDEX))
    assert [weight for _, weight in parts_of(nothing, 2)] == [0.5, 0.5]


def test_gradients_above_the_limit_are_scaled_down_to_it(dataset: PreparedDataset) -> None:
    free = make_worker(dataset)
    training_step(free, unequal_batch())
    norm = float(torch.cat([each.flatten() for each in gradients(free).values()]).norm())
    for limit in (0.25 * norm, 4 * norm):
        optim = dataclasses.replace(free.job.recipe.optim, clip_gradient_norm=limit)
        clipped = make_worker(dataset, optim=optim)
        found = training_step(clipped, unequal_batch())
        assert float(found["gradient_norm"]) == pytest.approx(norm, rel=1e-5), "as it was"
        factor = min(1.0, limit / norm)
        for name, gradient in gradients(clipped).items():
            torch.testing.assert_close(gradient, factor * gradients(free)[name], rtol=1e-4, atol=1e-8)
    assert "gradient_norm" not in training_step(free, unequal_batch())


def test_a_step_moves_the_average_and_the_average_is_judged(dataset: PreparedDataset) -> None:
    worker = make_worker(dataset, ema_decay=0.5)
    assert worker.judged is worker.network
    worker = dataclasses.replace(worker, averaged=copy.deepcopy(worker.network).requires_grad_(False).eval())
    expected: dict[str, Tensor] = {}
    for step in (1, 2, 3):
        training_step(worker, unequal_batch())
        share = 1 - min(0.5, 1 - step ** (-2 / 3))
        for name, value in worker.network.state_dict().items():
            before = expected.get(name, value)
            expected[name] = before + share * (value - before)
    for name, value in worker.judged.state_dict().items():
        torch.testing.assert_close(value, expected[name], msg=name)
    assert not torch.equal(*(each.get_parameter("head.classifier.weight") for each in (worker.judged, worker.network)))


def test_the_recipes_loss_is_what_falls(dataset: PreparedDataset) -> None:
    loss = LossConfig(main="focal", focal_gamma=1.0, second="lovasz", second_weight=0.25)
    worker = make_worker(dataset, loss=loss)
    batch = unequal_batch()
    with torch.no_grad():
        logits = worker.network(normalised(worker, batch.images_N3HW)).logits_NCHW
        focal, lovasz = focal_loss(logits, batch.labels, gamma=1.0), lovasz_softmax(logits, batch.labels)
    found = training_step(worker, batch)
    assert set(found) == {"loss", "loss_focal", "loss_lovasz"}
    torch.testing.assert_close(found["loss"], focal + 0.25 * lovasz)
    torch.testing.assert_close(found["loss_lovasz"], lovasz)
