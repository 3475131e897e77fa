"""Squeeze and excitation: each channel scaled by what the mean over the whole map says."""

import torch.nn.functional as F
from torch import Tensor, nn


class SqueezeExcitation(nn.Module):
    """Gate each channel: y = x * s with s = sigmoid(W2 ReLU(W1 mean(x) + b1) + b2), one s per image and channel.

    No batch normalisation, so that single images train. With weights and biases 0 every gate is 0.5. Parameters are
    named as torchvision's block and timm's, and fit theirs.

    Source: Hu et al., "Squeeze-and-excitation networks", arXiv 1709.01507, section 3 (equations 2 to 4).

    Two networks here have gates of their own. EncNet's come from the encoding of the map, not from its mean, through
    one linear layer, and multiply by 1 + s. DFANet's two layers have no ReLU in between: the first is an image
    classifier's last layer, whose weights it takes by name, and batch normalisation follows the second.

    Args:
        channels: of the map.
        reduction: the layer in between has channels // reduction outputs, 1 at least.
    """

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__()
        inner = max(1, channels // reduction)
        self.fc1 = nn.Conv2d(channels, inner, 1)
        self.fc2 = nn.Conv2d(inner, channels, 1)

    def forward(self, x_NKhw: Tensor) -> Tensor:
        """Map of the same shape."""
        return x_NKhw * self.gates(x_NKhw)

    def gates(self, x_NKhw: Tensor) -> Tensor:
        """s, in (0, 1): (N, K, 1, 1). BiSeNet's feature fusion gives x + x * s."""
        gates: Tensor = self.fc2(F.relu(self.fc1(x_NKhw.mean(dim=(2, 3), keepdim=True)))).sigmoid()
        return gates
