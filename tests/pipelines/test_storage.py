"""Files behind URIs: all-or-nothing writes, exclusive creation, and messages."""

import errno
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from pipelines import storage


@pytest.fixture(params=["local", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A local folder, and an object store in this process's memory: what S3 has no rename for takes the same way."""
    if request.param == "local":
        yield str(tmp_path)
        return
    yield "memory://bucket/folder"
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]


def test_written_bytes_are_read_back_and_replaced(folder: str) -> None:
    uri = storage.join(folder, "a/b", "file")
    storage.write_atomic(uri, b"old")
    storage.write_atomic(uri, b"new")
    assert storage.read_bytes(uri) == b"new"
    assert storage.exists(uri)
    assert storage.list_files(folder) == [uri]


def test_missing_files_raise_and_missing_folders_are_empty(folder: str) -> None:
    with pytest.raises(FileNotFoundError):
        storage.read_bytes(storage.join(folder, "absent"))
    assert not storage.exists(storage.join(folder, "absent"))
    assert storage.list_files(storage.join(folder, "absent")) == []
    storage.remove_tree(storage.join(folder, "absent"))


def test_exclusive_creation_keeps_the_first_content(folder: str) -> None:
    uri = storage.join(folder, "plan.json")
    assert storage.create_exclusive(uri, b"first")
    assert not storage.create_exclusive(uri, b"second")
    assert storage.read_bytes(uri) == b"first"
    assert storage.list_files(folder) == [uri]


def test_of_many_threads_one_creates(tmp_path: Path) -> None:
    for attempt in range(20):
        uri = str(tmp_path / f"commit-{attempt}")
        with ThreadPoolExecutor(8) as pool:
            won = list(pool.map(lambda who, uri=uri: storage.create_exclusive(uri, str(who).encode() * 1000), range(8)))
        assert won.count(True) == 1
        assert storage.read_bytes(uri) == str(won.index(True)).encode() * 1000


def _try_all(folder: str, who: int) -> list[int]:
    return [n for n in range(50) if storage.create_exclusive(storage.join(folder, str(n)), str(who).encode())]


def test_of_many_processes_each_file_is_created_by_one(tmp_path: Path) -> None:
    with get_context("forkserver").Pool(2) as pool:
        won = pool.starmap(_try_all, [(str(tmp_path), who) for who in (1, 2)])
    assert sorted(won[0] + won[1]) == list(range(50))
    assert all(storage.read_bytes(str(tmp_path / str(n))) == b"1" for n in won[0])


def test_a_failed_write_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "no space left on device")

    storage.write_atomic(str(tmp_path / "file"), b"old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space left"):
        storage.write_atomic(str(tmp_path / "file"), b"new")
    assert os.listdir(tmp_path) == ["file"]
    assert (tmp_path / "file").read_bytes() == b"old"


def test_half_written_files_of_killed_writers_are_not_listed_and_can_be_removed(tmp_path: Path) -> None:
    storage.write_atomic(str(tmp_path / "part-0.parquet"), b"whole")
    half = tmp_path / f".part-1.parquet.0123456789ab{storage.UNFINISHED_SUFFIX}"
    half.write_bytes(b"ha")
    assert storage.list_files(str(tmp_path)) == [str(tmp_path / "part-0.parquet")]
    storage.remove_unfinished(str(tmp_path))
    assert os.listdir(tmp_path) == ["part-0.parquet"]
    storage.remove_unfinished(str(tmp_path / "absent"))


def test_moving_is_idempotent(folder: str) -> None:
    source, target = storage.join(folder, "staging/x"), storage.join(folder, "final/deep/x")
    storage.write_atomic(source, b"data")
    storage.move(source, target)
    storage.move(source, target)
    assert storage.list_files(folder) == [target]
    with pytest.raises(FileNotFoundError, match="neither .*absent nor .*nowhere exists"):
        storage.move(storage.join(folder, "absent"), storage.join(folder, "nowhere"))


def test_a_tree_is_removed(folder: str) -> None:
    storage.write_atomic(storage.join(folder, "a/b/c"), b"")
    storage.write_atomic(storage.join(folder, "keep"), b"")
    storage.remove_tree(storage.join(folder, "a"))
    assert storage.list_files(folder) == [storage.join(folder, "keep")]


def test_writable_folders_are_made_and_left_empty(folder: str) -> None:
    storage.check_writable(storage.join(folder, "new/deep"))
    assert storage.list_files(folder) == []


def test_a_file_where_a_folder_is_expected_is_not_writable(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ValueError, match=r"cannot write below '.*file': \w+Error: .*; give a folder or bucket"):
        storage.check_writable(str(tmp_path / "file"))


def test_a_read_only_folder_is_not_writable(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    if os.access(tmp_path, os.W_OK):
        pytest.skip("this user may write anywhere (root)")
    with pytest.raises(ValueError, match="cannot write below .*PermissionError"):
        storage.check_writable(str(tmp_path))


def test_local_paths_become_absolute_and_uris_stay(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert storage.absolute("out/x/") == str(tmp_path / "out/x")
    assert storage.absolute("memory://bucket/x/") == "memory://bucket/x"


def test_json_is_canonical_and_broken_json_is_named(tmp_path: Path) -> None:
    assert storage.json_bytes({"b": 1, "a": (2, 3)}) == storage.json_bytes({"a": [2, 3], "b": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        storage.json_bytes(float("nan"))
    (tmp_path / "x.json").write_bytes(b"{half")
    with pytest.raises(ValueError, match="x.json is not JSON .*; restore it or write the folder again"):
        storage.read_json(str(tmp_path / "x.json"))
