"""Maximum pooling that remembers where each maximum was, and its inverse."""

import torch.nn.functional as F
from torch import Tensor


def pool_with_switches(x_NKHW: Tensor) -> tuple[Tensor, Tensor]:
    """2x2 maximum pooling of stride 2, and each maximum's index in its plane, its "switch".

    Source: Zeiler and Fergus, ECCV 2014, arXiv 1311.2901, section 2.1.

    Args:
        x_NKHW: even height and width.

    Raises:
        ValueError: an odd side; its last row or column would be lost.
    """
    height, width = x_NKHW.shape[-2:]
    if height % 2 or width % 2:
        raise ValueError(f"map of {height} x {width} cannot be halved; pad the image to a multiple of the stride")
    pooled, switches = F.max_pool2d(x_NKHW, 2, return_indices=True)
    return pooled, switches


def unpool(x_NKhw: Tensor, switches_NKhw: Tensor) -> Tensor:
    """Map of twice the size: each value where its switch says, 0 elsewhere.

    Source: Noh et al., DeconvNet, arXiv 1505.04366, section 3.2.1.

    Args:
        x_NKhw: values.
        switches_NKhw: of the pooling that this undoes, from `pool_with_switches`; same shape.
    """
    return F.max_unpool2d(x_NKhw, switches_NKhw, (2, 2))
