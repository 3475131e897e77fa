"""Samples that lie in files: how they are listed, split and read, for every importer of such a layout."""

import hashlib
from collections.abc import Iterable, Mapping

from pipelines import storage
from pipelines.datasets.listing import Sample

DEFAULT_VAL_FRACTION = 0.1
"""Share of images that go to val where a layout has no split folders."""


def hash_fraction(key: str) -> float:
    """A number in [0, 1) that depends on the name alone: an image stays in its split when others come."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:6], "big") / 2**48


def check_val_fraction(fraction: float | None) -> None:
    """Make sure that `--val-fraction` is a share, where it is given.

    Raises:
        ValueError: it is below 0, or 1 or more.
    """
    if fraction is not None and not 0 <= fraction < 1:
        raise ValueError(f"--val-fraction is {fraction}, expected at least 0 and below 1")


def hash_splits(keys: Iterable[str], val_fraction: float | None) -> dict[str, str]:
    """`train` or `val` by key: about `val_fraction` of them val, `DEFAULT_VAL_FRACTION` where it is None."""
    fraction = DEFAULT_VAL_FRACTION if val_fraction is None else val_fraction
    return {key: "val" if hash_fraction(key) < fraction else "train" for key in keys}


def keys_of_split(splits: Mapping[str, str], split: str) -> list[str]:
    """The keys that a map from key to split gives to one of them, sorted."""
    return sorted(key for key, own in splits.items() if own == split)


def read_files(sample: Sample) -> tuple[bytes, bytes]:
    """The bytes of a sample's image file and of its label file.

    Raises:
        OSError: one of them cannot be read; the message names it.
    """
    return storage.read_bytes(sample.image_uri), storage.read_bytes(sample.label_uri)


def require_folder(uri: str, *, what: str) -> None:
    """Make sure that something lies at `uri` before it is listed.

    Raises:
        ValueError: nothing does.
    """
    if not storage.exists(uri):
        raise ValueError(f"{what} {uri!r} does not exist; check the path")
