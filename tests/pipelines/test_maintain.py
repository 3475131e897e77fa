"""Retention and merging: readers see each row once, whatever dies and whoever runs beside it."""

import hashlib
import os
import shutil
import uuid
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from pipelines import storage
from pipelines.maintain import MaintainConfig, MaintainResult, maintain
from pipelines.tables import commits, compaction
from pipelines.tables.committed_rows import UriRange, committed_rows
from pipelines.tables.compaction import (
    Change,
    changed,
    plan_expiry,
    plan_merges,
    replace_files,
    reveal,
    write_merged,
)
from pipelines.tables.reader import open_snapshot, read_part, read_table
from pipelines.tables.runs import Snapshot
from pipelines.tables.schemas import IMAGE_TABLES, MASKS
from tests.pipelines import power_cuts
from tests.pipelines.night_tables import blocky_masks, make_run, publish_night, stage_shard
from tests.pipelines.power_cuts import PowerCut, die_at

START = datetime.now(UTC)
DAYS = tuple((START - timedelta(days=age)).date().isoformat() for age in (12, 11))
OLD_MASKS = 11
"""Days after which the first night's masks are old."""
Rows = dict[str, Counter[str]]


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only a power cut needs it."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two nights, the second with two runs."""
    folder = tmp_path_factory.mktemp("written") / "tables"
    _write(str(folder), images=3)
    return folder


@pytest.fixture(params=["folder", "object store"])
def tables(request: pytest.FixtureRequest, written: Path, tmp_path: Path) -> Iterator[str]:
    """A copy of them: a folder, and a store without renames."""
    if request.param == "folder":
        yield str(shutil.copytree(written, tmp_path / "tables"))
        return
    root = f"memory://{uuid.uuid4().hex}"
    for path in written.rglob("*"):
        if path.is_file():
            storage.write_atomic(f"{root}/tables/{path.relative_to(written).as_posix()}", path.read_bytes())
    yield f"{root}/tables"
    storage.remove_tree(root)


def _write(tables: str, *, images: int) -> str:
    masks = blocky_masks(3 * images, seed=0)
    for number, day in enumerate((*DAYS, DAYS[1])):
        run_id = f"{number + 1:06d}"
        # ids in no order, as digests are
        night = {f"{run_id}-{7 * index % 10}": masks[number * images + index] for index in range(images)}
        publish_night(tables, run_id, night, failed=[f"{run_id}-x"], run_date=day, model=f"m{number}")
    return tables


def _compact(tables: str, *, days: float = 0) -> MaintainResult:
    """Merge, and expire what was replaced a week before a day from now."""
    config = MaintainConfig(tables=tables, compact=True, expire_snapshots_days=7, apply=True)
    return maintain(config, now=datetime.now(UTC) + timedelta(days=days))


def _glob_paths(tables: str) -> list[str]:
    root = storage.absolute(tables)
    uris = [uri for name in IMAGE_TABLES for uri in storage.list_files(storage.join(tables, name))]
    found = [uri.removeprefix(root).lstrip("/") for uri in uris]
    assert all(path.endswith(".parquet") for path in found)
    return found


def _glob_rows(tables: str) -> Rows:
    """What somebody sees who reads `<table>/*/*.parquet`."""
    rows: Rows = {name: Counter() for name in IMAGE_TABLES}
    for path in _glob_paths(tables):
        name = path.split("/")[0]
        data = storage.read_bytes(storage.join(tables, path))
        rows[name].update(read_part(data, name, path=path)["work_id"].to_pylist())
    return rows


def _snapshot_rows(tables: str, number: int | None = None) -> Rows:
    snapshot = open_snapshot(tables, number)
    return {
        name: Counter(read_table(tables, name, columns=["work_id"], snapshot=snapshot)["work_id"].to_pylist())
        for name in IMAGE_TABLES
    }


def _digest(tables: str) -> dict[str, str]:
    """Every file below the tables, unfinished ones too."""
    fs, root = storage.filesystem(tables)
    return {path: hashlib.sha256(fs.cat_file(path)).hexdigest() for path in fs.find(root)}


def _num_snapshot_files(tables: str) -> int:
    return len(commits.snapshot_numbers(tables))


def test_a_dry_run_says_what_it_would_do_and_changes_nothing(tables: str) -> None:
    before = _digest(tables)
    config = MaintainConfig(
        tables=tables, compact=True, expire_snapshots_days=0, drop_masks_older_than_days=0, target_megabytes=1
    )
    result = maintain(config, now=datetime.now(UTC) + timedelta(days=1))
    assert _digest(tables) == before
    assert (result.num_dropped, result.num_snapshots, result.snapshot) == (6, 2, 3)
    assert (result.num_merged, result.num_small) == (4, 12)  # predictions and failures of two nights
    assert result.closing_line == (
        "dry run, nothing was changed: drop 6 mask files, merge 12 files into 4, expire 2 snapshots and 0 files; "
        "give --apply to do it (newest snapshot 3)"
    )


def test_merged_files_replace_small_ones_in_the_next_snapshot_and_later_on_disk(tables: str) -> None:
    before = _snapshot_rows(tables)
    small = _glob_paths(tables)
    contents = {name: read_table(tables, name).sort_by("work_id") for name in IMAGE_TABLES}
    result = _compact(tables)
    assert result.num_merged == 6 and result.closing_line.startswith("done: merge ")
    # Readers by snapshot see merged files, old and new; globs see the small ones.
    assert len(open_snapshot(tables).files) == 6
    assert _snapshot_rows(tables) == before == _glob_rows(tables) == _snapshot_rows(tables, 3)
    assert _glob_paths(tables) == small
    # A week later the small files go.
    _compact(tables, days=8)
    assert _snapshot_rows(tables) == before == _glob_rows(tables)
    assert len(_glob_paths(tables)) == 6 and not set(_glob_paths(tables)) & set(small)
    assert sorted(file["path"] for file in open_snapshot(tables).files) == sorted(_glob_paths(tables))
    for file in open_snapshot(tables).files:
        assert storage.sha256(storage.read_bytes(storage.join(tables, file["path"]))) == file["sha256"]
    # Another week later nothing is left but the merged files and one snapshot.
    _compact(tables, days=16)
    assert storage.list_files(storage.join(tables, "_compacted")) == []
    assert _num_snapshot_files(tables) == 1
    assert (
        _compact(tables, days=24).closing_line == f"done: nothing to do; newest snapshot {open_snapshot(tables).number}"
    )
    for name in IMAGE_TABLES:
        assert read_table(tables, name).sort_by("work_id").equals(contents[name])


@pytest.mark.parametrize("bucket_bytes", [compaction.BUCKET_BYTES, 100])
def test_merged_files_hold_one_table_and_night_and_name_their_runs_and_models(
    tables: str, bucket_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compaction, "BUCKET_BYTES", bucket_bytes)
    _compact(tables)
    masks = [file for file in open_snapshot(tables).files if file["table"] == "masks"]
    assert [file["run_id"] for file in masks] == ["000001", "000002,000003"]
    assert [DAYS[0] in file["path"] for file in masks] == [True, False]
    data = storage.read_bytes(storage.join(tables, masks[1]["path"]))
    footer = pa.parquet.read_metadata(pa.BufferReader(data)).metadata
    assert footer[b"segpipe.run_id"] == b"000002,000003" and footer[b"segpipe.model_digest"] == b"m1,m2"
    rows = read_part(data, "masks", path=masks[1]["path"]).select(MASKS.names).cast(MASKS)
    assert rows.equals(rows.sort_by("work_id")) and rows.num_rows == 6
    of_night = pc.field("run_date") == datetime.fromisoformat(DAYS[1]).date()
    before = read_table(tables, "masks", snapshot=open_snapshot(tables, 3), filter=of_night, columns=MASKS.names)
    assert rows.equals(before.sort_by("work_id").cast(MASKS))
    for name in IMAGE_TABLES:  # one run's rows are still found, in merged files too
        of_run = read_table(tables, name, columns=["work_id"], run_id="000003")["work_id"].to_pylist()
        assert of_run and all(work_id.startswith("000003-") for work_id in of_run)


def test_masks_of_old_nights_are_dropped_and_their_predictions_stay(tables: str) -> None:
    config = MaintainConfig(tables=tables, drop_masks_older_than_days=OLD_MASKS, apply=True)
    before = _snapshot_rows(tables)
    assert maintain(config, now=START).num_dropped == 2
    rows = _snapshot_rows(tables)
    assert rows["predictions"] == before["predictions"] and rows["failures"] == before["failures"]
    assert sorted(rows["masks"]) == [work_id for work_id in sorted(before["masks"]) if work_id > "000002"]
    assert _glob_rows(tables) == before  # until the snapshots that name them have expired
    maintain(
        MaintainConfig(tables=tables, expire_snapshots_days=7, apply=True), now=datetime.now(UTC) + timedelta(days=8)
    )
    assert _glob_rows(tables) == rows
    # Dropped masks do not come back: their images are done.
    done = _done(tables, commits.newest_snapshot(tables))
    assert set(before["predictions"]) <= set(done)
    assert maintain(config, now=START).num_dropped == 0


def _done(tables: str, snapshot: Snapshot) -> list[str]:
    """Work ids that the next plan finds to be done or failed."""
    parts = (
        rows["work_id"].to_pylist()
        for name in ("predictions", "failures")
        for rows in committed_rows(tables, snapshot, name, ["work_id"], UriRange.below(""))
    )
    return sorted(work_id for part in parts for work_id in part)


def test_masks_that_were_merged_and_not_yet_revealed_are_dropped_too(tables: str) -> None:
    _compact(tables)
    maintain(MaintainConfig(tables=tables, drop_masks_older_than_days=OLD_MASKS, apply=True), now=START)
    rows = _snapshot_rows(tables)
    assert len(rows["masks"]) == 6
    for days in (8, 16):
        _compact(tables, days=days)
        assert _snapshot_rows(tables) == rows == _glob_rows(tables)
    assert storage.list_files(storage.join(tables, "_compacted")) == []


def test_a_merged_file_that_is_merged_again_before_its_small_files_go(tables: str) -> None:
    _compact(tables)
    more = {f"000004-{index}": mask for index, mask in enumerate(blocky_masks(3, seed=9))}
    publish_night(tables, "000004", more, run_date=DAYS[1], model="m2")
    before = _snapshot_rows(tables)
    _compact(tables)
    assert len(open_snapshot(tables).files) == 6
    assert _snapshot_rows(tables) == before == _glob_rows(tables)
    # The first merge's snapshot expires before the second's: what globs see must wait for both.
    numbers = commits.snapshot_numbers(tables)
    snapshots = [commits.read_snapshot(tables, number) for number in numbers]
    for index in range(1, len(snapshots)):
        expiry = plan_expiry(snapshots, before=datetime.fromisoformat(snapshots[index].created_at))
        assert len(expiry.expired) == index
        kept = {file["path"] for snapshot in snapshots[index:] for file in snapshot.files}
        assert not set(expiry.removed) & (kept | set(_glob_paths(tables)))
    for days in (8, 16):
        _compact(tables, days=days)
        assert _snapshot_rows(tables) == before == _glob_rows(tables)
    assert storage.list_files(storage.join(tables, "_compacted")) == []


def test_a_process_that_comes_late_to_reveal_leaves_nothing_twice(tables: str) -> None:
    _compact(tables)
    (late,) = [file for file in open_snapshot(tables).files if file["table"] == "masks" and DAYS[1] in file["path"]]
    more = {f"000004-{index}": mask for index, mask in enumerate(blocky_masks(3, seed=9))}
    publish_night(tables, "000004", more, run_date=DAYS[1], model="m2")
    _compact(tables)  # what it is about to reveal is merged again
    rows = _snapshot_rows(tables)
    replace_files(tables, [reveal(tables, late)])
    assert _snapshot_rows(tables) == rows == _glob_rows(tables)
    config = MaintainConfig(tables=tables, expire_snapshots_days=1, apply=True)
    assert maintain(config, now=datetime.now(UTC) + timedelta(days=2)).num_left_over == 0
    assert _snapshot_rows(tables) == rows == _glob_rows(tables)


def test_a_snapshot_is_kept_until_its_successor_is_old(tables: str) -> None:
    """It may be old itself: somebody began to read it while it was still the newest."""
    snapshots = [commits.read_snapshot(tables, number) for number in (1, 2, 3)]
    times = [datetime.fromisoformat(snapshot.created_at) for snapshot in snapshots]
    assert plan_expiry(snapshots, before=times[0]).expired == ()
    assert plan_expiry(snapshots, before=times[1]).expired == (1,)
    assert plan_expiry(snapshots, before=times[2] + timedelta(days=999)).expired == (1, 2)
    assert plan_expiry(snapshots, before=times[2]).removed == ()  # the newest names every file


def test_runs_that_were_merged_are_recovered_by_nobody(tables: str) -> None:
    """Whoever takes up an old run: the driver's publishing, a worker's late attempt, the work list."""
    run = commits.read_run(tables, "000001")
    late = stage_shard(tables, run, 0, dict(zip(run.plan["work_id"].to_pylist(), blocky_masks(4, seed=3), strict=True)))
    done = _done(tables, commits.newest_snapshot(tables))
    for days in (0, 8, 16):
        _compact(tables, days=days)
    before, rows = commits.newest_snapshot(tables), _glob_rows(tables)
    assert commits.publish(tables, run) == before
    assert commits.commit(tables, late).attempt != late.attempt
    assert _glob_rows(tables) == rows
    assert _done(tables, before) == done
    assert commits.next_run_id(before) == "000004"


def test_an_unpublished_run_is_not_touched(tables: str) -> None:
    run = make_run("000004", [["e"], ["f"]], run_date=DAYS[1])
    commits.create_run(tables, run)
    masks = dict(zip("ef", blocky_masks(2, seed=4), strict=True))
    commits.promote(tables, commits.commit(tables, stage_shard(tables, run, 0, masks)))
    staged = stage_shard(tables, run, 1, masks)
    for days in (0, 8, 16):
        _compact(tables, days=days)
    commits.promote(tables, commits.commit(tables, staged))
    commits.publish(tables, run)
    assert _snapshot_rows(tables) == _glob_rows(tables)
    assert {"e", "f"} <= _snapshot_rows(tables)["masks"].keys()


CHANGES = (*power_cuts.CHANGES, "remove")


def _nights_of_maintenance(tables: str) -> None:
    """The same command, tonight and in eight days; masks of the first night go in between."""
    _compact(tables)
    maintain(
        MaintainConfig(tables=tables, drop_masks_older_than_days=OLD_MASKS, expire_snapshots_days=7, apply=True),
        now=START,
    )
    _compact(tables, days=8)


@pytest.mark.parametrize("every", [11, pytest.param(1, marks=pytest.mark.slow)], ids=["some changes", "every change"])
def test_whatever_change_of_the_disk_is_the_last_one_rows_are_there_once_and_it_is_finished_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every: int
) -> None:
    start = _write(str(tmp_path / "start"), images=2)
    first = _snapshot_rows(start)
    undisturbed = str(shutil.copytree(start, tmp_path / "undisturbed"))
    with monkeypatch.context() as patched:
        all_changes = die_at(patched, 10**9, changes=CHANGES)
        _nights_of_maintenance(undisturbed)
    last = _snapshot_rows(undisturbed)
    assert last == _glob_rows(undisturbed) and last["masks"] != first["masks"]
    assert {"fsync", "link", "unlink", "remove"} <= set(all_changes)
    for step in range(0, len(all_changes), every):
        tables = str(shutil.copytree(start, tmp_path / str(step)))
        with monkeypatch.context() as patched:
            die_at(patched, step, changes=CHANGES)
            with pytest.raises(PowerCut):
                _nights_of_maintenance(tables)
        _check_readable(tables, first, last)
        _nights_of_maintenance(tables)
        assert _snapshot_rows(tables) == last == _glob_rows(tables)
        _compact(tables, days=16)
        assert _snapshot_rows(tables) == last == _glob_rows(tables)
        assert storage.list_files(storage.join(tables, "_compacted")) == [] and _num_snapshot_files(tables) == 1
        shutil.rmtree(tables)


def _check_readable(tables: str, first: Rows, last: Rows) -> None:
    """By the newest snapshot all rows once; by globs never too few, and twice only where two names hold the same."""
    found = _snapshot_rows(tables)
    assert found in (first, last)
    visible = _glob_rows(tables)
    for name in IMAGE_TABLES:
        assert last[name].keys() <= visible[name].keys() <= first[name].keys()
        assert max(visible[name].values()) <= 2


def test_jobs_that_publish_and_maintain_at_once_lose_nothing(tables: str) -> None:
    masks = blocky_masks(10, seed=7)

    def night(number: int) -> None:
        publish_night(tables, f"{number:06d}", {f"{number}-{index}": masks[index] for index in range(3)})

    def nights() -> None:
        for number in range(4, 7):
            night(number)

    before = _snapshot_rows(tables)
    with ThreadPoolExecutor(3) as pool:
        jobs = [pool.submit(nights), pool.submit(_again, tables), pool.submit(_again, tables)]
        for job in jobs:
            job.result()
    expected = before["masks"] + Counter(f"{number}-{index}" for number in range(4, 7) for index in range(3))
    assert _snapshot_rows(tables)["masks"] == expected == _glob_rows(tables)["masks"]
    assert commits.newest_snapshot(tables).run_ids == tuple(f"{number:06d}" for number in range(1, 7))
    for days in (8, 16):
        _compact(tables, days=days)
        assert _snapshot_rows(tables)["masks"] == expected == _glob_rows(tables)["masks"]


def _again(tables: str) -> None:
    for _ in range(3):
        _compact(tables)


def test_a_merge_that_another_process_made_first_is_left_out(tables: str) -> None:
    snapshot = commits.newest_snapshot(tables)
    merges = plan_merges(snapshot, target_bytes=10**6)
    ours, theirs = ([write_merged(tables, merge, snapshot) for merge in merges] for _ in range(2))
    assert [change.new for change in ours] == [change.new for change in theirs]
    replace_files(tables, theirs)
    replace_files(tables, ours)
    assert commits.newest_snapshot(tables).number == 4
    half_gone = Change(old=theirs[0].old | {commits.newest_snapshot(tables).files[0]["path"]}, new=None)
    assert changed(commits.newest_snapshot(tables), [half_gone]) is None
    assert _snapshot_rows(tables) == _snapshot_rows(tables, 3)


def test_revealing_twice_leaves_one_copy(tables: str) -> None:
    _compact(tables)
    file = open_snapshot(tables).files[0]
    assert reveal(tables, file) == reveal(tables, file)
    assert _glob_rows(tables) == _snapshot_rows(tables)


def test_a_damaged_file_is_not_merged(tables: str) -> None:
    path = open_snapshot(tables).files[0]["path"]
    storage.write_atomic(storage.join(tables, path), b"PAR1 damaged PAR1")
    with pytest.raises(ValueError, match="has not the SHA-256 of its snapshot: .* leave --compact out"):
        _compact(tables)


def _make_old(tables: str, days: float) -> None:
    """As if everything had been written some days ago."""
    fs, root = storage.filesystem(tables)
    for path in fs.find(root):
        then = datetime.now(UTC) - timedelta(days=days)
        if storage.is_local(fs):
            os.utime(path, (then.timestamp(), then.timestamp()))
        else:
            fs.store[path].modified = then


def test_what_killed_jobs_left_is_removed_once_it_is_old(tables: str) -> None:
    published = commits.read_run(tables, "000001")
    stage_shard(tables, published, 0, {})  # an attempt that lost and died
    run = make_run("000004", [["e"]])
    commits.create_run(tables, run)
    stage_shard(tables, run, 0, {})  # of a run that is still to be finished
    for path in (
        "_compacted/masks/run_date=2026-11-20/merged-000001-000001-0123456789abcdef.parquet",
        "masks/run_date=2026-11-20/part-000001-00077.parquet",  # a worker's that came back after its commit was removed
        "masks/run_date=2026-11-20/.part-000001-00000.parquet.0123.part",
        "masks/run_date=2026-11-20/part-000004-00000.parquet",  # of the unfinished run
        "masks/run_date=2026-11-20/mine.parquet",
    ):
        storage.write_atomic(storage.join(tables, path), b"x")
    config = MaintainConfig(tables=tables, apply=True)
    assert maintain(config).num_left_over == 0  # too young
    kept = set(_digest(tables))
    _make_old(tables, 4)
    assert maintain(config).num_left_over == 6
    gone = {path.rpartition("/")[2] for path in kept - set(_digest(tables))}
    assert gone == {
        "merged-000001-000001-0123456789abcdef.parquet",
        "part-000001-00077.parquet",
        ".part-000001-00000.parquet.0123.part",
        *(f"{name}.parquet" for name in IMAGE_TABLES),
    }


def test_commit_records_of_old_published_runs_are_removed(tables: str) -> None:
    run = make_run("000004", [["e"]])
    commits.create_run(tables, run)
    commits.commit(tables, stage_shard(tables, run, 0, {}))
    _make_old(tables, 40)
    config = MaintainConfig(tables=tables, remove_commits_older_than_days=30, apply=True)
    assert maintain(config).num_commits == 6
    assert commits.read_commits(tables, "000001") == {} and len(commits.read_commits(tables, "000004")) == 1
    assert commits.publish(tables, commits.read_run(tables, "000001")).number == 3
    assert commits.read_run(tables, "000001").num_shards == 2


@pytest.mark.parametrize(
    "options, message",
    [
        ({"drop_masks_older_than_days": -1}, "--drop-masks-older-than-days is -1; give 0 or more"),
        ({"expire_snapshots_days": -0.5}, "--expire-snapshots-days is -0.5; give 0 or more"),
        ({"target_megabytes": 0}, "--target-megabytes is 0; give 1 or more"),
        ({"remove_commits_older_than_days": 1}, "--remove-commits-older-than-days is 1; give 3 or more"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MaintainConfig(tables="t", **options)


def test_a_wrong_path_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no published tables .* check --tables"):
        maintain(MaintainConfig(tables=str(tmp_path / "nowhere")))
