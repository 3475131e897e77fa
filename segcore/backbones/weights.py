"""Fill a backbone from a classifier's state dict, and take that state dict out of a trained network."""

from collections.abc import Mapping

from torch import Tensor, nn

from segcore.backbones.backbone import Backbone
from segcore.backbones.catalogue import backbone_spec

MOBILENET_V2_REPEATS = (1, 2, 3, 4, 3, 3, 1)
"""Blocks per stage, table 2 of Sandler et al., arXiv 1801.04381."""

CLASSIFIER_PREFIX = "fc."
"""The last layer of `segcore.classifier.Classifier`, whatever the last layer of timm's network is called."""

BACKBONE_PREFIXES = ("backbone.body.", "backbone.")
"""Of a network's tensors; the first that fits is cut off (`Backbone` holds timm's module in `body`)."""


def backbone_state(network_state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A network's backbone, and `fc.weight` and `fc.bias` of a classifier, as `load_backbone_weights` takes them."""
    state = {name: tensor for name, tensor in network_state.items() if name.startswith(CLASSIFIER_PREFIX)}
    for name, tensor in network_state.items():
        prefix = next((prefix for prefix in BACKBONE_PREFIXES if name.startswith(prefix)), None)
        if prefix is not None:
            state[name.removeprefix(prefix)] = tensor
    return state


def load_backbone_weights(backbone: Backbone, state_dict: Mapping[str, Tensor]) -> None:
    """Copy pre-trained weights into `backbone`.

    Accepts the state dict of the timm model of the same name, where there is one, or what `backbone_state` gives (the
    classifying layers are left over), and for `mobilenet_v2` also torchvision's names (`features.0.0.weight`).
    `num_batches_tracked` may be absent.

    Raises:
        ValueError: a tensor is missing, has another shape, or has no place in the backbone; nothing is changed then.
    """
    given = dict(state_dict)
    if backbone.name == "mobilenet_v2" and any(name.startswith("features.") for name in given):
        given = torchvision_mobilenet_v2_to_timm(given)
    spec = backbone_spec(backbone.name)
    fitting = fitting_weights(
        backbone.body.state_dict(),
        given,
        leftover=(*spec.classifier_prefixes, CLASSIFIER_PREFIX),
        backbone=backbone.name,
        source=f"timm's {spec.architecture!r}" if spec.timm_name else "a classifier of ours on it",
    )
    backbone.body.load_state_dict(fitting)


def load_own_encoder(encoder: nn.Module, state_dict: Mapping[str, Tensor], *, network: str) -> None:
    """Copy the encoder of another training of `network`, which has one of its own, from what `backbone_state` gives.

    Args:
        encoder: the network's own.
        state_dict: tensors by the encoder's names.
        network: key of `MODELS`.

    Raises:
        ValueError: a tensor is missing, has another shape, or has no place; nothing is changed then.
    """
    source = f"the encoder of a trained network {network!r}"
    encoder.load_state_dict(
        fitting_weights(encoder.state_dict(), state_dict, leftover=(), backbone=network, source=source)
    )


def fitting_weights(
    expected: Mapping[str, Tensor],
    given: Mapping[str, Tensor],
    *,
    leftover: tuple[str, ...],
    backbone: str,
    source: str,
) -> dict[str, Tensor]:
    """The tensors of `given` that `expected` asks for; those of `num_batches_tracked` may be absent.

    Args:
        expected: a module's own state dict.
        given: what is to be loaded into it.
        leftover: prefixes of names in `given` that the module has no place for: the classifier's.
        backbone, source: what is being filled and from what, for the message.

    Raises:
        ValueError: a tensor is missing, has another shape, or has no place.
    """
    missing = [name for name in expected if name not in given and not name.endswith("num_batches_tracked")]
    misshapen = [
        f"{name} {tuple(given[name].shape)} instead of {tuple(expected[name].shape)}"
        for name in expected
        if name in given and given[name].shape != expected[name].shape
    ]
    unknown = [name for name in given if name not in expected and not name.startswith(leftover)]
    problems = [
        f"{len(names)} {problem}: {_shortened(names)}"
        for problem, names in (("missing", missing), ("of another shape", misshapen), ("without a place", unknown))
        if names
    ]
    if problems:
        raise ValueError(
            f"state dict does not fit backbone {backbone!r}; tensors {'; '.join(problems)}. "
            f"Give the plain state dict of {source} (name -> tensor), or choose the backbone "
            "that it was saved from"
        )
    return {name: given.get(name, value) for name, value in expected.items()}


def _shortened(names: list[str]) -> str:
    shown = ", ".join(names[:5])
    return shown if len(names) <= 5 else f"{shown}, ... ({len(names) - 5} more)"


def torchvision_mobilenet_v2_to_timm(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename torchvision's `mobilenet_v2` tensors to timm's `mobilenetv2_100`.

    torchvision counts blocks through (`features.1` to `features.17`), timm by stage and block (`blocks.3.2`). Names
    that are not in the table (the classifier's) stay as they are.
    """
    modules = {"features.0.0": "conv_stem", "features.0.1": "bn1", "features.18.0": "conv_head", "features.18.1": "bn2"}
    index = 1
    for stage, repeats in enumerate(MOBILENET_V2_REPEATS):
        for block in range(repeats):
            theirs = f"features.{index}.conv"
            # The first block does not expand: depthwise and projection only.
            parts = (
                {"0.0": "conv_dw", "0.1": "bn1", "1": "conv_pw", "2": "bn2"}
                if stage == 0
                else {"0.0": "conv_pw", "0.1": "bn1", "1.0": "conv_dw", "1.1": "bn2", "2": "conv_pwl", "3": "bn3"}
            )
            modules |= {f"{theirs}.{old}": f"blocks.{stage}.{block}.{new}" for old, new in parts.items()}
            index += 1
    renamed: dict[str, Tensor] = {}
    for name, tensor in state_dict.items():
        module, _, leaf = name.rpartition(".")
        renamed[f"{modules[module]}.{leaf}" if module in modules else name] = tensor
    return renamed
