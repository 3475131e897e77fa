"""Everything that a training reads, opened and checked before a cluster starts: most mistakes show here, in seconds."""

import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch

from pipelines import storage
from pipelines.checkpoints import InputPolicy, state_bytes
from pipelines.label_pcas import load_label_pca
from pipelines.recipes.recipe import Recipe
from pipelines.shards import PreparedDataset, open_dataset, read_part
from pipelines.training.balance import check_class_names, class_weights_of
from pipelines.training.weights import resolve_weights, start_digest, whole_network
from segcore.label_code import LabelCode
from segcore.label_pca import LabelPCA
from segcore.models import load_pretrained
from segcore.networks import build_network, label_pca_size, normalises_batches, start_from_whole

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainInputs:
    """The artifacts that a run depends on.

    Attributes:
        dataset: with URIs that every worker can open.
        train_split, validation_split: names of two of its splits, which are not empty.
        label_pca: cut to the network's number of components; None for networks without one.
        label_pca_digest: of the label PCA's folder.
        steps_per_epoch: optimiser steps, the same on every worker.
        input_policy: what the network will have seen.
        class_weights: of the loss; empty where the recipe has none.
    """

    dataset: PreparedDataset
    train_split: str
    validation_split: str
    label_pca: LabelCode | None
    label_pca_digest: str | None
    steps_per_epoch: int
    input_policy: InputPolicy
    class_weights: tuple[float, ...] = ()


def open_inputs(
    recipe: Recipe,
    *,
    data: str,
    label_pca: str | None,
    train_split: str,
    validation_split: str,
    workers: tuple[int, int],
    synchronised: bool,
) -> TrainInputs:
    """Open dataset and label PCA, and refuse what cannot work.

    Args:
        recipe: what will run.
        data, label_pca: folders.
        train_split, validation_split: of the dataset.
        workers: fewest and most train workers.
        synchronised: whether batch statistics are taken over all workers.

    Raises:
        ValueError: an input is missing, incomplete or does not fit the recipe or the workers.
    """
    dataset = open_dataset(storage.absolute(data), task=recipe.task)
    for split in (train_split, validation_split):
        dataset.part_uris(split)  # raises where there is no such split, and lists the others
        if dataset.splits[split].num_images == 0:
            raise ValueError(f"split {split!r} of {data} has no images; choose another or prepare more data")
        if recipe.task == "segmentation" and not sum(dataset.splits[split].class_pixels):
            raise ValueError(f"split {split!r} of {data} has ignored pixels alone; check its labels and class table")
    fewest, most = workers
    # Where their number may change, steps must not depend on it, and shares may be unequal.
    num_workers = most if fewest == most else 1
    steps = recipe.steps_per_epoch(num_images=dataset.splits[train_split].num_images, num_workers=num_workers)
    if recipe.batch_size < most:
        raise ValueError(
            f"batch_size {recipe.batch_size} gives some of {most} workers no image; give --batch-size {2 * most} or "
            "more, or fewer --workers"
        )
    if recipe.batch_size // most < recipe.accumulation:
        raise ValueError(
            f"batch_size {recipe.batch_size} gives some of {most} worker(s) {recipe.batch_size // most} image(s), "
            f"which cannot be cut into accumulation {recipe.accumulation} parts; give a smaller --accumulation"
        )
    if recipe.optim.warmup_steps >= steps * recipe.epochs:
        raise ValueError(
            f"the learning rate warms up over {recipe.optim.warmup_steps} steps and this training has {steps} in each "
            f"of its {recipe.epochs} epoch(s); give --epochs {recipe.optim.warmup_steps // steps + 1} or more, or a "
            "smaller --optim.warmup-steps"
        )
    parts = most * recipe.accumulation
    one_each = recipe.batch_size // most // recipe.accumulation == 1 and not synchronised
    if one_each and normalises_batches(recipe.model, dataset.num_classes):
        at_a_time = f" at a time (accumulation {recipe.accumulation})" if recipe.accumulation > 1 else ""
        raise ValueError(
            f"batch_size {recipe.batch_size} gives each of {most} worker(s) one image{at_a_time}, which batch "
            f"normalisation cannot use; give --batch-size {2 * parts} or more, or fewer --workers"
        )
    check_class_names(recipe, dataset)
    pca, pca_digest = _open_label_pca(recipe, label_pca, dataset, data=data)
    check_shards(dataset, (train_split, validation_split))
    return TrainInputs(
        dataset=dataset,
        train_split=train_split,
        validation_split=validation_split,
        label_pca=pca,
        label_pca_digest=pca_digest,
        steps_per_epoch=steps,
        input_policy=_input_policy(dataset, train_split, recipe),
        class_weights=class_weights_of(recipe, dataset, train_split),
    )


def _open_label_pca(
    recipe: Recipe, uri: str | None, dataset: PreparedDataset, *, data: str
) -> tuple[LabelCode | None, str | None]:
    """Load the label PCA that the network needs; more components than it uses are cut off, which PCA allows."""
    size = label_pca_size(recipe.model)
    if size is None:
        if uri is not None:
            raise ValueError(f"this recipe's network has no use for --label-pca {uri}; leave it out")
        return None, None
    if uri is None:
        raise ValueError(
            "this recipe's decoder is initialised from the training labels and needs --label-pca; make one with "
            f"jobs/fit_label_pca.py --data {data} --block-side {size.block_side} "
            f"--num-components {size.num_components} --output URI"
        )
    folder = load_label_pca(uri)
    folder.check_class_table(dataset.class_names, whose=f"the dataset {data}")
    code = folder.code
    if isinstance(code, LabelPCA) and code.num_components > size.num_components:
        code = code.leading(size.num_components)
    build_network(recipe.model, dataset.num_classes, label_pca=code)  # raises where block side, classes, ... differ
    return code, folder.digest


def check_shards(dataset: PreparedDataset, splits: tuple[str, ...]) -> None:
    """Ask for the size of every shard: a missing or cut one is named now, not after an hour. Content is read later.

    Raises:
        ValueError: a shard is missing or has another size than the manifest says.
    """

    def check(uri: str, num_bytes: int) -> None:
        fs, path = storage.filesystem(uri)
        try:
            found = fs.info(path)["size"]
        except FileNotFoundError:
            raise ValueError(f"shard {uri} is missing; restore it, or run jobs/prepare.py again") from None
        if found != num_bytes:
            raise ValueError(
                f"shard {uri} has {found} bytes and its manifest says {num_bytes}; "
                "restore it, or run jobs/prepare.py again"
            )

    with ThreadPoolExecutor(16) as pool:
        for split in splits:
            parts = dataset.splits[split].parts
            list(pool.map(check, dataset.part_uris(split), (part.num_bytes for part in parts)))


def initial_state(recipe: Recipe, inputs: TrainInputs, *, weights: str, start_from: str | None = None) -> bytes:
    """The weights that every worker starts from (safetensors), so that neither their number nor their seeds matter.

    Args:
        recipe, inputs: of the training.
        weights: of the backbone, see `pipelines.training.weights.resolve_weights`.
        start_from: model folder whose whole network is the start. Layers that it does not have keep their initial
            values; the log names them.

    Raises:
        ValueError: the pre-trained weights are missing, changed, or do not fit.
    """
    torch.manual_seed(recipe.seed)
    network = build_network(recipe.model, inputs.dataset.num_classes, label_pca=inputs.label_pca)
    state = resolve_weights(weights, backbone=recipe.model.backbone)
    if state is not None:
        load_pretrained(network, state)
    if start_from is not None:
        checked_start(recipe, inputs, start_from)
        start = start_from_whole(network, whole_network(start_from))
        logger.info("starting from the whole network in %s", start_from)
        if start.untouched:
            logger.info("not in it, with initial values: %s", ", ".join(start.untouched))
        if start.unused:
            logger.info("without a place here, left out: %s", ", ".join(start.unused))
    return state_bytes(network.state_dict())


def checked_start(recipe: Recipe, inputs: TrainInputs, start_from: str) -> str:
    """Digest of the model folder to start from; see `pipelines.training.weights.start_digest`.

    Raises:
        ValueError: it does not fit recipe or inputs.
    """
    return start_digest(
        start_from,
        network=recipe.model,
        class_names=inputs.dataset.class_names,
        label_pca_digest=inputs.label_pca_digest,
    )


def _input_policy(dataset: PreparedDataset, split: str, recipe: Recipe) -> InputPolicy:
    """Crop size, and the median size of the first shard's images."""
    first = read_part(dataset, dataset.splits[split].parts[0], columns=("height", "width"))
    return InputPolicy(
        image_height=int(np.median(first["height"].to_numpy())),
        image_width=int(np.median(first["width"].to_numpy())),
        crop_height=recipe.augment.crop_height,
        crop_width=recipe.augment.crop_width,
    )
