"""Class weights and visits of images, against loops and their formulas."""

import math
from statistics import median
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from segcore.class_balance import (
    SamplingConfig,
    image_weights,
    inverse_log_weights,
    median_frequency_weights,
    visits_of_epoch,
)

PIXELS = np.array([[90, 10, 0, 0], [70, 20, 0, 10], [100, 0, 0, 0], [40, 0, 0, 0]], dtype=np.int64)
"""Four images; the third class is in none."""


def test_median_frequency_counts_the_images_that_show_a_class() -> None:
    frequencies = {}
    for index in (0, 1, 3):
        showing = [row for row in PIXELS.tolist() if row[index]]
        frequencies[index] = sum(row[index] for row in showing) / sum(map(sum, showing))
    weights = median_frequency_weights(PIXELS, PIXELS.sum(axis=1))
    middle = median(frequencies.values())
    assert weights == pytest.approx([middle / frequencies[0], middle / frequencies[1], 0, middle / frequencies[3]])


def test_inverse_log_is_enets_formula_and_lies_between_its_bounds() -> None:
    weights = inverse_log_weights(PIXELS.sum(axis=0))
    assert weights == pytest.approx([1 / math.log(1.02 + count / 340) for count in (300, 30, 0, 10)])
    assert all(1.42 < weight < 50.5 for weight in weights)
    even = inverse_log_weights(PIXELS.sum(axis=0), offset=1.1)
    assert even == pytest.approx([1 / math.log(1.1 + count / 340) for count in (300, 30, 0, 10)])


def weights_by_loop(config: SamplingConfig) -> list[float]:
    """Equations 3 and 4 of DAFormer, and an even choice among the images of a class."""
    num_pixels = PIXELS.sum()
    shown = {
        index: [n for n, row in enumerate(PIXELS.tolist()) if row[index] >= config.min_pixels] for index in range(4)
    }
    present = [index for index, images in shown.items() if images]
    temperature = config.temperature if config.method == "rare_class" else 1e9
    powers = {index: math.exp((1 - PIXELS[:, index].sum() / num_pixels) / temperature) for index in present}
    weights = [0.0] * len(PIXELS)
    for index in present:
        for number in shown[index]:
            weights[number] += powers[index] / sum(powers.values()) / len(shown[index])
    return weights


@pytest.mark.parametrize("min_pixels", [1, 15])
@pytest.mark.parametrize("settings", [{"method": "class_balanced"}, {"method": "rare_class", "temperature": 0.4}])
def test_images_are_as_likely_as_the_classes_they_show(settings: dict[str, Any], min_pixels: int) -> None:
    config = SamplingConfig(min_pixels=min_pixels, **settings)
    weights_N = image_weights(PIXELS, config)
    assert weights_N.tolist() == pytest.approx(weights_by_loop(config), rel=1e-6)
    assert weights_N.sum() == pytest.approx(1)


def test_a_low_temperature_takes_the_rarest_class_alone_without_overflow() -> None:
    weights_N = image_weights(PIXELS, SamplingConfig(method="rare_class", temperature=1e-4))
    assert weights_N.tolist() == pytest.approx([0, 1, 0, 0], abs=1e-12)


def test_images_with_a_hard_class_come_twice_as_often() -> None:
    config = SamplingConfig(method="hard_class", hard_classes=("pole",))
    assert image_weights(PIXELS, config, hard_indices=(1,)).tolist() == pytest.approx([2 / 6, 2 / 6, 1 / 6, 1 / 6])
    with pytest.raises(ValueError, match="no training image shows pole"):
        image_weights(PIXELS, config, hard_indices=(2,))


def test_no_class_with_enough_pixels_is_refused() -> None:
    with pytest.raises(ValueError, match="no training image shows any class with 1000 pixels"):
        image_weights(PIXELS, SamplingConfig(method="class_balanced", min_pixels=1000))


def many_weights() -> NDArray[np.float64]:
    weights_N = np.random.default_rng(0).random(200) ** 4
    return np.asarray(weights_N / weights_N.sum())


def test_an_epoch_has_as_many_visits_as_images_each_rounded_up_or_down() -> None:
    weights_N = many_weights()
    for epoch in range(20):
        visits_N = visits_of_epoch(weights_N, seed=3, epoch=epoch)
        assert visits_N.sum() == 200
        assert (visits_N >= np.floor(200 * weights_N)).all() and (visits_N <= np.ceil(200 * weights_N)).all()


def test_visits_are_as_many_as_the_weights_say_on_average() -> None:
    weights_N = many_weights()
    mean_N = np.mean([visits_of_epoch(weights_N, seed=0, epoch=epoch) for epoch in range(2000)], axis=0)
    assert np.abs(mean_N - 200 * weights_N).max() < 0.05  # of single visits the deviation is at most 0.5 / sqrt(2000)


def test_visits_depend_on_seed_and_epoch_and_on_nothing_else() -> None:
    weights_N = many_weights()
    first = visits_of_epoch(weights_N, seed=1, epoch=2)
    assert np.array_equal(first, visits_of_epoch(weights_N, seed=1, epoch=2))
    assert not np.array_equal(first, visits_of_epoch(weights_N, seed=1, epoch=3))
    assert not np.array_equal(first, visits_of_epoch(weights_N, seed=2, epoch=2))


def test_equal_weights_visit_every_image_once() -> None:
    assert (visits_of_epoch(np.full(7, 1 / 7), seed=0, epoch=0) == 1).all()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"method": "random"}, "unknown sampling method 'random'; known: none, class_balanced"),
        ({"method": "rare_class", "temperature": 0.0}, "temperature is 0.0"),
        ({"method": "rare_class", "min_pixels": 0}, "min_pixels 0"),
        ({"method": "hard_class"}, "hard_class needs names of classes"),
        ({"method": "rare_class", "hard_classes": ("car",)}, "no other method takes any"),
    ],
)
def test_settings_that_cannot_work_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SamplingConfig(**fields)
