"""Pre-trained backbone weights from where a user keeps them: nowhere, timm's hub, a file, or an earlier training."""

import io
import logging
import pickle
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from pipelines import storage
from pipelines.checkpoints import read_card, read_weights
from pipelines.manifests import MANIFEST
from segcore.backbones import BACKBONES, backbone_state

logger = logging.getLogger(__name__)

NO_WEIGHTS = "none"
TIMM_WEIGHTS = "timm"


def resolve_weights(weights: str, *, backbone: str) -> dict[str, Tensor] | None:
    """Fetch a state dict for `segcore.backbones.load_backbone_weights`.

    Args:
        weights: `none` (start from random weights, returns None), `timm` (download what timm publishes for this
            backbone), the path or URI of a state dict (`.safetensors`, or a `torch.save` file of tensors), or that of
            the model folder of a finished training, of which the backbone is taken, and `fc` where it is a classifier.
        backbone: key of `BACKBONES`.

    Raises:
        ValueError: the file is missing, is neither format, or holds anything but tensors; the download failed or
            timm has no such backbone; or the model folder is broken, or has another backbone.
    """
    if weights == NO_WEIGHTS:
        return None
    if weights == TIMM_WEIGHTS:
        return _from_timm(backbone)
    if weights_digest(weights, backbone=backbone) is not None:
        return backbone_state(read_weights(weights)[1])
    try:
        data = storage.read_bytes(weights)
    except (FileNotFoundError, IsADirectoryError):
        raise ValueError(
            f"no weights file at {weights!r}; give --weights {NO_WEIGHTS}, --weights {TIMM_WEIGHTS}, "
            "the path or URI of a state dict, or a model folder (OUTPUT/NAME/model of a finished training)"
        ) from None
    return _state_dict(data, weights)


def weights_digest(weights: str, *, backbone: str) -> str | None:
    """Digest of the model folder that `weights` names; None where it names something else.

    Raises:
        ValueError: the folder is no model, its card has changed, or its backbone is another one.
    """
    if weights in (NO_WEIGHTS, TIMM_WEIGHTS) or not storage.exists(storage.join(weights, MANIFEST)):
        return None
    card, digest = read_card(weights, task=None)
    if card.model_config.backbone != backbone:
        raise ValueError(
            f"--weights {weights} is a model on backbone {card.model_config.backbone!r}, and this recipe's network is "
            f"on {backbone!r}; give a model on that backbone, or set --model.backbone"
        )
    return digest


def _from_timm(backbone: str) -> dict[str, Tensor]:
    import timm  # seconds to import, and most runs give a file

    spec = BACKBONES[backbone]
    name = spec.timm_name
    if spec.network:
        raise ValueError(
            f"timm has no weights for {backbone!r}, the encoder of network {spec.network!r} itself; train from random "
            f"weights with --weights {NO_WEIGHTS}, or give the model folder of an earlier training of that network"
        )
    if name is None:
        raise ValueError(
            f"timm has no backbone {backbone!r}, so --weights {TIMM_WEIGHTS} finds nothing; train it as an image "
            "classifier first, with one of this project's classification recipes, and give that classifier's state "
            f"dict as --weights FILE, or train from random weights with --weights {NO_WEIGHTS}"
        )
    logger.info("downloading %s from timm's hub", name)
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it warns at each of a dozen retries
    try:
        state: dict[str, Tensor] = timm.create_model(name, pretrained=True).state_dict()
    # The hub's client raises its own and its HTTP library's errors, which no public base class joins.
    except Exception as error:
        first_line = str(error).strip().partition("\n")[0]
        raise ValueError(
            f"could not download weights {name!r} ({type(error).__name__}: {first_line}); where there is no network, "
            "download them elsewhere and give --weights FILE (.safetensors, or a torch.save of the state dict), "
            f"or train from random weights with --weights {NO_WEIGHTS}"
        ) from error
    return state


def _state_dict(data: bytes, origin: str) -> dict[str, Tensor]:
    try:
        if origin.endswith(".safetensors"):
            loaded: Any = safetensors.torch.load(data)
        else:
            loaded = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        first_line = str(error).strip().partition("\n")[0]
        raise ValueError(
            f"weights file {origin!r} is neither a .safetensors file nor a torch.save of plain tensors ({first_line})"
        ) from error
    if isinstance(loaded, dict) and isinstance(loaded.get("state_dict"), dict):
        loaded = loaded["state_dict"]
    if not isinstance(loaded, dict) or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise ValueError(f"weights file {origin!r} holds no state dict (a dictionary of tensors by name)")
    return loaded
