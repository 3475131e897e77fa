"""Samples that lie in two files each: how they are listed and read, for every importer of such a layout."""

from pipelines import storage
from pipelines.datasets.listing import Sample


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
