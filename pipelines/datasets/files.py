"""Samples that lie in files: how they are listed, split and read, for every importer of such a layout."""

import hashlib

from pipelines import storage
from pipelines.datasets.listing import Sample

DEFAULT_VAL_FRACTION = 0.1
"""Share of images that go to val where a layout has no split folders."""


def hash_fraction(key: str) -> float:
    """A number in [0, 1) that depends on the name alone: an image stays in its split when others come."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:6], "big") / 2**48


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
