"""Batch normalisation as after a training."""

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def randomise_statistics(model: nn.Module) -> None:
    """Normalisation away from its start, so that no tap out of place hides (timm starts residual branches at 0)."""
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            assert module.running_mean is not None and module.running_var is not None
            nn.init.uniform_(module.weight, 0.5, 1.5)
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
