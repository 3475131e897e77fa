"""Pre-trained backbone weights from where a user keeps them: nowhere, timm's hub, or a file behind a URI."""

import io
import logging
import pickle
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from pipelines import storage
from segcore.backbones import BACKBONES

logger = logging.getLogger(__name__)

NO_WEIGHTS = "none"
TIMM_WEIGHTS = "timm"


def resolve_weights(weights: str, *, backbone: str) -> dict[str, Tensor] | None:
    """Fetch a state dict for `segcore.backbones.load_backbone_weights`.

    Args:
        weights: `none` (start from random weights, returns None), `timm` (download what timm publishes for this
            backbone), or the path or URI of a state dict: `.safetensors`, or a `torch.save` file of tensors.
        backbone: key of `BACKBONES`.

    Raises:
        ValueError: the file is missing, is neither format, or holds anything but tensors; the download failed, or timm
            has no such backbone.
    """
    if weights == NO_WEIGHTS:
        return None
    if weights == TIMM_WEIGHTS:
        return _from_timm(backbone)
    try:
        data = storage.read_bytes(weights)
    except (FileNotFoundError, IsADirectoryError):
        raise ValueError(
            f"no weights file at {weights!r}; give --weights {NO_WEIGHTS}, --weights {TIMM_WEIGHTS}, "
            "or the path or URI of a state dict"
        ) from None
    return _state_dict(data, weights)


def _from_timm(backbone: str) -> dict[str, Tensor]:
    import timm  # seconds to import, and most runs give a file

    name = BACKBONES[backbone].timm_name
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
