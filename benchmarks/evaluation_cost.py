r"""What scoring adds to the forward pass: images of CamVid's size, 11 classes, two small networks.

    python benchmarks/evaluation_cost.py [--rounds 25]

One side is what `segment` does: pixels to class map. The other is what an actor of `evaluate` does after decoding: the
same with each pixel's confidence, then the confusion, borders, calibration and the image's row. Both interleaved,
median of ratios, on one thread and on two, with the allocator set as the actors' is. Small networks are the hard case.
Target: at most 1.10.
Writes its section into docs/benchmarks.md and ends with 1 where the target is missed. Two minutes.
"""

import argparse
import os
import statistics
import sys
from collections.abc import Callable

import torch
from label_pairs import label_pair
from report import interleaved_seconds, median_ratio, table, write_section

from pipelines.cluster import worker_environment
from pipelines.datasets.scenes import draw_scene
from pipelines.evaluation.scoring import image_record
from pipelines.recipes import RECIPES
from segcore.boundaries import BoundaryConfig
from segcore.inference import InferenceConfig, Member, predict_ensemble, prepare
from segcore.models import build_model
from segcore.networks import segmentation_config
from segcore.segmentation_counts import SegmentationCounts

HEIGHT, WIDTH, NUM_CLASSES = 360, 480, 11
NETWORKS = ("camvid.enet", "camvid.bilinear_efficientnet_lite0")
THREADS = (1, 2)
TARGET = 1.10


def sides(recipe: str) -> dict[str, Callable[[], object]]:
    """Class map alone, and with everything that is counted."""
    torch.manual_seed(0)
    model = build_model(segmentation_config(RECIPES[recipe]().model), NUM_CLASSES)
    prepare(model, "cpu")
    member = Member(model=model, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25), config=InferenceConfig())
    pixels_HW3, _ = draw_scene(3, height=HEIGHT, width=WIDTH)
    image_13HW = torch.from_numpy(pixels_HW3.copy()).permute(2, 0, 1)[None]
    labels_HW, predictions_HW = label_pair(height=HEIGHT, width=WIDTH, num_classes=NUM_CLASSES)
    state = SegmentationCounts.zero(NUM_CLASSES, BoundaryConfig())
    row = {"part": 0, "row": 0, "image_id": "0"}

    def scored() -> None:
        found = predict_ensemble([member], image_13HW, with_confidence=True)
        assert found.confidence_NHW is not None
        # borders of a prediction as a trained network's; a random one's map has none, or nothing else
        image_CC = state.update(labels_HW, predictions_HW, found.confidence_NHW[0])
        image_record(row, labels_HW, image_CC, network_ms=0.0)

    return {"forward": lambda: predict_ensemble([member], image_13HW), "evaluated": scored}


def main() -> int:
    """Measure, print, write the section."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=25)
    rounds = parser.parse_args().rounds
    allocator: dict[str, str] = worker_environment(use_gpu=False)["env_vars"]
    if not allocator.items() <= os.environ.items():  # read at the start of a process
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **allocator})
    rows, missed = [], []
    for recipe in NETWORKS:
        both = sides(recipe)
        for threads in THREADS:
            torch.set_num_threads(threads)
            for side in both.values():
                side()
            seconds = interleaved_seconds(both, rounds=rounds)
            ratio = median_ratio(seconds["evaluated"], seconds["forward"])
            milliseconds = [f"{1000 * statistics.median(seconds[name]):.1f}" for name in both]
            rows.append([recipe, str(threads), *milliseconds, f"{ratio:.3f}"])
            missed += [f"{recipe}, {threads} threads"] * (ratio > TARGET)
            print(" | ".join(rows[-1]), flush=True)
    text = f"""## Cost of evaluation

`python benchmarks/evaluation_cost.py`: {HEIGHT} x {WIDTH} pixels, {NUM_CLASSES} classes. Milliseconds per image from
pixels to class map, and with all counts of `evaluate`; median of {rounds} interleaved rounds. Target: {TARGET:.2f}.

{table(("network", "threads", "class map", "with all counts", "ratio"), rows)}"""
    print(text, *(f"missed: {each}" for each in missed), sep="\n")
    write_section("evaluation_cost", text)
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(main())
