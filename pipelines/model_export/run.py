"""Export one model: load, write, check, and say what was written."""

import dataclasses
import logging
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import torch

from pipelines import manifests, storage, tracking
from pipelines.checkpoints import KIND as MODEL_KIND
from pipelines.checkpoints import ModelBundle, load_model, write_files
from pipelines.model_cards import EvaluatedScores, model_card, network_cost, read_scores
from pipelines.model_export.config import ModelExportConfig
from pipelines.model_export.graphs import OPSET, TOLERANCE, graph_bytes
from pipelines.model_export.hugging_face import README_FILE, hugging_face_files
from segcore.networks import network_to_dict

KIND = "model_export"

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelExportResult:
    """Where the export is, and how far it is from the network.

    Attributes:
        difference: largest of any logit at any size that was tried; None for a folder of weights, which are the same.
    """

    output: str
    format: str
    difference: float | None

    @property
    def closing_line(self) -> str:
        checked = "" if self.difference is None else f"; its scores differ by at most {self.difference:.2g}"
        return f"exported the model as {self.format} to {self.output}{checked}"


def export_model(config: ModelExportConfig) -> ModelExportResult:
    """Write a model for other programs, or find it written by the same command.

    Raises:
        ValueError: the model is missing, broken or no segmentation network; the network cannot be written in that
            format, or comes out different; the scores are another model's; or the output holds something else.
    """
    output = storage.absolute(config.output)
    if config.model.startswith(tracking.MODELS_PREFIX):
        tracking.connect(config.tracking_uri)
    resolved = tracking.resolve_model(config.model)
    bundle = load_model(storage.absolute(resolved.folder_uri))
    evaluated = read_scores(config.scores, model_digest=bundle.digest) if config.scores else None
    stated = {"format": config.format, "model_digest": bundle.digest, "scores": config.scores}
    storage.check_writable(output)
    if storage.exists(storage.join(output, manifests.MANIFEST)):
        return _finished(output, stated)
    card = _card(bundle, evaluated, title=_title(resolved.model_uri))
    if config.format == "hf":
        files, more = hugging_face_files(bundle, card_markdown=card), {"digest": bundle.digest}
    else:
        metadata = _metadata(bundle)
        data, parities = graph_bytes(bundle, file_format=config.format, metadata=metadata)
        files = {f"model.{config.format}": data, README_FILE: card.encode()}
        more = metadata | {
            "tolerance": TOLERANCE,
            "parity": [dataclasses.asdict(parity) for parity in parities],
            "packages": _packages(config.format),
        }
    _refuse_others(output, set(files))
    content = {
        **stated,
        **more,
        "model_uri": resolved.model_uri,
        "files": write_files(output, files),
        "code_commit": manifests.code_commit(),
    }
    manifests.write_manifest(output, kind=MODEL_KIND if config.format == "hf" else KIND, content=content)
    return _result(output, content)


def _title(model_uri: str) -> str:
    """`street/3` of a registered version; of a folder such as runs/street/model its run, and not where it lies."""
    if model_uri.startswith(tracking.MODELS_PREFIX):
        return model_uri.removeprefix(tracking.MODELS_PREFIX)
    parts = [part for part in model_uri.split("/") if part]
    return parts[-2] if parts[-1] == "model" and len(parts) > 1 else parts[-1]


def _card(bundle: ModelBundle, evaluated: EvaluatedScores | None, *, title: str) -> str:
    manifest = manifests.read_manifest(bundle.uri, kind=MODEL_KIND)
    return model_card(
        bundle.card,
        title=title,
        model_digest=bundle.digest,
        code_commit=str(manifest["code_commit"]),
        evaluated=evaluated,
    )


def _metadata(bundle: ModelBundle) -> dict[str, Any]:
    """What a program must know to use a graph; in the file itself and in the manifest."""
    card, cost = bundle.card, network_cost(bundle.card)
    return {
        "network": network_to_dict(card.model_config)["network"],
        "class_names": list(card.class_names),
        "palette": [list(colour) for colour in card.palette],
        "input": "images: uint8 (N,3,H,W), RGB; any N, H, W from 2 pixels; normalised inside the graph",
        "output": "logits: float32 (N,C,H,W); argmax over C gives class indices, softmax probabilities",
        "mean": list(card.mean),
        "std": list(card.std),
        "cost": dataclasses.asdict(cost),
    }


def _packages(file_format: str) -> dict[str, str]:
    """What wrote and checked the file."""
    if file_format == "pt2":
        return {"torch": torch.__version__}
    names = ("torch", "onnx", "onnxscript", "onnxruntime")
    return {name: version(name) for name in names} | {"opset": str(OPSET)}


def _refuse_others(output: str, files: set[str]) -> None:
    """Nothing is overwritten but what the same command, interrupted, has left."""
    found = {uri.removeprefix(output).lstrip("/") for uri in storage.list_files(output)}
    if others := sorted(found - files):
        raise ValueError(f"{output!r} holds {others[0]!r}, which is no part of this export; give an empty --output")


def _finished(output: str, stated: dict[str, Any]) -> ModelExportResult:
    manifest = storage.read_json(storage.join(output, manifests.MANIFEST))
    different = [name for name, value in stated.items() if manifest.get(name) != value]
    if different:
        raise ValueError(
            f"{output!r} holds a finished {manifest.get('kind')} with another {', '.join(different)}; give another "
            "--output"
        )
    logger.info("exported already by this command: %s", output)
    return _result(output, manifest)


def _result(output: str, content: dict[str, Any]) -> ModelExportResult:
    differences = [parity["difference"] for parity in content.get("parity", ())]
    return ModelExportResult(
        output=output, format=content["format"], difference=max(differences) if differences else None
    )
