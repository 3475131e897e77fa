"""Fixtures of several modules here and below."""

import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines import storage


@pytest.fixture(params=["folder", "object store"])
def tables(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Where the tables go: a folder, and a store without renames (in memory, as S3 it copies and deletes)."""
    if request.param == "folder":
        yield str(tmp_path / "tables")
        return
    uri = f"memory://{uuid.uuid4().hex}/tables"
    yield uri
    storage.remove_tree(uri.rpartition("/")[0])


@pytest.fixture
def no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """For modules that write many small files."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
