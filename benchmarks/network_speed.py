r"""Time of a forward pass and of a training step of four networks beside plain implementations of the same layers.

    python benchmarks/network_speed.py [--mode eager|compiled] [--threads 1 2]

Ours run as the jobs run them: forward passes after `segcore.inference.prepare` (batch normalisation folded,
channels_last), training steps in channels_last, which every CPU recipe has. The peers are `plain_networks.py`: as
written, and in eager mode in channels_last too, for information. Equal input, random weights; all sides of a case
interleaved, medians of ratios. Targets: 1.0 for all; DFANet A at 512 x 1024 at least 8 times the images per second of
DeepLabV3+.
Writes its section into docs/benchmarks.md, one for each mode, and ends with 1 where a target is missed. Eager takes
about ten minutes, compiled twenty.
"""

import argparse
import math
import os
import statistics
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from plain_networks import NUM_CLASSES, PlainDeepLabV3Plus, PlainDFANet, PlainEncNet, PlainPSPNet
from report import interleaved_seconds, median_ratio, table, write_section
from torch import Tensor, nn

from segcore.inference import prepare
from segcore.models import (
    DeepLabV3PlusConfig,
    DFANetConfig,
    EncNetConfig,
    ModelConfig,
    PSPNetConfig,
    build_model,
)

FORWARD_SIZE = (256, 512)
TRAINING_SIZE = (192, 256)
TRAINING_BATCH = 2
ROUNDS = 7
TARGET = 1.0
FASTER_SIZE = (512, 1024)
FASTER_TARGET = 8.0
PEER, PEER_LAST = "plain", "plain, channels_last"
CRASHING = "DFANet A"
"""Its plain form dies in a channels_last training step: oneDNN's gradient of a strided 1x1 convolution of 8 channels
writes past its buffer under AVX-512 (uxlfoundation/oneDNN, issue 6035). `LightXceptionBlock` goes round that.
Compiled, it keeps the layout that it was given, which the compiler would change."""

CASES: dict[str, tuple[ModelConfig, Callable[[], nn.Module]]] = {
    "DeepLabV3+ R50, OS 16": (DeepLabV3PlusConfig(backbone="resnet50"), PlainDeepLabV3Plus),
    "PSPNet R50, OS 8": (PSPNetConfig(backbone="resnet50"), PlainPSPNet),
    "EncNet R50, OS 8": (EncNetConfig(backbone="resnet50"), PlainEncNet),
    "DFANet A": (DFANetConfig(), PlainDFANet),
}
Step = Callable[[], object]


def plain_loss(outputs: tuple[Tensor, ...], labels: Tensor) -> Tensor:
    """Cross-entropy, and whatever comes beside the scores at a small weight."""
    loss = F.cross_entropy(outputs[0], labels)
    for other in outputs[1:]:
        if other.ndim == 4:
            loss = loss + 0.4 * F.cross_entropy(other, labels)
        else:
            present = torch.stack([each.flatten().bincount(minlength=NUM_CLASSES) > 0 for each in labels])
            loss = loss + 0.2 * F.binary_cross_entropy_with_logits(other, present.float())
    return loss


def train(forward: nn.Module, loss: Any, optimiser: Any, images: Tensor, labels: Tensor) -> None:
    """One step of SGD."""
    optimiser.zero_grad(set_to_none=True)
    loss(forward(images), labels).backward()
    optimiser.step()


def training_step(
    model: nn.Module, loss: Any, *, channels_last: bool, compiled: bool, options: dict[str, Any] | None = None
) -> Step:
    """A step on a fixed batch; `options` are the compiler's."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    model = model.train().to(memory_format=layout)
    images = torch.randn(TRAINING_BATCH, 3, *TRAINING_SIZE).to(memory_format=layout)
    labels = torch.randint(0, NUM_CLASSES, (TRAINING_BATCH, *TRAINING_SIZE))
    optimiser = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    forward: Any = torch.compile(model, options=options) if compiled else model
    return partial(train, forward, loss, optimiser, images, labels)


def forward_pass(model: nn.Module, *, size: tuple[int, int], channels_last: bool, compiled: bool) -> Step:
    """Scores of one image."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    model = model.eval().to(memory_format=layout)
    images = torch.randn(1, 3, *size).to(memory_format=layout)
    forward: Any = torch.compile(model) if compiled else model

    def run() -> object:
        with torch.inference_mode():
            return forward(images)

    return run


def prepared(config: ModelConfig) -> nn.Module:
    """Our network as `evaluate` and `segment` run it."""
    model = build_model(config, NUM_CLASSES).eval()
    prepare(model, "cpu")
    return model


def sides_of(case: str, what: str, *, compiled: bool) -> dict[str, Step]:
    """Ours and the peers', each called once."""
    config, plain = CASES[case]
    if what == "training":
        model: Any = build_model(config, NUM_CLASSES)
        step = partial(training_step, compiled=compiled)
        options = {"layout_optimization": False} if case == CRASHING else None
        sides = {
            "ours": step(model, lambda output, labels: model.loss(output, labels).total, channels_last=True),
            PEER: step(plain(), plain_loss, channels_last=False, options=options),
        }
        if not compiled and case != CRASHING:
            sides[PEER_LAST] = step(plain(), plain_loss, channels_last=True)
    else:
        run = partial(forward_pass, size=FORWARD_SIZE, compiled=compiled)
        sides = {
            "ours": run(prepared(config), channels_last=True),
            PEER: run(plain(), channels_last=False),
        }
        if not compiled:
            sides[PEER_LAST] = run(plain(), channels_last=True)
    for side in sides.values():
        side()
        side()
    return sides


def measure(case: str, what: str, *, mode: str, threads: int) -> tuple[str, float, float, float]:
    """A label, our median seconds, and our ratio to each peer; NaN where a peer did not run."""
    torch.manual_seed(0)
    torch.set_num_threads(threads)
    seconds = interleaved_seconds(sides_of(case, what, compiled=mode == "compiled"), rounds=ROUNDS)
    torch.compiler.reset()
    ours = seconds["ours"]
    label = f"{case} | {what} | {mode} | {threads}"
    last = median_ratio(ours, seconds[PEER_LAST]) if PEER_LAST in seconds else math.nan
    found = (label, statistics.median(ours), median_ratio(ours, seconds[PEER]), last)
    print(f"{label}: {found[1]:.3f} s, {found[2]:.2f} and {found[3]:.2f} of the peers", flush=True)
    return found


def times_faster(*, threads: int) -> float:
    """Images per second of DFANet A over those of DeepLabV3+ R50 at output stride 16, both prepared."""
    torch.set_num_threads(threads)
    configs: dict[str, ModelConfig] = {
        "DFANet A": DFANetConfig(),
        "DeepLabV3+": DeepLabV3PlusConfig(backbone="resnet50"),
    }
    sides = {
        name: forward_pass(prepared(config), size=FASTER_SIZE, channels_last=True, compiled=False)
        for name, config in configs.items()
    }
    for side in sides.values():
        side()
    seconds = interleaved_seconds(sides, rounds=ROUNDS)
    return median_ratio(seconds["DeepLabV3+"], seconds["DFANet A"])


def main() -> int:
    """Measure, print, write the section."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mode", default="eager", choices=["eager", "compiled"])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES), metavar="CASE")
    arguments = parser.parse_args()
    load = os.getloadavg()[0]
    found = [
        measure(case, what, mode=arguments.mode, threads=threads)
        for threads in arguments.threads
        for case in arguments.cases
        for what in ("forward", "training")
    ]
    faster = {threads: times_faster(threads=threads) for threads in arguments.threads if arguments.mode == "eager"}
    rows = [
        (*label.split(" | "), f"{1e3 * seconds:.0f}", f"{ratio:.2f}", "-" if math.isnan(last) else f"{last:.2f}")
        for label, seconds, ratio, last in found
    ]
    header = ("network", "pass", "mode", "threads", "ours, ms", "to plain", "to plain in channels_last")
    text = f"""## Time of networks beside plain implementations, {arguments.mode}

`python benchmarks/network_speed.py --mode {arguments.mode}`: float32; forward passes of one image of {FORWARD_SIZE[0]}
x {FORWARD_SIZE[1]}, training steps (forward, loss, backward, SGD) of {TRAINING_BATCH} crops of {TRAINING_SIZE[0]} x
{TRAINING_SIZE[1]}, {NUM_CLASSES} classes. Ratios of times, ours to `benchmarks/plain_networks.py`; target: at most
{TARGET}. Load before: {load:.1f}.

{table(header, rows)}"""
    if faster:
        lines = ", ".join(f"{value:.1f} on {threads} thread(s)" for threads, value in faster.items())
        text += f"""

DFANet A at {FASTER_SIZE[0]} x {FASTER_SIZE[1]} does {lines} times the images per second of DeepLabV3+ R50 at output
stride 16 (both prepared for inference; target: {FASTER_TARGET:g})."""
    print(text)
    write_section(f"network_speed_{arguments.mode}", text)
    missed = [ratio for _, _, ratio, _ in found if ratio > TARGET] + [
        value for value in faster.values() if value < FASTER_TARGET
    ]
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(main())
