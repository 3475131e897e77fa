"""The backbones that a network can be built on, by name."""

from dataclasses import dataclass

OUTPUT_STRIDES = (8, 16, 32)
"""Input size / size of the coarsest feature map."""

FEATURE_STRIDES = (2, 4, 8, 16, 32)
"""Nominal strides of the five stages: names of features, whatever stride a stage really has (see `Backbone`)."""

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5)


@dataclass(frozen=True, kw_only=True, slots=True)
class BackboneSpec:
    """One backbone.

    Attributes:
        timm_name: architecture and pre-training as timm names them; `timm.create_model(timm_name, pretrained=True)`
            gives the weights that `mean` and `std` belong to. None where timm has no such model: it is ours alone.
        mean, std: of RGB / 255, per channel: what the pre-trained weights expect.
        classifier_prefixes: names in the classifier's state dict that a feature extractor has no place for.
        same_padding: True where strided convolutions pad as TensorFlow's "same": the phase of the sampling grid then
            depends on whether the size is even, so networks pad their input to a multiple of the output stride.
        last_stride: of the coarsest map that the classifier has; most networks here are built on 32.
        network: key of `MODELS` of the one network whose own encoder this is, no image classifier; "" for all others.
        own_name: of an architecture that timm does not have.
    """

    timm_name: str | None
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    classifier_prefixes: tuple[str, ...]
    same_padding: bool = False
    last_stride: int = 32
    network: str = ""
    own_name: str = ""

    @property
    def architecture(self) -> str:
        """timm's name without the pre-training tag, or our own."""
        return (self.timm_name or self.own_name).partition(".")[0]


def _resnet(timm_name: str) -> BackboneSpec:
    return BackboneSpec(timm_name=timm_name, mean=IMAGENET_MEAN, std=IMAGENET_STD, classifier_prefixes=("fc.",))


def _xception(timm_name: str) -> BackboneSpec:
    return BackboneSpec(timm_name=timm_name, mean=HALF, std=HALF, classifier_prefixes=("head.",))


def _mobilenet(timm_name: str) -> BackboneSpec:
    prefixes = ("conv_head.", "bn2.", "classifier.")
    return BackboneSpec(timm_name=timm_name, mean=IMAGENET_MEAN, std=IMAGENET_STD, classifier_prefixes=prefixes)


def _efficientnet_lite(timm_name: str) -> BackboneSpec:
    prefixes = ("conv_head.", "bn2.", "classifier.")
    return BackboneSpec(timm_name=timm_name, mean=HALF, std=HALF, classifier_prefixes=prefixes, same_padding=True)


def _vgg(timm_name: str) -> BackboneSpec:
    prefixes = ("pre_logits.", "head.", "classifier.")  # timm's names, and torchvision's
    return BackboneSpec(timm_name=timm_name, mean=IMAGENET_MEAN, std=IMAGENET_STD, classifier_prefixes=prefixes)


def _light_xception() -> BackboneSpec:
    return BackboneSpec(
        timm_name=None, mean=IMAGENET_MEAN, std=IMAGENET_STD, classifier_prefixes=("fc.",), last_stride=16
    )


def _own_encoder(network: str, *, last_stride: int) -> BackboneSpec:
    return BackboneSpec(
        timm_name=None,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        classifier_prefixes=(),
        last_stride=last_stride,
        network=network,
    )


BACKBONES: dict[str, BackboneSpec] = {
    "resnet18": _resnet("resnet18.tv_in1k"),
    "resnet34": _resnet("resnet34.tv_in1k"),
    "resnet50": _resnet("resnet50.tv_in1k"),
    "resnet101": _resnet("resnet101.tv_in1k"),
    # "deep": three 3x3 stem convolutions (64, 64, 128) in place of the 7x7, the "beta" ResNet of the TF DeepLab code.
    "resnet50_deep": _resnet("resnet50s.gluon_in1k"),
    "resnet101_deep": _resnet("resnet101s.gluon_in1k"),
    "xception41": _xception("xception41.tf_in1k"),
    "xception65": _xception("xception65.tf_in1k"),
    "xception71": _xception("xception71.tf_in1k"),
    "vgg16": _vgg("vgg16.tv_in1k"),
    "vgg16_bn": _vgg("vgg16_bn.tv_in1k"),
    "mobilenet_v2": _mobilenet("mobilenetv2_100.ra_in1k"),
    "mobilenet_v3_small": _mobilenet("mobilenetv3_small_100.lamb_in1k"),
    "mobilenet_v3_large": _mobilenet("mobilenetv3_large_100.ra_in1k"),
    "efficientnet_lite0": _efficientnet_lite("tf_efficientnet_lite0.in1k"),
    "efficientnet_lite1": _efficientnet_lite("tf_efficientnet_lite1.in1k"),
    "efficientnet_lite2": _efficientnet_lite("tf_efficientnet_lite2.in1k"),
    "xception39": BackboneSpec(
        timm_name=None,
        own_name="xception39",
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        classifier_prefixes=("fc.",),
    ),
    # Of DFANet alone, which carries on where they end.
    "dfanet_xception_a": _light_xception(),
    "dfanet_xception_b": _light_xception(),
    # Encoders that are part of one network and built beside it.
    "enet": _own_encoder("enet", last_stride=8),
    "espnet": _own_encoder("espnet", last_stride=8),
    "segnet_basic": _own_encoder("segnet", last_stride=16),
    "unet": _own_encoder("unet", last_stride=16),
}


def backbone_spec(name: str, *, last_stride: int = 32) -> BackboneSpec:
    """The entry of `BACKBONES`, for a network that needs its coarsest map at `last_stride`.

    Raises:
        ValueError: no such name, another network's own encoder, or one that ends at another stride; the message lists
            the known ones.
    """
    known = [known for known, spec in BACKBONES.items() if spec.last_stride == last_stride and not spec.network]
    if name not in known:
        problem = f"unknown backbone {name!r}"
        if name in BACKBONES:
            spec = BACKBONES[name]
            problem = (
                f"backbone {name!r} is the encoder of network {spec.network!r} alone"
                if spec.network
                else f"backbone {name!r} ends at stride {spec.last_stride}, and this network needs one that ends at "
                f"{last_stride}"
            )
        raise ValueError(f"{problem}; known: {', '.join(known)}")
    return BACKBONES[name]
