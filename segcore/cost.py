"""Size and work of a network: parameters and multiply-adds."""

from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

ENCODER_PARTS = ("backbone", "aspp")
"""Children of a network that its decoder is not."""


@dataclass(frozen=True, slots=True)
class ParameterCount:
    """Scalars in a network's parameters.

    Attributes:
        trainable: what the optimiser may change.
        frozen: the rest, such as the basis and bias of a data-dependent decoder.
    """

    trainable: int
    frozen: int

    @property
    def total(self) -> int:
        """What papers quote."""
        return self.trainable + self.frozen


def count_parameters(model: nn.Module) -> ParameterCount:
    """Count each parameter once. Buffers (running statistics of batch normalisation) do not count."""
    trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    total = sum(parameter.numel() for parameter in model.parameters())
    return ParameterCount(trainable=trainable, frozen=total - trainable)


def count_multiply_adds(model: nn.Module, height: int, width: int) -> int:
    """Multiply-adds of one RGB image through `model` in evaluation mode.

    Convolutions, transposed convolutions and matrix products, one per multiplication ("FLOPs" of DeepLab's model zoo;
    DUpsampling's and SegNet's papers count 2). Adding biases, normalisation, activations, pooling and resizing do not
    count. Runs on the meta device: no arithmetic is done and no memory is needed.
    """
    return module_multiply_adds(model, torch.empty(1, 3, height, width, device="meta"))


def module_multiply_adds(module: nn.Module, *inputs: Tensor) -> int:
    """Multiply-adds of `module(*inputs)` in evaluation mode; see `count_multiply_adds`.

    Args:
        module: on any device; it is left as it was.
        inputs: tensors on the meta device.
    """
    flops: int = _counted(module, *inputs).get_total_flops()
    return flops // 2


def decoder_multiply_adds(model: nn.Module, height: int, width: int) -> int:
    """Multiply-adds of one RGB image outside `backbone` and `aspp`: fusing low-level features, and the last step.

    For networks with an encoder of these two parts: DeepLabV3+ and DUpsampling. The DUpsampling paper's tables 2 and 3
    print this as FLOPs of the decoder: twice, with one more for each bias that the expansion adds (h w R^2 C).

    Raises:
        ValueError: the network has no such parts.
    """
    parts = {name for name, _ in model.named_children()}
    if not set(ENCODER_PARTS) <= parts:
        raise ValueError(
            f"a decoder is what lies outside of {' and '.join(ENCODER_PARTS)}, and {type(model).__name__} has only "
            f"{', '.join(sorted(parts)) or 'no parts'}; count the whole network with count_multiply_adds"
        )
    counter = _counted(model, torch.empty(1, 3, height, width, device="meta"))
    flops_by_module = {name: sum(flops.values()) for name, flops in counter.get_flop_counts().items()}
    encoder = sum(flops_by_module.get(f"{type(model).__name__}.{part}", 0) for part in ENCODER_PARTS)
    return int(counter.get_total_flops() - encoder) // 2


def _counted(module: nn.Module, *inputs: Tensor) -> FlopCounterMode:
    """What PyTorch counted in `module(*inputs)`."""
    tensors = {name: tensor.to("meta") for name, tensor in chain(module.named_parameters(), module.named_buffers())}
    was_training = {child: child.training for child in module.modules()}
    module.eval()
    try:
        counter = FlopCounterMode(display=False)
        with torch.no_grad(), counter:
            functional_call(module, tensors, inputs)
    finally:
        for child, training in was_training.items():
            child.training = training
    return counter
