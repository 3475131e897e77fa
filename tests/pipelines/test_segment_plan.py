"""What is listed, what is left to do, and how it is cut."""

import os
from pathlib import Path

import pyarrow as pa
import pytest

from pipelines import segment_plan, storage
from pipelines.commits import PLAN
from pipelines.segment_plan import LISTING, CommittedWork, list_images, plan_work, work_ids

NOTHING = CommittedWork(done=pa.chunked_array([], pa.string()), to_retry=pa.chunked_array([], pa.string()))


def _listing(count: int, *, size_bytes: int = 10) -> pa.Table:
    rows = [{"uri": f"s3://cams/{index}.jpg", "etag": "e", "size_bytes": size_bytes} for index in range(count)]
    return pa.Table.from_pylist(rows, schema=LISTING)


def _ids(listing: pa.Table, *, model: str = "m", settings: str = "c") -> list[str]:
    found: list[str] = work_ids(listing, model_digest=model, config_digest=settings).to_pylist()
    return found


def _shard_sizes(plan: pa.Table) -> list[int]:
    shards = plan["shard"].to_pylist()
    assert shards == sorted(shards) and set(shards) == set(range(len(set(shards))))
    return [shards.count(shard) for shard in range(len(set(shards)))]


def test_every_file_is_listed_but_hidden_and_unfinished_ones(tmp_path: Path) -> None:
    for name in ("b.JPG", "deep/er/a.png", "notes.txt", "no suffix", ".hidden.jpg", ".cache/c.jpg", "x.jpg.part"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"12345")
    os.utime(tmp_path / "b.JPG", ns=(0, 1_500_000_000_123_456_000))
    found = list_images(str(tmp_path))
    names = [Path(uri).relative_to(tmp_path).as_posix() for uri in found["uri"].to_pylist()]
    assert names == ["b.JPG", "deep/er/a.png", "no suffix", "notes.txt"]
    assert found["size_bytes"].to_pylist() == [5] * 4
    first = found.to_pylist()[0]
    assert first["last_modified"].isoformat() == "2017-07-14T02:40:00.123456" == first["etag"]


def test_objects_of_a_store_and_single_files_are_listed(tmp_path: Path) -> None:
    storage.write_atomic("memory://bucket/cams/a.jpg", b"123")
    found = list_images("memory://bucket/cams/")
    assert found["uri"].to_pylist() == ["memory:///bucket/cams/a.jpg"]
    assert storage.read_bytes(found["uri"][0].as_py()) == b"123"
    storage.remove_tree("memory://bucket")
    (tmp_path / "one.jpg").write_bytes(b"1")
    assert list_images(str(tmp_path / "one.jpg"))["uri"].to_pylist() == [str(tmp_path / "one.jpg")]


def test_links_to_files_are_followed_and_names_that_are_no_text_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "far.jpg").write_bytes(b"12345")
    images = tmp_path / "images"
    images.mkdir()
    (images / "link.jpg").symlink_to(tmp_path / "far.jpg")
    (images / "dangling.jpg").symlink_to(tmp_path / "nowhere.jpg")
    (images / "a::b.jpg").write_bytes(b"123")
    Path(os.fsdecode(os.fsencode(images) + b"/caf\xe9.jpg")).write_bytes(b"1")
    found = list_images(str(images))
    assert [Path(uri).name for uri in found["uri"].to_pylist()] == ["a::b.jpg", "link.jpg"]
    assert found["size_bytes"].to_pylist() == [3, 5]
    assert [storage.read_bytes(uri) for uri in found["uri"].to_pylist()] == [b"123", b"12345"]
    assert "not UTF-8: " in caplog.text and "caf" in caplog.text and "dangling.jpg" in caplog.text


def test_pipes_are_no_files(tmp_path: Path) -> None:
    """Whoever opened one would wait for a writer that never comes."""
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "a.jpg").write_bytes(b"1")
    assert [Path(uri).name for uri in list_images(str(tmp_path))["uri"].to_pylist()] == ["a.jpg"]


def test_a_folder_that_cannot_be_listed_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root may read everything, so the refusal is the system call's."""
    (tmp_path / "locked").mkdir()
    (tmp_path / "a.jpg").write_bytes(b"1")
    scandir = os.scandir

    def refusing(path: str) -> object:
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(ValueError, match="locked' cannot be listed .Permission denied.; give this user access"):
        list_images(str(tmp_path))


def test_a_missing_path_and_an_empty_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no folder, bucket or image at .*nowhere'; check --images"):
        list_images(str(tmp_path / "nowhere"))
    (tmp_path / ".hidden").write_bytes(b"")
    with pytest.raises(ValueError, match="holds no files .hidden and .part files do not count"):
        list_images(str(tmp_path))


def test_a_work_id_changes_with_everything_that_a_mask_depends_on() -> None:
    base = pa.Table.from_pylist([{"uri": "u", "etag": "e", "size_bytes": 1}], schema=LISTING)
    ids = {_ids(base)[0], _ids(base, model="other")[0], _ids(base, settings="other")[0]}
    for column, value in (("uri", "v"), ("etag", "f"), ("size_bytes", 2)):
        row = base.to_pylist()[0] | {column: value}
        ids.add(_ids(pa.Table.from_pylist([row], schema=LISTING))[0])
    assert len(ids) == 6
    touched = base.set_column(3, LISTING.field("last_modified"), pa.array([10**15], pa.timestamp("us")))
    assert _ids(touched) == _ids(base)  # the etag tells whether the object changed


def test_a_work_id_does_not_run_its_parts_together() -> None:
    rows = [{"uri": "ab", "etag": "c", "size_bytes": 1}, {"uri": "a", "etag": "bc", "size_bytes": 1}]
    assert len(set(_ids(pa.Table.from_pylist(rows, schema=LISTING)))) == 2


def test_what_is_committed_is_not_planned() -> None:
    listing = _listing(10)
    ids = _ids(listing)
    done = pa.chunked_array([ids[:3], ["of an image that is gone"], ids[7:9]], pa.string())
    to_retry = pa.chunked_array([ids[4:5]], pa.string())
    committed = CommittedWork(done=done, to_retry=to_retry)
    plan = plan_work(listing, pa.array(ids), committed, images_per_shard=64, workers=1)
    assert plan.schema.equals(PLAN)
    assert plan["work_id"].to_pylist() == ids[3:7] + ids[9:]
    assert plan["reason"].to_pylist() == ["new", "retry", "new", "new", "new"]
    all_done = CommittedWork(done=pa.chunked_array([ids]), to_retry=to_retry)
    everything = plan_work(listing, pa.array(ids), all_done, images_per_shard=64, workers=1)
    assert everything.num_rows == 0


@pytest.mark.parametrize(
    "count, images_per_shard, workers, expected",
    [(200, 64, 1, [50] * 4), (1000, 64, 1, [64] * 15 + [40]), (10, 64, 2, [2] * 5), (3, 64, 4, [1] * 3)],
)
def test_shards_are_full_or_small_enough_for_every_worker(
    count: int, images_per_shard: int, workers: int, expected: list[int]
) -> None:
    listing = _listing(count)
    ids = pa.array(_ids(listing))
    plan = plan_work(listing, ids, NOTHING, images_per_shard=images_per_shard, workers=workers)
    assert _shard_sizes(plan) == expected


def test_a_shard_of_large_files_holds_fewer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segment_plan, "MAX_SHARD_BYTES", 25)
    for size_bytes, expected in ((10, [2] * 10), (30, [1] * 20)):
        listing = _listing(20, size_bytes=size_bytes)
        plan = plan_work(listing, pa.array(_ids(listing)), NOTHING, images_per_shard=64, workers=1)
        assert _shard_sizes(plan) == expected
