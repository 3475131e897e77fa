r"""Size, cost, published figures and latency of every network: rewrites docs/networks.md.

    python benchmarks/network_table.py [--no-latency]

Parameters and multiply-adds are counted on the meta device at the input that the published figure belongs to; latency
is one image of that size on this machine, as `evaluate` runs it (eager, batch normalisation folded, channels_last).
Networks for fast machines and FCN-8s stand in a second table at one size, 512 x 1024, measured in turns. --no-latency
leaves all that out: a minute in place of several.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from network_rows import GROUPS, LATENCY_ROWS, Ensemble, Row
from report import machine, table
from torch import Tensor, nn

from segcore.cost import count_multiply_adds, count_parameters
from segcore.inference import prepare
from segcore.models import blank_model, meta_model

DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "networks.md"
ROUNDS = 3
LATENCY_ROUNDS = 9


def cells_of(row: Row | Ensemble, *, with_latency: bool) -> tuple[str, ...]:
    """Cells of a line of the table."""
    parts = row.parts if isinstance(row, Ensemble) else ((row, 1),)
    counts = [count(part) for part, _ in parts]
    parameters = sum(total for total, _ in counts)
    multiply_adds = sum(times * cost for (_, times), (_, cost) in zip(parts, counts, strict=True)) / 1e9
    cells = (
        row.name,
        str(parts[0][0].num_classes),
        ", ".join(f"{times} of {size(part)}" if times > 1 else size(part) for part, times in parts),
        f"{parameters:,}",
        published(row.parameters, parameters / 1e6, "M"),
        f"{multiply_adds:.2f}",
        published(row.multiply_adds, multiply_adds, "G"),
        row.score,
    )
    if not with_latency:
        return cells
    return (*cells, f"{sum(times * medians((part,))[0] for part, times in parts):.2f}")


def count(row: Row) -> tuple[int, int]:
    """Parameters, and multiply-adds of one image."""
    model = meta_model(row.config, row.num_classes)
    return count_parameters(model).total, count_multiply_adds(model, row.height, row.width)


def size(row: Row) -> str:
    """Height and width."""
    return f"{row.height} x {row.width}"


def medians(rows: Sequence[Row], rounds: int = ROUNDS) -> list[float]:
    """Median seconds of one image of each, in turns; the first turn warms up."""
    sides = [(fast_model(row), torch.randn(1, 3, row.height, row.width)) for row in rows]
    seconds: list[list[float]] = [[] for _ in rows]
    for turn in range(rounds + 1):
        for (model, images), times in zip(sides, seconds, strict=True):
            took = seconds_of(model, images.to(memory_format=torch.channels_last))
            if turn:
                times.append(took)
    return [statistics.median(times) for times in seconds]


def fast_model(row: Row) -> nn.Module:
    """The network as `evaluate` runs it."""
    model = blank_model(row.config, row.num_classes)
    prepare(model, "cpu")
    return model


@torch.inference_mode()
def seconds_of(model: nn.Module, images: Tensor) -> float:
    """Of one call."""
    started = time.perf_counter()
    model(images)
    return time.perf_counter() - started


def latency_table() -> str:
    """Every network of `LATENCY_ROWS` at one size, on one thread and on two, and its factor over the last of them."""
    one_and_two = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        one_and_two.append(medians(LATENCY_ROWS, LATENCY_ROUNDS))
    slowest = [seconds[-1] for seconds in one_and_two]
    lines = [
        (
            row.name,
            f"{count(row)[1] / 1e9:.2f}",
            *(f"{1000 * seconds:.0f} ({last / seconds:.1f})" for seconds, last in zip(pair, slowest, strict=True)),
        )
        for row, *pair in zip(LATENCY_ROWS, *one_and_two, strict=True)
    ]
    last = LATENCY_ROWS[-1].name
    header = ("network", "multiply-adds, G", "1 thread, ms (x)", "2 threads, ms (x)")
    return f"""## Latency at {size(LATENCY_ROWS[0])}, {LATENCY_ROWS[0].num_classes} classes

One image, eager, median of {LATENCY_ROUNDS} turns in which every network ran once; in brackets how many times as fast
as {last}.

{table(header, lines)}
"""


def published(theirs: float, ours: float, unit: str) -> str:
    """A published figure and our distance to it."""
    return f"{theirs:g} {unit} ({100 * (ours / theirs - 1):+.1f} %)" if theirs else "-"


def main() -> int:
    """Count, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--no-latency", action="store_true")
    with_latency = not parser.parse_args().no_latency
    header = (
        "network", "classes", "input", "parameters", "published", "multiply-adds, G", "published", "published mIoU, %"
    )  # fmt: skip
    rows = [cells_of(row, with_latency=with_latency) for group in GROUPS for row in group]
    text = f"""# Networks

Written by `python benchmarks/network_table.py`. Multiply-adds count convolutions and matrix products of one image, one
per multiplication, without auxiliary heads; our difference to the published figure stands in brackets. Where nothing
was published, the tests pin what the layers of the paper add up to. Scores are the papers' own, not ours: see
[log.md](log.md) for what we trained. Latency: seconds for one image, eager, {torch.get_num_threads()} threads.

{table((*header, *(("latency, s",) if with_latency else ())), rows)}

Notes on differences:
- PSPNet-101's 412.2 G at 713 is what the DFANet paper prints for it; how that was counted is not known.
- PSPNet's multiply-adds are those of `segcore.layers.PyramidPooling`, which never enlarges the means: the layers as the
  paper draws them come to 161.9 G (ResNet-50, 473) and 517.2 G (ResNet-101, 713), and give the same scores.
- FCN: the released models also store their fixed bilinear kernels, for each pair of classes. Padding by 100 pixels
  counts in our multiply-adds; 136.2 G at 512 x 1024 is what later papers print, how it was counted is not known.
- ICNet's and BiSeNet's parameters include the auxiliary classifiers: 7,334 of ICNet's (without them the released
  network's 6,699,987), 300,326 and 600,614 of BiSeNet's. ICNet's layers as drawn come to 29.03 G: its classifier stands
  before the last enlargement by 2 here. BiSeNet's layers are those of the authors' code; without auxiliary classifiers
  they have 5.88 and 49.2 MiB, which the paper prints as 5.8 and 49.0 M parameters.
- DeepLab V3+ on ResNet-101: how the paper counted is not known; on Xception-65 its figures agree with ours.
- EDeconvNet is the mean of DeconvNet's class probabilities, here from the 50 proposals of its procedure, and FCN-8s's;
  proposals and CRF come on top.

{latency_table() if with_latency else ""}
{machine()}
"""
    DOCUMENT.write_text(text)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
