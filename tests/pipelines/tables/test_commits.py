"""The commit protocol: one result per shard and one row per image, wherever a process dies."""

import contextlib
import io
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines import storage
from pipelines.tables import commits
from pipelines.tables.runs import PLAN, WHOLE_RUN, PartFile, Run, ShardCommit, Snapshot
from pipelines.tables.schemas import FAILURES, PREDICTIONS, TABLES, masks_table, rows_table
from segcore.run_lengths import encode
from tests.pipelines.night_tables import SETTINGS
from tests.pipelines.power_cuts import PowerCut, die_at

NOW = datetime(2026, 11, 20, 3, 0, 0)


def _run(run_id: str = "000001", *, shards: tuple[int, ...] = (3, 2, 1)) -> Run:
    settings = replace(SETTINGS, run_id=run_id, class_names=("road", "sky"), palette=((1, 2, 3), (4, 5, 6)))
    rows = [
        {
            "work_id": f"{run_id}/{shard}/{index}",
            "uri": "u",
            "etag": "e",
            "size_bytes": 1,
            "reason": "new",
            "shard": shard,
        }
        for shard, count in enumerate(shards)
        for index in range(count)
    ]
    return Run(settings=settings, plan=pa.Table.from_pylist(rows, schema=PLAN))


def _rows(work_ids: list[str], *, fill: int = 0) -> dict[str, pa.Table]:
    """Rows of a shard whose first image failed; `fill` makes attempts differ in their bytes."""
    failed, segmented = work_ids[:1], work_ids[1:]
    prediction: dict[str, Any] = {
        field.name: [] if pa.types.is_list(field.type) else NOW if pa.types.is_timestamp(field.type) else fill
        for field in PREDICTIONS
    }
    prediction |= {field.name: "x" for field in PREDICTIONS if pa.types.is_string(field.type)}
    failure = {field.name: "x" for field in FAILURES} | {"size_bytes": fill, "attempts": 1, "retryable": False}
    mask_HW = np.full((2, 3), fill, dtype=np.uint8)
    return {
        "predictions": rows_table("predictions", [prediction | {"work_id": each} for each in segmented]),
        "masks": masks_table(segmented, [(2, 3)] * len(segmented), [encode(mask_HW)] * len(segmented)),
        "failures": rows_table("failures", [failure | {"work_id": each, "created_at": NOW} for each in failed]),
    }


def _stage(tables: str, run: Run, shard: int, *, fill: int = 0) -> ShardCommit:
    planned = run.shard_items([shard])[0]["work_id"].to_pylist()
    return commits.stage(tables, run.settings, shard=shard, planned=planned, rows=_rows(planned, fill=fill))


def _finish(tables: str, run: Run) -> None:
    """What a job does with a run, new or found unfinished."""
    done = commits.read_commits(tables, run.settings.run_id)
    for shard in range(run.num_shards):
        if shard not in done:
            commits.promote(tables, commits.commit(tables, _stage(tables, run, shard)))
    commits.publish(tables, run)


def _night(tables: str, run: Run) -> None:
    """The same command, started as often as it takes: finish what was planned, or plan."""
    if not commits.run_ids(tables):
        commits.create_run(tables, run)
    for run_id in commits.run_ids(tables):
        if run_id not in commits.newest_snapshot(tables).run_ids:
            _finish(tables, commits.read_run(tables, run_id))


def _visible_files(tables: str) -> list[str]:
    """What somebody who globs the tables sees, relative to them."""
    root = storage.absolute(tables)
    return [
        uri.removeprefix(root).lstrip("/")
        for name in sorted(TABLES)
        for uri in storage.list_files(storage.join(tables, name))
    ]


def _visible_rows(tables: str) -> dict[str, Counter[str]]:
    rows: dict[str, Counter[str]] = {name: Counter() for name in TABLES}
    for path in _visible_files(tables):
        data = pq.read_table(io.BytesIO(storage.read_bytes(storage.join(tables, path))))
        rows[path.split("/")[0]].update(data["work_id"].to_pylist())
    return rows


def _check_finished(tables: str, run: Run) -> None:
    """Every planned image once, in predictions with its mask or in failures; the snapshot lists what is there."""
    rows = _visible_rows(tables)
    assert rows["predictions"] == rows["masks"]
    assert rows["predictions"] + rows["failures"] == Counter(run.plan["work_id"].to_pylist())
    snapshot = commits.newest_snapshot(tables)
    assert snapshot.run_ids == (run.settings.run_id,) and snapshot.number == 1
    assert sorted(file["path"] for file in snapshot.files) == _visible_files(tables)
    for file in snapshot.files:
        assert storage.sha256(storage.read_bytes(storage.join(tables, file["path"]))) == file["sha256"]
    assert [uri for uri in storage.list_files(tables) if "_staging/" in uri] == [] or _has_abandoned_attempts(tables)


def _has_abandoned_attempts(tables: str) -> bool:
    """Files of an attempt that died before its commit; the sweep removes them once they are old."""
    assert commits.sweep(tables) == 0
    assert commits.sweep(tables, older_than_days=0) > 0
    return [uri for uri in storage.list_files(tables) if "_staging/" in uri] == []


def test_whatever_change_of_the_disk_is_the_last_one_the_same_command_finishes_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = _run(shards=(3, 2))
    with monkeypatch.context() as patched:
        all_changes = die_at(patched, 10**9)
        _night(str(tmp_path / "undisturbed"), run)
    _check_finished(str(tmp_path / "undisturbed"), run)
    assert {"fsync", "link", "replace", "unlink", "mkdir"} <= set(all_changes)
    step, finished = 0, False
    while not finished:
        tables = str(tmp_path / str(step))
        with monkeypatch.context() as patched, contextlib.suppress(PowerCut):
            die_at(patched, step)
            _night(tables, run)
            finished = True
        step += 1
        _check_only_committed_rows_are_visible(tables)
        with monkeypatch.context() as patched:
            die_at(patched, 10**9)
            _night(tables, run)
        _check_finished(tables, run)
    # Threads race for making the folders, so that the number of changes is not the same in each run.
    assert step >= len(all_changes) - all_changes.count("mkdir")


def _check_only_committed_rows_are_visible(tables: str) -> None:
    committed = {file.path for each in commits.read_commits(tables, "000001").values() for file in each.files}
    assert set(_visible_files(tables)) <= committed
    assert all(count == 1 for counter in _visible_rows(tables).values() for count in counter.values())


@pytest.mark.parametrize("crash", ["after plan", "after stage", "after commit", "in promotion", "before snapshot"])
def test_a_run_that_died_between_two_steps_is_finished(
    tables: str, crash: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = _run()
    assert commits.create_run(tables, run)
    if crash != "after plan":
        attempt = _stage(tables, run, 1)
        if crash != "after stage":
            commits.commit(tables, attempt)
        if crash == "in promotion":
            first = attempt.files[0]
            storage.move(storage.join(tables, first.staged), storage.join(tables, first.path))
        if crash == "before snapshot":
            for shard in (0, 2):
                commits.promote(tables, commits.commit(tables, _stage(tables, run, shard)))
    computed: list[int] = []
    stage = commits.stage

    def counted(*args: Any, shard: int, **kwargs: Any) -> ShardCommit:
        computed.append(shard)
        return stage(*args, shard=shard, **kwargs)

    monkeypatch.setattr(commits, "stage", counted)
    _night(tables, run)
    _check_finished(tables, run)
    expected = {"after plan": [0, 1, 2], "after stage": [0, 1, 2], "before snapshot": []}
    assert computed == expected.get(crash, [0, 2])  # what is committed is not computed again
    _night(tables, run)
    _check_finished(tables, run)


def test_of_two_attempts_at_a_shard_one_wins_and_the_other_discards_its_files(tables: str) -> None:
    run = _run(shards=(4,))
    commits.create_run(tables, run)
    attempts = [_stage(tables, run, 0, fill=fill) for fill in range(8)]
    assert len({attempt.files[0].sha256 for attempt in attempts}) == 8
    start = threading.Barrier(len(attempts))

    def finish(attempt: ShardCommit) -> str:
        start.wait()
        winner = commits.commit(tables, attempt)
        commits.promote(tables, winner)
        return winner.attempt

    with ThreadPoolExecutor(len(attempts)) as pool:
        winners = set(pool.map(finish, attempts))
    commits.publish(tables, run)
    assert len(winners) == 1 and winners <= {attempt.attempt for attempt in attempts}
    _check_finished(tables, run)


def test_an_attempt_that_comes_back_after_the_run_was_published_changes_nothing(tables: str) -> None:
    run = _run()
    commits.create_run(tables, run)
    zombie = _stage(tables, run, 1, fill=1)
    _finish(tables, run)
    before = _visible_rows(tables)
    assert commits.commit(tables, zombie).attempt != zombie.attempt
    assert _visible_rows(tables) == before
    _check_finished(tables, run)


def test_two_jobs_that_plan_at_once_get_one_run(tables: str) -> None:
    with ThreadPoolExecutor(6) as pool:
        created = list(pool.map(lambda _: commits.create_run(tables, _run()), range(6)))
    assert sorted(created) == [False] * 5 + [True]
    assert commits.run_ids(tables) == ["000001"]


def test_a_plan_reads_back_as_it_was_written(tables: str) -> None:
    run = _run()
    commits.create_run(tables, run)
    found = commits.read_run(tables, "000001")
    assert found.settings == run.settings
    assert found.plan.equals(run.plan) and found.num_shards == 3
    assert [items["shard"].to_pylist() for items in found.shard_items([0, 2])] == [[0, 0, 0], [2]]


def test_each_run_is_published_in_one_snapshot_that_lists_all_live_files(tables: str) -> None:
    assert commits.newest_snapshot(tables).number == 0 and commits.newest_snapshot(tables).files == ()
    for run_id in ("000001", "000002"):
        run = _run(run_id)
        commits.create_run(tables, run)
        _finish(tables, run)
    with ThreadPoolExecutor(4) as pool:  # again, by several
        snapshots = list(pool.map(lambda _: commits.publish(tables, run), range(4)))
    assert {snapshot.number for snapshot in snapshots} == {2}
    assert snapshots[0].run_ids == ("000001", "000002") and snapshots[0].class_names == ("road", "sky")
    assert sorted(file["path"] for file in snapshots[0].files) == _visible_files(tables)
    values = storage.read_json(storage.join(tables, "snapshots", "00000002.json"))
    assert values["num_rows"] == {"predictions": 6, "masks": 6, "failures": 6, "deletions": 0, "comparisons": 0}


def test_files_of_a_whole_run_are_published_with_it_and_once(tables: str) -> None:
    run = _run()
    commits.create_run(tables, run)
    for shard in range(run.num_shards):
        commits.commit(tables, _stage(tables, run, shard))

    def stage(data: bytes, shards: list[ShardCommit]) -> ShardCommit:
        assert [each.shard for each in shards] == [0, 1, 2] and _visible_files(tables), "shards are promoted before"
        attempt = data.decode()
        staged, path = f"_staging/000001/run/{attempt}/x.parquet", "metrics/run_date=2026-11-20/part-000001-run.parquet"
        storage.write_atomic(storage.join(tables, staged), data)
        file = PartFile(table="metrics", staged=staged, path=path, num_rows=1, num_bytes=3, sha256=storage.sha256(data))
        return ShardCommit(run_id="000001", shard=WHOLE_RUN, attempt=attempt, files=(file,))

    start = threading.Barrier(4)

    def publish(number: int) -> Snapshot:
        start.wait()
        return commits.publish(tables, run, stage_of_run=partial(stage, f"n-{number}".encode()))

    with ThreadPoolExecutor(4) as pool:
        snapshots = list(pool.map(publish, range(4)))
    assert all(snapshot == snapshots[0] for snapshot in snapshots) and snapshots[0].number == 1
    (file,) = [file for file in snapshots[0].files if file["table"] == "metrics"]
    data = storage.read_bytes(storage.join(tables, file["path"]))
    assert file["sha256"] == storage.sha256(data) and file["num_rows"] == 1
    assert len(storage.list_files(storage.join(tables, "metrics"))) == 1
    assert sorted(commits.read_commits(tables, "000001")) == [0, 1, 2]
    assert not [uri for uri in storage.list_files(tables) if "_staging/" in uri], "losers discard their files"


def test_a_run_with_an_open_shard_is_not_published(tables: str) -> None:
    run = _run()
    commits.create_run(tables, run)
    commits.commit(tables, _stage(tables, run, 0))
    with pytest.raises(RuntimeError, match="2 shards of run 000001 have no commit, 1 first"):
        commits.publish(tables, run)
    assert commits.newest_snapshot(tables).number == 0


def test_an_attempt_that_lost_or_doubled_an_image_is_not_staged(tables: str) -> None:
    run = _run(shards=(3,))
    planned = run.plan["work_id"].to_pylist()
    for rows in (_rows(planned[:2]), _rows([*planned, planned[0]])):
        with pytest.raises(AssertionError, match="not every planned image exactly once"):
            commits.stage(tables, run.settings, shard=0, planned=planned, rows=rows)
    rows = _rows(planned)
    with pytest.raises(AssertionError, match="predictions and masks differ"):
        commits.stage(tables, run.settings, shard=0, planned=planned, rows=rows | {"masks": rows["masks"].slice(1)})


def test_the_open_shards_of_an_abandoned_run_stay_empty_even_if_a_worker_still_finishes(tables: str) -> None:
    run = _run()
    commits.create_run(tables, run)
    commits.promote(tables, commits.commit(tables, _stage(tables, run, 0)))
    late = _stage(tables, run, 1)
    assert commits.abandon(tables, run) == 2
    commits.promote(tables, commits.commit(tables, late))
    snapshot = commits.publish(tables, run)
    assert {file["path"].rpartition("-")[2] for file in snapshot.files} == {"00000.parquet"}
    assert sorted(file["path"] for file in snapshot.files) == _visible_files(tables)


def test_a_worker_reads_of_a_plan_what_its_shards_need(tables: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commits, "PLAN_ROWS_AT_ONCE", 4)
    run = _run(shards=(3, 2, 9, 1, 1, 4, 5))
    commits.create_run(tables, run)
    planned = commits.PlannedShards(tables, run.settings.run_id)
    for shards in ([0], [2], [2, 3, 5], list(range(7)), [6]):
        found = planned.items(shards)
        assert [each.to_pylist() for each in found] == [each.to_pylist() for each in run.shard_items(shards)]
    read: list[list[int]] = []
    read_row_groups = pq.ParquetFile.read_row_groups

    def reading(file: pq.ParquetFile, groups: list[int], **named: Any) -> pa.Table:
        read.append(groups)
        return read_row_groups(file, groups, **named)

    monkeypatch.setattr(pq.ParquetFile, "read_row_groups", reading)
    planned.items([6])
    assert read == [[5, 6]]


def test_a_commit_that_is_known_is_not_read_again(tables: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run = _run()
    commits.create_run(tables, run)
    for shard in range(3):
        commits.promote(tables, commits.commit(tables, _stage(tables, run, shard)))
    before = commits.read_commits(tables, "000001")
    read: list[int] = []
    read_commit = commits.read_commit

    def reading(tables: str, run_id: str, shard: int) -> ShardCommit | None:
        read.append(shard)
        return read_commit(tables, run_id, shard)

    monkeypatch.setattr(commits, "read_commit", reading)
    known = {shard: before[shard] for shard in (0, 2)}
    assert commits.read_commits(tables, "000001", known=known) == before
    assert read == [1]
    assert commits.publish(tables, run, known=known).number == 1
    assert read == [1, 1, WHOLE_RUN]


def test_the_sweep_keeps_what_a_commit_names(tables: str) -> None:
    run = _run()
    commits.create_run(tables, run)
    commits.commit(tables, _stage(tables, run, 0))  # died before its promotion
    _stage(tables, run, 1)  # died before its commit
    assert commits.sweep(tables) == 0
    assert commits.sweep(tables, older_than_days=0) == 3
    _night(tables, run)
    _check_finished(tables, run)


def test_a_store_that_ignores_exclusive_creation_is_noticed(tables: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert commits.exclusive_create_works(tables)

    def overwrite(uri: str, data: bytes) -> bool:
        storage.write_atomic(uri, data)
        return True

    monkeypatch.setattr(storage, "create_exclusive", overwrite)
    assert not commits.exclusive_create_works(tables)
    assert storage.list_files(tables) == []
