r"""Dense CRF beside pydensecrf2: ten iterations at 375 x 500 with 21 classes, one image, one and two threads.

    python benchmarks/crf_speed.py [--image PHOTO --probabilities P.npy] [--rounds 9]

Both go from probabilities and the image to labels, lattices included, with equal parameters; all sides interleaved,
medians of ratios. pydensecrf2 (Kraehenbuehl's own code) has one thread. Without `--image`, the picture is a generated
street scene through JPEG, and the probabilities are smooth random ones. Targets: 1.0 on one thread, 1.7 on two, with
pydensecrf's example parameters; and, with all, equal labels on 99 % of the pixels.
Writes its section into docs/benchmarks.md and ends with 1 where a target is missed. About two minutes.
"""

import argparse
import os
import statistics
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pydensecrf.densecrf as densecrf
import torch
from numpy.typing import NDArray
from pydensecrf.utils import unary_from_softmax
from report import interleaved_seconds, median_ratio, table, write_section

from pipelines.datasets.scenes import draw_scene
from pipelines.demo_images import jpeg
from pipelines.intake.images import decode_image
from pipelines.recipes.published import DECONVNET_CRF, DEEPLAB_CRF
from segcore.dense_crf import DenseCRFConfig, refine_image

HEIGHT, WIDTH, NUM_CLASSES = 375, 500, 21
THREADS = (1, 2)
TARGETS = {1: 1.0, 2: 1.7}
AGREEMENT = 0.99
PARAMETERS = {
    "pydensecrf's example": DenseCRFConfig(iterations=10),
    "DeepLab": DEEPLAB_CRF,
    "DeconvNet": DECONVNET_CRF,
}
TARGETED = "pydensecrf's example"
PEER = "pydensecrf2"

Image = NDArray[np.uint8]
Planes = NDArray[np.float32]


def generated_image() -> Image:
    """A street scene with a photo's noise and compression."""
    pixels_HW3, _ = draw_scene(11, height=HEIGHT, width=WIDTH)
    noisy = pixels_HW3 + np.random.default_rng(0).normal(0, 4, pixels_HW3.shape)
    return decode_image(jpeg(noisy.clip(0, 255).astype(np.uint8))).pixels_HW3


def smooth_probabilities(height: int, width: int) -> Planes:
    """As a network of stride 32 could give them: random scores, enlarged."""
    coarse = torch.randn(1, NUM_CLASSES, height // 32 + 1, width // 32 + 1, generator=torch.Generator().manual_seed(0))
    scores = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bicubic", align_corners=False)
    return (3 * scores[0]).softmax(dim=0).numpy()


def by_pydensecrf(probabilities_CHW: Planes, image_HW3: Image, config: DenseCRFConfig) -> NDArray[np.int64]:
    """Labels (H, W) by the peer."""
    num_classes, height, width = probabilities_CHW.shape
    model = densecrf.DenseCRF2D(width, height, num_classes)
    model.setUnaryEnergy(np.ascontiguousarray(unary_from_softmax(probabilities_CHW)))
    model.addPairwiseGaussian(sxy=config.theta_gamma, compat=config.w2)
    model.addPairwiseBilateral(sxy=config.theta_alpha, srgb=config.theta_beta, rgbim=image_HW3, compat=config.w1)
    q_CX = np.asarray(model.inference(config.iterations))
    return np.asarray(q_CX.argmax(axis=0).reshape(height, width))


def by_ours(probabilities_CHW: Planes, image_HW3: Image, config: DenseCRFConfig, *, threads: int) -> NDArray[np.int64]:
    """Labels (H, W) by ours."""
    return np.asarray(refine_image(probabilities_CHW, image_HW3, config, threads=threads).argmax(axis=0))


def measure(
    probabilities_CHW: Planes, image_HW3: Image, config: DenseCRFConfig, rounds: int
) -> tuple[dict[str, float], dict[int, float], float]:
    """Median milliseconds by side, times the peer's speed by number of threads, and the share of equal labels."""
    sides: dict[str, Callable[[], NDArray[np.int64]]] = {
        PEER: partial(by_pydensecrf, probabilities_CHW, image_HW3, config)
    }
    for threads in THREADS:
        sides[f"ours, {threads}"] = partial(by_ours, probabilities_CHW, image_HW3, config, threads=threads)
    labels = {name: side() for name, side in sides.items()}
    seconds = interleaved_seconds(sides, rounds=rounds)
    ratios = {threads: median_ratio(seconds[PEER], seconds[f"ours, {threads}"]) for threads in THREADS}
    agreement = float((labels[PEER] == labels["ours, 1"]).mean())
    return {name: 1e3 * statistics.median(each) for name, each in seconds.items()}, ratios, agreement


def main() -> int:
    """Measure, print, write the section."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image", type=Path, help="a photo, in place of the generated picture")
    parser.add_argument("--probabilities", type=Path, help="float32 (C, H, W) of that photo, as numpy.save writes it")
    parser.add_argument("--rounds", type=int, default=9)
    given = parser.parse_args()
    load = os.getloadavg()[0]
    image_HW3 = decode_image(given.image.read_bytes()).pixels_HW3 if given.image else generated_image()
    image_HW3 = image_HW3.copy()  # the peer wants it writable
    height, width = image_HW3.shape[:2]
    if given.probabilities:
        probabilities_CHW = np.load(given.probabilities).astype(np.float32)
    else:
        probabilities_CHW = smooth_probabilities(height, width)
    rows, missed = [], []
    for name, config in PARAMETERS.items():
        milliseconds, ratios, agreement = measure(probabilities_CHW, image_HW3, config, given.rounds)
        times = [f"{milliseconds[PEER]:.0f}"]
        times += [f"{milliseconds[f'ours, {threads}']:.0f} ({ratios[threads]:.2f})" for threads in THREADS]
        rows.append([f"{name}: {parameters(config)}", *times, f"{100 * agreement:.3f} %"])
        print(" | ".join(rows[-1]), flush=True)
        missed += [f"{name}: labels"] * (agreement < AGREEMENT)
        if name == TARGETED:
            missed += [f"{name}: {threads} threads" for threads, target in TARGETS.items() if ratios[threads] < target]
    source = "a photo" if given.image else "a generated street scene"
    scores = "its" if given.probabilities else "smooth random"
    text = f"""## Dense CRF

`python benchmarks/crf_speed.py`: ten mean-field iterations, {probabilities_CHW.shape[0]} classes, {height} x {width}
({source}, {scores} probabilities), from probabilities to labels, lattices included.
Milliseconds, and in brackets the median over {given.rounds} rounds of how many times as fast as pydensecrf2.
Targets, for {TARGETED}: {TARGETS[1]} on one thread, {TARGETS[2]} on two; for all, equal labels on
{100 * AGREEMENT:.0f} % of the pixels. Load before: {load:.1f}.

{table(("w1, theta_alpha, theta_beta; w2, theta_gamma", PEER, "1 thread", "2 threads", "equal labels"), rows)}"""
    print(text, *(f"missed: {each}" for each in missed), sep="\n")
    write_section("crf_speed", text)
    return int(bool(missed))


def parameters(config: DenseCRFConfig) -> str:
    """In the order of the table's heading."""
    appearance = f"{config.w1:g}, {config.theta_alpha:g}, {config.theta_beta:g}"
    return f"{appearance}; {config.w2:g}, {config.theta_gamma:g}"


if __name__ == "__main__":
    sys.exit(main())
