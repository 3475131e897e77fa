"""Cross-entropy over valid pixels."""

import math

import pytest
import torch

from segcore import IGNORE_INDEX
from segcore.losses import cross_entropy


def case() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 4, 5, generator=generator)
    labels = torch.randint(0, 3, (2, 4, 5), generator=generator)
    labels[0, :3] = IGNORE_INDEX  # very different numbers of valid pixels per image
    return logits, labels


def test_it_is_the_mean_over_the_batchs_valid_pixels() -> None:
    logits, labels = case()
    total, count = 0.0, 0
    for image, row, column in (labels != IGNORE_INDEX).nonzero().tolist():
        scores = logits[image, :, row, column].tolist()
        total += math.log(sum(math.exp(score) for score in scores)) - scores[int(labels[image, row, column])]
        count += 1
    assert float(cross_entropy(logits, labels)) == pytest.approx(total / count, rel=1e-6)


def test_ignored_pixels_have_neither_value_nor_gradient() -> None:
    logits, labels = case()
    expected = cross_entropy(logits, labels)
    changed = logits.clone()
    changed[0, :, :3] = 1e6
    changed.requires_grad_()
    loss = cross_entropy(changed, labels)
    loss.backward()
    assert float(loss.detach()) == float(expected)
    assert changed.grad is not None
    assert not changed.grad[0, :, :3].any() and changed.grad[0, :, 3].all()


@pytest.mark.parametrize("class_weights", [None, torch.tensor([1.0, 2.0, 3.0])])
def test_a_batch_without_valid_pixels_costs_nothing(class_weights: torch.Tensor | None) -> None:
    logits = torch.randn(2, 3, 4, 5, requires_grad=True)
    loss = cross_entropy(logits, torch.full((2, 4, 5), IGNORE_INDEX), class_weights_C=class_weights)
    loss.backward()
    assert float(loss.detach()) == 0
    assert logits.grad is not None and not logits.grad.any()


def test_class_weights_are_those_of_torchs_mean() -> None:
    logits, labels = case()
    weights = torch.tensor([0.5, 0.0, 4.0])
    expected = torch.nn.CrossEntropyLoss(weight=weights, ignore_index=IGNORE_INDEX)(logits, labels)
    torch.testing.assert_close(cross_entropy(logits, labels, class_weights_C=weights), expected)


def test_labels_may_be_bytes_and_logits_bfloat16() -> None:
    logits, labels = case()
    rounded = logits.bfloat16()
    loss = cross_entropy(rounded, labels.to(torch.uint8))
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, cross_entropy(rounded.float(), labels))


@pytest.mark.parametrize("shape", [(2, 5, 4), (1, 4, 5)])
def test_labels_of_another_size_are_refused(shape: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match=r"logits have shape \(2, 3, 4, 5\) and labels .*never labels"):
        cross_entropy(torch.zeros(2, 3, 4, 5), torch.zeros(shape, dtype=torch.long))
