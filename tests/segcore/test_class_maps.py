"""Class maps and their statistics against whole tensors in double precision; both ways of computing them, on a CPU."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from segcore import class_maps
from segcore.class_maps import CONFIDENCE_BINS, ClassMap, class_map

HEIGHT = 23


@pytest.fixture(params=["kernel", "torch"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The compiled kernel of CPUs, or the operations that run on other devices."""
    if request.param == "torch":
        monkeypatch.setattr(class_maps, "_describe_on_cpu", class_maps._describe_on_device)
    return str(request.param)


def logits_of(num_classes: int, width: int, *, scale: float = 3.0) -> Tensor:
    generator = torch.Generator().manual_seed(num_classes)
    return scale * torch.randn(num_classes, HEIGHT, width, generator=generator)


def check(found: ClassMap, p_CHW: Tensor, *, rtol: float = 1e-6) -> None:
    """`p_CHW` in double precision."""
    num_classes = len(p_CHW)
    largest_HW, argmax_HW = p_CHW.max(dim=0)
    np.testing.assert_array_equal(found.classes_HW, argmax_HW.numpy())
    assert found.classes_HW.dtype == np.uint8
    if found.confidence_HW is not None:
        np.testing.assert_allclose(found.confidence_HW, largest_HW, rtol=10 * rtol)
        assert found.confidence_HW.dtype == np.float32
    statistics = found.statistics
    np.testing.assert_allclose(statistics.mean_confidence, largest_HW.mean(), rtol=rtol)
    entropy = -torch.special.xlogy(p_CHW, p_CHW).sum(dim=0).mean()
    np.testing.assert_allclose(statistics.mean_entropy, entropy, rtol=10 * rtol, atol=1e-6)
    ordered = p_CHW.sort(dim=0, descending=True).values
    second = ordered[1] if num_classes > 1 else torch.zeros_like(largest_HW)
    np.testing.assert_allclose(statistics.mean_margin, (ordered[0] - second).mean(), rtol=rtol, atol=1e-7)
    low = largest_HW.flatten().kthvalue(math.ceil(0.05 * largest_HW.numel())).values
    np.testing.assert_allclose(statistics.low_confidence, low, atol=0.51 / CONFIDENCE_BINS)
    for c in range(num_classes):
        here = argmax_HW == c
        assert statistics.class_pixels_C[c] == int(here.sum())
        expected = largest_HW[here].mean() if here.any() else math.nan
        np.testing.assert_allclose(statistics.class_confidence_C[c], expected, rtol=rtol)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("width", [1, 37, 256, 600])
@pytest.mark.parametrize("num_classes", [1, 2, 19, 254])
def test_logits_equal_the_long_way(way: str, num_classes: int, width: int, memory_format: torch.memory_format) -> None:
    logits = logits_of(num_classes, width)
    scores = logits[None].contiguous(memory_format=memory_format)[0]
    found = class_map(scores, are_logits=True, height=HEIGHT, width=width, with_confidence=width != 37)
    check(found, logits.double().softmax(dim=0))
    assert (found.confidence_HW is None) == (width == 37)
    torch.testing.assert_close(scores, logits, rtol=0, atol=0)  # the caller's


@pytest.mark.parametrize("strip_bytes", [1, 2**12, 2**30])
def test_probabilities_in_any_strips_equal_the_long_way(
    way: str, monkeypatch: pytest.MonkeyPatch, strip_bytes: int
) -> None:
    monkeypatch.setattr(class_maps, "_STRIP_BYTES_CPU", strip_bytes)
    monkeypatch.setattr(class_maps, "_STRIP_BYTES_DEVICE", strip_bytes)
    p_CHW = logits_of(5, 37).softmax(dim=0)
    check(class_map(p_CHW, are_logits=False, height=HEIGHT, width=37, with_confidence=True), p_CHW.double())


@pytest.mark.parametrize("threads", [1, 3, 40])
def test_any_number_of_threads_finds_the_same(threads: int) -> None:
    logits = logits_of(5, 300)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        found = class_map(logits, are_logits=True, height=HEIGHT, width=300)
    finally:
        torch.set_num_threads(before)
    check(found, logits.double().softmax(dim=0))


def test_certain_pixels_and_impossible_classes(way: str) -> None:
    logits = logits_of(5, 37, scale=1e4)
    logits[2] = -math.inf
    found = class_map(logits, are_logits=True, height=HEIGHT, width=37)
    check(found, logits.double().softmax(dim=0))
    assert found.statistics.mean_confidence > 0.99
    p_CHW = torch.zeros(5, HEIGHT, 37)
    p_CHW[3] = 1
    check(class_map(p_CHW, are_logits=False, height=HEIGHT, width=37), p_CHW.double())


def test_of_equal_classes_the_first_is_predicted(way: str) -> None:
    found = class_map(torch.full((5, HEIGHT, 37), 2.5), are_logits=True, height=HEIGHT, width=37)
    assert not found.classes_HW.any()
    np.testing.assert_allclose(found.statistics.mean_entropy, math.log(5), rtol=1e-6)
    np.testing.assert_allclose(found.statistics.mean_margin, 0, atol=1e-7)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("num_classes", [1, 5])
@pytest.mark.parametrize("everywhere", [True, False])
def test_scores_that_are_not_finite_are_refused(way: str, value: float, num_classes: int, everywhere: bool) -> None:
    logits = logits_of(num_classes, 300)
    logits[:, slice(None) if everywhere else 11, slice(None) if everywhere else 299] = value
    with pytest.raises(ValueError, match="scores are not finite; try --inference.precision float32"):
        class_map(logits, are_logits=True, height=HEIGHT, width=300)
