"""Networks by name: `MODELS`, their configs, and how to build, save and restore one."""

from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from segcore.backbones import Backbone, load_backbone_weights
from segcore.label_code import LabelCode
from segcore.models.bisenet import BiSeNet, BiSeNetConfig
from segcore.models.block_codes import BlockCode, DUpsampleConfig, blank_block_code, block_code
from segcore.models.contract import LossTerms, PretrainedPart, SegmentationModel, SegmentationOutput
from segcore.models.deconvnet import DeconvNet, DeconvNetConfig
from segcore.models.deeplab import (
    DeepLabV1,
    DeepLabV1Config,
    DeepLabV2,
    DeepLabV2Config,
    DeepLabV3,
    DeepLabV3Config,
    DeepLabV3Plus,
    DeepLabV3PlusConfig,
)
from segcore.models.dfanet import DFANet, DFANetConfig
from segcore.models.dilated import DilatedContext, DilatedContextConfig
from segcore.models.dupsampling import DUpsampling, DUpsamplingConfig
from segcore.models.encnet import EncNet, EncNetConfig
from segcore.models.enet import ENet, ENetConfig
from segcore.models.espnet import ESPNet, ESPNetConfig
from segcore.models.fcn import FCN, FCNConfig
from segcore.models.icnet import ICNet, ICNetConfig
from segcore.models.pspnet import PSPNet, PSPNetConfig
from segcore.models.refinenet import RefineNet, RefineNetConfig
from segcore.models.segnet import SegNet, SegNetConfig
from segcore.models.unet import BackboneUNet, BackboneUNetConfig, UNet, UNetConfig

ModelConfig = (
    BackboneUNetConfig
    | BiSeNetConfig
    | DeconvNetConfig
    | DeepLabV1Config
    | DeepLabV2Config
    | DeepLabV3Config
    | DeepLabV3PlusConfig
    | DFANetConfig
    | DilatedContextConfig
    | DUpsamplingConfig
    | EncNetConfig
    | ENetConfig
    | ESPNetConfig
    | FCNConfig
    | ICNetConfig
    | PSPNetConfig
    | RefineNetConfig
    | SegNetConfig
    | UNetConfig
)

MODELS: dict[str, type[ModelConfig]] = {
    "bisenet": BiSeNetConfig,
    "backbone_unet": BackboneUNetConfig,
    "deconvnet": DeconvNetConfig,
    "deeplab_v1": DeepLabV1Config,
    "deeplab_v2": DeepLabV2Config,
    "deeplab_v3": DeepLabV3Config,
    "deeplab_v3plus": DeepLabV3PlusConfig,
    "dilated_context": DilatedContextConfig,
    "dfanet": DFANetConfig,
    "dupsampling": DUpsamplingConfig,
    "encnet": EncNetConfig,
    "enet": ENetConfig,
    "espnet": ESPNetConfig,
    "fcn": FCNConfig,
    "icnet": ICNetConfig,
    "pspnet": PSPNetConfig,
    "refinenet": RefineNetConfig,
    "segnet": SegNetConfig,
    "unet": UNetConfig,
}

_NETWORKS: dict[type, Callable[..., nn.Module]] = {
    BiSeNetConfig: BiSeNet,
    BackboneUNetConfig: BackboneUNet,
    DeconvNetConfig: DeconvNet,
    DeepLabV1Config: DeepLabV1,
    DeepLabV2Config: DeepLabV2,
    DeepLabV3Config: DeepLabV3,
    DeepLabV3PlusConfig: DeepLabV3Plus,
    DilatedContextConfig: DilatedContext,
    DFANetConfig: DFANet,
    DUpsamplingConfig: DUpsampling,
    EncNetConfig: EncNet,
    ENetConfig: ENet,
    ESPNetConfig: ESPNet,
    FCNConfig: FCN,
    ICNetConfig: ICNet,
    PSPNetConfig: PSPNet,
    RefineNetConfig: RefineNet,
    SegNetConfig: SegNet,
    UNetConfig: UNet,
}
"""The network of each config: takes the config, the number of classes, and the code of a data-dependent decoder."""

__all__ = [
    "FCN",
    "MODELS",
    "BackboneUNet",
    "BackboneUNetConfig",
    "BiSeNet",
    "BiSeNetConfig",
    "DFANet",
    "DFANetConfig",
    "DUpsampleConfig",
    "DUpsampling",
    "DUpsamplingConfig",
    "DeconvNet",
    "DeconvNetConfig",
    "DeepLabV1",
    "DeepLabV1Config",
    "DeepLabV2",
    "DeepLabV2Config",
    "DeepLabV3",
    "DeepLabV3Config",
    "DeepLabV3Plus",
    "DeepLabV3PlusConfig",
    "DilatedContext",
    "DilatedContextConfig",
    "ENet",
    "ENetConfig",
    "ESPNet",
    "ESPNetConfig",
    "EncNet",
    "EncNetConfig",
    "FCNConfig",
    "ICNet",
    "ICNetConfig",
    "LabelPCASize",
    "LossTerms",
    "ModelConfig",
    "PSPNet",
    "PSPNetConfig",
    "RefineNet",
    "RefineNetConfig",
    "SegNet",
    "SegNetConfig",
    "SegmentationModel",
    "SegmentationOutput",
    "UNet",
    "UNetConfig",
    "at_output_stride",
    "blank_model",
    "build_model",
    "config_from_dict",
    "config_to_dict",
    "load_pretrained",
    "meta_model",
    "needed_label_pca",
    "restore_model",
]


class LabelPCASize(NamedTuple):
    """The label PCA that a network needs: R, and the length of its code."""

    block_side: int
    num_components: int


def needed_label_pca(config: ModelConfig) -> LabelPCASize | None:
    """What `build_model` asks for, or None where the network's last step is bilinear."""
    if config.decoder == "bilinear":
        return None
    return LabelPCASize(config.enlargement, config.dupsample.num_components)


def build_model(config: ModelConfig, num_classes: int, *, label_pca: LabelCode | None = None) -> nn.Module:
    """Build a network with random weights (nothing is downloaded); it obeys `SegmentationModel`.

    Args:
        config: one of the classes of `MODELS`.
        num_classes: C, 1 to 254.
        label_pca: of the training labels, with the size that `needed_label_pca` says.

    Raises:
        ValueError: the label PCA is missing, unwanted, or does not fit the network; too many classes.
    """
    _check_num_classes(num_classes)
    size = needed_label_pca(config)
    if size is None:
        if label_pca is not None:
            raise ValueError(
                f"network {network_name(config)!r} with decoder 'bilinear' has no use for a label PCA; leave it out, "
                "or choose decoder 'dupsample'"
            )
        return _build(config, num_classes, None)
    if label_pca is None:
        raise ValueError(
            f"network {network_name(config)!r} needs a label PCA and got none; fit one on the training labels with "
            f"block side {size.block_side} and {size.num_components} components, and pass it "
            "(to rebuild a trained network from its weights, use restore_model)"
        )
    code = block_code(label_pca, config.dupsample, block_side=size.block_side, num_classes=num_classes)
    return _build(config, num_classes, code)


def restore_model(config: ModelConfig, num_classes: int, state_dict: Mapping[str, Tensor]) -> nn.Module:
    """Rebuild a network from its own state dict; the basis of a data-dependent decoder is in there.

    Returns:
        The network in evaluation mode.

    Raises:
        ValueError: a tensor is missing, unknown, or has another shape.
    """
    model = blank_model(config, num_classes)
    try:
        model.load_state_dict(dict(state_dict))
    except RuntimeError as error:
        raise ValueError(
            f"weights do not fit the network {network_name(config)!r} with {num_classes} classes; "
            f"use the config that they were saved with. {error}"
        ) from error
    return model.eval()


def at_output_stride(config: ModelConfig, output_stride: int) -> ModelConfig:
    """The same network at another output stride; its weights fit both (`restore_model`).

    Raises:
        ValueError: the network has one output stride alone, or its data-dependent decoder is fitted to this one.
    """
    if output_stride == config.output_stride:
        return config
    if "output_stride" not in {field.name for field in fields(config)}:
        raise ValueError(
            f"network {network_name(config)!r} has output stride {config.output_stride} alone; "
            f"leave out output stride {output_stride}"
        )
    changed: ModelConfig = replace(config, output_stride=output_stride)  # type: ignore[arg-type]  # checked above
    if needed_label_pca(changed) != needed_label_pca(config):
        raise ValueError(
            f"network {network_name(config)!r} expands blocks of {config.enlargement} pixels, its output stride in "
            f"training; it cannot be evaluated at output stride {output_stride}"
        )
    return changed


def meta_model(config: ModelConfig, num_classes: int) -> nn.Module:
    """The network without weights, on the meta device and in evaluation mode: for shapes and costs (`segcore.cost`).

    Raises:
        ValueError: too many classes.
    """
    with torch.device("meta"):
        return blank_model(config, num_classes).eval()


def blank_model(config: ModelConfig, num_classes: int) -> nn.Module:
    """The network with random weights, and zeros where a label code belongs: for its speed, or to be filled.

    Raises:
        ValueError: too many classes.
    """
    _check_num_classes(num_classes)
    size = needed_label_pca(config)
    code = None
    if size is not None:
        code = blank_block_code(config.dupsample, block_side=size.block_side, num_classes=num_classes)
    return _build(config, num_classes, code)


def load_pretrained(model: nn.Module, state_dict: Mapping[str, Tensor]) -> None:
    """Fill a network's backbone from an image classifier's state dict.

    Raises:
        ValueError: a tensor is missing, has another shape, or has no place in the backbone; nothing is changed then.
    """
    backbone = model.get_submodule("backbone")
    if isinstance(backbone, Backbone):
        load_backbone_weights(backbone, state_dict)
    else:  # parts of the classifier live on beside its features
        cast(PretrainedPart, backbone).load_classifier(state_dict)


def _build(config: ModelConfig, num_classes: int, code: BlockCode | None) -> nn.Module:
    network: nn.Module = _NETWORKS[type(config)](config, num_classes, code)
    return network


def network_name(config: ModelConfig) -> str:
    """Key of `MODELS` that `config` belongs to."""
    return next(name for name, config_type in MODELS.items() if type(config) is config_type)


def config_to_dict(config: ModelConfig) -> dict[str, object]:
    """JSON-ready dict: `network` (key of `MODELS`) and every field; nested settings are dicts."""
    return {"network": network_name(config), **_to_dict(config)}


def config_from_dict(values: Mapping[str, object]) -> ModelConfig:
    """Inverse of `config_to_dict`; fields that are left out have their defaults.

    Raises:
        ValueError: unknown network or field (the message lists the known ones), or a value that the config refuses.
    """
    rest = dict(values)
    network = rest.pop("network", None)
    if not isinstance(network, str) or network not in MODELS:
        raise ValueError(f"unknown network {network!r}; known: {', '.join(MODELS)}")
    if isinstance(rest.get("dupsample"), Mapping):
        rest["dupsample"] = _from_dict(DUpsampleConfig, rest["dupsample"], whose=f"dupsample of network {network!r}")
    config: ModelConfig = _from_dict(MODELS[network], rest, whose=f"network {network!r}")
    return config


def _to_dict(config: Any) -> dict[str, object]:
    values = {field.name: getattr(config, field.name) for field in fields(config)}
    return {
        name: list(value) if isinstance(value, tuple) else _to_dict(value) if is_dataclass(value) else value
        for name, value in values.items()
    }


def _from_dict(config_type: Any, values: Any, *, whose: str) -> Any:
    known = [field.name for field in fields(config_type)]
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise ValueError(f"unknown field(s) {', '.join(unknown)} of {whose}; known: {', '.join(known)}")
    return config_type(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})


def _check_num_classes(num_classes: int) -> None:
    if not 1 <= num_classes <= 254:
        raise ValueError(f"num_classes is {num_classes}; expected 1 to 254 (255 is the ignored value)")
