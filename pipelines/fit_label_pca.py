"""Fit the code of data-dependent upsampling to the labels of a prepared dataset.

1. Each worker is one Ray task with its share of the split's parts. It reads only their label column and returns one
   integer statistic, not one per part (`pipelines.label_pca.fitting`). Ray runs the task of a lost worker again.
2. The statistics are added up in pairs: integers, so that neither order nor number of workers leaves a trace.
3. The driver solves for the leading eigenvectors (`segcore.label_pca`, `segcore.label_krylov`). Other solvers, which
   the paper compares with, learn a code in one task instead (`segcore.label_solvers`).
4. Tasks measure how well true labels come back, on the split and on `val`, beside bilinear and nearest enlargement.

The folder's format is in `pipelines.label_pcas`. A finished folder is used again by the same command.
"""

import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pipelines import manifests, storage
from pipelines.artifact_runs import ArtifactRun
from pipelines.cluster import cluster_size, ray_cluster
from pipelines.fault_points import fault_point
from pipelines.label_pca.fitting import (
    ALL_SOLVERS,
    FitSettings,
    Fitted,
    Method,
    Solver,
    fit,
    held_out,
    make_plan,
    score,
)
from pipelines.label_pca.picture import components_png
from pipelines.label_pca.report import (
    RecoveryRow,
    recovery_csv,
    recovery_png,
    recovery_rows,
    recovery_table,
    report_page,
)
from pipelines.label_pcas import LabelPCAFolder, load_label_pca, save_label_pca
from pipelines.recipes import find_recipe
from pipelines.shards import PreparedDataset, open_dataset
from segcore.label_code import LabelCode
from segcore.label_pca import PCA, LabelPCA
from segcore.label_recovery import Recovery
from segcore.label_solvers import LearnConfig
from segcore.networks import label_pca_size

if TYPE_CHECKING:
    from pipelines.tracking import TrackedRun

RECOVERY_FILE = "recovery.json"
RECOVERY_TABLE = "recovery.csv"
RECOVERY_PLOT = "recovery.png"
PICTURE_FILE = "components.png"
PAGE = "index.html"
SHORT_SCORES = ("pixel_accuracy", "mean_iou", "mixed_pixel_accuracy")
DEFAULT_BLOCK_SIDE, DEFAULT_NUM_COMPONENTS = 32, 64

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class FitLabelPCAConfig:
    """What to fit, and where to."""

    data: str
    """Folder or URI of a prepared dataset (jobs/prepare.py)."""
    output: str
    """Folder or URI of the label PCA: new, or finished by the same command before."""
    recipe: str | None = None
    """Name of a training recipe whose network decides block side and number of components."""
    block_side: int | None = None
    """Side of the label blocks in pixels: the factor by which the network enlarges. Default: the recipe's, or 32."""
    num_components: int | None = None
    """Length of a block's code: the network's, or more (it takes the leading ones). Default: the recipe's, or 64."""
    target_miou_bound: float | None = None
    """Instead of num_components: the fewest, in steps of 8, with which held-out labels come back with this mIoU."""
    centred: bool = False
    """Take the mean block away first; the decoder then has a bias. Makes no difference from about 32 components on."""
    solver: Solver = "pca"
    """pca; or, to compare with it, a code learned by sgd, orthogonal_sgd or as an autoencoder."""
    learn: LearnConfig = field(default_factory=LearnConfig)
    """Settings of a learned code."""
    method: Method = "auto"
    """Of pca: exact up to 12,500 entries per block and krylov beyond, or the one to use."""
    split: str = "train"
    """Split whose labels are fitted."""
    report_block_sides: tuple[int, ...] = ()
    """Further block sides to fit for the report alone, beside which recovery is shown."""
    max_recovery_images: int = 2000
    """Images of each split on which recovery is measured, and that codes other than pca are learned from: rounded up to
    whole parts, whose order is random."""
    workers: int | None = None
    """Ray tasks at a time. None: as many as the cluster has logical CPUs."""
    experiment: str = "segpipe"
    """MLflow experiment."""
    tracking_uri: str | None = None
    """MLflow server or SQLite file that shall hold a run of this job; default MLFLOW_TRACKING_URI, or no run."""

    def __post_init__(self) -> None:
        """Refuse numbers that make no sense."""
        for name in ("block_side", "num_components", "max_recovery_images", "workers"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"--{name.replace('_', '-')} is {value}, expected at least 1")
        if self.solver not in ALL_SOLVERS:
            raise ValueError(f"unknown --solver {self.solver!r}; known: {', '.join(ALL_SOLVERS)}")
        if self.target_miou_bound is not None:
            if not 0 < self.target_miou_bound <= 1:
                raise ValueError(f"--target-miou-bound is {self.target_miou_bound}, expected a number in (0, 1]")
            if self.num_components is not None or self.solver != PCA:
                raise ValueError(
                    "--target-miou-bound chooses the number of components of a PCA; give it without "
                    "--num-components and without another --solver"
                )


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class FitLabelPCAResult:
    """Where the label PCA is, and what it can do."""

    folder: LabelPCAFolder
    already_complete: bool

    @property
    def closing_line(self) -> str:
        """One line for the terminal."""
        code, recovery = self.folder.code, self.folder.manifest["recovery"]
        split = list(recovery)[-1]
        done = "already fitted by this command, nothing to do" if self.already_complete else "fitted"
        entries = code.num_classes * code.block_side**2
        return (
            f"{done}: {self.folder.uri} ({code.num_components} of {entries} components keep "
            f"{100 * code.captured_energy:.2f} % of the energy; labels of {split} come back with mIoU "
            f"{_shown(recovery[split]['basis']['mean_iou'])}, by bilinear enlargement with "
            f"{_shown(recovery[split]['bilinear']['mean_iou'])})"
        )


def fit_label_pca(config: FitLabelPCAConfig) -> FitLabelPCAResult:
    """Fit a label code, or return the finished one of the same settings and data.

    Raises:
        ValueError: dataset, split or recipe is missing, a part or label is corrupt, the blocks are too long, memory is
            too small, or the output cannot be written or holds the result of other settings.
    """
    dataset = open_dataset(storage.absolute(config.data))
    if dataset.split(config.split).num_images == 0:
        raise ValueError(
            f"split {config.split!r} of {config.data!r} has no images; choose another or prepare more data"
        )
    settings = _fit_settings(config, dataset)
    output = storage.absolute(config.output)
    identity = _identity(config, settings, dataset)
    found = None
    if storage.exists(storage.join(output, manifests.MANIFEST)):
        found = load_label_pca(output)
        _check_same_settings(found, identity)
    artifact_run = ArtifactRun(
        tracking_uri=config.tracking_uri,
        experiment=config.experiment,
        job="fit_label_pca",
        output=output,
        parameters={"data": dataset.uri, **identity, "workers": config.workers},
        work={"identity": identity},
    )
    with artifact_run.opened(finished_digest=found.digest if found else "") as run:
        folder = found or _fit(config, settings, dataset, output, identity)
        if run is not None:
            _log(run, folder, dataset, split=config.split)
    return FitLabelPCAResult(folder=folder, already_complete=found is not None)


def _fit(
    config: FitLabelPCAConfig, settings: FitSettings, dataset: PreparedDataset, output: str, identity: dict[str, Any]
) -> LabelPCAFolder:
    """The Ray part: fit, score, and write the folder."""
    storage.check_writable(output)
    workers_needed = config.workers or 1
    with ray_cluster(num_cpus_needed=workers_needed, why=f"{workers_needed} label PCA tasks"):
        workers = config.workers or max(1, cluster_size())
        fitted = fit(dataset, settings, workers=workers)
        fault_point("label_pca.fitted")
        splits = tuple(dict.fromkeys((config.split, held_out(dataset, config.split))))
        recovery = {
            split: score(dataset, split, fitted.code, settings, workers=workers, with_curve=split == splits[-1])
            for split in splits
        }
        rows: list[RecoveryRow] = []
        for side in sorted({settings.block_side, *config.report_block_sides}):
            if side == settings.block_side:
                code, (found, curve) = fitted.code, recovery[splits[-1]]
            else:
                most = make_plan(dataset, settings.beside(side, None), workers=workers).max_components
                components = min(fitted.code.num_components, most)
                code = fit(dataset, settings.beside(side, components), workers=workers).code
                found, curve = score(dataset, splits[-1], code, settings, workers=workers)
            rows += recovery_rows(code, found, curve, split=splits[-1], class_names=dataset.class_names)
    totals = {split: found for split, (found, _) in recovery.items()}
    return _save(output, dataset, identity, fitted, totals, rows)


def _log(run: "TrackedRun", folder: LabelPCAFolder, dataset: PreparedDataset, *, split: str) -> None:
    """What the label PCA is made of and can do, so that the trainings which start from it lead here."""
    from pipelines import tracking  # as in `artifact_runs`

    run.log_dataset(dataset.uri, digest=dataset.digest, split=split, context="training")
    scores = {
        f"recovery/{split_name}/{method}/{name}": value
        for split_name, by_method in folder.manifest["recovery"].items()
        for method, row in by_method.items()
        for name, value in row.items()
        if value is not None
    }
    run.log_once({"captured_energy": folder.manifest["captured_energy"], **scores})
    for name in (PAGE, RECOVERY_PLOT):
        run.log_bytes(name, storage.read_bytes(storage.join(folder.uri, name)))
    tags = {tracking.DATASET_DIGEST_TAG: dataset.digest, tracking.CODE_TAG: folder.manifest["code_commit"]}
    run.set_tags(tags | {tracking.LABEL_PCA_DIGEST_TAG: folder.digest})


def _fit_settings(config: FitLabelPCAConfig, dataset: PreparedDataset) -> FitSettings:
    """Block side and components from the command line, the recipe, or the defaults; checked.

    Raises:
        ValueError: the recipe needs no label PCA or another one; too many components; blocks that are too long.
    """
    block_side, num_components = config.block_side, config.num_components
    if config.recipe is not None:
        size = label_pca_size(find_recipe(config.recipe).model)
        if size is None:
            raise ValueError(
                f"recipe {config.recipe!r} has no data-dependent decoder and needs no label PCA; choose another"
            )
        if block_side not in (None, size.block_side):
            raise ValueError(
                f"--block-side is {block_side} and recipe {config.recipe!r} needs {size.block_side}; leave it out"
            )
        block_side = size.block_side
        if num_components is None and config.target_miou_bound is None:
            num_components = size.num_components
    block_side = block_side or DEFAULT_BLOCK_SIDE
    if config.target_miou_bound is None:
        num_components = num_components or DEFAULT_NUM_COMPONENTS
    settings = FitSettings(
        split=config.split,
        block_side=block_side,
        num_components=num_components,
        target_miou_bound=config.target_miou_bound,
        centred=config.centred,
        solver=config.solver,
        learn=config.learn,
        method=config.method,
        max_images=config.max_recovery_images,
    )
    most = {
        side: make_plan(dataset, settings.beside(side, None), workers=config.workers or 1).max_components
        for side in (block_side, *config.report_block_sides)
    }
    if num_components is not None and num_components > most[block_side]:
        raise ValueError(
            f"--num-components is {num_components}, but blocks of side {block_side} with {dataset.num_classes} classes "
            f"give at most {most[block_side]}; choose at most as many"
        )
    return settings


def _identity(config: FitLabelPCAConfig, settings: FitSettings, dataset: PreparedDataset) -> dict[str, Any]:
    """Everything that the output's bytes depend on: JSON values only."""
    return {
        "dataset_digest": dataset.digest,
        **settings.to_json(),
        "report_block_sides": list(config.report_block_sides),
    }


def _check_same_settings(folder: LabelPCAFolder, settings: dict[str, Any]) -> None:
    found = folder.manifest["settings"]
    differing = [f"{name} is {found.get(name)!r}" for name in settings if found.get(name) != settings[name]]
    if differing:
        raise ValueError(
            f"{folder.uri!r} holds a label PCA of other settings or data: {', '.join(differing)} there; "
            "give another --output, or remove that folder to fit it anew"
        )


def _save(
    output: str,
    dataset: PreparedDataset,
    settings: dict[str, Any],
    fitted: Fitted,
    recovery: dict[str, Recovery],
    rows: list[RecoveryRow],
) -> LabelPCAFolder:
    tables = {split: recovery_table(state, dataset.class_names) for split, state in recovery.items()}
    *_, last = recovery
    files = {
        RECOVERY_FILE: storage.json_bytes(tables),
        RECOVERY_TABLE: recovery_csv(rows),
        RECOVERY_PLOT: recovery_png(rows),
    }
    picture = _components(fitted.code, dataset)
    if picture is not None:
        files[PICTURE_FILE] = picture
    files[PAGE] = report_page(
        fitted.code,
        rows,
        recovery[last],
        split=last,
        class_names=dataset.class_names,
        dataset_uri=dataset.uri,
        plot=files[RECOVERY_PLOT],
        components=picture,
    )
    return save_label_pca(
        output,
        fitted.code,
        files=files,
        content={
            "settings": settings,
            "dataset": dataset.uri,
            "class_names": list(dataset.class_names),
            "palette": [list(colour) for colour in dataset.palette],
            **fitted.facts,
            "recovery": {
                split: {method: {name: row[name] for name in SHORT_SCORES} for method, row in table.items()}
                for split, table in tables.items()
            },
        },
    )


def _components(code: LabelCode, dataset: PreparedDataset) -> bytes | None:
    """Picture of the leading basis blocks; only a PCA's columns have an order."""
    if not isinstance(code, LabelPCA):
        return None
    return components_png(
        code,
        class_names=dataset.class_names,
        palette=dataset.palette,
        title=f"Leading label blocks, {code.block_side} x {code.block_side} pixels: {code.num_components} components "
        f"keep {100 * code.captured_energy:.2f} % of the energy",
    )


def _shown(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.3f}"
