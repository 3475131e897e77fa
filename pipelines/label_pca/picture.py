"""The leading basis blocks of a label PCA, drawn in the classes' colours."""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray

from pipelines.charts import CHART_DPI, chart_bytes
from segcore.label_pca import LabelPCA

MAX_COMPONENTS = 24
COLUMNS = 6
MAX_LEGEND_ENTRIES = 40
FRAME_GREY = 150


def components_png(
    pca: LabelPCA, *, class_names: Sequence[str], palette: Sequence[tuple[int, int, int]], title: str
) -> bytes:
    """A PNG of the first 24 basis blocks as pairs: where a component adds to classes, and where it takes away.

    A pixel has the colour of the class with the largest weight of that sign, the stronger the larger the weight.
    """
    shown = min(MAX_COMPONENTS, pca.num_components)
    rows = math.ceil(shown / COLUMNS)
    legend_rows = math.ceil(min(len(class_names), MAX_LEGEND_ENTRIES) / COLUMNS)
    height = 1.22 * rows + 0.9 + 0.22 * legend_rows
    figure = Figure(figsize=(12, height), dpi=CHART_DPI, facecolor="white")
    figure.suptitle(title, x=0.02, y=1 - 0.08 / height, ha="left", va="top", fontsize=13, fontweight="bold")
    figure.text(
        0.02,
        1 - 0.36 / height,
        "One pair per component, with its share of the energy. Left: the class it adds to most, right: the class it "
        "takes away from most; full colour = largest weight of the pair.",
        ha="left",
        va="top",
        fontsize=9,
        color="#444444",
    )
    grid = figure.add_gridspec(
        rows,
        COLUMNS,
        left=0.02,
        right=0.98,
        top=1 - 0.85 / height,
        bottom=(0.15 + 0.22 * legend_rows) / height,
        wspace=0.1,
        hspace=0.24,
    )
    for index in range(shown):
        axes = figure.add_subplot(grid[index // COLUMNS, index % COLUMNS])
        axes.imshow(component_picture(pca, index, palette), interpolation="nearest")
        share = pca.eigenvalues_P[index] / pca.total_energy if pca.total_energy > 0 else 0.0
        axes.set_title(f"{index + 1}:  {100 * share:.2f} %", fontsize=8, pad=3)
        axes.set_axis_off()
    names = list(zip(class_names, palette, strict=True))[:MAX_LEGEND_ENTRIES]
    figure.legend(
        handles=[
            Patch(facecolor=(red / 255, green / 255, blue / 255), edgecolor="#888888", label=name)
            for name, (red, green, blue) in names
        ],
        loc="lower left",
        bbox_to_anchor=(0.015, 0.0, 0.0, 0.0),
        ncols=COLUMNS,
        fontsize=8,
        frameon=False,
    )
    return chart_bytes(figure)


def component_picture(pca: LabelPCA, index: int, palette: Sequence[tuple[int, int, int]]) -> NDArray[np.uint8]:
    """RGB pixels of one component: its positive part, a white gap, its negative part, each in a thin frame."""
    side = pca.block_side
    weights_CRR = pca.basis_DP[:, index].reshape(pca.num_classes, side, side)
    largest = float(np.abs(weights_CRR).max()) or 1.0
    colours_C3 = np.asarray(palette, np.float64)
    parts = []
    for signed_CRR in (weights_CRR, -weights_CRR):
        strength_RR1 = np.clip(signed_CRR.max(axis=0) / largest, 0, 1)[..., None]
        pixels_RR3 = 255 * (1 - strength_RR1) + colours_C3[signed_CRR.argmax(axis=0)] * strength_RR1
        parts.append(np.pad(pixels_RR3, ((1, 1), (1, 1), (0, 0)), constant_values=FRAME_GREY))
    gap = np.full((side + 2, max(1, side // 8), 3), 255.0)
    return np.concatenate([parts[0], gap, parts[1]], axis=1).round().astype(np.uint8)
