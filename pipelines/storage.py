"""Files behind URIs, the same for a folder, `s3://` and whatever else fsspec opens.

Two writes exist, both all-or-nothing: `write_atomic` replaces, `create_exclusive` refuses to. File systems are created
per process and lazily, because s3fs does not survive a fork.
"""

import contextlib
import errno
import hashlib
import json
import logging
import os
import posixpath
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

import fsspec
from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem

if TYPE_CHECKING:
    import pyarrow.fs

    from pipelines.object_store import ObjectStore

UNFINISHED_SUFFIX = ".part"
S3_PREFIXES = ("s3://", "s3a://")

logger = logging.getLogger(__name__)


def filesystem(uri: str) -> tuple[AbstractFileSystem, str]:
    """Return the file system of `uri` and the path inside it; a plain path is a local file.

    Listings are not cached: other processes write what this one looks for.
    """
    if "://" not in uri:  # past fsspec's parser, for which "a::b" is a chain of two URLs
        return LocalFileSystem(), str(LocalFileSystem._strip_protocol(uri))
    if uri.startswith(S3_PREFIXES):
        from pipelines.object_store import object_store  # half a second, which a folder's user need not wait

        store = object_store()
        return store, str(store._strip_protocol(uri))
    fs, path = fsspec.core.url_to_fs(uri, use_listings_cache=False)
    return fs, str(path)


def arrow_filesystem(uri: str) -> "tuple[pyarrow.fs.FileSystem, str]":
    """The same for pyarrow and for Ray's readers and writers, with the retries and errors of `filesystem`."""
    import pyarrow.fs  # models are served without it

    fs, path = filesystem(uri)
    return pyarrow.fs.LocalFileSystem() if is_local(fs) else pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(fs)), path


def join(uri: str, *parts: str) -> str:
    """Append path parts to a URI or local path."""
    return posixpath.join(uri, *parts)


def absolute(uri: str) -> str:
    """A local path from the root, since workers run in other folders; a URI stays as it is, without a final slash."""
    fs, path = filesystem(uri)
    return path if is_local(fs) else uri.rstrip("/")


def exists(uri: str) -> bool:
    """Whether a file or folder lies at `uri`."""
    fs, path = filesystem(uri)
    return bool(fs.exists(path))


def read_bytes(uri: str) -> bytes:
    """The whole file at `uri`.

    Raises:
        FileNotFoundError: nothing lies there.
    """
    if uri.startswith("/"):  # most files that are read in large numbers; fsspec's own way takes twice as long
        with open(uri, "rb") as file:
            return file.read()
    fs, path = filesystem(uri)
    data: bytes = fs.cat_file(path)
    return data


def list_files(uri: str) -> list[str]:
    """Every file below `uri`, as sorted URIs; empty where the folder is empty or absent.

    What a writer that was killed left half written (see `write_atomic`) is not listed.
    """
    fs, path = filesystem(uri)
    if is_local(fs):
        return sorted(name for name in _files_below(path) if not _is_unfinished(name))
    if is_s3(fs):  # some servers show a folder, even an empty one, as an object whose name ends in a slash
        names = [entry["name"] for entry in fs.pages(path) if not entry["name"].endswith("/")]
    else:
        names = fs.find(path) if fs.exists(path) else []
    names = [name for name in names if not _is_unfinished(name)]
    return sorted(uri.rstrip("/") + name.removeprefix(path.rstrip("/")) for name in names)


def remove_unfinished(uri: str) -> None:
    """Remove what killed writers left half written below a local folder. A writer that still runs there fails."""
    fs, path = filesystem(uri)
    if is_local(fs):  # an object store shows no object before it is complete
        for name in _files_below(path):
            if _is_unfinished(name):
                Path(name).unlink(missing_ok=True)


def list_folders(uri: str) -> list[str]:
    """Names of the folders directly below `uri`, sorted; empty where it is absent. Costs one listing, not a walk."""
    fs, path = filesystem(uri)
    fs.invalidate_cache()
    try:
        entries = fs.ls(path, detail=True)
    except FileNotFoundError:
        return []
    return sorted(posixpath.basename(entry["name"].rstrip("/")) for entry in entries if entry["type"] == "directory")


def entries(uri: str, *, recursive: bool = False) -> Iterator[dict[str, Any]]:
    """What fsspec says of each file and folder directly in a folder, or of each file below it; none where it is gone.

    Of S3, page by page: what there is of millions of objects need not be held at once.
    """
    fs, path = filesystem(uri)
    if is_s3(fs):
        yield from fs.pages(path, one_level=not recursive)
    elif recursive:
        yield from fs.find(path, detail=True).values()
    else:
        with contextlib.suppress(FileNotFoundError):
            yield from fs.ls(path, detail=True)


def is_local(fs: AbstractFileSystem) -> bool:
    """Whether `fs` is this machine's own file system, where rename and hard links exist."""
    return isinstance(fs, LocalFileSystem)


def is_s3(fs: AbstractFileSystem) -> "TypeGuard[ObjectStore]":
    """Whether `fs` is an object store that speaks S3."""
    return "s3" in fs.protocol


def write_atomic(uri: str, data: bytes) -> None:
    """Write a file so that a reader sees the old content or the new, never a part.

    A local file is written beside its place, synced and renamed; an object store's PUT is atomic by itself.
    """
    fs, path = filesystem(uri)
    if is_s3(fs):
        fs.put(path, data)
        return
    if not is_local(fs):
        fs.pipe_file(path, data)
        return
    temporary = _write_beside(path, data)
    os.replace(temporary, path)
    _sync_folder(temporary.parent)


def create_exclusive(uri: str, data: bytes) -> bool:
    """Create a file that must not exist yet; of many writers exactly one gets True, the others False.

    Locally a hard link to a finished file, so that the name never shows half a content; on S3 `If-None-Match: *`.
    """
    fs, path = filesystem(uri)
    if is_s3(fs):
        return fs.put_new(path, data)
    if not is_local(fs):
        try:
            fs.pipe_file(path, data, mode="create")
        except FileExistsError:
            return False
        return True
    temporary = _write_beside(path, data)
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    finally:
        os.unlink(temporary)
    _sync_folder(temporary.parent)
    return True


def move(source: str, target: str) -> None:
    """Move one file inside one file system: a rename locally, a copy by the server and a delete on S3. Idempotent.

    Raises:
        FileNotFoundError: neither source nor target exists.
    """
    fs, source_path = filesystem(source)
    _, target_path = filesystem(target)
    if not fs.exists(source_path):
        if fs.exists(target_path):
            return
        raise FileNotFoundError(errno.ENOENT, f"neither {source} nor {target} exists", source)
    if is_local(fs):
        Path(target_path).parent.mkdir(parents=True, exist_ok=True)
        os.replace(source_path, target_path)
    else:
        fs.copy(source_path, target_path)
        fs.rm_file(source_path)


def remove_file(uri: str) -> None:
    """Remove one file; nothing happens where it is absent."""
    fs, path = filesystem(uri)
    with contextlib.suppress(FileNotFoundError):
        fs.rm_file(path)


def remove_tree(uri: str) -> None:
    """Remove a folder and all below it; nothing happens where it is absent."""
    fs, path = filesystem(uri)
    if fs.exists(path):
        fs.rm(path, recursive=True)


def check_writable(uri: str) -> None:
    """Prove that this process can write below `uri`, before hours of work depend on it.

    Raises:
        ValueError: it cannot; the message says why and what to do.
    """
    probe = join(uri, f".write-probe-{secrets.token_hex(4)}")
    try:
        write_atomic(probe, b"")
        fs, path = filesystem(probe)
        fs.rm_file(path)
    except Exception as error:  # of a store that is not ours: its own exceptions
        raise ValueError(
            f"cannot write below {uri!r}: {type(error).__name__}: {error}; "
            "give a folder or bucket that this user may write to"
        ) from error


def read_json(uri: str) -> Any:
    """Parse the JSON file at `uri`.

    Raises:
        FileNotFoundError: nothing lies there.
        ValueError: it is not JSON.
    """
    try:
        return json.loads(read_bytes(uri))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{uri} is not JSON ({error}); restore it or write the folder again") from error


def json_bytes(value: Any) -> bytes:
    """JSON with sorted keys, two spaces, no NaN and one final newline: equal values give equal bytes."""
    return (json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n").encode()


def sha256(data: bytes) -> str:
    """Hexadecimal SHA-256."""
    return hashlib.sha256(data).hexdigest()


def _write_beside(path: str, data: bytes) -> Path:
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(6)}{UNFINISHED_SUFFIX}")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:  # a full disk, Ctrl-C
        temporary.unlink(missing_ok=True)
        raise
    return temporary


def _files_below(folder: str) -> Iterator[str]:
    """What fsspec's `find` finds, in a quarter of its time: it asks for size and age of each."""
    if os.path.isfile(folder):
        yield folder
    for path, _, names in os.walk(folder):
        yield from (os.path.join(path, name) for name in names)


def _is_unfinished(path: str) -> bool:
    name = posixpath.basename(path)
    return name.startswith(".") and name.endswith(UNFINISHED_SUFFIX)


def _sync_folder(folder: Path) -> None:
    """Make a new name survive a power cut, so that a manifest is never on disk without the files before it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:  # some network and FUSE file systems cannot, and keep names in order themselves
        logger.debug("cannot sync the folder %s", folder, exc_info=True)
    finally:
        os.close(descriptor)
