"""What a training starts from: a backbone from nowhere, timm's hub, a file or a model folder, or a whole network."""

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
from segcore.networks import NetworkConfig, network_to_dict, task_of

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


def start_digest(
    start_from: str, *, network: NetworkConfig, class_names: tuple[str, ...], label_pca_digest: str | None
) -> str:
    """Digest of the model folder whose whole network a training is to start from.

    Args:
        start_from: the folder.
        network: that will be trained.
        class_names: of the dataset.
        label_pca_digest: of the label PCA that the training was given, or None.

    Raises:
        ValueError: the folder is no model, or its card has changed; its network is of another kind or on another
            backbone; or it was trained for other classes or with another label PCA.
    """
    card, digest = read_card(start_from, task=task_of(network))
    theirs, ours = card.model_config, network
    if type(theirs) is not type(ours) or theirs.backbone != ours.backbone:
        names = [f"{network_to_dict(config)['network']} on {config.backbone}" for config in (theirs, ours)]
        raise ValueError(
            f"--start-from {start_from} is a {names[0]}, and this recipe trains a {names[1]}; give a model of the same "
            "network, or start from its backbone alone with --weights"
        )
    if card.class_names != class_names:
        raise ValueError(
            f"--start-from {start_from} was trained on {len(card.class_names)} classes "
            f"({', '.join(card.class_names)}), and the dataset has {len(class_names)} ({', '.join(class_names)}); "
            "start from its backbone alone with --weights"
        )
    if card.label_pca_digest != label_pca_digest:
        raise ValueError(
            f"--start-from {start_from} was trained with another label PCA, which is a part of the network; give that "
            "one as --label-pca"
        )
    return digest


def whole_network(start_from: str) -> dict[str, Tensor]:
    """All tensors of a model folder that `start_digest` has accepted.

    Raises:
        ValueError: a file is missing or has changed.
    """
    return read_weights(start_from)[1]


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
