"""Bootstrap intervals against drawing images one by one, and the verdict on pairs of networks."""

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from segcore.bootstrap import adjusted_p_values, bootstrap_intervals, paired_bootstrap, paired_bootstrap_of_seeds
from segcore.metrics import class_counts, confusion_matrix, scores


def image_counts(
    num_images: int, *, accuracy: float, seed: int = 0, rare: bool = True, labels_seed: int = 0
) -> NDArray[np.int64]:
    """Counts (N, 3, 3) of random images, or (N, 3, 4) with class 3, `rare`, which only the first image has."""
    num_classes = 4 if rare else 3
    labels_rng, rng = np.random.default_rng(labels_seed), np.random.default_rng(seed + 100)
    counts = []
    for index in range(num_images):
        labels = labels_rng.integers(0, 3, (6, 7)).astype(np.uint8)
        if rare and index == 0:
            labels[0] = 3
        guesses = rng.integers(0, 3, labels.shape).astype(np.uint8)
        predictions = np.where(rng.random(labels.shape) < accuracy, labels, guesses)
        counts.append(class_counts(confusion_matrix(labels, predictions, num_classes=num_classes)))
    return np.stack(counts)


def miou(counts_3C: NDArray[np.int64]) -> float:
    """By a loop over the classes that there are."""
    values = [i / (t + p - i) for i, t, p in counts_3C.T.tolist() if t + p - i > 0]
    return float(sum(values) / len(values))


def test_intervals_are_those_of_scoring_each_draw_by_itself() -> None:
    counts = image_counts(9, accuracy=0.6)
    found = bootstrap_intervals(counts, draws=400, seed=5, level=0.9)
    rng = np.random.default_rng(5)
    means: list[float] = []
    third: list[float] = []
    for _ in range(400):
        times = rng.multinomial(9, [1 / 9] * 9)
        drawn = [counts[index] for index in range(9) for _ in range(times[index])]
        total = np.zeros((3, 4), dtype=np.int64)
        for one in drawn:
            total += one
        means.append(miou(total))
        i, t, p = total[:, 3].tolist()
        third += [i / (t + p - i)] if t + p - i else []
    assert found.mean_iou == pytest.approx(np.quantile(means, [0.05, 0.95]).tolist(), abs=1e-12)
    assert found.iou_C2[3] == pytest.approx(np.quantile(third, [0.05, 0.95]).tolist(), abs=1e-12)
    assert len(third) < 400, "some draw must lack the image with class 3"


def test_draws_in_blocks_are_the_same_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = image_counts(20, accuracy=0.5)
    whole = bootstrap_intervals(counts, draws=50)
    monkeypatch.setattr("segcore.bootstrap._BLOCK_ENTRIES", 7 * 20)
    parts = bootstrap_intervals(counts, draws=50)
    assert whole.mean_iou == parts.mean_iou and np.array_equal(whole.iou_C2, parts.iou_C2)


def test_the_interval_holds_the_score_and_narrows_with_the_root_of_the_images() -> None:
    widths = []
    for num_images in (100, 900):
        counts = image_counts(num_images, accuracy=0.7, rare=False)
        low, high = bootstrap_intervals(counts).mean_iou
        assert low < miou(counts.sum(axis=0)) < high
        widths.append(high - low)
    assert widths[0] / widths[1] == pytest.approx(3, rel=0.25)


def test_95_of_100_intervals_hold_the_score_of_the_population() -> None:
    population = image_counts(3000, accuracy=0.7, rare=False)
    truth = miou(population.sum(axis=0))
    rng = np.random.default_rng(1)
    held = 0
    for _ in range(200):
        low, high = bootstrap_intervals(population[rng.integers(0, 3000, 40)], draws=300).mean_iou
        held += low <= truth <= high
    assert held / 200 == pytest.approx(0.95, abs=0.05)


def test_equal_images_have_intervals_without_width_and_absent_classes_none() -> None:
    one = image_counts(1, accuracy=0.5)
    one = np.concatenate([one, np.zeros((1, 3, 1), dtype=np.int64)], axis=2)
    found = bootstrap_intervals(np.repeat(one, 5, axis=0))
    assert found.mean_iou[0] == found.mean_iou[1] == pytest.approx(miou(one[0]))
    assert np.isnan(found.iou_C2[4]).all() and not np.isnan(found.iou_C2[:4]).any()


def test_images_without_labels_have_no_interval() -> None:
    found = bootstrap_intervals(np.zeros((3, 3, 2), dtype=np.int64))
    assert all(math.isnan(value) for value in found.mean_iou)


def test_the_better_network_is_found_and_the_order_turns_the_sign() -> None:
    worse, better = (image_counts(60, accuracy=accuracy, seed=3) for accuracy in (0.6, 0.75))
    found, turned = paired_bootstrap(worse, better), paired_bootstrap(better, worse)
    assert found.mean_iou == pytest.approx(miou(better.sum(axis=0)) - miou(worse.sum(axis=0)), abs=1e-12)
    low, high = found.mean_iou_interval
    assert 0 < low < found.mean_iou < high and found.mean_iou_p == pytest.approx(2 / 1001)
    assert turned.mean_iou == -found.mean_iou and turned.mean_iou_interval == pytest.approx((-high, -low))
    assert turned.mean_iou_p == found.mean_iou_p
    assert (found.iou_C[:3] > 0).all() and (found.iou_p_C[:3] < 0.05).all()


def test_identical_networks_do_not_differ() -> None:
    counts = image_counts(12, accuracy=0.6)
    found = paired_bootstrap(counts, counts.copy())
    assert (found.mean_iou, found.mean_iou_interval, found.mean_iou_p) == (0.0, (0.0, 0.0), 1.0)
    assert (found.iou_C == 0).all() and (found.iou_p_C == 1).all()


def test_equally_good_networks_are_told_apart_about_once_in_twenty() -> None:
    called = 0
    for seed in range(100):
        first, second = (image_counts(30, accuracy=0.6, seed=2 * seed + n, rare=False) for n in (0, 1))
        called += paired_bootstrap(first, second, draws=300).mean_iou_p < 0.05
    assert called / 100 == pytest.approx(0.05, abs=0.05)


def test_pairs_see_the_same_draws() -> None:
    """A constant lead on every image is certain, however much the images differ from each other."""
    first = image_counts(30, accuracy=0.6, rare=False)
    first[::2] *= 50
    second = first.copy()
    second[:, 0] += (first[:, 1] - first[:, 0]) // 2  # half of each class's misses are found
    second[:, 2] += (first[:, 1] - first[:, 0]) // 2
    alone = [bootstrap_intervals(counts).mean_iou for counts in (first, second)]
    low, high = paired_bootstrap(first, second).mean_iou_interval
    assert high - low < min(b - a for a, b in alone)


def test_a_class_that_one_network_alone_predicts_has_no_difference() -> None:
    first = image_counts(5, accuracy=0.6)
    first = np.concatenate([first, np.zeros((5, 3, 1), dtype=np.int64)], axis=2)
    second = first.copy()
    second[0, 2, 4] = 3
    found = paired_bootstrap(first, second)
    assert math.isnan(found.iou_C[4]) and math.isnan(found.iou_p_C[4])
    assert found.mean_iou < 0, "it counts as a class of IoU 0 in the second one's mean"


def test_scores_of_any_subset_follow_from_the_counts() -> None:
    labels, predictions = np.random.default_rng(0).integers(0, 5, (2, 8, 9, 10)).astype(np.uint8)
    single = np.stack(
        [class_counts(confusion_matrix(*pair, num_classes=5)) for pair in zip(labels, predictions, strict=True)]
    )
    subset = [6, 1, 3]
    expected = scores(confusion_matrix(labels[subset], predictions[subset], num_classes=5))
    assert miou(single[subset].sum(axis=0)) == pytest.approx(expected.mean_iou, abs=1e-15)


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        (np.zeros((0, 3, 2), dtype=np.int64), r"shape \(0, 3, 2\); expected"),
        (np.zeros((4, 2), dtype=np.int64), r"shape \(4, 2\); expected"),
        (np.zeros((4, 3, 2)), "dtype float64"),
        (np.full((1, 3, 2), -1), "from -1 on"),
        (np.full((3, 3, 2), 2**52), "2\\^53"),
    ],
)
def test_what_cannot_be_drawn_is_refused(counts: NDArray[np.int64], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bootstrap_intervals(counts)


def test_pairs_of_other_images_are_refused() -> None:
    counts = image_counts(6, accuracy=0.6)
    with pytest.raises(ValueError, match=r"shapes \(6, 3, 4\) and \(5, 3, 4\) are not paired"):
        paired_bootstrap(counts, counts[:5])
    with pytest.raises(ValueError, match=r"image 0 has other labels .*6 images"):
        paired_bootstrap(counts, image_counts(6, accuracy=0.6, labels_seed=1))
    with pytest.raises(ValueError, match="draws are 0"):
        paired_bootstrap(counts, counts, draws=0)


def test_seeds_are_averaged_within_each_draw() -> None:
    first = [image_counts(12, accuracy=0.5, seed=seed, rare=False) for seed in (1, 2)]
    second = [image_counts(12, accuracy=0.6, seed=seed, rare=False) for seed in (3, 4, 5)]
    found = paired_bootstrap_of_seeds(first, second, draws=200, seed=7)
    rng = np.random.default_rng(7)
    differences = []
    for _ in range(200):
        times = rng.multinomial(12, [1 / 12] * 12)
        drawn = [[miou((counts * times[:, None, None]).sum(axis=0)) for counts in seeds] for seeds in (first, second)]
        differences.append(sum(drawn[1]) / 3 - sum(drawn[0]) / 2)
    whole = [[miou(counts.sum(axis=0)) for counts in seeds] for seeds in (first, second)]
    assert found.mean_iou == pytest.approx(sum(whole[1]) / 3 - sum(whole[0]) / 2, abs=1e-12)
    assert found.mean_iou_interval == pytest.approx(np.quantile(differences, [0.025, 0.975]).tolist(), abs=1e-12)


def test_the_same_seeds_in_another_order_do_not_differ() -> None:
    seeds = [image_counts(30, accuracy=0.5 + 0.1 * seed, seed=seed) for seed in range(4)]
    found = paired_bootstrap_of_seeds(seeds, [seeds[2], seeds[0], seeds[3], seeds[1]])
    assert (found.mean_iou, found.mean_iou_interval, found.mean_iou_p) == (0.0, (0.0, 0.0), 1.0)


def test_a_network_without_seeds_and_seeds_of_other_images_are_refused() -> None:
    counts = image_counts(4, accuracy=0.5)
    with pytest.raises(ValueError, match="1 and 0 seeds"):
        paired_bootstrap_of_seeds([counts], [])
    with pytest.raises(ValueError, match="other labels for the one network"):
        paired_bootstrap_of_seeds([counts, image_counts(4, accuracy=0.5, labels_seed=9)], [counts])


def test_several_pairs_are_held_to_holm_s_levels() -> None:
    """Figures worked by hand: 0.01 x 4, 0.015 x 3, 0.02 x 2 below the one before, and 0.6 x 1."""
    assert adjusted_p_values([0.6, 0.01, math.nan, 0.02, 0.015]) == pytest.approx(
        [0.6, 0.04, math.nan, 0.045, 0.045], nan_ok=True
    )
    assert adjusted_p_values([0.8, 0.9]) == [1.0, 1.0]
    assert adjusted_p_values([]) == []
