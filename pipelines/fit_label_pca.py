"""Fit the basis of data-dependent upsampling to the labels of a prepared dataset, exactly.

1. Each worker is one Ray task with its share of the split's parts. It reads only their label column and returns one
   integer statistic (`segcore.label_blocks`), not one per part. Ray runs the task of a lost worker again.
2. The statistics are added up in pairs: integers, so that neither order nor number of workers leaves a trace.
3. The driver solves for the leading eigenvectors (`segcore.label_pca`).
4. Tasks measure how well true labels come back, on the split and on `val`, beside bilinear and nearest enlargement.

The folder's format is in `pipelines.label_pcas`. A finished folder is used again by the same command.
"""

import logging
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines import manifests, storage
from pipelines.cluster import cluster_size, ray_cluster
from pipelines.label_pca_picture import components_png
from pipelines.label_pca_tasks import count_blocks, merge_tree, run_shares, score_labels, share_out
from pipelines.label_pcas import LabelPCAFolder, load_label_pca, save_label_pca
from pipelines.progress import progress
from pipelines.shards import Part, PreparedDataset, open_dataset
from segcore.label_blocks import BlockStatistics, check_exact_size, solve_bytes
from segcore.label_pca import LabelPCA, solve
from segcore.label_recovery import METHODS, Recovery
from segcore.metrics import scores

RECOVERY_FILE = "recovery.json"
PICTURE_FILE = "components.png"
VALIDATION_SPLIT = "val"
SHORT_SCORES = ("pixel_accuracy", "mean_iou", "mixed_pixel_accuracy")

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class FitLabelPCAConfig:
    """What to fit, and where to."""

    data: str
    """Folder or URI of a prepared dataset (jobs/prepare.py)."""
    output: str
    """Folder or URI of the label PCA: new, or finished by the same command before."""
    block_side: int = 32
    """Side of the label blocks in pixels: the output stride of the network that will use the basis."""
    num_components: int = 64
    """Length of a block's code: the network's num_components, or more (a network takes the leading ones)."""
    centred: bool = False
    """Take the mean block away first; the decoder then has a bias. Makes no difference from about 32 components on."""
    split: str = "train"
    """Split whose labels are fitted."""
    max_recovery_images: int = 2000
    """Images of each split on which recovery is measured, rounded up to whole parts (their order is random)."""
    workers: int | None = None
    """Ray tasks at a time. None: as many as the cluster has logical CPUs."""

    def __post_init__(self) -> None:
        """Refuse numbers that make no sense."""
        for name in ("block_side", "num_components", "max_recovery_images"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name.replace('_', '-')} is {getattr(self, name)}, expected at least 1")
        if self.workers is not None and self.workers < 1:
            raise ValueError(f"--workers is {self.workers}, expected at least 1")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class FitLabelPCAResult:
    """Where the label PCA is, and what it can do."""

    folder: LabelPCAFolder
    already_complete: bool

    @property
    def closing_line(self) -> str:
        """One line for the terminal."""
        code, recovery = self.folder.code, self.folder.manifest["recovery"]
        split = VALIDATION_SPLIT if VALIDATION_SPLIT in recovery else next(iter(recovery))
        done = "already fitted by this command, nothing to do" if self.already_complete else "fitted"
        entries = code.num_classes * code.block_side**2
        return (
            f"{done}: {self.folder.uri} ({code.num_components} of {entries} components keep "
            f"{100 * code.captured_energy:.2f} % of the energy; labels of {split} come back with mIoU "
            f"{_shown(recovery[split]['basis']['mean_iou'])}, by bilinear enlargement with "
            f"{_shown(recovery[split]['bilinear']['mean_iou'])})"
        )


def fit_label_pca(config: FitLabelPCAConfig) -> FitLabelPCAResult:
    """Fit a label PCA, or return the finished one of the same settings and data.

    Raises:
        ValueError: dataset or split is missing, a part or label is corrupt, the blocks are too long for exact
            statistics, or the output cannot be written or holds the result of other settings.
    """
    dataset = open_dataset(storage.absolute(config.data))
    split = dataset.split(config.split)
    check_exact_size(block_side=config.block_side, num_classes=dataset.num_classes)
    entries = dataset.num_classes * config.block_side**2
    if config.num_components > entries:
        raise ValueError(
            f"--num-components is {config.num_components}, but blocks of side {config.block_side} with "
            f"{dataset.num_classes} classes have {entries} entries; choose at most as many"
        )
    if split.num_images == 0:
        raise ValueError(
            f"split {config.split!r} of {config.data!r} has no images; choose another or prepare more data"
        )
    output = storage.absolute(config.output)
    settings = _settings(config, dataset)
    if storage.exists(storage.join(output, manifests.MANIFEST)):
        folder = load_label_pca(output)
        _check_same_settings(folder, settings)
        return FitLabelPCAResult(folder=folder, already_complete=True)
    storage.check_writable(output)
    logger.info(
        "blocks of %d entries: at most %.2f GB in each worker, %.2f GB to solve",
        entries,
        2 * entries**2 / 1e9,
        solve_bytes(entries) / 1e9,
    )
    with ray_cluster(num_cpus_needed=config.workers or 1, why=f"{config.workers or 1} label PCA tasks"):
        statistics = _count(dataset, config)
        logger.info("solving for %d of %d components", config.num_components, entries)
        pca = solve(statistics, num_components=config.num_components, centred=config.centred)
        recovery = _recover(dataset, config, pca)
    folder = _save(output, dataset, settings, statistics, pca, recovery)
    return FitLabelPCAResult(folder=folder, already_complete=False)


def _settings(config: FitLabelPCAConfig, dataset: PreparedDataset) -> dict[str, Any]:
    """Everything that the output's bytes depend on: JSON values only."""
    return {
        "dataset_digest": dataset.digest,
        "split": config.split,
        "block_side": config.block_side,
        "num_components": config.num_components,
        "centred": config.centred,
        "max_recovery_images": config.max_recovery_images,
    }


def _check_same_settings(folder: LabelPCAFolder, settings: dict[str, Any]) -> None:
    found = folder.manifest["settings"]
    differing = [f"{name} is {found.get(name)!r}" for name in settings if found.get(name) != settings[name]]
    if differing:
        raise ValueError(
            f"{folder.uri!r} holds a label PCA of other settings or data: {', '.join(differing)} there; "
            "give another --output, or remove that folder to fit it anew"
        )


def _count(dataset: PreparedDataset, config: FitLabelPCAConfig) -> BlockStatistics:
    split = dataset.split(config.split)
    shares = share_out(split.parts, _num_workers(config))
    with progress(f"count label blocks of {config.split}", total=split.num_images, unit="images") as advance:
        references = run_shares(count_blocks, shares, dataset, config.block_side, on_part=advance)
    return merge_tree(references)


def _recover(dataset: PreparedDataset, config: FitLabelPCAConfig, pca: LabelPCA) -> dict[str, Recovery]:
    """Recovery by split: of the fitted one, and of val where there is one."""
    import ray

    pca_reference = ray.put(pca)
    recovery = {}
    for name in dict.fromkeys((config.split, VALIDATION_SPLIT)):
        if name not in dataset.splits:
            continue
        parts = _first_parts(dataset.split(name).parts, config.max_recovery_images)
        num_images = sum(part.num_rows for part in parts)
        with progress(f"measure recovery of {name}", total=num_images, unit="images") as advance:
            shares = share_out(parts, _num_workers(config))
            references = run_shares(score_labels, shares, dataset, pca_reference, on_part=advance)
        recovery[name] = Recovery.zero(dataset.num_classes)
        for reference in references:
            recovery[name].merge(ray.get(reference))
    return recovery


def _num_workers(config: FitLabelPCAConfig) -> int:
    return config.workers or max(1, cluster_size())


def _first_parts(parts: tuple[Part, ...], num_images: int) -> tuple[Part, ...]:
    """As many parts as hold `num_images` images."""
    before = np.cumsum([0, *(part.num_rows for part in parts)])[: len(parts)]
    return tuple(part for part, rows_before in zip(parts, before, strict=True) if rows_before < num_images)


def _save(
    output: str,
    dataset: PreparedDataset,
    settings: dict[str, Any],
    statistics: BlockStatistics,
    pca: LabelPCA,
    recovery: dict[str, Recovery],
) -> LabelPCAFolder:
    tables = {split: _recovery_table(state, dataset.class_names) for split, state in recovery.items()}
    picture = components_png(
        pca,
        class_names=dataset.class_names,
        palette=dataset.palette,
        title=f"Leading label blocks, {pca.block_side} x {pca.block_side} pixels: {pca.num_components} components keep "
        f"{100 * pca.captured_energy:.2f} % of the energy",
    )
    return save_label_pca(
        output,
        pca,
        files={RECOVERY_FILE: storage.json_bytes(tables), PICTURE_FILE: picture},
        content={
            "settings": settings,
            "dataset": dataset.uri,
            "class_names": list(dataset.class_names),
            "palette": [list(colour) for colour in dataset.palette],
            "class_pixels": statistics.class_pixels_C.tolist(),
            "num_noisy_blocks": statistics.num_noisy_blocks,
            "statistics_digest": statistics.digest(),
            "recovery": {
                split: {method: {name: row[name] for name in SHORT_SCORES} for method, row in table.items()}
                for split, table in tables.items()
            },
        },
    )


def _recovery_table(recovery: Recovery, class_names: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """Scores by method, as JSON values: null where there was nothing to score."""
    table = {}
    for method in METHODS:
        confusion_CC = recovery.confusion[method]
        found = scores(confusion_CC)
        worst = None if np.isnan(found.iou_C).all() else class_names[int(np.nanargmin(found.iou_C))]
        table[method] = {
            "pixel_accuracy": _or_null(found.pixel_accuracy),
            "mean_iou": _or_null(found.mean_iou),
            "mixed_pixel_accuracy": _or_null(scores(recovery.mixed_confusion[method]).pixel_accuracy),
            "worst_class": worst,
            "iou": _by_class(found.iou_C, class_names),
            "accuracy": _by_class(found.accuracy_C, class_names),
            "num_pixels": int(confusion_CC.sum()),
            "num_mixed_pixels": int(recovery.mixed_confusion[method].sum()),
        }
    return table


def _by_class(values_C: NDArray[np.float64], class_names: tuple[str, ...]) -> dict[str, float | None]:
    return {name: _or_null(float(value)) for name, value in zip(class_names, values_C, strict=True)}


def _or_null(value: float) -> float | None:
    return None if math.isnan(value) else value


def _shown(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.3f}"
