"""Fetching a shard: what cannot be had is told, image by image."""

from pathlib import Path

import pytest

from pipelines import storage
from pipelines.nightly import fetch as segment_fetch
from pipelines.nightly.fetch import fetch_images
from tests.pipelines.planned_shards import planned_shard


def test_what_cannot_be_fetched_is_told_and_the_rest_arrives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segment_fetch, "FETCH_PAUSE_SECONDS", 0.0)
    monkeypatch.setattr(segment_fetch, "MAX_FILE_BYTES", 100)
    monkeypatch.setattr(segment_fetch, "MAX_SHARD_BYTES", 10)
    (tmp_path / "good.jpg").write_bytes(b"good")
    read_bytes = storage.read_bytes
    calls: list[str] = []

    def flaky(uri: str) -> bytes:
        calls.append(uri)
        if uri == "once":
            if calls.count(uri) == 1:
                raise TimeoutError("slow")
            return b"here"
        if uri == "never":
            raise ConnectionError("reset")
        return read_bytes(uri)

    monkeypatch.setattr(storage, "read_bytes", flaky)
    uris = [
        str(tmp_path / "good.jpg"),
        str(tmp_path / "gone.jpg"),
        "once",
        "never",
        str(tmp_path / "good.jpg"),
        "huge",
        "large",
    ]
    fetched = fetch_images(planned_shard(uris, [4, 4, 4, 4, 5, 101, 11])).to_pylist()
    found = [(row["data"], row["stage"], row["error"], row["retryable"], row["attempts"]) for row in fetched]
    assert found == [
        (b"good", None, None, None, 1),
        (None, "fetch", "FileNotFoundError", True, 1),
        (b"here", None, None, None, 2),
        (None, "fetch", "ConnectionError", True, 3),
        (b"good", "fetch", "ValueError", True, 1),
        (None, "validate", "ValueError", False, 0),
        (None, None, None, None, 0),  # its worker will read it where it lies
    ]
    assert fetched[4]["message"] == "it had 5 bytes when it was listed and has 4 now"
