"""What a folder, a bucket, a manifest or an inventory lists."""

import gzip
import json
import os
import uuid
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines import storage
from pipelines.nightly import listing
from pipelines.nightly.listing import LISTING, list_images, take_listing

WHEN = datetime(2026, 11, 20, 3, 0, 0)


@pytest.fixture
def bucket() -> Iterator[str]:
    """An object store in this process's memory."""
    uri = f"memory://{uuid.uuid4().hex}"
    yield uri
    storage.remove_tree(uri)


def _names(found: pa.Table, below: str) -> list[str]:
    fs, root = storage.filesystem(below)
    root = root if storage.is_local(fs) else fs.unstrip_protocol(root)
    return [uri.removeprefix(f"{root}/") for uri in found["uri"].to_pylist()]


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


def _fill(bucket: str, names: list[str]) -> None:
    for name in names:
        storage.write_atomic(f"{bucket}/{name}", name.encode())


def test_a_store_is_listed_level_by_level_and_the_rest_below(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = [
        f"cams/{camera}/{hour}/{minute}/{index}.jpg"
        for camera in "ab"
        for hour in "123"
        for minute in "45"
        for index in "67"
    ]
    odd = ["cams/top.jpg", "cams/a/.hidden/x.jpg", "cams/.cache/y.jpg", "cams/b/z.jpg.part", "cams/b/1/half.jpg"]
    _fill(bucket, [*deep, *odd, "elsewhere/a.jpg", "camsite/a.jpg"])
    expected = sorted([*deep, "cams/top.jpg", "cams/b/1/half.jpg"])
    for enough, levels in ((1, 1), (2, 4), (3, 4), (100, 4), (100, 2)):
        monkeypatch.setattr(listing, "ENOUGH_FOLDERS", enough)
        monkeypatch.setattr(listing, "MAX_LEVELS", levels)
        found = list_images(f"{bucket}/cams/")
        assert _names(found, bucket) == expected, (enough, levels)
        assert found["size_bytes"].to_pylist() == [len(name) for name in expected]
        assert found.schema.equals(LISTING) and found["etag"].null_count == 0


def test_ray_tasks_list_what_threads_list(tmp_path: Path, ray_session: None) -> None:
    for name in ("a/1.jpg", "a/b/2.jpg", "c/3.jpg", "4.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    root = f"file://{tmp_path}"  # as a store is listed: a store in memory is not there in another process
    tables = [listing._list_store(root, in_tasks=in_tasks).sort_by("uri") for in_tasks in (False, True)]
    assert tables[0].num_rows == 4 and tables[0].equals(tables[1])
    uris = pa.table({"uri": tables[0]["uri"], "etag": pa.nulls(4, pa.string())})
    manifest = str(tmp_path / "m.parquet")
    pq.write_table(uris, manifest)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(listing, "LOOK_UPS_PER_TASK", 3)
        assert take_listing("", manifest, in_tasks=True).objects.equals(tables[0].combine_chunks())


def test_only_a_whole_prefix_says_what_is_not_there(bucket: str, tmp_path: Path) -> None:
    _fill(bucket, ["cams/a.jpg"])
    assert take_listing(f"{bucket}/cams").prefix == f"memory:///{bucket.partition('://')[2]}/cams/"
    assert take_listing(f"{bucket}/cams/a.jpg").prefix == ""
    (tmp_path / "m.csv").write_text(f"uri\n{bucket}/cams/a.jpg\n")
    assert take_listing("", str(tmp_path / "m.csv")).prefix == ""


def _write_manifest(folder: Path, rows: list[dict[str, Any]], suffix: str) -> str:
    path = folder / f"manifest{suffix}"
    table = pa.Table.from_pylist(rows)
    if suffix == ".parquet":
        pq.write_table(table, path)
    else:
        lines = [",".join(table.column_names)]
        lines += [",".join("" if value is None else f"{value}" for value in row.values()) for row in rows]
        text = ("\n".join(lines) + "\n").encode()
        path.write_bytes(gzip.compress(text, mtime=0) if suffix.endswith(".gz") else text)
    return str(path)


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".csv.gz"])
def test_a_manifest_is_taken_at_its_word_and_completed_where_it_says_nothing(tmp_path: Path, suffix: str) -> None:
    for name in ("deep/a.jpg", "b.jpg", "c.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"12345")
    rows: list[dict[str, Any]] = [
        {"uri": "s3://cams/far.jpg", "etag": '"e1"', "size_bytes": 7, "last_modified": "2026-11-20T03:00:00Z"},
        {"uri": "deep/../deep/./a.jpg", "etag": None, "size_bytes": None, "last_modified": None},
        {"uri": str(tmp_path / "b.jpg"), "etag": "mine", "size_bytes": None, "last_modified": None},
        {"uri": f"file://{tmp_path}/c.jpg", "etag": "", "size_bytes": 5, "last_modified": None},
        {"uri": "b.jpg", "etag": "again", "size_bytes": 1, "last_modified": None},
        {"uri": "gone.jpg", "etag": None, "size_bytes": None, "last_modified": None},
    ]
    if suffix == ".parquet":
        rows[3]["etag"] = None
    found = take_listing("", _write_manifest(tmp_path, rows, suffix)).objects
    assert found.schema.equals(LISTING)
    by_name = {Path(row["uri"]).name: row for row in found.to_pylist()}
    assert sorted(by_name) == ["a.jpg", "b.jpg", "c.jpg", "far.jpg", "gone.jpg"]
    assert found["uri"].to_pylist() == sorted(found["uri"].to_pylist())
    assert by_name["far.jpg"] == {"uri": "s3://cams/far.jpg", "etag": "e1", "size_bytes": 7, "last_modified": WHEN}
    listed = {Path(row["uri"]).name: row for row in list_images(str(tmp_path)).to_pylist()}
    assert by_name["a.jpg"] == listed["a.jpg"] and by_name["c.jpg"] == listed["c.jpg"]
    assert by_name["b.jpg"] == listed["b.jpg"] | {"etag": "mine"}
    assert (by_name["gone.jpg"]["etag"], by_name["gone.jpg"]["size_bytes"]) == ("", 0)


def test_a_manifest_of_one_column_and_zoned_times_is_read(tmp_path: Path, bucket: str) -> None:
    _fill(bucket, ["lists/x", "cams/a.jpg"])
    table = pa.table({"uri": [f"{bucket}/cams/a.jpg"]})
    pq.write_table(table, tmp_path / "one.parquet")
    (row,) = take_listing("", str(tmp_path / "one.parquet")).objects.to_pylist()
    assert row["size_bytes"] == len("cams/a.jpg") and row["etag"]
    zoned = pa.array([WHEN], pa.timestamp("ms", "Europe/Zurich"))
    full = pa.table(
        {"uri": ["s3://x/y"], "etag": ["e"], "size_bytes": pa.array([3], pa.int32()), "last_modified": zoned}
    )
    pq.write_table(full, tmp_path / "zoned.parquet")
    assert take_listing("", str(tmp_path / "zoned.parquet")).objects["last_modified"].to_pylist() == [WHEN]


def test_relative_paths_of_a_manifest_in_a_store_are_its_neighbours(bucket: str) -> None:
    _fill(bucket, ["lists/a.jpg", "a.jpg"])
    storage.write_atomic(f"{bucket}/lists/m.csv", b"uri\na.jpg\n")
    found = take_listing("", f"{bucket}/lists/m.csv").objects
    assert _names(found, bucket) == ["lists/a.jpg"]
    assert found["size_bytes"].to_pylist() == [len("lists/a.jpg")]


@pytest.mark.parametrize("path", ["../secret.jpg", "a/../../secret.jpg", ".."])
def test_a_relative_path_cannot_leave_the_folder_of_its_manifest(tmp_path: Path, path: str) -> None:
    manifest = _write_manifest(tmp_path, [{"uri": "fine.jpg"}, {"uri": path}], ".csv")
    with pytest.raises(ValueError, match="leads out of the manifest's folder; give it as an absolute path or URI"):
        take_listing("", manifest)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("m.csv", b"path,etag\na,b\n", "has no column uri; expected uri .string., etag .string."),
        ("m.csv", b"uri,size_bytes\na,many\n", "cannot be read: .*many.*; expected uri"),
        ("m.csv", b"uri,last_modified\na,yesterday\n", "cannot be read: .*yesterday"),
        ("m.csv", b"uri,etag\n,b\n", "has 1 rows without a uri"),
        ("m.csv", b"uri\n", "names no image; check it"),
        ("m.parquet", b"PAR1", "cannot be read"),
        ("m.csv.gz", gzip.compress(b"uri\na\n", mtime=0)[:-6], "cannot be read"),
        ("m.txt", b"uri\na\n", "neither .parquet, .csv or .csv.gz nor an S3 Inventory"),
        ("m.json", b"{}", "is no manifest of an S3 Inventory .KeyError: 'sourceBucket'"),
    ],
)
def test_a_manifest_that_cannot_be_used_is_refused(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        take_listing("", str(tmp_path / name))


def test_a_missing_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no manifest at .*nowhere.csv'; check --manifest"):
        take_listing("", str(tmp_path / "nowhere.csv"))


def test_a_pipe_in_a_manifest_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(ValueError, match="pipe.jpg' is a pipe, socket or device; remove it"):
        take_listing("", _write_manifest(tmp_path, [{"uri": "pipe.jpg"}], ".csv"))


# --- inventories ------------------------------------------------------------------------------------------------------


def _write_inventory(folder: str, bucket: str, *, kind: str, schema: str, parts: list[bytes]) -> str:
    """As S3 lays it out: the parts in `data/` beside the folder of `manifest.json`."""
    destination = storage.filesystem(folder)[1].strip("/").split("/")[0]
    keys = []
    for number, data in enumerate(parts):
        uri = f"{folder}/config/data/part-{number}"
        storage.write_atomic(uri, data)
        keys.append(uri.partition(f"{destination}/")[2])
    values = {
        "sourceBucket": bucket,
        "destinationBucket": f"arn:aws:s3:::{destination}",
        "version": "2016-11-30",
        "creationTimestamp": "1795143600000",
        "fileFormat": kind,
        "fileSchema": schema,
        "files": [{"key": key, "size": 1, "MD5checksum": "x"} for key in keys],
    }
    uri = f"{folder}/config/2026-11-20T01-00Z/manifest.json"
    storage.write_atomic(uri, json.dumps(values).encode())
    return uri


CSV_SCHEMA = "Bucket, Key, VersionId, IsLatest, IsDeleteMarker, Size, LastModifiedDate, ETag, StorageClass"


def _csv(rows: list[tuple[str, str, str, int | str, str]]) -> bytes:
    """Rows of key, latest, deleted, size, etag."""
    lines = [
        f'"b","{key}","v","{latest}","{deleted}","{size}","2026-11-20T03:00:00.000Z","{etag}","STANDARD"'
        for key, latest, deleted, size, etag in rows
    ]
    return gzip.compress(("\n".join(lines) + "\n").encode())


@pytest.fixture(params=["in the store", "copied to a folder"])
def destination(request: pytest.FixtureRequest, bucket: str, tmp_path: Path) -> str:
    return f"{bucket}/inventories" if request.param == "in the store" else str(tmp_path / "inventories")


def test_an_inventory_in_csv_is_decoded(destination: str) -> None:
    first = _csv(
        [
            ("cams/a%20b.jpg", "true", "false", 5, "e1"),
            ("cams/plus%2Bsign.jpg", "true", "false", 6, "e2"),
            ("cams/a+b+c%C3%A9.jpg", "true", "false", 7, "e3"),
            ("cams/old.jpg", "false", "false", 8, "e4"),
            ("cams/removed.jpg", "true", "true", "", ""),
        ]
    )
    second = _csv(
        [
            ("cams/", "true", "false", 0, "e5"),
            ("cams/.x/y.jpg", "true", "false", 1, "e"),
            ("top", "true", "false", 1, "e6"),
        ]
    )
    manifest = _write_inventory(destination, "b", kind="CSV", schema=CSV_SCHEMA, parts=[first, second])
    base = "memory:///b" if "://" in destination else "s3://b"
    found = take_listing("", manifest)
    assert found.prefix == "" and found.taken_at == datetime(2026, 11, 20, 3, 0, 0)
    rows = {row["uri"]: (row["etag"], row["size_bytes"], row["last_modified"]) for row in found.objects.to_pylist()}
    assert rows == {
        f"{base}/cams/a b.jpg": ("e1", 5, WHEN),
        f"{base}/cams/a b cé.jpg": ("e3", 7, WHEN),
        f"{base}/cams/plus+sign.jpg": ("e2", 6, WHEN),
        f"{base}/top": ("e6", 1, WHEN),
    }


def test_an_inventory_in_parquet_covers_the_prefix_that_was_asked_for(bucket: str) -> None:
    name = bucket.partition("://")[2]
    part = pa.table(
        {
            "bucket": [name] * 4,
            "key": ["cams/a%20b.jpg", "cams/b.jpg", "camsite/c.jpg", "cams/"],
            "size": pa.array([5, 6, 7, 0], pa.int64()),
            "last_modified_date": pa.array([WHEN] * 4, pa.timestamp("ms", "UTC")),
            "e_tag": ["e1", "e2", "e3", "e4"],
        }
    )
    sink = pa.BufferOutputStream()
    pq.write_table(part, sink)
    data = sink.getvalue().to_pybytes()
    manifest = _write_inventory(f"{bucket}/inv", name, kind="Parquet", schema="message s3.inventory {}", parts=[data])
    found = take_listing(f"{bucket}/cams/", manifest)
    assert _names(found.objects, bucket) == ["cams/a%20b.jpg", "cams/b.jpg"]  # keys are plain in Parquet
    assert found.objects["last_modified"].to_pylist() == [WHEN] * 2
    assert found.prefix == f"memory:///{name}/cams/" and found.taken_at is not None


def test_an_inventory_in_orc_or_without_its_parts_is_refused(tmp_path: Path) -> None:
    manifest = _write_inventory(str(tmp_path), "b", kind="ORC", schema="", parts=[])
    with pytest.raises(ValueError, match="has parts in ORC; configure it to write CSV or Parquet"):
        take_listing("", manifest)
    manifest = _write_inventory(str(tmp_path), "b", kind="CSV", schema=CSV_SCHEMA, parts=[b""])
    os.unlink(tmp_path / "config/data/part-0")
    with pytest.raises(ValueError, match="the part .*part-0' of the inventory cannot be read: FileNotFoundError"):
        take_listing("", manifest)
