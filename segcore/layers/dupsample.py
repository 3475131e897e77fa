"""Data-dependent upsampling."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class DUpsample(nn.Module):
    """Expand each location's code to an R x R block of class scores: scores = weight @ code + bias.

    A 1x1 convolution and a pixel shuffle, which is a transposed convolution with kernel = stride = R. Rows of `weight`
    are class-major, (c*R + row)*R + column: `torch.pixel_shuffle`'s order, and that of `LabelPCA.basis_DP`.

    Source: Tian et al., arXiv 1903.02120, section 3.1 and figure 3. The paper does not say whether its W is trained
    further; a reproduction found that a trained one degenerates to jagged edges (LinZhuoChen/DUpsampling, issue 21).

    Args:
        weight_DP: basis, D = num_classes * block_side**2 rows.
        bias_D: added to every block: the mean block of a centred PCA, else zeros.
        block_side: R.
        trainable: False freezes weight and bias (they stay parameters, so they are counted and saved).

    Raises:
        ValueError: shapes do not fit.
    """

    def __init__(self, weight_DP: Tensor, bias_D: Tensor, *, block_side: int, trainable: bool) -> None:
        super().__init__()
        if weight_DP.ndim != 2 or weight_DP.shape[0] % block_side**2 or bias_D.shape != weight_DP.shape[:1]:
            raise ValueError(
                f"basis has shape {tuple(weight_DP.shape)} and bias {tuple(bias_D.shape)}; expected D x P and D, "
                f"with D a multiple of block_side**2 = {block_side**2}"
            )
        self.block_side = block_side
        weight = weight_DP[:, :, None, None].to(torch.get_default_dtype())
        self.weight = nn.Parameter(weight.clone(), requires_grad=trainable)
        self.bias = nn.Parameter(bias_D.to(torch.get_default_dtype()).clone(), requires_grad=trainable)

    def forward(self, code_NPhw: Tensor) -> Tensor:
        """Scores N x C x (h*R) x (w*R), in the code's memory layout."""
        if torch.compiler.is_exporting():  # memory layouts are for whoever runs the graph to choose
            return F.pixel_shuffle(F.conv2d(code_NPhw, self.weight, self.bias), self.block_side)
        # Channels last whatever comes in: a location's block is then R runs of R neighbouring numbers. From contiguous
        # scores of 5376 channels, `pixel_shuffle` would collect every single number from another place.
        code_last = code_NPhw.movedim(-3, -1).contiguous()  # without N too, which a memory format is not
        blocks = F.conv2d(code_last.movedim(-1, -3), self.weight, self.bias)
        if not code_NPhw.is_contiguous():
            return F.pixel_shuffle(blocks, self.block_side)
        side = self.block_side
        blocks = blocks.movedim(-3, -1)
        blocks = blocks.reshape(*blocks.shape[:-1], -1, side, side)  # h w C R R
        return blocks.movedim((-3, -2), (-5, -3)).flatten(-4, -3).flatten(-2, -1)
