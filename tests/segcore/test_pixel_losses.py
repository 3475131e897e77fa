"""Focal loss and online hard example mining, against loops over pixels in double precision."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from segcore import IGNORE_INDEX
from segcore.losses import cross_entropy, focal_loss, ohem_cross_entropy

Loss = Callable[[Tensor], Tensor]
WEIGHTS = torch.tensor([0.5, 1.0, 4.0], dtype=torch.float64)


def case(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(2, 3, 4, 5, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 3, (2, 4, 5), generator=generator)
    labels[0, :3] = IGNORE_INDEX
    return logits, labels


def pixels(logits: Tensor, labels: Tensor) -> list[tuple[int, float]]:
    """Class and its probability, of every valid pixel."""
    found = []
    for image, row, column in (labels != IGNORE_INDEX).nonzero().tolist():
        scores, index = logits[image, :, row, column].tolist(), int(labels[image, row, column])
        found.append((index, math.exp(scores[index]) / sum(math.exp(score) for score in scores)))
    return found


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_focal_loss_is_its_formula(gamma: float, weights: Tensor | None) -> None:
    logits, labels = case()
    of_class = [1.0, 1.0, 1.0] if weights is None else weights.tolist()
    found = pixels(logits, labels)
    total = sum(of_class[index] * (1 - p) ** gamma * -math.log(p) for index, p in found)
    expected = total / sum(of_class[index] for index, _ in found)
    loss = focal_loss(logits, labels, gamma=gamma, class_weights_C=weights)
    assert float(loss) == pytest.approx(expected, rel=1e-12)


def test_focal_loss_with_gamma_0_is_cross_entropy() -> None:
    logits, labels = case()
    weights = WEIGHTS.float()
    ours = focal_loss(logits.float(), labels, gamma=0, class_weights_C=weights)
    torch.testing.assert_close(ours, cross_entropy(logits.float(), labels, class_weights_C=weights))


def test_focal_loss_has_a_finite_gradient_where_the_network_is_sure() -> None:
    logits = torch.tensor([60.0, 0.0]).view(1, 2, 1, 1).requires_grad_()
    focal_loss(logits, torch.zeros(1, 1, 1, dtype=torch.long), gamma=0.5).backward()
    assert logits.grad is not None and logits.grad.isfinite().all()


@pytest.mark.parametrize(("threshold", "min_kept"), [(0.7, 1 / 16), (0.3, 0.5), (0.01, 0.9), (1.0, 0.0), (1e-9, 0.0)])
@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_ohem_takes_the_pixels_below_the_threshold_or_the_hardest(
    threshold: float, min_kept: float, weights: Tensor | None
) -> None:
    logits, labels = case()
    of_class = [1.0, 1.0, 1.0] if weights is None else weights.tolist()
    ranked = sorted(pixels(logits, labels), key=lambda pixel: pixel[1])
    hard = [pixel for pixel in ranked if pixel[1] < threshold]
    fewest = max(1, int(min_kept * len(ranked)))
    chosen = hard if len(hard) >= fewest else ranked[:fewest]
    expected = sum(of_class[index] * -math.log(p) for index, p in chosen) / sum(of_class[index] for index, _ in chosen)
    loss = ohem_cross_entropy(logits, labels, threshold=threshold, min_kept=min_kept, class_weights_C=weights)
    assert float(loss) == pytest.approx(expected, rel=1e-12)


def test_ohem_of_all_pixels_is_cross_entropy() -> None:
    logits, labels = case()
    ours = ohem_cross_entropy(logits.float(), labels, threshold=0.5, min_kept=1)
    torch.testing.assert_close(ours, cross_entropy(logits.float(), labels))


def test_gradients_are_those_of_the_formulas() -> None:
    logits, labels = case()
    logits.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: focal_loss(x, labels, gamma=2.0, class_weights_C=WEIGHTS), (logits,), raise_exception=True
    )
    assert torch.autograd.gradcheck(lambda x: ohem_cross_entropy(x, labels, threshold=0.4, min_kept=0.1), (logits,))


def test_ignored_pixels_have_neither_value_nor_gradient() -> None:
    logits, labels = case()
    losses: list[Loss] = [
        lambda x: focal_loss(x, labels, gamma=2.0, class_weights_C=WEIGHTS),
        lambda x: ohem_cross_entropy(x, labels, threshold=0.7, min_kept=1, class_weights_C=WEIGHTS),
    ]
    for loss_of in losses:
        changed = logits.clone()
        changed[0, :, :3] = 50.0
        changed.requires_grad_()
        loss = loss_of(changed)
        loss.backward()
        assert float(loss.detach()) == float(loss_of(logits))
        assert changed.grad is not None and not changed.grad[0, :, :3].any() and changed.grad[0, :, 3].all()


def test_a_batch_without_valid_pixels_costs_nothing() -> None:
    labels = torch.full((2, 4, 5), IGNORE_INDEX, dtype=torch.uint8)
    losses: list[Loss] = [
        lambda x: focal_loss(x, labels, gamma=0.5, class_weights_C=WEIGHTS),
        lambda x: ohem_cross_entropy(x, labels, threshold=0.7, min_kept=0.1),
    ]
    for loss_of in losses:
        logits = torch.randn(2, 3, 4, 5, requires_grad=True)
        loss = loss_of(logits)
        loss.backward()
        assert float(loss.detach()) == 0 and logits.grad is not None and not logits.grad.any()


def test_labels_of_another_size_are_refused() -> None:
    with pytest.raises(ValueError, match="resize scores, never labels"):
        focal_loss(torch.zeros(1, 2, 4, 4), torch.zeros(1, 2, 2, dtype=torch.long), gamma=2)
