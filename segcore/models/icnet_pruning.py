"""Compression of ICNet: the channels of its ResNet with the smallest kernels are cut out of a trained network.

The paper (arXiv 1704.08545, section 3.4, "model compression") trains the network at full width, ranks the filters of
each layer by the L1 norms of their kernels (Li et al., "Pruning filters for efficient ConvNets", arXiv 1608.08710),
keeps the largest, trains what is left again, and repeats: from all channels to three quarters, then to the half that
`ICNetConfig` has at width 1 (the procedure is from memory of the paper). The widths outside the ResNet stay.

    train.py cityscapes.icnet_full_width ... --name wide
    train.py cityscapes.icnet --model.imagenet-layout --model.width 1.5 --start-from RUNS/wide/model ... --name middle
    train.py cityscapes.icnet --model.imagenet-layout --start-from RUNS/middle/model ... --name half

What the paper does not say: channels that a sum joins (all blocks of a stage, and the projection of its skip) have one
rank, by the sum of their kernels' norms over all layers that give them. Li et al. take the projection's rank alone.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

BODY = "backbone.body."
STEM = (("conv1.0", "conv1.1"), ("conv1.3", "conv1.4"), ("conv1.6", "bn1"))
STAGES = ("layer1", "layer2", "layer3", "layer4")
READER_OF_SHARED = "fuse_16.fine.conv"
"""Takes conv3_1, whose channels are those of the second stage."""
READER_OF_LAST = "reduce.conv"
NORM_LEAVES = ("weight", "bias", "running_mean", "running_var")


@dataclass(frozen=True, kw_only=True, slots=True)
class Channels:
    """Channels that live and die together.

    Attributes:
        writers: convolutions that give them, each with its batch normalisation.
        readers: convolutions that take them.
    """

    writers: tuple[tuple[str, str], ...]
    readers: tuple[str, ...]


def prune(state_dict: Mapping[str, Tensor], *, share: float) -> dict[str, Tensor]:
    """The state dict of a narrower ICNet, with the channels of largest L1 norm in their old order.

    Args:
        state_dict: of a whole `ICNet` of any width, or of its backbone alone in a network's names.
        share: of the channels of each layer that are kept, above 0 and up to 1.

    Raises:
        ValueError: the share is out of range or gives no whole number of channels, or this is no ICNet.
    """
    if not 0 < share <= 1:
        raise ValueError(f"share is {share}; expected above 0 and up to 1")
    _check_is_icnet(state_dict)
    pruned = dict(state_dict)
    for channels in _all_channels(state_dict):
        kept = _kept(state_dict, channels, share=share)
        for convolution, norm in channels.writers:
            for name in (f"{convolution}.weight", *(f"{norm}.{leaf}" for leaf in NORM_LEAVES)):
                pruned[name] = pruned[name].index_select(0, kept)
        for convolution in channels.readers:
            if f"{convolution}.weight" in pruned:  # the readers behind the backbone may be absent
                pruned[f"{convolution}.weight"] = pruned[f"{convolution}.weight"].index_select(1, kept)
    return pruned


def prune_to_fit(state_dict: Mapping[str, Tensor], narrower: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """`state_dict` of a whole ICNet, pruned to the width of another one's if it is wider.

    Raises:
        ValueError: as `prune`.
    """
    _check_is_icnet(state_dict)
    share = len(narrower[f"{BODY}conv1.0.weight"]) / len(state_dict[f"{BODY}conv1.0.weight"])
    return prune(state_dict, share=share) if share < 1 else state_dict


def _check_is_icnet(state_dict: Mapping[str, Tensor]) -> None:
    stem = f"{BODY}conv1.0.weight"
    if stem not in state_dict:
        raise ValueError(f"the state dict has no {stem}; give that of an ICNet as a whole (model.state_dict())")


def _kept(state_dict: Mapping[str, Tensor], channels: Channels, *, share: float) -> Tensor:
    """Ascending indices of the channels whose kernels have the largest L1 norms."""
    norms_K = torch.stack(
        [state_dict[f"{convolution}.weight"].abs().sum(dim=(1, 2, 3)) for convolution, _ in channels.writers]
    ).sum(dim=0)
    num_kept = share * len(norms_K)
    if abs(num_kept - round(num_kept)) > 1e-6 or round(num_kept) < 1:
        raise ValueError(
            f"share {share:g} of the {len(norms_K)} channels of {channels.writers[0][0]} is no whole number of "
            "channels; choose a share that leads to a width of ICNetConfig"
        )
    return norms_K.topk(round(num_kept)).indices.sort().values


def _all_channels(state_dict: Mapping[str, Tensor]) -> Iterator[Channels]:
    """The channels of every layer of the ResNet, from stem to last stage."""
    stem = tuple((BODY + conv, BODY + norm) for conv, norm in STEM)
    for writer, (reader, _) in pairwise(stem):
        yield Channels(writers=(writer,), readers=(reader,))
    yield Channels(writers=(stem[-1],), readers=_first_readers(STAGES[0]))
    for index, stage in enumerate(STAGES):
        blocks = [f"{BODY}{stage}.{block}" for block in range(_num_blocks(state_dict, stage))]
        for block in blocks:
            yield Channels(writers=((f"{block}.conv1", f"{block}.bn1"),), readers=(f"{block}.conv2",))
            yield Channels(writers=((f"{block}.conv2", f"{block}.bn2"),), readers=(f"{block}.conv3",))
        beyond = _first_readers(STAGES[index + 1]) if index + 1 < len(STAGES) else (READER_OF_LAST,)
        yield Channels(
            writers=(
                (f"{blocks[0]}.downsample.0", f"{blocks[0]}.downsample.1"),
                *((f"{block}.conv3", f"{block}.bn3") for block in blocks),
            ),
            readers=(
                *(f"{block}.conv1" for block in blocks[1:]),
                *beyond,
                *((READER_OF_SHARED,) if stage == "layer2" else ()),
            ),
        )


def _first_readers(stage: str) -> tuple[str, str]:
    """What takes the map before a stage: its first block, and the projection of the skip."""
    return f"{BODY}{stage}.0.conv1", f"{BODY}{stage}.0.downsample.0"


def _num_blocks(state_dict: Mapping[str, Tensor], stage: str) -> int:
    prefix = f"{BODY}{stage}."
    return 1 + max(int(name.removeprefix(prefix).partition(".")[0]) for name in state_dict if name.startswith(prefix))
