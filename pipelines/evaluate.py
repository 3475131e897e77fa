"""Evaluate any model on any prepared split: scores, per-image table, confusion matrix, pictures and a page.

The folder that it writes is described in `pipelines.evaluation.report`.
"""

import contextlib
import dataclasses
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pipelines import storage, tracking
from pipelines.checkpoints import ModelCard
from pipelines.cluster import actor_cluster
from pipelines.ensembles import (
    MemberModel,
    class_difference,
    ensemble_digest,
    ensemble_uri,
    find_members,
    joined_digests,
    load_member,
    registered_version,
)
from pipelines.fault_points import fault_point
from pipelines.manifests import MANIFEST, code_commit, digest, read_manifest, write_manifest
from pipelines.progress import progress
from pipelines.shards import PreparedDataset, open_dataset
from segcore.inference import InferenceConfig, inference_to_dict
from segcore.metrics import scores

if TYPE_CHECKING:
    from pipelines.evaluation.scoring import SplitScores

logger = logging.getLogger(__name__)

KIND = "evaluation"
SPLIT_TAG = "segpipe.split"
TRAIN_RUN_TAG = "segpipe.train_run_id"


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluateConfig:
    """A model, a split, and where the result goes."""

    model: str
    """Model folder (path or URI), models:/name@alias or models:/name/3."""
    data: str
    """Prepared dataset (folder or s3:// URI)."""
    output: str
    """Folder or URI for the result."""
    ensemble: tuple[str, ...] = ()
    """More models, given as --model is, with the same classes: all their class probabilities are averaged with the
    first one's. EDeconvNet is --model DECONVNET --ensemble FCN8S --recipe-inference."""
    leave_out: tuple[str, ...] = ()
    """Classes of the models that are not asked for, such as the background that `prepare object_crops` adds to a
    dataset without one: the probabilities of the others then add up to 1."""
    split: str = "val"
    """Split to score."""
    workers: int = 1
    """Actors, each with the model. The scores do not depend on it."""
    threads: int = 2
    """CPU threads of each actor's network; each is one logical CPU of Ray."""
    batch_size: int = 1
    """Images per forward pass, where neighbours have one size; 1 is best on a CPU."""
    use_gpu: bool = False
    """One GPU per actor."""
    inference: InferenceConfig = field(default_factory=InferenceConfig)
    """How each network is shown an image."""
    recipe_inference: bool = False
    """Show images as each model's recipe says (the paper's scales, mirror images, windows, proposals), in place of
    --inference."""
    num_examples: int = 3
    """Pictures of the best, of the median and of the worst images, each."""
    overwrite: bool = False
    """Evaluate again where the folder holds a finished evaluation."""
    experiment: str = "segpipe"
    """MLflow experiment."""
    tracking_uri: str | None = None
    """MLflow server or SQLite file; default MLFLOW_TRACKING_URI, or sqlite:///mlflow.db here."""

    def __post_init__(self) -> None:
        for name in ("workers", "threads", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name.replace('_', '-')} is {getattr(self, name)}; give 1 or more")
        if self.num_examples < 0:
            raise ValueError(f"--num-examples is {self.num_examples}; give 0 or more")


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluateResult:
    """What a finished evaluation left.

    Attributes:
        output: the folder.
        split: that was scored.
        num_images: in it.
        scores: as fractions of 1, by name (`mean_iou`, `pixel_accuracy`, `iou/<class>`, ...).
        speeds: images per second (`network_images_per_second` of one worker, `images_per_second` end to end).
        run_id: MLflow run.
    """

    output: str
    split: str
    num_images: int
    scores: dict[str, float]
    speeds: dict[str, float]
    run_id: str

    @property
    def page(self) -> str:
        """URI of the page."""
        return storage.join(self.output, "index.html")

    @property
    def closing_line(self) -> str:
        return (
            f"evaluated {self.num_images} images of split {self.split!r}: mIoU {_percent(self.scores, 'mean_iou')}, "
            f"pixel accuracy {_percent(self.scores, 'pixel_accuracy')}; page {self.page}"
        )


def evaluate(config: EvaluateConfig) -> EvaluateResult:
    """Score a model or an ensemble on a split, or return the finished evaluation of the same models, data and settings.

    Raises:
        ValueError: an input is missing or broken; models and dataset have different class tables; the folder holds
            another evaluation; the cluster is too small; MLflow does not answer.
    """
    config = dataclasses.replace(
        config, data=storage.absolute(config.data), output=storage.absolute(config.output)
    )  # workers run in other folders
    tracking.connect(config.tracking_uri)
    models = [tracking.resolve_model(model) for model in (config.model, *config.ensemble)]
    members, card = find_members(
        models, config.inference, recipe_inference=config.recipe_inference, leave_out=config.leave_out
    )
    config = dataclasses.replace(config, inference=members[0].inference, recipe_inference=False)
    dataset = open_dataset(config.data)
    if dataset.splits.get(config.split) is None or not dataset.splits[config.split].num_images:
        dataset.part_uris(config.split)  # raises where there is no such split, and lists the others
        raise ValueError(f"split {config.split!r} of {config.data} has no images; choose another")
    check_class_tables(card, dataset, model=config.model, data=config.data)
    identity: dict[str, Any] = {
        "model_digest": ensemble_digest(members),
        "dataset_digest": dataset.digest,
        "split": config.split,
        "inference": inference_to_dict(config.inference),
    }
    if config.ensemble:
        identity["ensemble"] = [member.identity() for member in members[1:]]
    if config.leave_out:
        identity["leave_out"] = sorted(config.leave_out)
    finished = None if config.overwrite else _finished(config.output, identity)
    if finished is not None:
        tracking.settle(finished.run_id)
        logger.info("%s holds this evaluation already; give --overwrite to do it again", config.output)
        return finished
    storage.check_writable(config.output)
    _forget(config.output)
    trainings = [_training_run(config.experiment, member.model_folder) for member in members]
    tags = {
        tracking.MODEL_FOLDER_TAG: members[0].model_folder,
        tracking.MODEL_DIGEST_TAG: ensemble_digest(members),  # so that no ensemble's score is taken for a model's
        tracking.DATASET_DIGEST_TAG: dataset.digest,
        SPLIT_TAG: config.split,
        TRAIN_RUN_TAG: trainings[0].run_id if trainings[0] else "",
        tracking.MODEL_VERSION_TAG: registered_version(members),
        tracking.MEMBERS_TAG: joined_digests(members),
    }
    name = " + ".join(
        training.name if training else member.model_folder.rstrip("/").rsplit("/", 1)[-1]
        for training, member in zip(trainings, members, strict=True)
    )
    others = {str(number): member.to_dict() for number, member in enumerate(members[1:], start=2)}
    parameters = dataclasses.asdict(config) | {"model": members[0].model_uri, "ensemble": others}
    with tracking.tracked_run(
        experiment=config.experiment,
        name=f"{name} on {config.split}",
        job="evaluate",
        parameters=parameters,
        tags=tags,
        work={"output": config.output, "identity": identity},
    ) as run:
        run.log_dataset(dataset.uri, digest=dataset.digest, split=config.split, context="evaluation")
        return _evaluate(config, members, dataset, run, identity, name)


def check_class_tables(card: ModelCard, dataset: PreparedDataset, *, model: str, data: str) -> None:
    """Refuse to compare predictions and labels of different class tables.

    Raises:
        ValueError: names or their order differ; the message shows the first difference.
    """
    if card.class_names == dataset.class_names:
        return
    raise ValueError(
        f"model {model!r} and dataset {data!r} have different class tables: "
        f"{class_difference(card.class_names, dataset.class_names)}; "
        "give a model that was trained on this class table, or prepare the data with the model's; classes that the "
        "model alone has may be named with --leave-out"
    )


def _score(
    config: EvaluateConfig, members: Sequence[MemberModel], dataset: PreparedDataset, name: str
) -> "SplitScores":
    """The Ray part: every image of the split through the models."""
    num_images = dataset.splits[config.split].num_images
    with actor_cluster(workers=config.workers, threads=config.threads, use_gpu=config.use_gpu):
        # Ray reads its environment at import, and `actor_cluster` has just set it.
        from pipelines.evaluation.scoring import ScoringConfig, score_split

        scoring = ScoringConfig(
            workers=config.workers,
            threads=config.threads,
            batch_size=config.batch_size,
            use_gpu=config.use_gpu,
        )
        with progress(f"evaluate {name}", total=num_images, unit="images") as advance:
            return score_split(dataset, config.split, members=members, config=scoring, advance=advance)


def _evaluate(
    config: EvaluateConfig,
    members: Sequence[MemberModel],
    dataset: PreparedDataset,
    run: tracking.TrackedRun,
    identity: dict[str, Any],
    name: str,
) -> EvaluateResult:
    result = _score(config, members, dataset, name)
    fault_point("evaluate.scored")
    from pipelines.evaluation.report import draw_examples, scores_by_name, write_report  # imports Ray, as above

    examples = draw_examples(
        dataset,
        config.split,
        result,
        members=[load_member(member) for member in members],
        count=config.num_examples,
    )
    measured = {
        "network_images_per_second": result.network_images_per_second,
        "images_per_second": result.images_per_second,
    }
    speeds = {key: value for key, value in measured.items() if not math.isnan(value)}
    named = scores_by_name(scores(result.confusion_CC), dataset.class_names)
    origins = _origins(config, members, dataset, run.run_id)
    files = write_report(
        config.output,
        result,
        dataset=dataset,
        split=config.split,
        title=f"{name} on {config.split}",
        speeds=speeds,
        origins=origins,
        examples=examples,
    )
    _log(run, config, named, speeds)
    content = {
        "identity": identity,
        "config": dataclasses.asdict(config)
        | {"tracking_uri": config.tracking_uri and tracking.without_password(config.tracking_uri)},
        "model_uri": ensemble_uri(members),
        "model_folder": members[0].model_folder,
        "ensemble": [member.to_dict() for member in members[1:]],
        "num_images": dataset.splits[config.split].num_images,
        "scores": named,
        "speeds": speeds,
        "files": files,
        "mlflow_run_id": run.run_id,
        "code_commit": code_commit(),
    }
    write_manifest(config.output, kind=KIND, content=content)
    return _result(config.output, content)


def _finished(output: str, identity: dict[str, Any]) -> EvaluateResult | None:
    """The evaluation that the folder holds, or None.

    Raises:
        ValueError: it is one of another model, dataset, split or setting.
    """
    if not storage.exists(storage.join(output, MANIFEST)):
        return None
    manifest = read_manifest(output, kind=KIND)
    differing = [key for key in identity if digest(manifest["identity"].get(key)) != digest(identity[key])]
    if differing:
        found = ", ".join(
            f"{key} {_short(manifest['identity'].get(key))} (now {_short(identity[key])})" for key in differing
        )
        raise ValueError(
            f"{output!r} holds the evaluation of another {found}; give another --output, or --overwrite to replace it"
        )
    return _result(output, manifest)


def _forget(output: str) -> None:
    """Take the manifest of an older evaluation away, so that a half-written folder never looks finished."""
    uri = storage.join(output, MANIFEST)
    if storage.exists(uri):
        fs, path = storage.filesystem(uri)
        fs.rm_file(path)


def _training_run(experiment: str, model_folder: str) -> tracking.RunRecord | None:
    """The run of this experiment that trained the model, where it did."""
    with contextlib.suppress(ValueError):  # there is no such experiment yet
        for run in tracking.find_runs(experiment=experiment, job="train"):
            if run.tags.get(tracking.MODEL_FOLDER_TAG) == model_folder:
                return run
    return None


def _origins(
    config: EvaluateConfig,
    members: Sequence[MemberModel],
    dataset: PreparedDataset,
    run_id: str,
) -> dict[str, str]:
    models: dict[str, str] = {}
    for number, member in enumerate(members, start=1):
        which = f"model {number} of the ensemble" if len(members) > 1 else "model"
        settings = ", ".join(f"{key} {value}" for key, value in inference_to_dict(member.inference).items())
        models |= {
            which: member.model_uri,
            f"{which}: folder": member.model_folder,
            f"{which}: digest": member.model_digest,
            f"{which}: inference": settings,
        }
    return models | {
        "dataset": config.data,
        "dataset digest": dataset.digest,
        "split": config.split,
        "workers, threads of each, batch size": f"{config.workers}, {config.threads}, {config.batch_size}"
        + (" on GPUs" if config.use_gpu else " on CPUs"),
        "MLflow run": run_id,
        "code commit": code_commit(),
    }


def _log(run: tracking.TrackedRun, config: EvaluateConfig, named: dict[str, float], speeds: dict[str, float]) -> None:
    run.log_once({f"eval/{config.split}/{name}": value for name, value in named.items()})
    run.log_once({f"eval/{name}": value for name, value in speeds.items()})
    for name in ("scores.json", "confusion.png", "iou.png", "index.html"):
        run.log_bytes(name, storage.read_bytes(storage.join(config.output, name)))


def _result(output: str, manifest: dict[str, Any]) -> EvaluateResult:
    return EvaluateResult(
        output=output,
        split=manifest["identity"]["split"],
        num_images=manifest["num_images"],
        scores=manifest["scores"],
        speeds=manifest["speeds"],
        run_id=manifest["mlflow_run_id"],
    )


def _short(value: Any) -> str:
    return value[:12] if isinstance(value, str) else str(value)


def _percent(named: dict[str, float], name: str) -> str:
    return f"{100 * named[name]:.2f} %" if name in named else "undefined (no labelled pixel)"
