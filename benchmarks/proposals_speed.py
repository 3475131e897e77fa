r"""Region proposals of 50 images by Ray tasks on one and on two CPUs; and how many objects they find.

    python benchmarks/proposals_speed.py [--height 360] [--width 480] [--rounds 5]

Images are generated scenes. A task proposes the boxes of one image, with one thread; one or two tasks run at a time, in
turn in one run, and beside them a loop without Ray in one process. Workers are started, and OpenCV imported, before.
Recall is the share of objects (connected regions of cars, people, signs, trees and buildings of at least 400 px) that
some proposal overlaps with an intersection over union of 0.5 or more.
Writes its section into docs/benchmarks.md and ends with 1 where the target is missed. Takes about 3 minutes.
"""

import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import Any

import cv2
import numpy as np
import tyro
from numpy.typing import NDArray
from report import interleaved_seconds, median_ratio, table, write_section

from pipelines.cluster import ray_cluster
from pipelines.datasets.object_crops import ObjectClasses, object_regions
from pipelines.datasets.scenes import CLASSES, draw_scene
from segcore.proposals import ProposalConfig, Proposals, box_ious, propose

TARGET = 1.7
NUM_SLOW_IMAGES = 8
MIN_OBJECT_PX = 400
MIN_IOU = 0.5
OBJECTS = ("building", "tree", "car", "person", "sign")
CUTS = (50, 200, 2000)
EVERY = ProposalConfig(best=2000)

Pixels = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchmarkConfig:
    """What is measured."""

    num_images: int = 50
    """Generated scenes."""
    height: int = 360
    """Of a scene, in px."""
    width: int = 480
    """Of a scene, in px."""
    rounds: int = 5
    """Each side is measured as often as this, in turn."""


def boxes_of(pixels_HW3: Pixels) -> Proposals:
    """Edge Boxes of one image, on one thread."""
    cv2.setNumThreads(1)
    return propose(pixels_HW3, EVERY)


def by_tasks(references: Sequence[Any], at_a_time: int) -> None:
    """Propose the boxes of all images, so many at a time."""
    import ray

    task = ray.remote(num_cpus=1)(boxes_of)
    left = iter(references)
    running = [task.remote(reference) for reference in islice(left, at_a_time)]
    while running:
        (done, *_), running = ray.wait(running, num_returns=1)
        ray.get(done)
        running += [task.remote(reference) for reference in islice(left, 1)]


def by_loop(images: Sequence[Pixels]) -> None:
    """The same in this process."""
    for pixels_HW3 in images:
        boxes_of(pixels_HW3)


def recalls(scenes: Sequence[tuple[Pixels, Pixels]], config: ProposalConfig) -> tuple[list[float], int, float]:
    """Recall of the best proposals for each of `CUTS`, the number of objects, and CPU seconds per image."""
    names = [name for name, _ in CLASSES]
    classes = ObjectClasses(object_indices=tuple(names.index(name) for name in OBJECTS), background_index=0, shift=0)
    found, num_objects, seconds = np.zeros(len(CUTS)), 0, 0.0
    for pixels_HW3, labels_HW in scenes:
        started = time.process_time()
        boxes_K4 = propose(pixels_HW3, config).boxes_K4
        seconds += time.process_time() - started
        regions = object_regions(labels_HW, classes, min_object_px=MIN_OBJECT_PX)
        true_M4 = np.array([region.box for region in regions], np.int32).reshape(-1, 4)
        num_objects += len(regions)
        ious_KM = box_ious(boxes_K4, true_M4)
        found += [int((ious_KM[:cut].max(axis=0, initial=0) >= MIN_IOU).sum()) for cut in CUTS]
    return (found / max(num_objects, 1)).tolist(), num_objects, seconds / len(scenes)


def section(config: BenchmarkConfig, seconds: dict[str, list[float]], ratios: tuple[float, float], rows: Any) -> str:
    """Markdown of the results."""
    speed = [
        (side, f"{np.median(each):.2f}", f"{config.num_images / np.median(each):.1f}") for side, each in seconds.items()
    ]
    return f"""## Region proposals

`python benchmarks/proposals_speed.py`: Edge Boxes of {config.num_images} generated scenes of {config.height} x
{config.width}, a Ray task an image, one thread a task; medians of {config.rounds} rounds in turn.

{table(("side", "s", "images/s"), speed)}

Two tasks at a time are **{ratios[0]:.2f}** times as fast as one (target: at least {TARGET}); one at a time has
{ratios[1]:.2f} of the speed of the loop without Ray.

Recall at an intersection over union of {MIN_IOU}, of objects of at least {MIN_OBJECT_PX} px ({", ".join(OBJECTS)}),
by the best so many proposals; CPU seconds an image.

{table(("method", "images", "objects", *(f"best {cut}" for cut in CUTS), "CPU s an image"), rows)}"""


def main(config: BenchmarkConfig) -> None:
    """Measure, print, write the section."""
    cv2.setNumThreads(1)
    scenes = [draw_scene(seed, height=config.height, width=config.width) for seed in range(config.num_images)]
    images = [pixels_HW3 for pixels_HW3, _ in scenes]
    with ray_cluster(num_cpus_needed=2, why="2 tasks that propose boxes"):
        import ray

        references = [ray.put(pixels_HW3) for pixels_HW3 in images]
        by_tasks(references, 2)
        sides = {
            "loop without Ray": partial(by_loop, images),
            "Ray, 1 task at a time": partial(by_tasks, references, 1),
            "Ray, 2 tasks at a time": partial(by_tasks, references, 2),
        }
        seconds = interleaved_seconds(sides, rounds=config.rounds)
    loop, one, two = seconds.values()
    ratio = median_ratio(one, two)
    rows = []
    slow = replace(EVERY, method="selective_search")
    for name, some, how in (("Edge Boxes", scenes, EVERY), ("selective search", scenes[:NUM_SLOW_IMAGES], slow)):
        shares, num_objects, each = recalls(some, how)
        rows.append((name, str(len(some)), str(num_objects), *(f"{share:.2f}" for share in shares), f"{each:.2f}"))
    text = section(config, seconds, (ratio, median_ratio(loop, one)), rows)
    print(text)
    write_section("proposals_speed", text)
    if ratio < TARGET and (os.cpu_count() or 1) >= 2:
        sys.exit(1)


if __name__ == "__main__":
    main(tyro.cli(BenchmarkConfig, description=__doc__))
