"""Networks by name: `MODELS`, their configs, and how to build, save and restore one."""

from collections.abc import Mapping
from dataclasses import asdict, fields

from torch import Tensor, nn

from segcore.label_pca import LabelPCA
from segcore.models.contract import LossTerms, SegmentationModel, SegmentationOutput
from segcore.models.deeplab import DeepLabV3Plus, DeepLabV3PlusConfig
from segcore.models.dupsampling import DUpsampling, DUpsamplingConfig, blank_block_code, block_code

ModelConfig = DeepLabV3PlusConfig | DUpsamplingConfig

MODELS: dict[str, type[ModelConfig]] = {
    "deeplab_v3plus": DeepLabV3PlusConfig,
    "dupsampling": DUpsamplingConfig,
}

__all__ = [
    "MODELS",
    "DUpsampling",
    "DUpsamplingConfig",
    "DeepLabV3Plus",
    "DeepLabV3PlusConfig",
    "LossTerms",
    "ModelConfig",
    "SegmentationModel",
    "SegmentationOutput",
    "build_model",
    "config_from_dict",
    "config_to_dict",
    "needs_label_pca",
    "restore_model",
]


def needs_label_pca(config: ModelConfig) -> bool:
    """True where `build_model` asks for a label PCA."""
    return isinstance(config, DUpsamplingConfig)


def build_model(config: ModelConfig, num_classes: int, *, label_pca: LabelPCA | None = None) -> nn.Module:
    """Build a network with random weights (nothing is downloaded); it obeys `SegmentationModel`.

    Args:
        config: one of the classes of `MODELS`.
        num_classes: C, 1 to 254.
        label_pca: of the training labels, with block side = output stride; for networks that `needs_label_pca`.

    Raises:
        ValueError: the label PCA is missing, unwanted, or does not fit the network; too many classes.
    """
    _check_num_classes(num_classes)
    if isinstance(config, DUpsamplingConfig):
        if label_pca is None:
            raise ValueError(
                "network 'dupsampling' needs a label PCA and got none; fit one on the training labels with block side "
                f"{config.output_stride} and {config.num_components} components, and pass it "
                "(to rebuild a trained network from its weights, use restore_model)"
            )
        return DUpsampling(config, num_classes, block_code(label_pca, config, num_classes))
    if label_pca is not None:
        raise ValueError("network 'deeplab_v3plus' has no use for a label PCA; leave it out")
    return DeepLabV3Plus(config, num_classes)


def restore_model(config: ModelConfig, num_classes: int, state_dict: Mapping[str, Tensor]) -> nn.Module:
    """Rebuild a network from its own state dict; the basis of a data-dependent decoder is in there.

    Returns:
        The network in evaluation mode.

    Raises:
        ValueError: a tensor is missing, unknown, or has another shape.
    """
    _check_num_classes(num_classes)
    model: nn.Module
    if isinstance(config, DUpsamplingConfig):
        model = DUpsampling(config, num_classes, blank_block_code(config, num_classes))
    else:
        model = DeepLabV3Plus(config, num_classes)
    try:
        model.load_state_dict(dict(state_dict))
    except RuntimeError as error:
        raise ValueError(
            f"weights do not fit the network {network_name(config)!r} with {num_classes} classes; "
            f"use the config that they were saved with. {error}"
        ) from error
    return model.eval()


def network_name(config: ModelConfig) -> str:
    """Key of `MODELS` that `config` belongs to."""
    return next(name for name, config_type in MODELS.items() if type(config) is config_type)


def config_to_dict(config: ModelConfig) -> dict[str, object]:
    """JSON-ready dict: `network` (key of `MODELS`) and every field."""
    values = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(config).items()}
    return {"network": network_name(config), **values}


def config_from_dict(values: Mapping[str, object]) -> ModelConfig:
    """Inverse of `config_to_dict`; fields that are left out have their defaults.

    Raises:
        ValueError: unknown network or field (the message lists the known ones), or a value that the config refuses.
    """
    rest = dict(values)
    network = rest.pop("network", None)
    if not isinstance(network, str) or network not in MODELS:
        raise ValueError(f"unknown network {network!r}; known: {', '.join(MODELS)}")
    config_type = MODELS[network]
    known = [field.name for field in fields(config_type)]
    unknown = sorted(set(rest) - set(known))
    if unknown:
        raise ValueError(f"unknown field(s) {', '.join(unknown)} of network {network!r}; known: {', '.join(known)}")
    arguments = {name: tuple(value) if isinstance(value, list) else value for name, value in rest.items()}
    return config_type(**arguments)  # type: ignore[arg-type]  # values come from JSON; __post_init__ checks them


def _check_num_classes(num_classes: int) -> None:
    if not 1 <= num_classes <= 254:
        raise ValueError(f"num_classes is {num_classes}; expected 1 to 254 (255 is the ignored value)")
