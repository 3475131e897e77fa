"""The model folder: what `train` leaves and every later stage loads. No pickles.

<folder>/model.safetensors   every parameter and buffer, by the network's own names
<folder>/config.json         the `ModelCard`: network, class table, normalisation, input policy, origins, scores
<folder>/manifest.json       written last: SHA-256 of the two, and the folder's digest
<folder>/reference.json      what nights are held against (`night_report.references`); not in folders of older versions

A folder in the Hugging Face layout (`pipelines.model_export.hugging_face`) is one too: its config.json holds the card
beside that layout's own fields, and its digest is that of the folder that it was made from.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor, nn

from pipelines import storage
from pipelines.manifests import code_commit, digest, read_manifest, write_manifest
from segcore import Task
from segcore.inference import InferenceConfig, inference_from_dict
from segcore.models import at_output_stride
from segcore.networks import (
    NetworkConfig,
    network_from_dict,
    network_to_dict,
    restore_network,
    segmentation_config,
    task_of,
)

KIND = "model"
WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"
CARD_FIELD = "segpipe"
"""Of a `config.json` in the Hugging Face layout: the card."""


@dataclass(frozen=True, kw_only=True, slots=True)
class InputPolicy:
    """What the network saw in training, so that inference can show it pictures of the same scale.

    Attributes:
        image_height: rows of a typical training image, before augmentation.
        image_width: columns of the same.
        crop_height: rows of a training crop.
        crop_width: columns of the same.
    """

    image_height: int
    image_width: int
    crop_height: int
    crop_width: int


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelCard:
    """All that is needed to use a model, beside its weights.

    Attributes:
        model_config: the network; its backbone's name fixes the architecture, no weights are fetched.
        class_names: the class table, in the order of the logits' channels.
        palette: one RGB colour per class, 0..255; empty for a classifier.
        mean: of the backbone's input, per RGB channel, in units of 1 (image / 255).
        std: likewise.
        dataset_digest: of the prepared dataset that it was trained on.
        label_pca_digest: of the label PCA that initialised its decoder, or None.
        recipe: the resolved recipe, as JSON values.
        scores: validation scores of these weights by metric name, fractions of 1.
        input_policy: the scale of the pictures that it was trained on.
    """

    model_config: NetworkConfig
    class_names: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    dataset_digest: str
    label_pca_digest: str | None
    recipe: dict[str, Any]
    scores: dict[str, float]
    input_policy: InputPolicy

    def __post_init__(self) -> None:
        if len(self.palette) != (len(self.class_names) if self.task == "segmentation" else 0):
            raise ValueError(
                f"{len(self.class_names)} class names and {len(self.palette)} colours; give one colour per class, and "
                "none to a classifier"
            )

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def task(self) -> Task:
        """Whether this is a segmentation network or a classifier."""
        return task_of(self.model_config)


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelBundle:
    """A loaded model folder.

    Attributes:
        model: the network, in evaluation mode, on the CPU; it obeys `SegmentationModel`, or is a `Classifier`.
        card: the rest of the folder.
        digest: SHA-256 over weights and card; two folders with one digest give the same masks.
        uri: where it was loaded from.
    """

    model: nn.Module
    card: ModelCard
    digest: str
    uri: str


def save_model(uri: str, model: nn.Module, card: ModelCard) -> str:
    """Write a model folder, its manifest last, and return its digest.

    Args:
        uri: the folder; files of an earlier model there are replaced.
        model: what `build_network(card.model_config, card.num_classes)` gives, trained; not wrapped in DDP.
        card: see `ModelCard`.
    """
    content = {WEIGHTS_FILE: state_bytes(model.state_dict()), CONFIG_FILE: storage.json_bytes(card_to_dict(card))}
    files = write_files(uri, content)
    folder_digest = digest(files)
    write_manifest(uri, kind=KIND, content={"files": files, "digest": folder_digest, "code_commit": code_commit()})
    return folder_digest


def write_files(uri: str, content: Mapping[str, bytes]) -> dict[str, dict[str, Any]]:
    """Write files into a folder, and return the SHA-256 and size of each, as its manifest lists them."""
    for name, data in content.items():
        storage.write_atomic(storage.join(uri, name), data)
    return {name: {"sha256": storage.sha256(data), "num_bytes": len(data)} for name, data in content.items()}


def load_model(uri: str, *, task: Task = "segmentation", output_stride: int = 0) -> ModelBundle:
    """Load a model folder and prove that it is complete and unchanged.

    Args:
        uri: the folder.
        task: that the model must be for.
        output_stride: of the network that the weights are put into; 0: as it was trained.

    Raises:
        ValueError: there is no manifest, a file is missing or changed, the weights do not fit the network, or the model
            is for another task; the message names the file. Or the network has no such output stride.
    """
    card, state, folder_digest = read_weights(uri)
    _check_task(card, task, uri)
    network = card.model_config
    if output_stride:
        network = at_output_stride(segmentation_config(network), output_stride)
    model = restore_network(network, card.num_classes, state)
    return ModelBundle(model=model, card=card, digest=folder_digest, uri=uri)


def read_weights(uri: str) -> tuple[ModelCard, dict[str, Tensor], str]:
    """Card, tensors by the network's names, and digest of a model folder for any task, complete and unchanged.

    Raises:
        ValueError: there is no manifest, or a file is missing or changed; the message names the file.
    """
    manifest = read_manifest(uri, kind=KIND)
    content = {name: _read_verified(uri, name, entry["sha256"]) for name, entry in manifest["files"].items()}
    missing = {WEIGHTS_FILE, CONFIG_FILE} - content.keys()
    if missing:
        raise ValueError(f"the manifest of model folder {uri!r} lists no {sorted(missing)[0]}; train or copy it again")
    card = _card_of(storage.read_json(storage.join(uri, CONFIG_FILE)))
    state = read_state(content[WEIGHTS_FILE], origin=storage.join(uri, WEIGHTS_FILE))
    return card, state, manifest["digest"]


def chosen_inference(card: ModelCard, given: InferenceConfig, *, as_in_recipe: bool) -> InferenceConfig:
    """How a stage shows images to a model: as it was told, or as the model's recipe says, with the CRF that is given.

    Raises:
        ValueError: both were asked for, and more than a CRF was given; or the network does not have the output stride.
    """
    inference = inference_from_dict(card.recipe.get("inference", {})) if as_in_recipe else given
    if as_in_recipe and given != InferenceConfig():
        if given != InferenceConfig(crf=given.crf):
            raise ValueError(
                "--recipe-inference and --inference.* exclude each other, but for --inference.crf.*; give one of them"
            )
        inference = dataclasses.replace(inference, crf=given.crf)
    if inference.output_stride:
        at_output_stride(segmentation_config(card.model_config), inference.output_stride)
    return inference


def read_card(uri: str, *, task: Task | None = "segmentation") -> tuple[ModelCard, str]:
    """Card and digest of a model folder, without reading its weights; `task` None takes a model for any.

    Raises:
        ValueError: there is no manifest, the card is missing or changed, or the model is for another task.
    """
    manifest = read_manifest(uri, kind=KIND)
    _read_verified(uri, CONFIG_FILE, manifest["files"][CONFIG_FILE]["sha256"])
    card = _card_of(storage.read_json(storage.join(uri, CONFIG_FILE)))
    if task is not None:
        _check_task(card, task, uri)
    return card, manifest["digest"]


def _check_task(card: ModelCard, task: Task, uri: str) -> None:
    if card.task == task:
        return
    what = {"segmentation": "a segmentation network", "classification": "an image classifier"}
    raise ValueError(
        f"model folder {uri!r} holds {what[card.task]}, expected {what[task]}; give another model (a classifier's "
        "backbone starts a training: jobs/train.py --weights FOLDER)"
    )


def state_bytes(state: dict[str, Tensor]) -> bytes:
    """Safetensors bytes of a state dict; equal tensors give equal bytes."""
    # clone: safetensors refuses tensors that share memory (tied weights)
    data: bytes = safetensors.torch.save(
        {name: state[name].detach().cpu().contiguous().clone() for name in sorted(state)}
    )
    return data


def read_state(data: bytes, *, origin: str) -> dict[str, Tensor]:
    """Reverse `state_bytes`.

    Raises:
        ValueError: the bytes are no safetensors file; the message names `origin`.
    """
    try:
        state: dict[str, Tensor] = safetensors.torch.load(data)
    except SafetensorError as error:
        raise ValueError(f"{origin} is not a safetensors file ({error}); restore it or train again") from error
    return state


def card_to_dict(card: ModelCard) -> dict[str, Any]:
    """The card as JSON values; `card_from_dict` reverses it."""
    fields = {field.name: getattr(card, field.name) for field in dataclasses.fields(card)}
    return fields | {
        "model_config": network_to_dict(card.model_config),
        "input_policy": dataclasses.asdict(card.input_policy),
    }


def card_from_dict(values: dict[str, Any]) -> ModelCard:
    """Read a card back from JSON values.

    Raises:
        ValueError: a field is missing or unknown.
    """
    expected = {field.name for field in dataclasses.fields(ModelCard)}
    if values.keys() != expected:
        wrong = ", ".join(sorted(values.keys() ^ expected))
        raise ValueError(f"{CONFIG_FILE} of a model folder misses or adds: {wrong}; it was written by another version")
    return ModelCard(
        model_config=network_from_dict(values["model_config"]),
        class_names=tuple(values["class_names"]),
        palette=tuple((red, green, blue) for red, green, blue in values["palette"]),
        mean=tuple(values["mean"]),
        std=tuple(values["std"]),
        dataset_digest=values["dataset_digest"],
        label_pca_digest=values["label_pca_digest"],
        recipe=values["recipe"],
        scores=values["scores"],
        input_policy=InputPolicy(**values["input_policy"]),
    )


def _card_of(config: dict[str, Any]) -> ModelCard:
    """The card in a `config.json`, which is one or has one among the fields of the Hugging Face layout."""
    return card_from_dict(config.get(CARD_FIELD, config))


def _read_verified(uri: str, name: str, sha256: str) -> bytes:
    path = storage.join(uri, name)
    try:
        data = storage.read_bytes(path)
    except FileNotFoundError:
        raise ValueError(
            f"model folder {uri!r} misses {name}, which its manifest lists; copy the whole folder"
        ) from None
    if storage.sha256(data) != sha256:
        raise ValueError(f"{path} has changed since it was written (its SHA-256 differs); restore it or train again")
    return data
