"""The small classifier on an inner feature map that auxiliary losses are taken from."""

from torch import Tensor, nn

from segcore.layers.conv import ConvBnAct, initialise_convolutions


class FCNHead(nn.Module):
    """3x3 convolution, by default to a quarter of the width, BN, ReLU, dropout, 1x1 classifier; the size stays.

    Source: Zhao et al., PSPNet, arXiv 1612.01105, section 3.3 (auxiliary loss); the same in PyTorch-Encoding.

    Args:
        in_channels: of the feature map.
        num_classes: C.
        dropout: probability, before the classifier.
        channels: of the map that is classified; 0 is a quarter of `in_channels`.
    """

    def __init__(self, in_channels: int, num_classes: int, *, dropout: float = 0.1, channels: int = 0) -> None:
        super().__init__()
        channels = channels or in_channels // 4
        self.reduce = ConvBnAct(in_channels, channels, 3)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Conv2d(channels, num_classes, 1)
        initialise_convolutions(self)
        nn.init.trunc_normal_(self.classifier.weight, std=0.01)

    def forward(self, x_NKhw: Tensor) -> Tensor:
        """Class scores at the feature map's size."""
        scores: Tensor = self.classifier(self.dropout(self.reduce(x_NKhw)))
        return scores
