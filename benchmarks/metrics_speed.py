r"""The scores' kernels: the confusion of 1024 x 2048 pixels with 19 classes beside NumPy and torchmetrics; the others.

    python benchmarks/metrics_speed.py [--rounds 15]

One core. All sides of the confusion are interleaved and give the same matrix; NumPy is masks and `bincount`, as this
package had it before. Target: below 15 ms a pair. For information: borders and calibration of the same pair, and the
bootstrap of a split's images. Writes its section into docs/benchmarks.md and ends with 1 where the target is missed.
Half a minute.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial

import cv2
import numpy as np
import torch
from label_pairs import label_pair
from numpy.typing import NDArray
from report import interleaved_seconds, median_ratio, table, write_section
from torchmetrics.functional.classification import multiclass_confusion_matrix

from segcore import IGNORE_INDEX
from segcore.bootstrap import DRAWS, bootstrap_intervals, paired_bootstrap
from segcore.boundaries import BoundaryConfig, BoundaryCounts
from segcore.calibration import CalibrationCounts
from segcore.metrics import confusion_matrix

HEIGHT, WIDTH, NUM_CLASSES = 1024, 2048, 19
TARGET_MS = 15.0
OURS = "segcore.metrics"
SPLITS = {"CamVid val (101 images, 11 classes)": (101, 11), "ADE20K val (2,000 images, 150 classes)": (2000, 150)}


def by_numpy(labels_HW: NDArray[np.uint8], predictions_HW: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Masks and one bincount."""
    valid = labels_HW != IGNORE_INDEX
    truth, guess = labels_HW[valid].astype(np.int64), predictions_HW[valid].astype(np.int64)
    counts = np.bincount(truth * NUM_CLASSES + guess, minlength=NUM_CLASSES * NUM_CLASSES)
    return counts.reshape(NUM_CLASSES, NUM_CLASSES)


def by_torchmetrics(labels: torch.Tensor, predictions: torch.Tensor) -> NDArray[np.int64]:
    """Of int64 tensors, which it asks for; their making is not counted. Without its checks, which are slower still."""
    counts = multiclass_confusion_matrix(
        predictions, labels, num_classes=NUM_CLASSES, ignore_index=IGNORE_INDEX, validate_args=False
    )
    return np.asarray(counts.numpy(), dtype=np.int64)


def milliseconds(call: Callable[[], object], rounds: int) -> float:
    """Median, after one call for the compiler."""
    call()
    seconds = []
    for _ in range(rounds):
        started = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - started)
    return 1000 * statistics.median(seconds)


def bootstrap_rows(rounds: int) -> list[list[str]]:
    """Milliseconds for intervals, and for a pair of networks."""
    rows = []
    rng = np.random.default_rng(0)
    for name, (num_images, num_classes) in SPLITS.items():
        truth_NC = rng.integers(1, 10_000, (num_images, num_classes))
        first, second = (
            np.stack([truth_NC * 8 // 10 + rng.integers(0, 100, truth_NC.shape), truth_NC + 100, truth_NC], axis=1)
            for _ in range(2)
        )
        second[:, 1] = first[:, 1]
        alone = milliseconds(lambda counts=first: bootstrap_intervals(counts), rounds)  # type: ignore[misc]
        paired = milliseconds(lambda a=first, b=second: paired_bootstrap(a, b), rounds)  # type: ignore[misc]
        rows += [[f"intervals, {DRAWS:,} draws: {name}", f"{alone:.0f}"], [f"two networks: {name}", f"{paired:.0f}"]]
    return rows


def main() -> int:
    """Measure, print, write the section."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    labels_HW, predictions_HW = label_pair(height=HEIGHT, width=WIDTH, num_classes=NUM_CLASSES)
    tensors = [torch.from_numpy(each.astype(np.int64)) for each in (labels_HW, predictions_HW)]
    sides: dict[str, Callable[[], NDArray[np.int64]]] = {
        OURS: partial(confusion_matrix, labels_HW, predictions_HW, num_classes=NUM_CLASSES),
        "NumPy": partial(by_numpy, labels_HW, predictions_HW),
        "torchmetrics": partial(by_torchmetrics, *tensors),
    }
    matrices = [side() for side in sides.values()]
    assert all(np.array_equal(each, matrices[0]) for each in matrices), "the sides count differently"
    seconds = interleaved_seconds(sides, rounds=rounds)
    ours_ms = 1000 * statistics.median(seconds[OURS])
    rows = [
        [name, f"{1000 * statistics.median(each):.2f}", f"{median_ratio(each, seconds[OURS]):.1f}"]
        for name, each in seconds.items()
    ]
    borders, calibration = BoundaryCounts.zero(NUM_CLASSES, BoundaryConfig()), CalibrationCounts.zero()
    confidence_HW = np.random.default_rng(0).beta(8, 1, labels_HW.shape).astype(np.float32)
    others = [
        ["boundary IoU and trimaps", f"{milliseconds(partial(borders.update, labels_HW, predictions_HW), rounds):.1f}"],
        [
            "calibration",
            f"{milliseconds(partial(calibration.update, labels_HW, predictions_HW, confidence_HW), rounds):.1f}",
        ],
        *bootstrap_rows(max(3, rounds // 5)),
    ]
    text = f"""## Scores

`python benchmarks/metrics_speed.py`: {HEIGHT} x {WIDTH} pixels, {NUM_CLASSES} classes, one core, median of {rounds}
interleaved rounds. Target: {TARGET_MS:.0f} ms.

{table(("confusion matrix by", "ms", "times ours"), rows)}

For information:

{table(("what", "ms"), others)}"""
    print(text)
    write_section("metrics_speed", text)
    return int(ours_ms >= TARGET_MS)


if __name__ == "__main__":
    sys.exit(main())
