"""The bytes of an image file, held or where they lie, and what a store did wrong told apart from a broken image."""

import io
from dataclasses import dataclass, field
from typing import BinaryIO, cast

from pipelines import storage

_BLOCK_BYTES = 2**22


class SourceError(Exception):
    """The store failed while a file was read, or the file has changed: the image may be fine."""


@dataclass(slots=True, eq=False)
class Source:
    """The bytes of a file: held in `data`, or where they lie under `uri`."""

    data: bytes = b""
    uri: str = ""
    size_bytes: int = field(init=False)
    _version: str = field(init=False, default="")

    def __post_init__(self) -> None:
        if not self.uri:
            self.size_bytes = len(self.data)
            return
        try:
            fs, path = storage.filesystem(self.uri)
            info = fs.info(path)
            self.size_bytes, self._version = int(info["size"]), repr(sorted(info.items()))
        except Exception as error:  # a trust boundary: object stores raise their own types
            raise _source_error(error) from error

    def spans(self, spans: list[tuple[int, int]]) -> list[bytes]:
        """Bytes from a start to before a stop, of several spans; a span is cut off where the file ends.

        Raises:
            SourceError: the store failed.
        """
        if not self.uri:
            return [self.data[start:stop] for start, stop in spans]
        starts, stops = [start for start, _ in spans], [min(stop, self.size_bytes) for _, stop in spans]
        try:
            fs, path = storage.filesystem(self.uri)
            found: list[bytes] = fs.cat_ranges([path] * len(spans), starts, stops, on_error="raise")
        except Exception as error:  # see __post_init__
            raise _source_error(error) from error
        if any(len(data) != stop - start for data, start, stop in zip(found, starts, stops, strict=True)):
            raise SourceError("the store gave fewer bytes than were asked for; the next run tries again")
        return found

    def open(self) -> BinaryIO:
        """A file object for Pillow; what it raises when the store fails is a `SourceError`."""
        if not self.uri:
            return io.BytesIO(self.data)
        try:
            fs, path = storage.filesystem(self.uri)
            return cast(BinaryIO, _StoredFile(fs.open(path, "rb", block_size=_BLOCK_BYTES)))
        except Exception as error:  # see __post_init__
            raise _source_error(error) from error

    def check_unchanged(self) -> None:
        """To be called after the last read: windows of two versions are no image.

        Raises:
            SourceError: the file is another one by now, or has gone.
        """
        if self.uri and Source(uri=self.uri)._version != self._version:
            raise SourceError("the file changed while its windows were read; the next run takes it as it is then")


class _StoredFile(io.RawIOBase):
    """A file of some store."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file

    def read(self, size: int = -1, /) -> bytes:
        try:
            return self.file.read(size)
        except Exception as error:  # see Source
            raise _source_error(error) from error

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        return self.file.seek(offset, whence)

    def tell(self) -> int:
        return self.file.tell()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def close(self) -> None:
        self.file.close()
        super().close()


def _source_error(error: Exception) -> SourceError:
    return SourceError(f"{type(error).__name__}: {error}")
