"""Blocks that several networks share."""

from segcore.layers.aspp import ASPP, ImagePooling, atrous_rates
from segcore.layers.conv import AtrousConv2d, ConvBnAct, SeparableConv, initialise_convolutions, strided_conv
from segcore.layers.dupsample import DUpsample
from segcore.layers.encoding import Encoding
from segcore.layers.fcn_head import FCNHead
from segcore.layers.folding import fold_batch_norm
from segcore.layers.label_encoder import LabelEncoder
from segcore.layers.norm import recompute_batch_norm, set_batch_norm_momentum, synchronise_batch_norm
from segcore.layers.pyramid_pooling import PyramidPooling
from segcore.layers.resize import (
    bilinear_kernel,
    bilinear_transposed_convolution,
    downsample,
    enlarge_scores,
    mirror,
    pad_to_multiple,
    region_means,
    resize,
    resize_smoothly,
    scaled_side,
    upsample,
    window,
)
from segcore.layers.squeeze_excitation import SqueezeExcitation
from segcore.layers.unpool import Pooling, UnpoolingDecoder, pool_with_switches, record_pooling, unpool

__all__ = [
    "ASPP",
    "AtrousConv2d",
    "ConvBnAct",
    "DUpsample",
    "Encoding",
    "FCNHead",
    "ImagePooling",
    "LabelEncoder",
    "Pooling",
    "PyramidPooling",
    "SeparableConv",
    "SqueezeExcitation",
    "UnpoolingDecoder",
    "atrous_rates",
    "bilinear_kernel",
    "bilinear_transposed_convolution",
    "downsample",
    "enlarge_scores",
    "fold_batch_norm",
    "initialise_convolutions",
    "mirror",
    "pad_to_multiple",
    "pool_with_switches",
    "recompute_batch_norm",
    "record_pooling",
    "region_means",
    "resize",
    "resize_smoothly",
    "scaled_side",
    "set_batch_norm_momentum",
    "strided_conv",
    "synchronise_batch_norm",
    "unpool",
    "upsample",
    "window",
]
