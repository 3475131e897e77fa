"""Registered models: versions that hold a model folder, and the aliases that point at them."""

import contextlib
import re
import tempfile
import warnings
from dataclasses import dataclass
from importlib.metadata import version as package_version
from pathlib import Path

import mlflow.pyfunc
import numpy as np
import pandas as pd
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion as RegisteredVersion
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, DataType, Schema
from mlflow.types.schema import Array

from pipelines import storage
from pipelines.checkpoints import ModelCard, read_card
from pipelines.manifests import read_manifest
from pipelines.model_cards import model_card
from pipelines.pictures import png_bytes
from pipelines.serving import IMAGE_COLUMN
from pipelines.tracking.runs import (
    CODE_TAG,
    DATASET_DIGEST_TAG,
    LABEL_PCA_DIGEST_TAG,
    MODEL_DIGEST_TAG,
    MODEL_FOLDER_TAG,
)
from segcore.networks import network_to_dict

MODELS_PREFIX = "models:/"
MODEL_DESCRIPTION = (
    "Trained by `jobs/train.py --register`. Aliases: `challenger` is the newest version; `champion` is what "
    "`jobs/segment.py` is given at night, and `jobs/promote.py` moves it."
)
SERVING_PACKAGES = (
    "torch",
    "timm",
    "safetensors",
    "fsspec",
    "numpy",
    "numba",
    "llvmlite",
    "scipy",
    "threadpoolctl",
    "pillow",
    "simplejpeg",
    "kornia-rs",
    "opencv-contrib-python-headless",
    "pandas",
)
"""What `pipelines.serving` imports, directly or not, beside mlflow and its own requirements."""

CARD_FILE = "model_card.md"
SIGNATURE = ModelSignature(
    inputs=Schema([ColSpec(DataType.binary, IMAGE_COLUMN)]),
    outputs=Schema([ColSpec(Array(Array(DataType.long)))]),
)
"""Encoded images in; per image the rows of its class map out. In JSON the bytes are base64."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ResolvedModel:
    """A model that a job was asked for, fixed once on the driver.

    Attributes:
        folder_uri: the model folder, readable by every worker.
        version: of the registered model, or "" for a plain folder.
        model_uri: `models:/name/version`, or the folder.
    """

    folder_uri: str
    version: str
    model_uri: str


def resolve_model(uri: str) -> ResolvedModel:
    """Turn `models:/name@alias`, `models:/name/3` or a folder into a model folder.

    An alias can move while a job runs: call this once on the driver and pass the result on.

    Raises:
        ValueError: no such model, alias or version; or its model folder is gone or holds another model by now.
    """
    if not uri.startswith(MODELS_PREFIX):
        return ResolvedModel(folder_uri=uri, version="", model_uri=uri)
    name, alias, number = _parse_model_uri(uri)
    client = MlflowClient()
    try:
        version = client.get_model_version_by_alias(name, alias) if alias else client.get_model_version(name, number)
    except MlflowException as error:
        known = ", ".join(sorted(model.name for model in client.search_registered_models())) or "none"
        raise ValueError(f"MLflow cannot resolve {uri!r}: {error.message}; registered models: {known}") from error
    folder = version.tags.get(MODEL_FOLDER_TAG)
    if folder is None:
        raise ValueError(f"{uri!r} has no tag {MODEL_FOLDER_TAG}: jobs/train.py did not register it; give its folder")
    manifest = read_manifest(folder, kind="model")
    if manifest["digest"] != version.tags.get(MODEL_DIGEST_TAG):
        raise ValueError(f"{folder!r} no longer holds version {version.version} of {name!r}; register the folder again")
    return ResolvedModel(
        folder_uri=folder, version=str(version.version), model_uri=f"{MODELS_PREFIX}{name}/{version.version}"
    )


def register_model(folder_uri: str, *, name: str, alias: str, run_id: str) -> str:
    """Register a model folder as a new version of `name`, point `alias` at it, and return the version.

    The version holds a copy of the folder and of this code as a pyfunc model:
    `mlflow.pyfunc.load_model("models:/name@alias").predict(frame)` gives class maps (see `pipelines.serving`), and so
    does `mlflow models serve`. The model card is the version's description, and with the class table the run's artifact
    `model_card.md`. The same folder content registered again returns its version and only moves the alias.

    Raises:
        ValueError: the folder is not a finished model.
    """
    card, folder_digest = read_card(folder_uri, task=None)
    code_commit = str(read_manifest(folder_uri, kind="model")["code_commit"])
    client = MlflowClient()
    with contextlib.suppress(MlflowException):  # it exists: a later version
        client.create_registered_model(name, description=MODEL_DESCRIPTION)
    for known in client.search_model_versions(f"name = '{name}'"):
        if known.tags.get(MODEL_DIGEST_TAG) == folder_digest and known.tags.get(MODEL_FOLDER_TAG) == folder_uri:
            client.set_registered_model_alias(name, alias, known.version)
            return str(known.version)
    with tempfile.TemporaryDirectory() as scratch:
        packed = Path(scratch, "pyfunc")
        _pack_pyfunc(folder_uri, Path(scratch, "model"), packed, card)
        client.log_artifacts(run_id, str(packed), "model")
    short, whole = (
        model_card(card, title=name, model_digest=folder_digest, code_commit=code_commit, with_classes=with_classes)
        for with_classes in (False, True)
    )
    client.log_text(run_id, whole, CARD_FILE)
    tags = {
        MODEL_FOLDER_TAG: folder_uri,
        MODEL_DIGEST_TAG: folder_digest,
        DATASET_DIGEST_TAG: card.dataset_digest,
        CODE_TAG: code_commit,
    } | ({LABEL_PCA_DIGEST_TAG: card.label_pca_digest} if card.label_pca_digest else {})
    source = f"{client.get_run(run_id).info.artifact_uri}/model"
    description = f"{_description(card)}\n\n{short}"  # without classes, of which there may be too many for MLflow
    version = client.create_model_version(name, source, run_id=run_id, tags=tags, description=description)
    client.set_registered_model_alias(name, alias, version.version)
    return str(version.version)


def _description(card: ModelCard) -> str:
    network, backbone = network_to_dict(card.model_config)["network"], card.model_config.backbone
    scores = {name: value for name, value in card.scores.items() if name.count("/") == 1}  # without single classes
    shown = ", ".join(f"{name} {value:.4f}" for name, value in sorted(scores.items()))
    return f"{network} on {backbone}, {card.num_classes} classes; {shown}; dataset `{card.dataset_digest[:12]}`."


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelVersion:
    """A registered version, as `promote` needs it.

    Attributes:
        name: of the registered model.
        version: its number.
        model_digest: of its model folder; "" where `train` did not register it.
        run_id: MLflow run that trained it, or "".
        description: Markdown.
    """

    version: str
    model_digest: str
    run_id: str
    description: str
    name: str = ""


def version_of_alias(name: str, alias: str) -> ModelVersion | None:
    """The version of a registered model that an alias points at; None where there is no such model or alias."""
    try:
        return _model_version(MlflowClient().get_model_version_by_alias(name, alias))
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):  # no model; no alias
            return None
        raise


def versions_of_model(model_digest: str) -> list[ModelVersion]:
    """Every registered version that holds the model folder with this digest."""
    found = MlflowClient().search_model_versions(f"tags.`{MODEL_DIGEST_TAG}` = '{model_digest}'")
    return [_model_version(each) for each in found]


def _model_version(found: RegisteredVersion) -> ModelVersion:
    return ModelVersion(
        name=found.name,
        version=str(found.version),
        model_digest=found.tags.get(MODEL_DIGEST_TAG, ""),
        run_id=found.run_id or "",
        description=found.description or "",
    )


def move_alias(name: str, alias: str, version: str) -> None:
    """Point an alias at a version; from then on `models:/name@alias` is that one."""
    MlflowClient().set_registered_model_alias(name, alias, version)


def describe_version(name: str, version: str, description: str) -> None:
    """Replace a version's description (Markdown)."""
    MlflowClient().update_model_version(name, version, description)


def _pack_pyfunc(folder_uri: str, local_folder: Path, packed: Path, card: ModelCard) -> None:
    """Save a pyfunc model with a loader module: MLflow's other ways pickle the class."""
    local_folder.mkdir(parents=True)
    for uri in storage.list_files(folder_uri):
        Path(local_folder, uri.rsplit("/", 1)[1]).write_bytes(storage.read_bytes(uri))
    root = Path(__file__).resolve().parents[2]
    with warnings.catch_warnings():
        # MLflow 3.17 on pandas 3.1, where it looks at the example's columns
        warnings.filterwarnings("ignore", message="Operation with range is deprecated")
        mlflow.pyfunc.save_model(
            path=str(packed),
            loader_module="pipelines.serving",
            data_path=str(local_folder),
            code_paths=[str(root / "segcore"), str(root / "pipelines")],
            # given, since MLflow would otherwise load the model in a second process to find out
            pip_requirements=[f"{package}=={package_version(package)}" for package in SERVING_PACKAGES],
            signature=SIGNATURE if card.task == "segmentation" else None,
            input_example=_input_example(card) if card.task == "segmentation" else None,
        )


def _input_example(card: ModelCard) -> pd.DataFrame:
    """A PNG of the mean colour, a quarter of a typical training image's sides: what a caller sends, and no photo."""
    height, width = max(1, card.input_policy.image_height // 4), max(1, card.input_policy.image_width // 4)
    colour = np.round(255 * np.array(card.mean)).astype(np.uint8)
    return pd.DataFrame({IMAGE_COLUMN: [png_bytes(np.tile(colour, (height, width, 1)))]})


def _parse_model_uri(uri: str) -> tuple[str, str, str]:
    match = re.fullmatch(r"models:/([^/@]+)(?:@([^/@]+)|/(\d+))", uri)
    if match is None:
        raise ValueError(f"model URI {uri!r} is none of models:/name@alias, models:/name/3, or a model folder")
    name, alias, number = match.groups()
    return name, alias or "", number or ""
