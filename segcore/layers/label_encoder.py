"""Codes of label maps, as targets of a loss."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segcore import IGNORE_INDEX


class LabelEncoder(nn.Module):
    """Codes of label blocks, as `segcore.label_code.project` computes them, in float32.

    The first layer adds up one row of its weights per valid pixel, without a one-hot map of the batch.

    Args:
        layers: weight and bias of each layer, the first from D entries, the last to P components; ReLU in between.
        block_side: R.
    """

    def __init__(self, layers: Sequence[tuple[Tensor, Tensor]], *, block_side: int) -> None:
        super().__init__()
        self.block_side = block_side
        (weight_OD, bias_O), *rest = layers
        ignored = torch.zeros(1, weight_OD.shape[0], dtype=weight_OD.dtype, device=weight_OD.device)
        self.register_buffer("table", torch.cat([weight_OD.T, ignored]).float())
        self.register_buffer("bias", bias_O.float())
        for index, (weight, bias) in enumerate(rest, start=1):
            self.register_buffer(f"weight{index}", weight.float())
            self.register_buffer(f"bias{index}", bias.float())
        self.num_layers = len(layers)

    def forward(self, labels_NHW: Tensor) -> tuple[Tensor, Tensor]:
        """Codes N x P x h x w, and the share of valid pixels in each block, N x h x w."""
        side = self.block_side
        num_images, height, width = labels_NHW.shape
        padding = (0, -width % side, 0, -height % side)
        labels = F.pad(labels_NHW.long(), padding, value=IGNORE_INDEX)
        rows, columns = labels.shape[1] // side, labels.shape[2] // side
        blocks_MS = labels.reshape(num_images, rows, side, columns, side).transpose(2, 3).reshape(-1, side**2)
        valid_MS = blocks_MS != IGNORE_INDEX
        table, last = self.get_buffer("table"), self.get_buffer("table").shape[0] - 1
        entries_MS = blocks_MS * side**2 + torch.arange(side**2, device=labels.device)
        entries_MS = entries_MS.masked_fill(~valid_MS, last)
        with torch.autocast(labels.device.type, enabled=False):
            x = F.embedding_bag(entries_MS, table, mode="sum") + self.get_buffer("bias")
            for index in range(1, self.num_layers):
                x = F.linear(x.relu(), self.get_buffer(f"weight{index}"), self.get_buffer(f"bias{index}"))
        codes = x.reshape(num_images, rows, columns, -1).permute(0, 3, 1, 2)
        return codes, valid_MS.float().mean(dim=1).reshape(num_images, rows, columns)
