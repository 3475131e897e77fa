"""Train one recipe on a prepared dataset with Ray Train; leave a model folder, an MLflow run and a registered version.

    <output>/<name>/run.json             what this run is: recipe, origins, MLflow run; written once, at the start
    <output>/<name>/initial.safetensors  the weights that every worker starts from; beside them what the recipe takes
                                         from the labels (see `pipelines.training.balance`)
    <output>/<name>/checkpoint-*/        weights and training state: the best epoch's and the latest, which may lie
                                         within an epoch (see `pipelines.training.position`)
    <output>/<name>/model/               the best weights as a model folder (see `pipelines.checkpoints`), and what
                                         nights are held against (see `pipelines.night_report.references`; not of a
                                         classifier)
    <output>/<name>/result.json          written last: the run is finished

The run's folder is its identity. The same command continues it after any death, and returns at once when it is
finished; another recipe or dataset under the same name is refused.
"""

import dataclasses
import logging
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from torch import nn

from pipelines import storage, tracking
from pipelines.checkpoints import WEIGHTS_FILE, ModelCard, chosen_inference, load_model, read_state, save_model
from pipelines.cluster import ray_cluster
from pipelines.ensembles import MemberModel
from pipelines.night_report.references import measure_reference, write_reference
from pipelines.recipes import Recipe, find_recipe, recipe_list, recipe_to_dict
from pipelines.training.balance import DONORS_FILE, write_balance
from pipelines.training.inputs import TrainInputs, checked_start, initial_state, open_inputs
from pipelines.training.record import claim, read_record
from pipelines.training.sample_pictures import sample_pictures
from pipelines.training.state import AVERAGED_FILE
from pipelines.training.tasks import TASKS
from pipelines.training.visits import IMAGE_WEIGHTS_FILE
from pipelines.training.weights import NO_WEIGHTS, weights_digest
from segcore import Task
from segcore.backbones import BACKBONES
from segcore.cost import count_multiply_adds, count_parameters
from segcore.inference import InferenceConfig
from segcore.networks import restore_network

if TYPE_CHECKING:
    from pipelines.training.group import Trained

logger = logging.getLogger(__name__)

INITIAL_FILE = "initial.safetensors"
RESULT_FILE = "result.json"
MODEL_FOLDER = "model"
REGISTERED_ALIAS = "challenger"
"""Newest registered version; `champion`, which the nightly job reads, is moved by a person who has compared the two."""
NUM_PICTURES = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """Where a recipe runs; the recipe says what runs."""

    recipe: Annotated[Recipe, tyro.conf.arg(name="")]
    data: str
    """Prepared dataset (folder or s3:// URI)."""
    output: str
    """Folder or URI below which the run gets a folder of its own."""
    name: str
    """Name of the run and of its folder. The same name continues a run; a new experiment needs a new name."""
    label_pca: str | None = None
    """Label PCA folder, for networks with the data-dependent decoder."""
    weights: str = NO_WEIGHTS
    """Backbone weights: none, timm (downloads), path or URI of a state dict, or the model folder of a finished training
    (a classifier or a segmentation network) on the same backbone."""
    start_from: str | None = None
    """Model folder of a finished training of the same network on the same classes: all of it is the start, not its
    backbone alone (the next stage of one training). Layers that it does not have keep their initial values."""
    train_split: str = "train"
    """Split to learn from."""
    validation_split: str = "val"
    """Split to choose the best checkpoint by."""
    workers: Annotated[int | str, tyro.conf.arg(metavar="N|MIN-MAX")] = 1
    """Train workers, each with its share of every batch. MIN-MAX: as many as the cluster has room for, and fewer or
    more when machines go or come; steps, learning rates and the images per step stay the same."""
    checkpoint_minutes: float = 10.0
    """Minutes between checkpoints within an epoch; what a death costs at most. 0: only after every epoch."""
    checkpoint_steps: int = 0
    """Steps between checkpoints within an epoch, beside those by the clock; 0: none."""
    use_gpu: bool = False
    """One GPU per worker."""
    experiment: str = "segpipe"
    """MLflow experiment."""
    tracking_uri: str | None = None
    """MLflow server or SQLite file; default MLFLOW_TRACKING_URI, or sqlite:///mlflow.db here."""
    register: str | None = None
    """Register the best model under this name in MLflow, with the alias `challenger`."""

    def __post_init__(self) -> None:
        if self.name in ("", ".", "..") or "/" in self.name:
            raise ValueError(f"--name {self.name!r} is not a folder's name; give one without slashes")
        fewest, most = self.worker_range
        if not 1 <= fewest <= most:
            raise ValueError(f"--workers is {self.workers}; give 1 or more, or MIN-MAX with 1 <= MIN <= MAX")
        if self.checkpoint_minutes < 0 or self.checkpoint_steps < 0:
            raise ValueError(
                f"--checkpoint-minutes is {self.checkpoint_minutes} and --checkpoint-steps {self.checkpoint_steps}; "
                "neither may be negative"
            )
        if self.start_from is not None and self.weights != NO_WEIGHTS:
            raise ValueError(
                f"--start-from {self.start_from} has a backbone already, and --weights {self.weights} would replace "
                "it; give one of the two"
            )

    @property
    def worker_range(self) -> tuple[int, int]:
        """Fewest and most workers.

        Raises:
            ValueError: `workers` is neither a number nor two with a hyphen between them.
        """
        fewest, hyphen, most = str(self.workers).partition("-")
        try:
            return int(fewest), int(most if hyphen else fewest)
        except ValueError:
            raise ValueError(f"--workers is {self.workers!r}; give a number, or MIN-MAX such as 2-8") from None


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainResult:
    """What a finished run left.

    Attributes:
        run_folder, model_folder: URIs.
        model_digest: of the model folder.
        run_id: MLflow run.
        epochs: epochs trained.
        best_epoch: index of the epoch whose weights the model folder holds.
        scores: validation scores of those weights, by metric name.
        seconds: time in epochs, over all starts.
        model_uri: `models:/name/version` where it was registered, else "".
        task: what the network says of an image.
    """

    run_folder: str
    model_folder: str
    model_digest: str
    run_id: str
    epochs: int
    best_epoch: int
    scores: dict[str, float]
    seconds: float
    model_uri: str
    task: Task = "segmentation"  # results written before there were classifiers do not say it

    @property
    def closing_line(self) -> str:
        registered = f", registered as {self.model_uri} (alias {REGISTERED_ALIAS})" if self.model_uri else ""
        task = TASKS[self.task]
        return (
            f"trained {self.epochs} epochs: val {task.score_name} {100 * self.scores[task.selection]:.2f} % after "
            f"epoch {self.best_epoch + 1}; model in {self.model_folder}{registered}; MLflow run {self.run_id}"
        )


def train(config: TrainConfig) -> TrainResult:
    """Train, or continue, or return the result of the finished run.

    Raises:
        ValueError: an input is missing, broken or does not fit; the name belongs to another run; the cluster is too
            small; MLflow does not answer; the loss is not finite any more.
    """
    run_folder = storage.join(storage.absolute(config.output), config.name)
    inputs = open_inputs(
        config.recipe,
        data=config.data,
        label_pca=config.label_pca,
        train_split=config.train_split,
        validation_split=config.validation_split,
        workers=config.worker_range,
        synchronised=config.use_gpu and config.worker_range[1] > 1 and config.recipe.sync_batch_norm,
    )
    identity = _identity(config, inputs)
    record = read_record(run_folder, identity)
    result = _read_result(run_folder) if record else None
    if result is not None and (config.register is None or result.model_uri.startswith(f"models:/{config.register}/")):
        logger.info("run %r in %s is finished; nothing to do", config.name, run_folder)
        return result
    storage.check_writable(run_folder)
    tracking_uri = tracking.connect(config.tracking_uri)
    initial = None
    if record is None:
        initial = initial_state(config.recipe, inputs, weights=config.weights, start_from=config.start_from)
    with tracking.tracked_run(
        experiment=config.experiment,
        name=config.name,
        job="train",
        parameters={**identity, "data": config.data, "label_pca": config.label_pca, "workers": config.workers},
        tags=_tags(inputs),
        work={"run_folder": run_folder, "identity": identity},
        run_id=record["mlflow_run_id"] if record else None,
    ) as run:
        if initial is not None:
            run.log_bytes("recipe.json", storage.json_bytes(identity["recipe"]))
            storage.write_atomic(storage.join(run_folder, INITIAL_FILE), initial)
            write_balance(config.recipe, inputs.dataset, inputs.train_split, run_folder)
            claim(run_folder, identity, run_id=run.run_id)
        run.set_tags({tracking.RECORDED_TAG: run_folder})
        for split, context in ((inputs.train_split, "training"), (inputs.validation_split, "validation")):
            run.log_dataset(inputs.dataset.uri, digest=inputs.dataset.digest, split=split, context=context)
        if result is None:
            result = _fit_and_save(config, inputs, run_folder, run, tracking_uri)
        if config.register:
            version = tracking.register_model(
                result.model_folder, name=config.register, alias=REGISTERED_ALIAS, run_id=run.run_id
            )
            result = dataclasses.replace(result, model_uri=f"models:/{config.register}/{version}")
            run.set_tags({tracking.MODEL_VERSION_TAG: result.model_uri})
    # After the end in MLflow: a driver that dies in between does its last step again, and no run stays RUNNING.
    storage.write_atomic(storage.join(run_folder, RESULT_FILE), storage.json_bytes(dataclasses.asdict(result)))
    return result


def _tags(inputs: TrainInputs) -> dict[str, str]:
    tags = {tracking.DATASET_DIGEST_TAG: inputs.dataset.digest}
    return tags | ({tracking.LABEL_PCA_DIGEST_TAG: inputs.label_pca_digest} if inputs.label_pca_digest else {})


def _identity(config: TrainConfig, inputs: TrainInputs) -> dict[str, Any]:
    """What makes this run this run; two starts must agree on it. Workers and machines may change in between."""
    digests: dict[str, Any] = {}
    if (digest := weights_digest(config.weights, backbone=config.recipe.model.backbone)) is not None:
        digests["weights_digest"] = digest
    if config.start_from is not None:
        digests |= {
            "start_from": config.start_from,
            "start_from_digest": checked_start(config.recipe, inputs, config.start_from),
        }
    if inputs.class_weights:
        digests["class_weights"] = inputs.class_weights
    return digests | {
        "recipe": recipe_to_dict(config.recipe),
        "dataset_digest": inputs.dataset.digest,
        "label_pca_digest": inputs.label_pca_digest,
        "weights": config.weights,
        "train_split": config.train_split,
        "validation_split": config.validation_split,
    }


def _read_result(run_folder: str) -> TrainResult | None:
    uri = storage.join(run_folder, RESULT_FILE)
    return TrainResult(**storage.read_json(uri)) if storage.exists(uri) else None


def _fit_and_save(
    config: TrainConfig, inputs: TrainInputs, run_folder: str, run: tracking.TrackedRun, tracking_uri: str
) -> TrainResult:
    """Train to the end, and turn the best checkpoint into the model folder."""
    trained = _fit(config, inputs, run_folder, run.run_id, tracking_uri)
    best = trained.best
    scores = {name: value for name, value in best.metrics.items() if name.startswith("val/")}
    weights = storage.join(best.folder, AVERAGED_FILE if config.recipe.ema_decay else WEIGHTS_FILE)
    state = read_state(storage.read_bytes(weights), origin=weights)
    network = restore_network(config.recipe.model, inputs.dataset.num_classes, state)
    model_folder = storage.join(run_folder, MODEL_FOLDER)
    card = _card(config.recipe, inputs, scores)
    model_digest = save_model(model_folder, network, card)
    if card.task == "segmentation":
        _add_reference(config, inputs, card, model_folder, model_digest)
    _log_model(run, network, inputs, model_folder)
    run.set_tags({tracking.MODEL_DIGEST_TAG: model_digest})
    return TrainResult(
        run_folder=run_folder,
        model_folder=model_folder,
        model_digest=model_digest,
        run_id=run.run_id,
        epochs=trained.epochs,
        best_epoch=int(best.metrics["epoch"]),
        scores=scores,
        seconds=trained.seconds,
        model_uri="",
        task=config.recipe.task,
    )


def _fit(config: TrainConfig, inputs: TrainInputs, run_folder: str, run_id: str, tracking_uri: str) -> "Trained":
    """Run Ray Train to the last epoch.

    Raises:
        ValueError: the cluster is too small, or a worker said that an input is broken.
    """
    submitted_at = time.time()
    fewest = config.worker_range[0]
    why = f"{fewest} train worker(s) and 1 reader"
    with ray_cluster(num_cpus_needed=fewest + 1, num_gpus_needed=fewest if config.use_gpu else 0, why=why):
        # Ray reads its environment at import, and `ray_cluster` has just set it.
        from pipelines.training.group import run_group
        from pipelines.training.progress import watched_board
        from pipelines.training.worker import TrainJob

        total_steps = inputs.steps_per_epoch * config.recipe.epochs
        with watched_board(f"train {config.name}", total_steps=total_steps) as board:
            job = TrainJob(
                recipe=config.recipe,
                dataset=inputs.dataset,
                train_split=inputs.train_split,
                validation_split=inputs.validation_split,
                initial_weights=storage.join(run_folder, INITIAL_FILE),
                run_id=run_id,
                tracking_uri=tracking_uri,
                steps_per_epoch=inputs.steps_per_epoch,
                submitted_at=submitted_at,
                run_folder=run_folder,
                checkpoint_seconds=60 * config.checkpoint_minutes,
                checkpoint_steps=config.checkpoint_steps,
                class_weights=inputs.class_weights,
                image_weights=storage.join(run_folder, IMAGE_WEIGHTS_FILE) if config.recipe.samples else "",
                donors=storage.join(run_folder, DONORS_FILE) if config.recipe.copy_paste.classes else "",
            )
            return run_group(job, board, workers=config.worker_range, use_gpu=config.use_gpu)


def _card(recipe: Recipe, inputs: TrainInputs, scores: dict[str, float]) -> ModelCard:
    spec = BACKBONES[recipe.model.backbone]
    return ModelCard(
        model_config=recipe.model,
        class_names=inputs.dataset.class_names,
        palette=inputs.dataset.palette,
        mean=spec.mean,
        std=spec.std,
        dataset_digest=inputs.dataset.digest,
        label_pca_digest=inputs.label_pca_digest,
        recipe=recipe_to_dict(recipe),
        scores=scores,
        input_policy=inputs.input_policy,
    )


def _add_reference(
    config: TrainConfig, inputs: TrainInputs, card: ModelCard, model_folder: str, model_digest: str
) -> None:
    """Measure what nights will be held against: here, or on a worker with a GPU where the training had some."""
    try:
        member = MemberModel(
            model_uri=model_folder,
            model_version="",
            model_folder=model_folder,
            model_digest=model_digest,
            inference=chosen_inference(card, InferenceConfig(), as_in_recipe=True),
        )
        measure = partial(measure_reference, member, inputs.dataset, split=inputs.validation_split)
        if config.use_gpu:
            with ray_cluster(num_cpus_needed=1, num_gpus_needed=1, why="the model's reference"):
                import ray

                task = ray.remote(num_cpus=1, num_gpus=1)(lambda: measure(device="cuda"))
                reference = ray.get(task.remote())
        else:
            reference = measure(device="cpu")
    except (RuntimeError, ValueError, MemoryError):  # out of memory, most likely: the model is good without
        logger.warning("the model has no reference, so that nights cannot tell drift", exc_info=True)
    else:
        write_reference(model_folder, reference)


def _log_model(run: tracking.TrackedRun, network: nn.Module, inputs: TrainInputs, model_folder: str) -> None:
    """Size and cost, where the model is, and pictures: samples, and how the training went."""
    from pipelines.charts import LEARNING_METRICS, learning_chart  # matplotlib takes a second

    height, width = TASKS[inputs.dataset.task].cost_size(inputs.input_policy)
    costs = {
        "model/parameters": count_parameters(network).total,
        "model/multiply_adds": count_multiply_adds(network, height, width),
    }
    run.log_once(costs)
    run.set_tags({tracking.MODEL_FOLDER_TAG: model_folder})
    bundle = load_model(model_folder, task=inputs.dataset.task)
    pictures = sample_pictures(bundle, inputs.dataset, split=inputs.validation_split, count=NUM_PICTURES)
    histories = tracking.metric_histories(run.run_id, LEARNING_METRICS)
    if any(histories.values()):
        run.log_bytes("learning.png", learning_chart([("training", histories)]))
    for name, png in pictures.items():
        run.log_bytes(f"pictures/{name}.png", png)


def parse_command_line(arguments: Sequence[str], *, description: str) -> TrainConfig:
    """Read `RECIPE [flags]`: the flags of `TrainConfig`, and every field of the recipe by its dotted name.

    Exits with the help, or with code 2 and a message that lists what is known, where it cannot.
    """
    usage = f"{description}\n\nRecipes (train.py RECIPE --help shows every setting of one):\n{recipe_list()}"
    if not arguments or arguments[0] in ("-h", "--help"):
        sys.stdout.write(f"usage: train.py RECIPE [flags]\n\n{usage}\n")
        sys.exit(0 if arguments else 2)
    try:
        recipe = find_recipe(arguments[0])
    except ValueError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(2)
    # The recipe decides the network's type, so its flags belong to no subcommand.
    return tyro.cli(
        partial(TrainConfig, recipe=recipe),
        args=arguments[1:],
        prog=f"train.py {arguments[0]}",
        description=description,
        config=(tyro.conf.AvoidSubcommands,),
    )
