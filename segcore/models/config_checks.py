"""What the configs of several networks check."""

from typing import Any

from segcore.backbones import OUTPUT_STRIDES
from segcore.backbones.catalogue import backbone_spec


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


def check_output_stride(output_stride: int) -> None:
    """Refuse a stride that no backbone has.

    Raises:
        ValueError: it is not 8, 16 or 32.
    """
    if output_stride not in OUTPUT_STRIDES:
        raise ValueError(f"output_stride is {output_stride}; it must be one of {OUTPUT_STRIDES}")


def check_positive(config: Any, *names: str) -> None:
    """Refuse fields below 1.

    Raises:
        ValueError: the first that is.
    """
    for name in names:
        if getattr(config, name) < 1:
            raise ValueError(f"{name} is {getattr(config, name)}; it must be at least 1")


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
