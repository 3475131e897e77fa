"""Fetching the images of a shard."""

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pyarrow as pa

from pipelines import storage
from pipelines.intake.windows import MAX_FILE_BYTES
from pipelines.nightly.plan import MAX_SHARD_BYTES

FETCH_THREADS = 8
FETCH_ATTEMPTS = 3
FETCH_PAUSE_SECONDS = 0.3
MAX_MESSAGE_CHARACTERS = 2000

_NOT_AT_ONCE = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)
"""Not worth another attempt within a second. The next run tries again: a disk comes back, a credential is renewed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """Why an image could not be segmented, and whether the next run shall try again, though the file is the same."""

    stage: str
    error: str
    message: str
    retryable: bool

    @staticmethod
    def of(error: Exception, *, stage: str, retryable: bool) -> "Failure":
        """From an exception."""
        message = str(error)[:MAX_MESSAGE_CHARACTERS]
        return Failure(stage=stage, error=type(error).__name__, message=message, retryable=retryable)

    @property
    def is_out_of_memory(self) -> bool:
        """Whether a smaller piece of the image may do: PyTorch's CPU allocator raises a RuntimeError that says so."""
        return self.error in ("OutOfMemoryError", "MemoryError") or "can't allocate memory" in self.message


def fetch_images(items: pa.Table) -> pa.Table:
    """Add each image's bytes, or why there are none, to one shard's work list.

    Neither has a file of more than `MAX_SHARD_BYTES`: it stays where it lies, since of a TIFF a piece at a time is
    read.
    """
    with ThreadPoolExecutor(FETCH_THREADS) as pool:
        fetched = list(pool.map(_fetch, items["uri"].to_pylist(), items["size_bytes"].to_pylist()))
    failures = [failure for _, failure, _ in fetched]
    items = items.append_column("data", pa.array([data for data, _, _ in fetched], pa.large_binary()))
    items = items.append_column("attempts", pa.array([attempts for _, _, attempts in fetched], pa.int32()))
    for name, kind in (
        ("stage", pa.string()),
        ("error", pa.string()),
        ("message", pa.string()),
        ("retryable", pa.bool_()),
    ):
        column = [getattr(failure, name) if failure else None for failure in failures]
        items = items.append_column(name, pa.array(column, kind))
    return items


def _fetch(uri: str, size_bytes: int) -> tuple[bytes | None, Failure | None, int]:
    if size_bytes > MAX_FILE_BYTES:
        error = ValueError(f"the file has {size_bytes} bytes, over the budget of {MAX_FILE_BYTES}; cut it into tiles")
        return None, Failure.of(error, stage="validate", retryable=False), 0
    return (None, None, 0) if stays_in_place(size_bytes) else fetch_bytes(uri, size_bytes)


def stays_in_place(size_bytes: int) -> bool:
    """Whether a file of this size is read where it lies, and not fetched."""
    return size_bytes > MAX_SHARD_BYTES


def fetch_bytes(uri: str, size_bytes: int) -> tuple[bytes | None, Failure | None, int]:
    """Bytes of one object, or the failure; and how often it was tried."""
    for attempt in range(1, FETCH_ATTEMPTS + 1):
        try:
            data = storage.read_bytes(uri)
        except Exception as error:  # a trust boundary: object stores raise their own types
            if isinstance(error, _NOT_AT_ONCE) or attempt == FETCH_ATTEMPTS:
                return None, Failure.of(error, stage="fetch", retryable=True), attempt
            time.sleep(FETCH_PAUSE_SECONDS * attempt)
        else:
            if len(data) == size_bytes:
                return data, None, attempt
            # Its row would carry the identity of other bytes; the next listing shows it as it is then.
            changed = ValueError(f"it had {size_bytes} bytes when it was listed and has {len(data)} now")
            return data, Failure.of(changed, stage="fetch", retryable=True), attempt
    raise AssertionError("the last attempt returns")
