"""A network as a graph for other programs: bytes in, class scores out, for images of any size.

Normalisation is inside, so that nobody has to know it; of the network's outputs the scores alone remain.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
import torch.nn.functional as F
from timm.layers.conv2d_same import Conv2dSame
from torch import Tensor, nn

EXAMPLE_SIZE = (2, 77, 109)
"""Images, rows and columns that the graph is traced with; which ones makes no difference to it."""

SMALLEST_SIDE, LARGEST_SIDE = 2, 2**15
"""Rows or columns that a graph takes."""


class ExportableModel(nn.Module):
    """Scores of uint8 RGB images.

    Args:
        model: obeys `SegmentationModel`, in evaluation mode.
        mean, std: of the network's input per channel, in units of 1 (image / 255).
    """

    mean_311: Tensor
    std_311: Tensor

    def __init__(self, model: nn.Module, *, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("mean_311", 255 * torch.tensor(mean).view(3, 1, 1))
        self.register_buffer("std_311", 255 * torch.tensor(std).view(3, 1, 1))

    def forward(self, images_N3HW: Tensor) -> Tensor:
        """Logits (N,C,H,W), float32, of uint8 images."""
        logits_NCHW: Tensor = self.model((images_N3HW.float() - self.mean_311) / self.std_311).logits_NCHW
        return logits_NCHW.float()


def export_program(model: ExportableModel) -> torch.export.ExportedProgram:
    """Trace the network for any number of images of any size up to `LARGEST_SIDE`.

    Raises:
        Exception: PyTorch cannot trace it, or not for every size; of many types, its text says where.
    """
    shape = {
        0: torch.export.Dim("images", min=1, max=LARGEST_SIDE),
        2: torch.export.Dim("height", min=SMALLEST_SIDE, max=LARGEST_SIDE),
        3: torch.export.Dim("width", min=SMALLEST_SIDE, max=LARGEST_SIDE),
    }
    images_N3HW = torch.zeros(EXAMPLE_SIZE[0], 3, *EXAMPLE_SIZE[1:], dtype=torch.uint8)
    # Oblivious: what holds of the example alone (a side of 1, equal sides, memory layouts) decides no branch.
    oblivious = torch.fx.experimental._config.patch(backed_size_oblivious=True)  # type: ignore[attr-defined]
    with torch.no_grad(), _static_same_padding(model), oblivious:
        return torch.export.export(model.eval(), (images_N3HW,), dynamic_shapes=(shape,))


@contextmanager
def _static_same_padding(model: nn.Module) -> Iterator[None]:
    """Convolutions with TensorFlow's "same" padding pad by a constant, meanwhile.

    timm computes it from each map's size, which makes tracing take minutes. Networks pad images to a multiple of the
    output stride first where their backbone has such convolutions (`BackboneSpec.same_padding`), so that every map's
    size is a multiple of the stride that it meets, and the padding the same for all sizes.
    """
    layers = [layer for layer in model.modules() if isinstance(layer, Conv2dSame)]
    for layer in layers:
        layer.forward = partial(_padded_by_constant, layer)  # type: ignore[method-assign]  # of this one
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _padded_by_constant(layer: nn.Conv2d, x_NKhw: Tensor) -> Tensor:
    """TensorFlow's padding of a size that the stride divides: (kernel - 1) dilation + 1 - stride, less of it before."""
    padding: list[int] = []
    for kernel, stride, dilation in zip(layer.kernel_size, layer.stride, layer.dilation, strict=True):
        total = max(0, (kernel - 1) * dilation + 1 - stride)
        padding = [total // 2, total - total // 2, *padding]  # F.pad begins with the last dimension
    x = F.pad(x_NKhw, padding)
    return F.conv2d(x, layer.weight, layer.bias, layer.stride, 0, layer.dilation, layer.groups)
