"""Public checkpoints' tensors under our names: state dict in, state dict for `restore_model` out.

Only names change. Where the released networks compute something else from the same weights, the functions below say
which settings of ours follow them, and what is left. Both projects take images normalised as `segcore.backbones` says.
"""

from collections.abc import Mapping

from torch import Tensor

PYTORCH_ENCODING_ENCNET = {
    "pretrained": "backbone.body",
    "head.conv5.0": "reduce.conv",
    "head.conv5.1": "reduce.norm",
    "head.connect.0.0": "lateral.projections.0.conv",
    "head.connect.0.1": "lateral.projections.0.norm",
    "head.connect.1.0": "lateral.projections.1.conv",
    "head.connect.1.1": "lateral.projections.1.norm",
    "head.fusion.0": "lateral.fuse.conv",
    "head.fusion.1": "lateral.fuse.norm",
    "head.encmodule.encoding.0": "context.project.conv",
    "head.encmodule.encoding.1": "context.project.norm",
    "head.encmodule.encoding.3.codewords": "context.encoding.codewords_QK",
    "head.encmodule.encoding.3.scale": "context.encoding.smoothing_Q",
    "head.encmodule.encoding.4": "context.norm",
    "head.encmodule.fc.0": "context.attention",
    "head.encmodule.selayer": "presence",
    "head.conv6.1": "head.classifier",
    "auxlayer.conv5.0": "auxiliary.reduce.conv",
    "auxlayer.conv5.1": "auxiliary.reduce.norm",
    "auxlayer.conv5.4": "auxiliary.classifier",
}
"""Modules and tensors of PyTorch-Encoding's `EncNet`, and ours."""

SEMSEG_PSPNET = {
    "layer0.0": "backbone.body.conv1.0",
    "layer0.1": "backbone.body.conv1.1",
    "layer0.3": "backbone.body.conv1.3",
    "layer0.4": "backbone.body.conv1.4",
    "layer0.6": "backbone.body.conv1.6",
    "layer0.7": "backbone.body.bn1",
    **{f"layer{stage}": f"backbone.body.layer{stage}" for stage in range(1, 5)},
    **{f"ppm.features.{index}.1": f"pyramid.branches.{index}.conv" for index in range(4)},
    **{f"ppm.features.{index}.2": f"pyramid.branches.{index}.norm" for index in range(4)},
    "cls.0": "pyramid.fuse.conv",
    "cls.1": "pyramid.fuse.norm",
    "cls.4": "head.classifier",
    "aux.0": "auxiliary.reduce.conv",
    "aux.1": "auxiliary.reduce.norm",
    "aux.4": "auxiliary.classifier",
}
"""Modules of hszhao/semseg's `PSPNet`, and ours."""


TORCHVISION_DEEPLAB_V3 = {
    "backbone": "backbone.body",
    "classifier.0.convs.0.0": "aspp.branches.0.conv",
    "classifier.0.convs.0.1": "aspp.branches.0.norm",
    **{f"classifier.0.convs.{index}.0": f"aspp.branches.{index}.conv" for index in (1, 2, 3)},
    **{f"classifier.0.convs.{index}.1": f"aspp.branches.{index}.norm" for index in (1, 2, 3)},
    "classifier.0.convs.4.1": "aspp.branches.4.project.conv",
    "classifier.0.convs.4.2": "aspp.branches.4.project.norm",
    "classifier.0.project.0": "aspp.project.conv",
    "classifier.0.project.1": "aspp.project.norm",
    "classifier.1": "final.conv",
    "classifier.2": "final.norm",
    "classifier.4": "head.classifier",
}
"""Modules of torchvision's `deeplabv3_resnet50` and `deeplabv3_resnet101`, and ours."""


def deeplab_v3_from_torchvision(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the tensors of torchvision's DeepLabV3, for `DeepLabV3Config` with `final_convolution` at output stride 8.

    Its auxiliary classifier, which ours has not, is left out. Scores are the same at sizes that 8 divides; elsewhere
    torchvision squeezes the last row and column, see `segcore.layers.upsample`.

    Args:
        state_dict: the network's plain tensors.

    Raises:
        ValueError: a name that such a network does not have.
    """
    kept = {name: tensor for name, tensor in state_dict.items() if not name.startswith("aux_classifier.")}
    return _renamed(kept, TORCHVISION_DEEPLAB_V3, network="torchvision's DeepLabV3")


def encnet_from_pytorch_encoding(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the tensors of an `EncNet` of zhanghang1989/PyTorch-Encoding, for `EncNetConfig`.

    Its `resnet50s` is our `resnet50_deep`; `lateral` is on in its networks for PASCAL and COCO. Scores on the map are
    the same; theirs are then enlarged with `align_corners=True`.

    Args:
        state_dict: a checkpoint's plain tensors (`checkpoint["state_dict"]` where it holds more), with or without the
            prefix `module.` of data parallel training.

    Raises:
        ValueError: a name that such a network does not have.
    """
    return _renamed(state_dict, PYTORCH_ENCODING_ENCNET, network="PyTorch-Encoding's EncNet")


def pspnet_from_semseg(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the tensors of a `PSPNet` of hszhao/semseg, for `PSPNetConfig` with `released_layout`.

    Its ResNet-50 is our `resnet50_deep`. Without `aux` (a network saved in evaluation mode) set `auxiliary_weight=0`.
    Scores on the map are the same; theirs are then enlarged with `align_corners=True`, from sizes 8 k + 1.

    Args:
        state_dict: as of `encnet_from_pytorch_encoding`.

    Raises:
        ValueError: a name that such a network does not have.
    """
    return _renamed(state_dict, SEMSEG_PSPNET, network="hszhao/semseg's PSPNet")


def _renamed(state_dict: Mapping[str, Tensor], ours: Mapping[str, str], *, network: str) -> dict[str, Tensor]:
    renamed, unknown = {}, []
    for name, tensor in state_dict.items():
        plain = name.removeprefix("module.")
        theirs = next((theirs for theirs in ours if plain == theirs or plain.startswith(f"{theirs}.")), None)
        if theirs is None:
            unknown.append(name)
        else:
            renamed[ours[theirs] + plain.removeprefix(theirs)] = tensor
    if unknown:
        shown = ", ".join(unknown[:5]) + (", ..." if len(unknown) > 5 else "")
        raise ValueError(
            f"{len(unknown)} of {len(state_dict)} names are not those of {network}: {shown}; "
            "give the plain state dict (name -> tensor) of that network"
        )
    return renamed
