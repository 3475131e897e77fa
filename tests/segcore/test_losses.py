"""Cross-entropy over valid pixels, and the weight of borders between objects."""

import math

import pytest
import torch

from segcore import IGNORE_INDEX
from segcore.losses import border_cross_entropy, border_weights, cross_entropy


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


def objects_of(labels_HW: torch.Tensor, background: int | None) -> list[set[tuple[int, int]]]:
    """Pixels of each connected component of one class, by flood fill."""
    height, width = labels_HW.shape
    left = {
        (row, column)
        for row in range(height)
        for column in range(width)
        if int(labels_HW[row, column]) not in (IGNORE_INDEX, background)
    }
    objects = []
    while left:
        grown, front = set(), [left.pop()]
        while front:
            pixel = front.pop()
            grown.add(pixel)
            for row in range(pixel[0] - 1, pixel[0] + 2):
                for column in range(pixel[1] - 1, pixel[1] + 2):
                    if (row, column) in left and labels_HW[row, column] == labels_HW[pixel]:
                        left.remove((row, column))
                        front.append((row, column))
        objects.append(grown)
    return objects


@pytest.mark.parametrize(("sigma_px", "background"), [(5.0, None), (1.5, 0), (0.4, 2)])
def test_border_weights_are_those_of_the_two_nearest_objects(sigma_px: float, background: int | None) -> None:
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(0, 3, (2, 3, 4), generator=generator).repeat_interleave(4, 1).repeat_interleave(5, 2)
    labels[:, 3:5, 2:9] = IGNORE_INDEX
    found = border_weights(labels, sigma_px=sigma_px, background=background)
    assert found.shape == labels.shape and found.dtype == torch.float32
    for labels_HW, weights_HW in zip(labels, found, strict=True):
        objects = objects_of(labels_HW, background)
        assert len(objects) > 2
        for row in range(labels_HW.shape[0]):
            for column in range(labels_HW.shape[1]):
                first, second, *_ = sorted(min(math.dist((row, column), pixel) for pixel in each) for each in objects)
                expected = math.exp(-((first + second) ** 2) / (2 * sigma_px**2))
                assert float(weights_HW[row, column]) == pytest.approx(expected, rel=1e-5, abs=1e-7)


def test_without_a_second_object_there_is_no_border() -> None:
    one = torch.zeros(1, 20, 30, dtype=torch.uint8)
    one[:, 5:9, 4:12] = 1
    assert not border_weights(one, sigma_px=5.0, background=0).any()
    assert border_weights(one, sigma_px=5.0).any()
    assert not border_weights(torch.full((2, 4, 5), IGNORE_INDEX), sigma_px=5.0).any()


def test_the_loss_of_borders_completes_the_weighted_mean() -> None:
    logits, labels = case()
    logits.requires_grad_()
    border = border_weights(labels, sigma_px=2.0)
    found = cross_entropy(logits, labels) + 10 * border_cross_entropy(logits, labels, border)
    weights = (1 + 10 * border) * (labels != IGNORE_INDEX)
    each = torch.nn.functional.cross_entropy(logits, labels, ignore_index=IGNORE_INDEX, reduction="none")
    torch.testing.assert_close(found, (weights * each).sum() / (labels != IGNORE_INDEX).sum())
    assert float(border_cross_entropy(logits.detach(), torch.full_like(labels, IGNORE_INDEX), border)) == 0
    found.backward()
    assert logits.grad is not None and not logits.grad[0, :, :3].any() and logits.grad[0, :, 3].all()
