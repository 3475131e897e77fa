"""Every network that can be trained: those of `segcore.models`, and the classifier that their backbones come from."""

from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from segcore import Task
from segcore.classifier import Classifier, ClassifierConfig
from segcore.label_code import LabelCode
from segcore.models import (
    ICNet,
    LabelPCASize,
    ModelConfig,
    build_model,
    config_from_dict,
    config_to_dict,
    meta_model,
    needed_label_pca,
    restore_model,
)
from segcore.models.icnet_pruning import prune_to_fit

NetworkConfig = ModelConfig | ClassifierConfig

CLASSIFIER = "classifier"
"""What stands for the name of a network where a `ClassifierConfig` is stored."""

ENCODING_FIELDS = ("num_codewords", "encoded_channels")
"""Of a `ClassifierConfig`; stored with codewords alone, so that what is written of other classifiers stays the same."""


def task_of(config: NetworkConfig) -> Task:
    """What the network says of an image."""
    return "classification" if isinstance(config, ClassifierConfig) else "segmentation"


def segmentation_config(config: NetworkConfig) -> ModelConfig:
    """The same config, for functions that know segmentation networks alone.

    Raises:
        ValueError: it is a classifier's.
    """
    if isinstance(config, ClassifierConfig):
        raise ValueError("this is an image classifier, and a segmentation network is needed; choose another model")
    return config


def label_pca_size(config: NetworkConfig) -> LabelPCASize | None:
    """The label PCA that `build_network` asks for, or None."""
    return None if isinstance(config, ClassifierConfig) else needed_label_pca(config)


def normalises_batches(config: NetworkConfig, num_classes: int) -> bool:
    """Whether the network has batch normalisation, which a batch of one image per worker may leave without a variance.

    Raises:
        ValueError: the number of classes is out of range.
    """
    return any(isinstance(layer, _BatchNorm) for layer in meta_network(config, num_classes).modules())


def meta_network(config: NetworkConfig, num_classes: int) -> nn.Module:
    """The network without weights, on the meta device and in evaluation mode: for shapes and costs (`segcore.cost`).

    Raises:
        ValueError: the number of classes is out of range.
    """
    if not isinstance(config, ClassifierConfig):
        return meta_model(config, num_classes)
    with torch.device("meta"):
        return Classifier(config, num_classes).eval()


def build_network(config: NetworkConfig, num_classes: int, *, label_pca: LabelCode | None = None) -> nn.Module:
    """Build a network with random weights; see `segcore.models.build_model`.

    Raises:
        ValueError: the label PCA is missing, unwanted, or does not fit; the number of classes is out of range.
    """
    if not isinstance(config, ClassifierConfig):
        return build_model(config, num_classes, label_pca=label_pca)
    if label_pca is not None:
        raise ValueError("an image classifier has no use for a label PCA; leave it out")
    return Classifier(config, num_classes)


def restore_network(config: NetworkConfig, num_classes: int, state_dict: Mapping[str, Tensor]) -> nn.Module:
    """Rebuild a network from its own state dict, in evaluation mode.

    Raises:
        ValueError: a tensor is missing, unknown, or has another shape.
    """
    if not isinstance(config, ClassifierConfig):
        return restore_model(config, num_classes, state_dict)
    network = Classifier(config, num_classes)
    try:
        network.load_state_dict(dict(state_dict))
    except RuntimeError as error:
        raise ValueError(
            f"weights do not fit a classifier of {num_classes} classes on {config.backbone!r}; "
            f"use the config that they were saved with. {error}"
        ) from error
    return network.eval()


class WholeStart(NamedTuple):
    """What did not match when one network started from another: names of tensors."""

    untouched: tuple[str, ...]
    """Of the network: they keep their values."""
    unused: tuple[str, ...]
    """Of the state dict: the network has no place for them."""


def start_from_whole(network: nn.Module, state_dict: Mapping[str, Tensor]) -> WholeStart:
    """Copy every tensor of a trained network of the same kind that `network` has by that name.

    Two stages of one training have all names in common; FCN-16s has layers that FCN-32s has not. A wider ICNet is
    pruned.

    Raises:
        ValueError: a tensor has another shape; nothing is changed then.
    """
    own = network.state_dict()
    if isinstance(network, ICNet):
        state_dict = prune_to_fit(state_dict, own)
    common = {name: tensor for name, tensor in state_dict.items() if name in own}
    misshapen = [
        f"{name} {tuple(tensor.shape)} instead of {tuple(own[name].shape)}"
        for name, tensor in common.items()
        if tensor.shape != own[name].shape
    ]
    if misshapen:
        raise ValueError(
            f"the network to start from has {len(misshapen)} tensor(s) of another shape: {', '.join(misshapen[:5])}; "
            "give one of the same settings, or change this network's"
        )
    network.load_state_dict(own | common)
    return WholeStart(
        untouched=tuple(name for name in own if name not in common),
        unused=tuple(name for name in state_dict if name not in own),
    )


def network_to_dict(config: NetworkConfig) -> dict[str, object]:
    """JSON-ready dict: `network` (key of `MODELS`, or "classifier") and every field."""
    if isinstance(config, ClassifierConfig):
        values = {
            name: value for name, value in asdict(config).items() if config.num_codewords or name not in ENCODING_FIELDS
        }
        return {"network": CLASSIFIER, **values}
    return config_to_dict(config)


def network_from_dict(values: Mapping[str, object]) -> NetworkConfig:
    """Inverse of `network_to_dict`; fields that are left out have their defaults.

    Raises:
        ValueError: unknown network or field, or a value that the config refuses.
    """
    if values.get("network") != CLASSIFIER:
        return config_from_dict(values)
    given = {name: value for name, value in values.items() if name != "network"}
    known = [field.name for field in fields(ClassifierConfig)]
    if unknown := sorted(set(given) - set(known)):
        raise ValueError(f"unknown field(s) {', '.join(unknown)} of a classifier; known: {', '.join(known)}")
    return ClassifierConfig(**given)  # type: ignore[arg-type]  # JSON values, which the config checks
