"""Batch normalisation folded into the convolution before it, for inference.

In evaluation mode y = (w * x - mean) gain / sqrt(variance + eps) + bias is linear in w * x (Ioffe and Szegedy 2015,
section 3.1), so that a convolution with other weights gives y at once: one pass over memory less per layer.
"""

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves


def fold_batch_norm(model: nn.Module, images_N3HW: Tensor) -> int:
    """Fold every batch normalisation that alone follows a convolution, in place; the network computes the same.

    Transposed convolutions count as convolutions where they have one group.

    Which ones do is seen by running the network once. A convolution that may run several times, as in a network that
    sees an image at several sizes, is folded if the same normalisation takes all its outputs; one whose output goes
    anywhere else as well, be it out of the network, is left as it is.

    Args:
        model: in evaluation mode; it can no longer be trained, or load a state dict of its kind.
        images_N3HW: any input of the network, on its device.

    Returns:
        How many were folded.

    Raises:
        ValueError: the model is in training mode.
    """
    if model.training:
        raise ValueError("batch normalisation can be folded in evaluation mode only; call model.eval() first")
    calls = _Calls()
    with torch.no_grad(), calls:
        output = model(images_N3HW)
    calls.uses.update(map(id, _tensors(output)))
    convolutions: dict[int, nn.Conv2d | nn.ConvTranspose2d] = {
        id(module.weight): module
        for module in model.modules()
        if isinstance(module, nn.Conv2d) or (isinstance(module, nn.ConvTranspose2d) and module.groups == 1)
    }
    norms: dict[int, nn.BatchNorm2d] = {
        id(module.running_mean): module
        for module in model.modules()
        if isinstance(module, nn.BatchNorm2d)
        and (type(module) is nn.BatchNorm2d or _holds_activation(module))
        and not module.training
    }
    folded = 0
    for weight, running_mean in calls.pairs():
        if id(weight) not in convolutions or id(running_mean) not in norms:
            continue
        norm = norms[id(running_mean)]
        _fold(convolutions[id(weight)], norm)
        rest: nn.Module = nn.Identity()
        if _holds_activation(norm):
            rest = nn.Sequential(norm.get_submodule("drop"), norm.get_submodule("act"))
        for name in [name for name, module in model.named_modules(remove_duplicate=False) if module is norm]:
            model.set_submodule(name, rest)
        folded += 1
    return folded


def _holds_activation(norm: nn.Module) -> bool:
    """Whether this is timm's normalisation with an activation behind it; by its name: timm takes seconds to import."""
    return (type(norm).__module__, type(norm).__qualname__) == ("timm.layers.norm_act", "BatchNormAct2d")


def _fold(convolution: nn.Conv2d | nn.ConvTranspose2d, norm: nn.BatchNorm2d) -> None:
    assert norm.running_mean is not None and norm.running_var is not None
    convolution.weight, convolution.bias = fuse_conv_bn_weights(
        convolution.weight,
        convolution.bias,
        norm.running_mean,
        norm.running_var,
        norm.eps,
        norm.weight,
        norm.bias,
        transpose=isinstance(convolution, nn.ConvTranspose2d),
    )


def _tensors(values: Any) -> list[Tensor]:
    """Tensors in nested tuples, lists and dictionaries, or in the fields of a `SegmentationOutput`."""
    if dataclasses.is_dataclass(values):
        values = [getattr(values, field.name) for field in dataclasses.fields(values)]
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


class _Calls(TorchFunctionMode):
    """Records convolutions, normalisations, and how often each tensor goes into an operation."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution_of: dict[int, Tensor] = {}
        """Weight of the convolution that made a tensor, by the tensor's id."""
        self.whole_of: dict[int, Tensor] = {}
        """The tensor that another is a part of, by the part's id: `AtrousConv2d` may use some of its taps."""
        self.normalised: list[tuple[Tensor, Tensor]] = []
        """Input and running mean of each normalisation."""
        self.uses: Counter[int] = Counter()
        self.alive: list[Any] = []
        """Keeps every tensor, so that no two have one id."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if _tensors(result):  # not `x.shape` and its like
            inputs = _tensors((args, kwargs))
            self.uses.update(map(id, inputs))
            self.alive += [inputs, result]
            if func is F.conv2d or func is F.conv_transpose2d:
                self.convolution_of[id(result)] = self.whole_of.get(id(args[1]), args[1])
            elif func is Tensor.__getitem__:
                self.whole_of[id(result)] = args[0]
            elif func is F.batch_norm:
                self.normalised.append((args[0], args[1]))
        return result

    def pairs(self) -> list[tuple[Tensor, Tensor]]:
        """Weights of convolutions, and running means of the normalisations that alone take all that they give."""
        found: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}
        runs: Counter[tuple[int, int]] = Counter()
        for x, running_mean in self.normalised:
            weight = self.convolution_of.get(id(x))
            if weight is not None and self.uses[id(x)] == 1:
                key = (id(weight), id(running_mean))
                found[key] = (weight, running_mean)
                runs[key] += 1
        return [
            (weight, running_mean)
            for key, (weight, running_mean) in found.items()
            if runs[key] == self.uses[id(weight)] == self.uses[id(running_mean)]
        ]
