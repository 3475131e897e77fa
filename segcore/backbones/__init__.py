"""Image classifiers as feature extractors: `BACKBONES`, `build_backbone`, `load_backbone_weights`."""

from segcore.backbones.backbone import Backbone, build_backbone, dilate_first_blocks
from segcore.backbones.catalogue import BACKBONES, FEATURE_STRIDES, OUTPUT_STRIDES, BackboneSpec
from segcore.backbones.dense_vgg import DenseVGG
from segcore.backbones.light_xception import LightXception
from segcore.backbones.switched_vgg import SwitchedVGG
from segcore.backbones.vgg import FullyConnected
from segcore.backbones.weights import backbone_state, fitting_weights, load_backbone_weights, load_own_encoder

__all__ = [
    "BACKBONES",
    "FEATURE_STRIDES",
    "OUTPUT_STRIDES",
    "Backbone",
    "BackboneSpec",
    "DenseVGG",
    "FullyConnected",
    "LightXception",
    "SwitchedVGG",
    "backbone_state",
    "build_backbone",
    "dilate_first_blocks",
    "fitting_weights",
    "load_backbone_weights",
    "load_own_encoder",
]
