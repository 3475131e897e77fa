"""The small classifier on an inner feature map that auxiliary losses are taken from."""

from torch import Tensor, nn

from segcore.layers.conv import ConvBnAct, initialise_convolutions


class FCNHead(nn.Module):
    """3x3 convolution to a quarter of the width, BN, ReLU, dropout, 1x1 classifier; the size stays.

    Source: Zhao et al., PSPNet, arXiv 1612.01105, section 3.3 (auxiliary loss); the same in PyTorch-Encoding.

    Args:
        in_channels: of the feature map.
        num_classes: C.
        dropout: probability, before the classifier.
    """

    def __init__(self, in_channels: int, num_classes: int, *, dropout: float = 0.1) -> None:
        super().__init__()
        self.reduce = ConvBnAct(in_channels, in_channels // 4, 3)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Conv2d(in_channels // 4, num_classes, 1)
        initialise_convolutions(self)
        nn.init.trunc_normal_(self.classifier.weight, std=0.01)

    def forward(self, x_NKhw: Tensor) -> Tensor:
        """Class scores at the feature map's size."""
        scores: Tensor = self.classifier(self.dropout(self.reduce(x_NKhw)))
        return scores
