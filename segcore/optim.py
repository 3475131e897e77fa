"""Optimiser, its parameter groups, and the poly schedule."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimConfig:
    """How the weights are updated. Defaults suit a pre-trained ResNet and batches of 16; recipes say what they use."""

    optimiser: Literal["sgd", "adamw"] = "sgd"
    """sgd (with momentum) or adamw."""

    learning_rate: float = 0.001
    """Peak learning rate of the backbone."""

    decoder_multiplier: float = 10.0
    """Everything outside the backbone learns this much faster; 1 treats all alike (DeepLab's TF code)."""

    weight_decay: float = 1e-4
    """On convolution kernels except depthwise ones; never on normalisation, biases or the softmax temperature."""

    momentum: float = 0.9
    """SGD momentum, or AdamW's first beta."""

    nesterov: bool = False
    """Nesterov momentum (SGD only)."""

    warmup_steps: int = 0
    """Steps over which the learning rate rises linearly from 0 before it follows the poly curve."""

    power: float = 0.9
    """Exponent of the poly schedule."""

    layer_decay: float = 1.0
    """Each layer of the backbone learns this much more slowly than the one after it, its last layer than the decoder;
    1: all alike. ELECTRA, arXiv 2003.10555, and BEiT, arXiv 2106.08254, fine-tune transformers with 0.65 to 0.9."""

    clip_gradient_norm: float = 0.0
    """Gradients whose Euclidean norm over all parameters is larger are scaled down to it (Pascanu 2013, arXiv
    1211.5063, algorithm 1); 0: as they are."""

    def __post_init__(self) -> None:
        if self.optimiser not in ("sgd", "adamw"):
            raise ValueError(f"unknown optimiser {self.optimiser!r}; known: sgd, adamw")
        if self.nesterov and self.optimiser != "sgd":
            raise ValueError("nesterov is for sgd only; leave it False with adamw")
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov needs momentum, which is 0; give 0.9 or leave nesterov False")
        for name in ("learning_rate", "decoder_multiplier", "power"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be positive")
        if self.weight_decay < 0 or self.warmup_steps < 0:
            raise ValueError(
                f"weight_decay is {self.weight_decay} and warmup_steps is {self.warmup_steps}; neither may be negative"
            )
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum is {self.momentum}; it must be in [0, 1)")
        if not 0 < self.layer_decay <= 1:
            raise ValueError(f"layer_decay is {self.layer_decay}; it must be above 0 and at most 1 (off)")
        if self.clip_gradient_norm < 0:
            raise ValueError(f"clip_gradient_norm is {self.clip_gradient_norm}; give 0 (off) or more")


def parameter_groups(model: nn.Module, config: OptimConfig) -> list[dict[str, object]]:
    """Trainable parameters in up to five named groups: `backbone` or `decoder`, each with and without weight decay.

    With a layer decay each layer of the backbone has groups of its own, the last layer first.

    The fifth holds scalars (a softmax temperature), whose gradient is a sum over every pixel: SGD at the decoder's rate
    drives them away within some ten steps. They have the backbone's rate. Not decayed: parameters with fewer than two
    dimensions (normalisation, biases, temperature) and kernels of depthwise convolutions (as in DeepLab's TF code).
    Frozen parameters are in no group.

    Args:
        model: a network with an attribute `backbone`; what is outside it is "decoder".
        config: learning rates and decay.

    Raises:
        ValueError: nothing is trainable.
    """
    in_backbone = {id(parameter) for parameter in model.get_submodule("backbone").parameters()}
    depthwise = {
        id(module.weight)
        for module in model.modules()
        if isinstance(module, nn.Conv2d) and module.groups == module.in_channels > 1
    }
    above = layers_above(model.get_submodule("backbone")) if config.layer_decay < 1 else {}
    groups: dict[tuple[str, bool, int], list[nn.Parameter]] = {}
    for parameter in model.parameters():
        if parameter.requires_grad:
            part = "backbone" if id(parameter) in in_backbone else "decoder" if parameter.ndim else "scalar"
            decayed = parameter.ndim >= 2 and id(parameter) not in depthwise
            groups.setdefault((part, decayed, above.get(id(parameter), 0)), []).append(parameter)
    if not groups:
        raise ValueError("no parameter of the network is trainable; unfreeze some before building an optimiser")
    return [
        {
            "name": (part if decayed else f"{part}, no decay")
            + (f", {layers} layers below the decoder" if layers else ""),
            "params": parameters,
            "lr": config.learning_rate
            * (config.decoder_multiplier if part == "decoder" else 1.0)
            * config.layer_decay**layers,
            "weight_decay": config.weight_decay if decayed else 0.0,
        }
        for (part, decayed, layers), parameters in sorted(groups.items(), key=lambda item: item[0])
    ]


def layers_above(backbone: nn.Module) -> dict[int, int]:
    """How many layers lie between each of a backbone's parameters, by id, and the decoder: 1 for the last layer.

    A layer is what shares a name up to its indices: `layer3.4` of a ResNet, `blocks.2.1` of a MobileNet. Neighbours
    without an index (a stem's convolution and normalisation) are one layer, and normalisation with an index of its own
    belongs to the layer before it. The order is that of registration.
    """
    numbers: dict[int, int] = {}
    number, before = 0, None
    for name, parameter in backbone.named_parameters():
        layer = _layer_of(name)
        if before is None or (layer != before and parameter.ndim >= 2):
            number, before = number + 1, layer
        numbers[id(parameter)] = number
    return {parameter: number - each + 1 for parameter, each in numbers.items()}


def _layer_of(name: str) -> str:
    """A parameter's name up to its first index and the indices right after it; "" where it has none."""
    parts = name.split(".")
    first = next((position for position, part in enumerate(parts) if part.isdigit()), len(parts))
    end = next((position for position in range(first, len(parts)) if not parts[position].isdigit()), first)
    return ".".join(parts[:end]) if first < len(parts) else ""


def build_optimiser(model: nn.Module, config: OptimConfig) -> Optimizer:
    """SGD or AdamW over `parameter_groups`; clipping is its caller's.

    Raises:
        ValueError: nothing is trainable.
    """
    groups = parameter_groups(model, config)
    if config.optimiser == "sgd":
        return torch.optim.SGD(groups, lr=config.learning_rate, momentum=config.momentum, nesterov=config.nesterov)
    # fused: a third of the time on a CPU, where SGD's is slower than the plain one
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(config.momentum, 0.999), fused=True)


def poly_factor(step: int, *, total_steps: int, warmup_steps: int, power: float) -> float:
    """Fraction of the peak learning rate at `step`: warm-up * (1 - step / total_steps) ** power.

    Warm-up is min(1, (step + 1) / warmup_steps), so that step 0 already moves; without it step 0 has the peak rate.
    From `total_steps` on the factor is 0.

    Source: Liu, Rabinovich and Berg, "ParseNet" (poly); Chen et al., DeepLabV2, section 4.1.2 (power 0.9).
    """
    warmup = min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0
    return float(warmup * max(0.0, 1 - step / total_steps) ** power)


def poly_schedule(optimiser: Optimizer, config: OptimConfig, *, total_steps: int) -> LambdaLR:
    """Poly schedule; call `.step()` after every optimiser step, not every epoch.

    Raises:
        ValueError: `total_steps` is not positive, or the warm-up does not end before it.
    """
    if total_steps <= 0 or config.warmup_steps >= total_steps:
        raise ValueError(
            f"total_steps is {total_steps} and warmup_steps is {config.warmup_steps}; "
            "train for more steps than the warm-up takes"
        )
    return LambdaLR(
        optimiser,
        lambda step: poly_factor(step, total_steps=total_steps, warmup_steps=config.warmup_steps, power=config.power),
    )
