"""Drift measures against their definitions, worked out term by term, and against values known from elsewhere."""

import math

import numpy as np
import pytest

from pipelines.night_report.drift import (
    Distribution,
    band,
    bin_shares,
    class_psi_chance,
    class_shares,
    js_distance,
    mean_brightness,
    psi,
    psi_chance,
    worst_band,
)


def test_psi_of_known_distributions() -> None:
    half, mostly = np.array([0.5, 0.5]), np.array([0.9, 0.1])
    assert psi(half, half) == 0
    assert psi(half, mostly) == pytest.approx(0.4 * math.log(0.9 / 0.5) - 0.4 * math.log(0.1 / 0.5))
    assert psi(half, mostly) == pytest.approx(0.878890, abs=1e-6)
    assert psi(half, mostly) == psi(mostly, half)


def test_js_distance_of_known_distributions() -> None:
    one, half = np.array([1.0, 0.0]), np.array([0.5, 0.5])
    assert js_distance(half, half) == 0
    assert js_distance(one, 1 - one) == pytest.approx(1)
    assert js_distance(one, half) == pytest.approx(math.sqrt(0.311278), abs=1e-6)


def test_both_are_what_their_definitions_say() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        reference, found = (rng.dirichlet(np.ones(6)).tolist() for _ in range(2))
        expected_psi, divergence = 0.0, 0.0
        for r, f in zip(reference, found, strict=True):
            expected_psi += (f - r) * math.log(f / r)
            m = (r + f) / 2
            divergence += r / 2 * math.log2(r / m) + f / 2 * math.log2(f / m)
        assert psi(np.array(reference), np.array(found)) == pytest.approx(expected_psi)
        assert js_distance(np.array(reference), np.array(found)) == pytest.approx(math.sqrt(divergence))


def test_a_class_that_never_occurred_is_far_but_not_infinitely() -> None:
    reference, found = class_shares(np.array([1.0, 0.0])), class_shares(np.array([0.95, 0.05]))
    assert reference.sum() == pytest.approx(1) and reference.min() > 0
    assert 0.25 < psi(reference, found) < 1
    barely = class_shares(np.array([0.999, 0.001]))
    assert psi(reference, barely) < 0.01


def test_bins_are_deciles_and_every_image_is_in_one() -> None:
    values = np.random.default_rng(1).normal(size=1000)
    found = Distribution.of(values)
    assert found.mean == pytest.approx(values.mean()) and found.std == pytest.approx(values.std())
    assert len(found.cuts) == 9 and found.counts == (100,) * 10 and found.num_images == 1000
    bins = found.bins(np.array([-100.0, found.cuts[0], np.nextafter(found.cuts[0], 9), 100.0]))
    assert bins.tolist() == [0, 0, 1, 9]
    assert found.psi(np.array(found.counts)) == 0


def test_a_value_that_many_images_share_has_a_bin_of_its_own() -> None:
    same_size = Distribution.of(np.full(50, 3072.0))
    assert same_size.counts == (0, 50, 0)
    assert same_size.bins(np.array([3071, 3072, 3073])).tolist() == [0, 1, 2]
    for other in (3071.0, 3073.0):
        night = np.bincount(same_size.bins(np.full(40, other)), minlength=3)
        assert same_size.psi(night) > 1, "larger and smaller images are both noticed"
    assert same_size.psi(np.array([0, 9, 0])) == pytest.approx(0)
    assert same_size.shift(3072) == 0 and math.isnan(same_size.shift(3073))

    rare_class = Distribution.of(np.array([0.0] * 80 + [0.1 * step for step in range(1, 21)]))
    zero = int(rare_class.bins(np.array([0.0]))[0])
    assert rare_class.counts[zero] == 80
    assert rare_class.bins(np.array([1e-6]))[0] == zero + 1


def test_psi_over_bins_counts_images() -> None:
    reference = Distribution.of(np.arange(100.0))
    night = np.bincount(reference.bins(np.array([95.0] * 30)), minlength=10)
    shares = [(0.5 / 35, 10.5 / 105)] * 9 + [(30.5 / 35, 10.5 / 105)]
    assert reference.psi(night) == pytest.approx(sum((f - r) * math.log(f / r) for f, r in shares))
    assert reference.shift(49.5 + 2 * np.arange(100).std()) == pytest.approx(2)


def test_chance_exceeds_its_limit_about_once_in_a_hundred_times() -> None:
    rng = np.random.default_rng(2)
    limit, hits, trials = psi_chance(60, 200), 0, 1500
    for _ in range(trials):
        reference = Distribution.of(rng.normal(size=200))
        hits += reference.psi(np.bincount(reference.bins(rng.normal(size=60)), minlength=10)) > limit
    assert 0.002 < hits / trials < 0.025


def test_chance_of_class_shares_is_of_the_size_that_is_seen() -> None:
    rng = np.random.default_rng(3)
    concentration = np.array([4.0, 2.0, 1.0, 0.2])
    hits, trials = 0, 1500
    for _ in range(trials):
        validation, night = (rng.dirichlet(concentration, size=size) for size in (200, 60))
        limit = class_psi_chance(validation.mean(axis=0), validation.std(axis=0), 60, 200)
        hits += psi(class_shares(validation.mean(axis=0)), class_shares(night.mean(axis=0))) > limit
    assert 0.001 < hits / trials < 0.04
    assert class_psi_chance(np.array([1.0, 0.0]), np.zeros(2), 60, 200) == 0


def test_bands_are_the_customary_ones_above_chance() -> None:
    found = [band(value, chance=0.0) for value in (0.0, 0.0999, 0.1, 0.2499, 0.25, 9.0)]
    assert found == ["stable", "stable", "moderate", "moderate", "significant", "significant"]
    assert band(0.5, chance=0.6) == "stable" and band(0.7, chance=0.6) == "significant"
    assert worst_band(["stable", "significant", "moderate"]) == "significant"
    assert worst_band([]) == "stable"


def test_brightness_is_the_mean_of_all_values() -> None:
    pixels_HW3 = np.random.default_rng(4).integers(0, 256, (5, 7, 3)).astype(np.uint8)
    pixels_HW3.flags.writeable = False
    assert mean_brightness(pixels_HW3) == pytest.approx(pixels_HW3.mean() / 255)


def test_a_distribution_reads_back_as_it_was_written() -> None:
    found = Distribution.of(np.random.default_rng(5).normal(size=33))
    assert Distribution.from_dict(found.to_dict()) == found
    assert bin_shares(np.array(found.counts)).sum() == pytest.approx(1)
