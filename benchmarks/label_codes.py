r"""Label codes by PCA, SGD, SGD on orthonormal bases and autoencoder: what they keep, and what they cost.

    python benchmarks/label_codes.py --labels trainannot --held-out valannot --ignored-value 11    # CamVid's PNGs
    python benchmarks/label_codes.py                                            # generated label maps, half held out

Every solver with its own settings (`segcore.label_solvers.SOLVERS`), one thread, seconds of CPU time, in which a
PCA's are counting and solving. No code beats another by definition, except that PCA captures the most energy of all
linear ones. Writes its section into docs/benchmarks.md; there is no target.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from label_statistics import Map, decode, generate
from report import table, write_section
from threadpoolctl import threadpool_limits

from segcore import IGNORE_INDEX
from segcore.label_blocks import BlockStatistics, pad_to_blocks
from segcore.label_code import LabelCode, to_blocks
from segcore.label_pca import PCA, solve
from segcore.label_recovery import Recovery
from segcore.label_solvers import SOLVERS, LearnConfig, learn_code
from segcore.metrics import scores

CASES = ((16, 64), (32, 64), (32, 128))
"""Block side and number of components."""

HEADER = ("R", "P", "code", "captured", "pixel accuracy", "mIoU", "worst class", "accuracy in mixed blocks", "CPU s")


def read_folder(folder: Path, ignored_value: int) -> list[Map]:
    """The PNG label maps of a folder."""
    maps = [decode(path.read_bytes()) for path in sorted(folder.glob("*.png"))]
    if not maps:
        raise SystemExit(f"{folder} holds no *.png; give a folder of label maps")
    return [np.where(labels_HW == ignored_value, np.uint8(IGNORE_INDEX), labels_HW) for labels_HW in maps]


def by_pca(maps: list[Map], block_side: int, num_classes: int, num_components: int) -> LabelCode:
    """Count and solve."""
    statistics = BlockStatistics.zero(block_side, num_classes)
    for labels_HW in maps:
        statistics.update(labels_HW)
    return solve(statistics, num_components=num_components)


def by_descent(maps: list[Map], solver: str, block_side: int, num_classes: int, num_components: int) -> LabelCode:
    """Learn with the solver's own settings; hidden layers twice as wide as the code."""
    blocks = np.concatenate([to_blocks(pad_to_blocks(labels_HW, block_side), block_side) for labels_HW in maps])
    return learn_code(
        solver,
        blocks,
        block_side=block_side,
        num_classes=num_classes,
        num_components=num_components,
        config=LearnConfig(hidden_channels=2 * num_components),
    )


def timed(fit: Callable[[], LabelCode]) -> tuple[LabelCode, float]:
    """A code, and the CPU seconds that it took."""
    started = time.process_time()
    code = fit()
    return code, time.process_time() - started


def recovered(code: LabelCode, held_out: list[Map]) -> Recovery:
    """What comes back of the held-out maps."""
    state = Recovery.zero(code.num_classes)
    for labels_HW in held_out:
        state.update(code, labels_HW)
    return state


def row(code: LabelCode, state: Recovery, method: str, name: str, captured: str, seconds: str) -> tuple[str, ...]:
    """One line of the table."""
    found, mixed = scores(state.confusion[method]), scores(state.mixed_confusion[method])
    return (
        str(code.block_side),
        str(code.num_components) if method == "basis" else str(code.num_classes),
        name,
        captured,
        f"{found.pixel_accuracy:.4f}",
        f"{found.mean_iou:.3f}",
        f"{np.nanmin(found.iou_C):.3f}",
        f"{mixed.pixel_accuracy:.3f}",
        seconds,
    )


def compare(maps: list[Map], held_out: list[Map], block_side: int, num_components: int) -> list[tuple[str, ...]]:
    """All codes of one length, and bilinear enlargement of class shares, which needs none."""
    num_classes = max(int(labels_HW[labels_HW != IGNORE_INDEX].max(initial=0)) for labels_HW in maps) + 1
    rows = []
    for name in (PCA, *SOLVERS):
        if name == PCA:
            code, seconds = timed(partial(by_pca, maps, block_side, num_classes, num_components))
        else:
            code, seconds = timed(partial(by_descent, maps, name, block_side, num_classes, num_components))
        state = recovered(code, held_out)
        rows.append(row(code, state, "basis", f"`{name}`", f"{code.captured_energy:.4f}", f"{seconds:.0f}"))
        print(" ".join(rows[-1]), flush=True)
    return [*rows, row(code, state, "bilinear", "class shares, bilinear", "", "")]


def section(origin: str, rows: list[tuple[str, ...]]) -> str:
    """Markdown of the results."""
    settings = ", ".join(f"`{name}` {default.steps} steps" for name, default in SOLVERS.items())
    return f"""## Label codes

`python benchmarks/label_codes.py`, on {origin}: captured energy on the former,
labels that come back on the latter. One thread, CPU seconds; one seed. Hidden layers of 2 P units.
Minibatches of {LearnConfig().batch_size} blocks; {settings}.

{table(HEADER, list(dict.fromkeys(rows)))}"""


def main() -> None:
    """Measure, print, write the section."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--labels", type=Path, help="folder of PNG label maps; without it, maps are generated")
    parser.add_argument("--held-out", type=Path, help="folder of others, on which recovery is measured")
    parser.add_argument("--ignored-value", type=int, default=IGNORE_INDEX, help="value of ignored pixels in them")
    arguments = parser.parse_args()
    if (arguments.labels is None) != (arguments.held_out is None):
        raise SystemExit("give both --labels and --held-out, or neither")
    if arguments.labels is None:
        generated = [decode(png) for png in generate().pngs]
        maps, held_out, origin = generated[::2], generated[1::2], "generated label maps, every second held out"
    else:
        maps, held_out = (
            read_folder(folder, arguments.ignored_value) for folder in (arguments.labels, arguments.held_out)
        )
        names = arguments.labels.name, arguments.held_out.name
        origin = f"{len(maps)} label maps in `{names[0]}` and {len(held_out)} in `{names[1]}`"
    torch.set_num_threads(1)
    with threadpool_limits(limits=1):
        rows = [line for side, components in CASES for line in compare(maps, held_out, side, components)]
    text = section(origin, rows)
    print(text)
    write_section("label_codes", text)


if __name__ == "__main__":
    main()
