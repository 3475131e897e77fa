"""The encoding layer: how far the locations of a map lie from learned codewords."""

import torch
from torch import Tensor, nn

from segcore.layers.resize import product


class Encoding(nn.Module):
    """Residuals of all locations x_l to Q codewords c_q, summed with soft assignments:

        a[q, l] = exp(s_q |x_l - c_q|^2) / sum over r of exp(s_r |x_l - c_r|^2)
        e[q]    = sum over l of a[q, l] (x_l - c_q)

    Each location is shared out among the codewords; s_q is a learned smoothing factor per codeword, below 0 at the
    start and free afterwards. Distances are |x|^2 - 2 x c + |c|^2 and e = A X - (sum over l of a) c, so that no tensor
    of N x L x Q x K exists: two matrix products of L Q K multiply-adds each. Arithmetic is float32 at least, inside
    autocast too: in bfloat16 the differences between distances would be lost in |x|^2.

    Source: Zhang et al., Deep TEN, arXiv 1612.02844 (encoding layer); the same in EncNet, arXiv 1803.08904 (context
    encoding module). Initial values: PyTorch-Encoding (codewords uniform within 1 / sqrt(Q K), factors in [-1, 0]).

    Args:
        channels: K.
        num_codewords: Q.
    """

    def __init__(self, channels: int, num_codewords: int) -> None:
        super().__init__()
        bound = (num_codewords * channels) ** -0.5
        self.codewords_QK = nn.Parameter(torch.empty(num_codewords, channels).uniform_(-bound, bound))
        self.smoothing_Q = nn.Parameter(torch.empty(num_codewords).uniform_(-1, 0))

    def forward(self, x_NKhw: Tensor) -> Tensor:
        """Encodings e: (N, Q, K), whatever the map's size."""
        # The meta device has no autocast of its own.
        with torch.autocast("cpu" if x_NKhw.is_meta else x_NKhw.device.type, enabled=False):
            x_NKL = x_NKhw.flatten(2).to(torch.promote_types(x_NKhw.dtype, torch.float32))
            codewords_QK = self.codewords_QK.to(x_NKL.dtype)
            assignments_NQL = self._assignments(x_NKL, codewords_QK)
            return assignments_NQL @ x_NKL.transpose(1, 2) - assignments_NQL.sum(dim=2, keepdim=True) * codewords_QK

    def assignments(self, x_NKhw: Tensor) -> Tensor:
        """Share of each codeword in each location: (N, Q, L), sums to 1 over the codewords."""
        return self._assignments(x_NKhw.flatten(2), self.codewords_QK)

    def _assignments(self, x_NKL: Tensor, codewords_QK: Tensor) -> Tensor:
        # |x|^2 stays, though it is the same for all codewords: their smoothing factors differ.
        distances_NQL = (
            x_NKL.square().sum(dim=1, keepdim=True)
            - 2 * product(codewords_QK, x_NKL)
            + codewords_QK.square().sum(dim=1, keepdim=True)
        )
        return (self.smoothing_Q[:, None] * distances_NQL).softmax(dim=1)
