"""Evaluate any model on any prepared split: scores, per-image table, confusion matrix, pictures and a page.

The folder that it writes is described in `pipelines.evaluation.report`.
"""

import contextlib
import dataclasses
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

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
from pipelines.evaluation.groups import ImageGroup, folder_groups, read_groups, size_groups, table_groups
from pipelines.evaluation.protocols import protocol_members
from pipelines.fault_points import fault_point
from pipelines.manifests import MANIFEST, code_commit, digest, read_manifest, write_manifest
from pipelines.progress import progress
from pipelines.shards import PreparedDataset, open_dataset
from segcore.boundaries import BoundaryConfig
from segcore.inference import InferenceConfig, inference_to_dict

if TYPE_CHECKING:
    from pipelines.evaluation.scoring import SplitScores

logger = logging.getLogger(__name__)

KIND = "evaluation"
LOGGED_FILES = (
    *("scores.json", "confusion.png", "iou.png", "trimaps.png", "reliability.png", "protocols.png", "learning.png"),
    *("protocols.parquet", "groups.parquet", "images.parquet", "index.html"),
)
"""To MLflow, those of them that there are."""
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
    protocols: tuple[str, ...] = ()
    """Score several ways of showing an image side by side, on the same images: single, multi_scale_flip, sliding, crf,
    given (as --inference.* or the recipe says). The first one's scores are the evaluation's; the others' stand in
    protocols.parquet, with their cost."""
    boundaries: BoundaryConfig = field(default_factory=BoundaryConfig)
    """What is counted near borders."""
    groups: str | None = None
    """CSV file with the columns image_id and group: each group of images is scored by itself too."""
    group_by: Literal["none", "folder"] = "none"
    """folder: the same by the first folder of each image id."""
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
        if self.group_by not in ("none", "folder"):
            raise ValueError(f"--group-by is {self.group_by!r}; expected 'none' or 'folder'")


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
    protocols = protocol_members(members, config.protocols)
    members = next(iter(protocols.values()))
    config = dataclasses.replace(config, inference=members[0].inference, recipe_inference=False)
    dataset = open_dataset(config.data)
    if dataset.splits.get(config.split) is None or not dataset.splits[config.split].num_images:
        dataset.part_uris(config.split)  # raises where there is no such split, and lists the others
        raise ValueError(f"split {config.split!r} of {config.data} has no images; choose another")
    check_class_tables(card, dataset, model=config.model, data=config.data)
    groups = read_groups(config.groups) if config.groups else None
    identity = _identity(config, protocols, dataset, groups)
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
        return _evaluate(config, protocols, dataset, groups, run, identity, name, trainings)


def _identity(
    config: EvaluateConfig,
    protocols: Mapping[str, Sequence[MemberModel]],
    dataset: PreparedDataset,
    groups: dict[str, str] | None,
) -> dict[str, Any]:
    """What the result depends on; what was not asked for does not stand in it."""
    members = next(iter(protocols.values()))
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
    if config.protocols:
        identity["protocols"] = {
            name: [inference_to_dict(member.inference) for member in shown] for name, shown in protocols.items()
        }
    if config.boundaries != BoundaryConfig():
        identity["boundaries"] = dataclasses.asdict(config.boundaries)
    if groups is not None:
        identity["groups"] = digest(groups)
    if config.group_by != "none":
        identity["group_by"] = config.group_by
    return identity


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
    config: EvaluateConfig, protocols: Mapping[str, Sequence[MemberModel]], dataset: PreparedDataset, name: str
) -> "dict[str, SplitScores]":
    """The Ray part: every image of the split through the models, by each protocol."""
    num_images = dataset.splits[config.split].num_images
    with actor_cluster(workers=config.workers, threads=config.threads, use_gpu=config.use_gpu):
        # Ray reads its environment at import, and `actor_cluster` has just set it.
        from pipelines.evaluation.scoring import ScoringConfig, score_split

        scoring = ScoringConfig(
            workers=config.workers,
            threads=config.threads,
            batch_size=config.batch_size,
            use_gpu=config.use_gpu,
            boundaries=config.boundaries,
        )
        with progress(f"evaluate {name}", total=num_images, unit="images") as advance:
            return score_split(dataset, config.split, protocols=protocols, config=scoring, advance=advance)


def _evaluate(
    config: EvaluateConfig,
    protocols: Mapping[str, Sequence[MemberModel]],
    dataset: PreparedDataset,
    groups: dict[str, str] | None,
    run: tracking.TrackedRun,
    identity: dict[str, Any],
    name: str,
    trainings: Sequence[tracking.RunRecord | None],
) -> EvaluateResult:
    results = _score(config, protocols, dataset, name)
    fault_point("evaluate.scored")
    from pipelines.evaluation.report import draw_examples, write_report  # imports Ray, as above

    first = next(iter(protocols))
    result, members = results[first], protocols[first]
    examples = draw_examples(
        dataset,
        config.split,
        result,
        members=[load_member(member) for member in members],
        count=config.num_examples,
    )
    measured = {
        "network_images_per_second": result.network_images_per_second,
        "images_per_second": result.images_per_second if len(results) == 1 else math.nan,  # else it is of all together
    }
    speeds = {key: value for key, value in measured.items() if not math.isnan(value)}
    origins = _origins(config, members, dataset, run.run_id)
    named, files = write_report(
        config.output,
        results,
        dataset=dataset,
        split=config.split,
        title=f"{name} on {config.split}",
        speeds=speeds,
        origins=origins,
        examples=examples,
        groups=_image_groups(config, result, groups),
        learning=_learning(trainings),
    )
    _log(run, config, named, speeds, files)
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


def _learning(
    trainings: Sequence[tracking.RunRecord | None],
) -> list[tuple[str, dict[str, list[tuple[int, float]]]]]:
    """Names of the trainings that MLflow knows, and how they went."""
    from pipelines.charts import LEARNING_METRICS  # matplotlib takes a second

    known = [training for training in trainings if training is not None]
    return [(each.name, tracking.metric_histories(each.run_id, LEARNING_METRICS)) for each in known]


def _image_groups(config: EvaluateConfig, result: "SplitScores", groups: dict[str, str] | None) -> list[ImageGroup]:
    image_ids = result.images["image_id"].to_pylist()
    heights, widths = (result.images[name].to_pylist() for name in ("height", "width"))
    found = size_groups([height * width for height, width in zip(heights, widths, strict=True)])
    if config.group_by == "folder":
        found += folder_groups(image_ids)
    if groups is not None:
        found += table_groups(image_ids, groups)
    return found


def _finished(output: str, identity: dict[str, Any]) -> EvaluateResult | None:
    """The evaluation that the folder holds, or None.

    Raises:
        ValueError: it is one of another model, dataset, split or setting.
    """
    if not storage.exists(storage.join(output, MANIFEST)):
        return None
    manifest = read_manifest(output, kind=KIND)
    there: dict[str, Any] = manifest["identity"]
    keys = dict.fromkeys([*identity, *there])
    differing = [key for key in keys if digest(there.get(key)) != digest(identity.get(key))]
    if differing:
        found = ", ".join(f"{key} {_short(there.get(key))} (now {_short(identity.get(key))})" for key in differing)
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


def _log(
    run: tracking.TrackedRun,
    config: EvaluateConfig,
    named: dict[str, float],
    speeds: dict[str, float],
    files: Mapping[str, Any],
) -> None:
    run.log_once({f"eval/{config.split}/{name}": value for name, value in named.items()})
    run.log_once({f"eval/{name}": value for name, value in speeds.items()})
    for name in LOGGED_FILES:
        if name in files:
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
