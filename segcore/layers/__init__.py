"""Blocks that several networks share."""

from segcore.layers.aspp import ASPP, atrous_rates
from segcore.layers.conv import AtrousConv2d, ConvBnAct, SeparableConv, initialise_convolutions
from segcore.layers.dupsample import DUpsample
from segcore.layers.encoding import Encoding
from segcore.layers.fcn_head import FCNHead
from segcore.layers.folding import fold_batch_norm
from segcore.layers.label_encoder import LabelEncoder
from segcore.layers.norm import set_batch_norm_momentum, synchronise_batch_norm
from segcore.layers.pyramid_pooling import PyramidPooling
from segcore.layers.resize import downsample, enlarge_scores, pad_to_multiple, resize, resize_smoothly, upsample
from segcore.layers.unpool import pool_with_switches, unpool

__all__ = [
    "ASPP",
    "AtrousConv2d",
    "ConvBnAct",
    "DUpsample",
    "Encoding",
    "FCNHead",
    "LabelEncoder",
    "PyramidPooling",
    "SeparableConv",
    "atrous_rates",
    "downsample",
    "enlarge_scores",
    "fold_batch_norm",
    "initialise_convolutions",
    "pad_to_multiple",
    "pool_with_switches",
    "resize",
    "resize_smoothly",
    "set_batch_norm_momentum",
    "synchronise_batch_norm",
    "unpool",
    "upsample",
]
