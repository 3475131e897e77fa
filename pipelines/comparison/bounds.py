"""mIoU*: what a decoder gives back of true labels, the most that a network with it can reach but by luck.

The paper feeds labels in place of images; here the label code does it (`segcore.label_recovery`): a bilinear last step
that enlarges by f is told the share of each class in every f x f block, a data-dependent one the code of every block.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from pipelines.comparison.runs import ComparedRun
from pipelines.intake.labels import decode_labels
from pipelines.label_pcas import LabelPCAFolder, load_label_pca
from pipelines.progress import progress
from pipelines.shards import PreparedDataset, spread_rows
from segcore.label_code import LabelCode
from segcore.label_pca import LabelPCA
from segcore.label_recovery import basis_prediction, bilinear_prediction
from segcore.metrics import confusion_matrix, scores
from segcore.models import needed_label_pca


@dataclass(frozen=True, kw_only=True, slots=True)
class Bound:
    """mIoU* as a fraction of 1, over `num_images` images; or None, and the reason in `note`."""

    mean_iou: float | None
    num_images: int = 0
    note: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class LastStep:
    """What a bound depends on.

    Attributes:
        block_side: R, the enlargement.
        code_digest: of the folder of the label code, "" for a bilinear last step.
        num_components: of that code, 0 for a bilinear last step.
    """

    block_side: int
    code_digest: str = ""
    num_components: int = 0


def last_step(run: ComparedRun) -> LastStep:
    """Of the network of a run, as it is before training moves a decoder that is not frozen."""
    size = needed_label_pca(run.model_config)
    if size is None:
        return LastStep(block_side=run.model_config.enlargement)
    return LastStep(
        block_side=size.block_side,
        code_digest=run.settings.get("label_pca_digest", ""),
        num_components=size.num_components,
    )


def load_codes(runs: Iterable[ComparedRun]) -> dict[str, LabelPCAFolder | str]:
    """The label codes of the runs by their folders' digests; for one that cannot be had, the reason.

    A folder may have moved or hold another code by now, and several runs may name it differently.
    """
    codes: dict[str, LabelPCAFolder | str] = {}
    for run in runs:
        digest = last_step(run).code_digest
        if needed_label_pca(run.model_config) is None or isinstance(codes.get(digest), LabelPCAFolder):
            continue
        try:
            folder = load_label_pca(run.label_pca)
        except (ValueError, OSError) as error:
            codes[digest] = f"the label PCA of run {run.name!r} cannot be read: {error}"
            continue
        codes[digest] = folder
        if folder.digest != digest:
            codes[digest] = f"{run.label_pca!r} holds another label PCA than run {run.name!r} was trained with"
    return codes


def measure_bounds(
    runs: Sequence[ComparedRun],
    codes: Mapping[str, LabelPCAFolder | str],
    dataset: PreparedDataset | None,
    *,
    split: str,
    num_images: int,
    threads: int = 1,
) -> dict[str, Bound]:
    """mIoU* of each run, by run id; each label map is read once, and equal last steps are measured once.

    Args:
        runs: of one or several class tables.
        codes: from `load_codes`.
        dataset: whose true labels are taken; None where it cannot be read.
        split: of the dataset.
        num_images: at most, at even distances over the split.
        threads: CPU threads.
    """
    bounds: dict[str, Bound] = {}
    measured: dict[LastStep, Bound] = {}
    usable: dict[LastStep, LabelCode | None] = {}
    for run in runs:
        step = last_step(run)
        try:
            usable[step] = _code(run, step, codes, dataset)
        except ValueError as error:
            bounds[run.run_id] = Bound(mean_iou=None, note=str(error))
    if dataset is not None and usable:
        with threadpool_limits(threads):  # products this small lose much more on cores that others use than they gain
            measured = _measure(usable, dataset, split=split, num_images=num_images)
    return bounds | {run.run_id: measured[last_step(run)] for run in runs if run.run_id not in bounds}


def _code(
    run: ComparedRun, step: LastStep, codes: Mapping[str, LabelPCAFolder | str], dataset: PreparedDataset | None
) -> LabelCode | None:
    """The label code of a run at its network's length, or None for a bilinear last step.

    Raises:
        ValueError: there is no dataset, it has other classes, or the code cannot be had.
    """
    if dataset is None:
        raise ValueError("there is no dataset to take labels from; give --data and --split")
    if run.class_names != dataset.class_names:
        raise ValueError(f"the class table of run {run.name!r} is not that of {dataset.uri}")
    if not step.num_components:
        return None
    folder = codes[step.code_digest]
    if isinstance(folder, str):
        raise ValueError(folder)
    folder.check_class_table(dataset.class_names, whose=dataset.uri)
    return folder.code.leading(step.num_components) if isinstance(folder.code, LabelPCA) else folder.code


def _measure(
    codes: Mapping[LastStep, LabelCode | None], dataset: PreparedDataset, *, split: str, num_images: int
) -> dict[LastStep, Bound]:
    """Sum confusions over the images, then score them."""
    confusions: dict[LastStep, NDArray[np.int64]] = {
        step: np.zeros((dataset.num_classes, dataset.num_classes), np.int64) for step in codes
    }
    count = min(num_images, dataset.split(split).num_images)
    with progress(f"measure mIoU* of {len(codes)} last step(s)", total=count, unit="images") as advance:
        for row in spread_rows(dataset, split, count=count, columns=("label",)):
            labels_HW = np.asarray(decode_labels(row["label"]), dtype=np.uint8)
            height, width = labels_HW.shape
            for step, code in codes.items():
                predictions_HW = (
                    bilinear_prediction(labels_HW, block_side=step.block_side, num_classes=dataset.num_classes)
                    if code is None
                    else basis_prediction(code, labels_HW)
                )
                confusions[step] += confusion_matrix(
                    labels_HW, predictions_HW[:height, :width], num_classes=dataset.num_classes
                )
            advance(1)
    return {step: _scored(confusion_CC, num_images=count) for step, confusion_CC in confusions.items()}


def _scored(confusion_CC: NDArray[np.int64], *, num_images: int) -> Bound:
    if not confusion_CC.any():
        return Bound(mean_iou=None, note=f"{num_images} images were looked at, and no pixel of them has a label")
    return Bound(mean_iou=scores(confusion_CC).mean_iou, num_images=num_images)
