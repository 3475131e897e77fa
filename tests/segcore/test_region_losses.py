"""Dice and Lovasz-Softmax, against loops in double precision."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from segcore import IGNORE_INDEX
from segcore.metrics import confusion_matrix, scores
from segcore.region_losses import dice_loss, lovasz_softmax

Loss = Callable[[Tensor, Tensor], Tensor]


def case(num_classes: int = 4) -> tuple[Tensor, Tensor]:
    """Two images with ignored pixels; the last class is in no label."""
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(2, num_classes, 5, 6, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, num_classes - 1, (2, 5, 6), generator=generator)
    labels[0, :3] = IGNORE_INDEX
    return logits, labels


def valid_pixels(logits: Tensor, labels: Tensor) -> list[tuple[list[float], int]]:
    """Probabilities and class of every valid pixel."""
    found = []
    for image, row, column in (labels != IGNORE_INDEX).nonzero().tolist():
        powers = [math.exp(score) for score in logits[image, :, row, column].tolist()]
        found.append(([power / sum(powers) for power in powers], int(labels[image, row, column])))
    return found


def dice_by_loop(logits: Tensor, labels: Tensor) -> float:
    pixels = valid_pixels(logits, labels)
    losses = []
    for index in sorted({truth for _, truth in pixels}):
        overlap = sum(p[index] for p, truth in pixels if truth == index)
        squares = sum(p[index] ** 2 for p, _ in pixels) + sum(truth == index for _, truth in pixels)
        losses.append(1 - 2 * overlap / squares)
    return sum(losses) / len(losses)


def jaccard_loss(wrong: set[int], truth: set[int]) -> float:
    """1 - IoU of a set of pixels with a prediction that errs at `wrong` and nowhere else."""
    return 1 - len(truth - wrong) / len(truth | wrong)


def lovasz_by_loop(logits: Tensor, labels: Tensor) -> float:
    """The definition: sum over pixels in order of falling error of error * (loss with it wrong - loss before)."""
    pixels = valid_pixels(logits, labels)
    losses = []
    for index in sorted({truth for _, truth in pixels}):
        truth = {number for number, (_, each) in enumerate(pixels) if each == index}
        errors = [1 - p[index] if number in truth else p[index] for number, (p, _) in enumerate(pixels)]
        wrong: set[int] = set()
        total = 0.0
        for number in sorted(range(len(errors)), key=lambda each: -errors[each]):
            before = jaccard_loss(wrong, truth)
            wrong.add(number)
            total += errors[number] * (jaccard_loss(wrong, truth) - before)
        losses.append(total)
    return sum(losses) / len(losses)


def test_dice_is_its_formula_over_the_classes_in_the_batch() -> None:
    logits, labels = case()
    assert float(dice_loss(logits, labels)) == pytest.approx(dice_by_loop(logits, labels), rel=1e-12)


def test_lovasz_is_its_definition_over_the_classes_in_the_batch() -> None:
    logits, labels = case()
    assert float(lovasz_softmax(logits, labels)) == pytest.approx(lovasz_by_loop(logits, labels), rel=1e-12)


def test_lovasz_of_a_sure_network_is_one_minus_the_mean_iou() -> None:
    logits, labels = case()
    predictions = logits.argmax(dim=1)
    sure = 1e4 * torch.nn.functional.one_hot(predictions, 4).movedim(3, 1).double()
    confusion = confusion_matrix(labels.numpy(), predictions.numpy(), num_classes=4)
    expected = 1 - np.mean(scores(confusion).iou_C[:3])
    assert float(lovasz_softmax(sure, labels)) == pytest.approx(expected, rel=1e-12)


def test_a_perfect_network_has_no_loss() -> None:
    _, labels = case()
    perfect = 1e4 * torch.nn.functional.one_hot(labels.clamp(max=3), 4).movedim(3, 1).double()
    assert float(dice_loss(perfect, labels)) == pytest.approx(0, abs=1e-12)
    assert float(lovasz_softmax(perfect, labels)) == pytest.approx(0, abs=1e-12)


def test_lovasz_keeps_its_precision_with_many_pixels_in_float32() -> None:
    """Steps of 1e-6 that are formed by subtraction in float32 would have one good digit."""
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(1, 3, 150, 500, generator=generator)
    labels = torch.randint(0, 3, (1, 150, 500), generator=generator)
    single, double = logits.requires_grad_(), logits.detach().double().requires_grad_()
    losses = [lovasz_softmax(each, labels) for each in (single, double)]
    torch.autograd.backward(losses)
    assert float(losses[0].detach()) == pytest.approx(float(losses[1].detach()), rel=1e-6)
    assert single.grad is not None and double.grad is not None
    torch.testing.assert_close(single.grad.double(), double.grad, rtol=1e-3, atol=1e-9)


@pytest.mark.parametrize("loss_of", [dice_loss, lovasz_softmax])
class TestBoth:
    def test_gradients_are_those_of_the_formulas(self, loss_of: Loss) -> None:
        logits, labels = case()
        assert torch.autograd.gradcheck(lambda x: loss_of(x, labels), (logits.requires_grad_(),))

    def test_ignored_pixels_have_neither_value_nor_gradient(self, loss_of: Loss) -> None:
        logits, labels = case()
        changed = logits.clone()
        changed[0, :, :3] = 50.0
        changed.requires_grad_()
        loss = loss_of(changed, labels)
        loss.backward()
        assert float(loss.detach()) == pytest.approx(float(loss_of(logits, labels)), rel=1e-14)
        assert changed.grad is not None and not changed.grad[0, :, :3].any() and changed.grad[0, :, 3:].any()

    def test_a_batch_without_valid_pixels_costs_nothing(self, loss_of: Loss) -> None:
        logits = torch.randn(2, 3, 4, 5, requires_grad=True)
        loss = loss_of(logits, torch.full((2, 4, 5), IGNORE_INDEX, dtype=torch.uint8))
        loss.backward()
        assert float(loss.detach()) == 0 and logits.grad is not None and not logits.grad.any()

    def test_labels_may_be_bytes_and_logits_bfloat16(self, loss_of: Loss) -> None:
        logits, labels = case()
        rough = logits.bfloat16()
        loss = loss_of(rough, labels.to(torch.uint8))
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, loss_of(rough.float(), labels))

    def test_labels_of_another_size_are_refused(self, loss_of: Loss) -> None:
        with pytest.raises(ValueError, match="resize scores, never labels"):
            loss_of(torch.zeros(1, 2, 4, 4), torch.zeros(1, 2, 2, dtype=torch.long))
