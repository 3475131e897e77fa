"""What the configs of several networks check."""

from collections.abc import Sequence
from typing import Any, Literal, get_args

from segcore.backbones import OUTPUT_STRIDES
from segcore.backbones.catalogue import backbone_spec

Stage = Literal["encoder", "whole"]
"""Of networks that are trained in two stages: the encoder with a classifier of its own, then all of it."""
STAGES: tuple[Stage, ...] = get_args(Stage)


def check_known(name: str, value: str, known: Sequence[str]) -> None:
    """Refuse a value that a field does not have.

    Raises:
        ValueError: the message lists the known ones.
    """
    if value not in known:
        raise ValueError(f"unknown {name} {value!r}; known: {', '.join(known)}")


def check_stage(stage: str) -> None:
    """Refuse a stage that is none of `STAGES`.

    Raises:
        ValueError: the message lists them.
    """
    check_known("stage", stage, STAGES)


def check_own_encoder(backbone: str, *, network: str) -> None:
    """Refuse any backbone but the encoder that a network is made of, which has the network's name.

    Raises:
        ValueError: it is another one, or none.
    """
    if backbone != network:
        backbone_spec(backbone)
        raise ValueError(
            f"network {network!r} has an encoder of its own and not {backbone!r}; leave its backbone at {network!r}"
        )


VGG_BACKBONES = ("vgg16", "vgg16_bn")
VGG_WIDTHS = (1.0, 0.5, 0.25, 0.125, 0.0625)
"""Shares of VGG-16's widths that a network can be built with."""


def check_output_stride(output_stride: int) -> None:
    """Refuse a stride that no backbone has.

    Raises:
        ValueError: it is not 8, 16 or 32.
    """
    if output_stride not in OUTPUT_STRIDES:
        raise ValueError(f"output_stride is {output_stride}; it must be one of {OUTPUT_STRIDES}")


def check_vgg(backbone: str, *, network: str) -> None:
    """Refuse another backbone than VGG-16.

    Raises:
        ValueError: it is another, or none.
    """
    backbone_spec(backbone)
    if backbone not in VGG_BACKBONES:
        raise ValueError(f"{network} is built on VGG-16, not on {backbone!r}; known: {', '.join(VGG_BACKBONES)}")


def check_positive(config: Any, *names: str) -> None:
    """Refuse fields below 1.

    Raises:
        ValueError: the first that is.
    """
    for name in names:
        if getattr(config, name) < 1:
            raise ValueError(f"{name} is {getattr(config, name)}; it must be at least 1")


def check_width(width: float) -> None:
    """Refuse a share of VGG-16's widths that is none of `VGG_WIDTHS`.

    Raises:
        ValueError: it is another number.
    """
    if width not in VGG_WIDTHS:
        raise ValueError(f"width is {width}; expected one of {', '.join(map(str, VGG_WIDTHS))}")


def check_not_negative(config: Any, *names: str) -> None:
    """Refuse fields below 0, such as weights of loss terms.

    Raises:
        ValueError: the first that is.
    """
    for name in names:
        if getattr(config, name) < 0:
            raise ValueError(f"{name} is {getattr(config, name)}; it must not be negative")


def check_dropout_and_momentum(*, dropout: float, batch_norm_momentum: float, dropout_name: str = "dropout") -> None:
    """Refuse probabilities outside [0, 1) and batch normalisation that never or always forgets.

    Raises:
        ValueError: one of the two is outside its range.
    """
    if not 0 <= dropout < 1 or not 0 < batch_norm_momentum <= 1:
        raise ValueError(
            f"{dropout_name} is {dropout} and batch_norm_momentum {batch_norm_momentum}; expected [0, 1) and (0, 1]"
        )


def check_batch_norm_momentum(batch_norm_momentum: float) -> None:
    """Refuse batch normalisation that never or always forgets.

    Raises:
        ValueError: it is outside (0, 1].
    """
    if not 0 < batch_norm_momentum <= 1:
        raise ValueError(f"batch_norm_momentum {batch_norm_momentum} is outside (0, 1]; PyTorch's own is 0.1")
