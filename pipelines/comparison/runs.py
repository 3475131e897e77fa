"""What MLflow and the model folders know about the runs of a comparison, and whether they may be compared."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

from pipelines import tracking
from pipelines.checkpoints import read_card
from pipelines.evaluate import SPLIT_TAG
from segcore.inference import InferenceConfig
from segcore.models import ModelConfig, config_to_dict
from segcore.networks import segmentation_config

NETWORK_PREFIX = "model."
RECIPE_NAME = "recipe.recipe_name"
"""Parameter of a training run that says where its recipe came from; the recipe's fields say what it was."""
SETTINGS = (
    "weights",
    "weights_digest",
    "dataset_digest",
    "label_pca_digest",
    "train_split",
    "validation_split",
    "workers",
)
"""Parameters of a training run, beside its recipe, that can change its score."""
SEED = "seed"
"""The setting in which runs of one row may differ."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ComparedRun:
    """One training run of a comparison.

    Attributes:
        name, run_id: in MLflow; names are made unique.
        model_folder, model_digest: its model.
        network, backbone, output_stride: what it is.
        class_names: its class table.
        scores: fractions of 1 by name (`mean_iou`, `iou/<class>`, ...).
        scored_by: which job measured them, on what.
        scored_digest: of the dataset that they were measured on.
        evaluation_id: MLflow run of the evaluation that measured them, or "" for training's own validation.
        shown: how that evaluation showed the images, where not the plain way: ("flip True", "scales (0.5, 1.0)").
        parameters: scalars of the network.
        multiply_adds: of one image of `cost_size` (height, width).
        images_per_second: measured by `compare`, or None.
        train_seconds: time in epochs, or None.
        settings: what the training was given that can change its score, by name.
        model_config: of its network.
        recipe_name: key of RECIPES that it started from, or "".
        label_pca: folder of its label PCA as it was given, or "".
    """

    name: str
    run_id: str
    model_folder: str
    model_digest: str
    network: str
    backbone: str
    output_stride: int
    class_names: tuple[str, ...]
    scores: dict[str, float]
    scored_by: str
    scored_digest: str
    parameters: int | None
    multiply_adds: int | None
    cost_size: tuple[int, int]
    images_per_second: float | None
    train_seconds: float | None
    settings: dict[str, str]
    model_config: ModelConfig
    recipe_name: str
    label_pca: str
    evaluation_id: str = ""
    shown: tuple[str, ...] = ()

    @property
    def seed(self) -> int:
        """Of its recipe; 0 where none is recorded."""
        return int(self.settings.get(SEED, "0"))

    def experiment(self) -> tuple[object, ...]:
        """Equal for runs that differ in their seed alone and were scored in one way on the same data."""
        settings = sorted((name, value) for name, value in self.settings.items() if name != SEED)
        return self.recipe_name, self.scored_by, self.scored_digest, *settings

    def iou(self, class_name: str) -> float | None:
        """IoU of a class, or None where it was not measured or occurs nowhere."""
        return self.scores.get(f"iou/{class_name}")


def finished_runs(
    records: Sequence[tracking.RunRecord], *, experiment: str, names: Sequence[str], condition: str = ""
) -> list[tracking.RunRecord]:
    """The newest finished training run of each model folder, oldest first.

    Args:
        records: training runs, newest first.
        experiment: name, for messages.
        names: of the runs that are wanted; empty for all.
        condition: by which the records were found, for messages.

    Raises:
        ValueError: there is none, or a run asked for is not among them; the message lists what there is.
    """
    there = ", ".join(f"{record.name} ({record.status.lower()})" for record in records) or "none"
    newest: dict[str, tracking.RunRecord] = {}
    for record in records:
        folder = record.tags.get(tracking.MODEL_FOLDER_TAG)
        if record.status == "FINISHED" and folder:
            newest.setdefault(folder, record)
    finished = sorted(newest.values(), key=lambda record: record.start_time)
    missing = set(names) - {record.name for record in finished}
    if missing:
        raise ValueError(
            f"experiment {experiment!r} has no finished training run {', '.join(map(repr, sorted(missing)))}; "
            f"its training runs: {there}"
        )
    if names:
        finished = [record for record in finished if record.name in names]
    if not finished:
        chosen = f" by the filter {condition!r}" if condition else ""
        raise ValueError(
            f"experiment {experiment!r} has no finished training run to compare{chosen}; its training runs{chosen}: "
            f"{there}; train with jobs/train.py --experiment first" + (", or correct --filter" if condition else "")
        )
    return finished


def describe_run(record: tracking.RunRecord, evaluations: Sequence[tracking.RunRecord], *, split: str) -> ComparedRun:
    """Collect what is known about a run; an evaluation of its model on `split` counts before training's own validation.

    Args:
        record: a finished training run.
        evaluations: evaluation runs, newest first.
        split: name.

    Raises:
        ValueError: its model folder is gone or broken.
    """
    folder = record.tags[tracking.MODEL_FOLDER_TAG]
    card, model_digest = read_card(folder)
    config = segmentation_config(card.model_config)
    run = ComparedRun(
        name=record.name,
        run_id=record.run_id,
        model_folder=folder,
        model_digest=model_digest,
        network=str(config_to_dict(config)["network"]),
        backbone=config.backbone,
        output_stride=config.output_stride,
        class_names=card.class_names,
        scores={name.removeprefix("val/"): value for name, value in card.scores.items()},
        scored_by="training's validation",
        scored_digest=card.dataset_digest,
        parameters=_whole(record.metrics.get("model/parameters")),
        multiply_adds=_whole(record.metrics.get("model/multiply_adds")),
        cost_size=(card.input_policy.image_height, card.input_policy.image_width),
        images_per_second=None,
        train_seconds=record.metrics.get("train/seconds", record.duration_seconds),
        settings=_settings(record),
        model_config=config,
        recipe_name=record.parameters.get(RECIPE_NAME, ""),
        label_pca=record.parameters.get("label_pca", ""),
    )
    for evaluation in evaluations:  # newest first
        same_model = evaluation.tags.get(tracking.MODEL_DIGEST_TAG) == model_digest
        if evaluation.status == "FINISHED" and same_model and evaluation.tags.get(SPLIT_TAG) == split:
            prefix = f"eval/{split}/"
            shown = _shown(evaluation)
            return replace(
                run,
                scores={
                    _class_name(name.removeprefix(prefix), card.class_names): value
                    for name, value in evaluation.metrics.items()
                    if name.startswith(prefix)
                },
                scored_by=f"evaluate on {split!r}" + (f" ({', '.join(shown)})" if shown else ""),
                evaluation_id=evaluation.run_id,
                shown=shown,
                scored_digest=evaluation.tags.get(tracking.DATASET_DIGEST_TAG, ""),
            )
    return run


def _shown(evaluation: tracking.RunRecord) -> tuple[str, ...]:
    """How the network was shown the images, where it was not the plain way."""
    plain = tracking.flat_parameters(asdict(InferenceConfig()))
    given = {name: evaluation.parameters.get(f"inference.{name}", value) for name, value in plain.items()}
    return tuple(f"{name} {value}" for name, value in given.items() if value != plain[name])


def _class_name(metric: str, class_names: Sequence[str]) -> str:
    """MLflow replaces some characters of a metric's name; give the class its own name back."""
    known = {tracking.metric_name(f"iou/{name}"): f"iou/{name}" for name in class_names}
    return known.get(metric, metric)


def _settings(record: tracking.RunRecord) -> dict[str, str]:
    """What a run was given that can change its score: its recipe, weights, data and number of workers."""
    return {
        name.removeprefix("recipe."): value
        for name, value in record.parameters.items()
        if (name.startswith("recipe.") or name in SETTINGS) and name != RECIPE_NAME
    }


def unique_names(runs: Sequence[ComparedRun]) -> list[ComparedRun]:
    """The runs, with the start of the run id after each name that several bear."""
    names = [run.name for run in runs]
    return [replace(run, name=f"{run.name} ({run.run_id[:6]})") if names.count(run.name) > 1 else run for run in runs]


def differing_fields(runs: Sequence[ComparedRun]) -> dict[str, list[str]]:
    """Settings that are not the same in all runs: name -> value of each run ("-" where a run has none)."""
    names = sorted({name for run in runs for name in run.settings})
    table = {name: [run.settings.get(name, "-") for run in runs] for name in names}
    return {name: values for name, values in table.items() if len(set(values)) > 1}


def warnings(runs: Sequence[ComparedRun]) -> list[str]:
    """Reasons why a difference between these runs is not, or not only, the networks'."""
    notes: list[str] = []
    if len({run.scored_digest for run in runs}) > 1:
        notes.append(
            "Not comparable: the scores were measured on different data ("
            + ", ".join(f"{run.name}: dataset {run.scored_digest[:12]}" for run in runs)
            + "). Evaluate every model on one dataset with jobs/evaluate.py."
        )
    elif len({run.scored_by for run in runs}) > 1:
        notes.append(
            "The scores were measured in different ways ("
            + ", ".join(f"{run.name}: {run.scored_by}" for run in runs)
            + "). Evaluate every model with jobs/evaluate.py."
        )
    if len({run.class_names for run in runs}) > 1:
        notes.append("Not comparable: the runs have different class tables.")
    other = [
        name
        for name in differing_fields(runs)
        if not name.startswith(NETWORK_PREFIX) and name not in ("label_pca_digest", SEED)
    ]
    if other:
        notes.append(
            f"The runs differ in more than the network: {', '.join(other)}. "
            "A difference in score is then not the network's alone."
        )
    return notes


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)
