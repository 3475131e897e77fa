"""Settings and statistics of batch normalisation over a whole network."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def set_batch_norm_momentum(model: nn.Module, momentum: float) -> None:
    """Weight of the newest batch in every running mean and variance (TF's decay d is momentum 1 - d)."""
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.momentum = momentum


@torch.no_grad()
def recompute_batch_norm(model: nn.Module, batches: Iterable[Tensor]) -> int:
    """Replace all running means and variances by their plain average over `batches`; the weights stay.

    Each batch counts the same, and every layer is fed by layers that normalise with the batch's own statistics, as in
    training. Running averages of a fast momentum follow the last few batches, and those of a slow one still remember
    earlier weights.

    Source: Noh et al., DeconvNet, arXiv 1505.04366, released code: the mean and the unbiased variance averaged over 501
    training batches before the test.

    Args:
        model: in either mode, which it keeps.
        batches: images of each, as in training, on the model's device.

    Returns:
        The number of batches.

    Raises:
        ValueError: there is no batch; the statistics are as they were then.
    """
    layers = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    momenta = [layer.momentum for layer in layers]
    modes = {module: module.training for module in model.modules()}
    num_batches = 0
    model.train()
    try:
        for images_N3HW in batches:
            if num_batches == 0:
                for layer in layers:
                    layer.reset_running_stats()
                    layer.momentum = None  # torch's cumulative average
            model.forward(images_N3HW)  # past torch.compile: it would compile anew for this
            num_batches += 1
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
        for module, training in modes.items():
            module.training = training
    if num_batches == 0:
        raise ValueError("batch normalisation was to be recomputed from no batches; give at least one of training")
    return num_batches


def synchronise_batch_norm(model: nn.Module) -> nn.Module:
    """Replace batch normalisation by its synchronised form (several GPUs; it needs CUDA to train).

    `torch.nn.SyncBatchNorm.convert_sync_batchnorm` must not be used: timm's EfficientNets and MobileNets hold the
    activation inside their normalisation layer, and it would be dropped without a word.
    """
    from timm.layers.norm_act import convert_sync_batchnorm  # seconds to import

    converted: nn.Module = convert_sync_batchnorm(model)
    return converted


def normalises_per_device(layer: nn.Module) -> bool:
    """True where `layer`, as it stands, takes its statistics from this process's batch alone."""
    return isinstance(layer, _BatchNorm) and layer.training and not isinstance(layer, torch.nn.SyncBatchNorm)


def refuse_one_image(x_NKhw: Tensor, norm: nn.Module, *, what: str) -> None:
    """Refuse to normalise one value per channel, which a mean over the whole map gives of a training batch of 1 image.

    Its variance is 0, and the layer would give a constant whatever the image. Torch refuses it without saying where.

    Args:
        x_NKhw: the map before the mean.
        norm: normalises the mean.
        what: begins the message.

    Raises:
        ValueError: the batch is one image, and `norm` takes its statistics from it.
    """
    if normalises_per_device(norm) and x_NKhw.shape[0] == 1:
        raise ValueError(
            f"{what} was given a training batch of 1 image, and its batch normalisation needs at least 2; "
            "raise the batch size per worker, drop the last incomplete batch, or put the normalisation in eval mode"
        )
