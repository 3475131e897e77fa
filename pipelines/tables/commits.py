"""How the tables of `segment` grow: every image that a run planned ends in exactly one row, whatever dies on the way.

1. Plan     `runs/<run>/plan.parquet` is created exclusively: the work list, cut into shards, and the run's settings.
            Runs are numbered, and a run is planned only when all runs before it are published: two jobs that plan at
            once compete for one number, so no image is planned twice.
2. Stage    an attempt at a shard writes its files below `_staging/<run>/<shard>/<attempt>/`, never to a final name.
3. Commit   `runs/<run>/commits/<shard>.json` is created exclusively and names the winning attempt and its files; any
            other attempt discards its own files and ends.
4. Promote  the winner's files are moved to `<table>/run_date=<day>/part-<run>-<shard>.parquet`, by whoever finds them
            missing there. What lies below the tables' folders is always committed.
5. Publish  `snapshots/<n>.json`, created exclusively, lists every live file of every published run. `maintain`
            publishes snapshots too, with merged files in place of small ones. A run's `metrics` are staged, committed
            (`runs/<run>/commits/run.json`) and promoted before it.
6. Resume   read the plan, finish promotions, do the shards that have no commit, publish.

Exactly once holds for rows, not for computing: a dead worker's shard is computed again. It rests on exclusive creation;
a store that ignores it (`exclusive_create_works`) keeps the promise for one job at a time.
"""

import contextlib
import dataclasses
import io
import json
import logging
import re
import secrets
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from fsspec import AbstractFileSystem

from pipelines import storage
from pipelines.fault_points import fault_point
from pipelines.tables.runs import PLAN, WHOLE_RUN, PartFile, Run, RunSettings, ShardCommit, Snapshot, shard_items
from pipelines.tables.schemas import IMAGE_TABLES, SCHEMA_VERSION, SCHEMAS, TABLES, parquet_bytes

logger = logging.getLogger(__name__)

SETTINGS_KEY = b"segpipe.run"
ABANDONED = "abandoned"
STAGING_DAYS = 3.0  # staged files that no commit names are swept after this time: no attempt lives that long
STORE_THREADS = 16
PLAN_ROWS_AT_ONCE = 4096
"""Of a row group, which a worker reads for its next shards: 100 million images have 24,000 in a footer of 20 MB."""


def run_ids(tables: str) -> list[str]:
    """Every run that has a plan, oldest first."""
    names = [name for name in storage.list_folders(storage.join(tables, "runs")) if name.isdigit()]
    return [name for name in names if storage.exists(_plan_uri(tables, name))]


def next_run_id(snapshot: Snapshot) -> str:
    """The number after the newest published run's."""
    return f"{max(map(int, snapshot.run_ids), default=0) + 1:06d}"


def create_run(tables: str, run: Run) -> bool:
    """Write the plan; False where another job has taken the run's number, whose run must then be finished first."""
    assert run.plan.schema.equals(PLAN), "not a plan"
    sink = io.BytesIO()
    settings = json.dumps(dataclasses.asdict(run.settings), sort_keys=True)
    plan = run.plan.replace_schema_metadata({SETTINGS_KEY: settings})
    pq.write_table(plan, sink, compression="zstd", row_group_size=PLAN_ROWS_AT_ONCE)
    fault_point("commits.plan")
    is_ours = storage.create_exclusive(_plan_uri(tables, run.settings.run_id), sink.getvalue())
    fault_point("commits.planned")
    return is_ours


def read_run(tables: str, run_id: str) -> Run:
    """Read a plan back.

    Raises:
        FileNotFoundError: there is no such run.
    """
    plan = pq.read_table(io.BytesIO(storage.read_bytes(_plan_uri(tables, run_id))))
    return Run(settings=_settings(plan.schema), plan=plan.replace_schema_metadata(None).cast(PLAN))


class PlannedShards:
    """What a worker reads of a plan: the row groups that hold the shards which it is given. Threads may share one."""

    def __init__(self, tables: str, run_id: str) -> None:
        self._fs, self._path = storage.filesystem(_plan_uri(tables, run_id))
        with self._fs.open(self._path, "rb") as file:
            self._footer = pq.read_metadata(file)
        column = PLAN.get_field_index("shard")
        known = [
            self._footer.row_group(group).column(column).statistics for group in range(self._footer.num_row_groups)
        ]
        self._spans = [(each.min, each.max) for each in known]

    def items(self, shards: Sequence[int]) -> list[pa.Table]:
        """The work list of each of some shards, which lie close together."""
        wanted = [
            group for group, (first, last) in enumerate(self._spans) if any(first <= shard <= last for shard in shards)
        ]
        with self._fs.open(self._path, "rb") as file:
            plan = pq.ParquetFile(file, metadata=self._footer).read_row_groups(wanted, use_threads=False)
        return shard_items(plan.replace_schema_metadata(None).cast(PLAN), shards)


def read_settings(tables: str, run_id: str) -> RunSettings:
    """The settings of a run alone, from the end of its plan's file.

    Raises:
        FileNotFoundError: there is no such run.
    """
    fs, path = storage.filesystem(_plan_uri(tables, run_id))
    with fs.open(path, "rb") as file:
        return _settings(pq.read_schema(file))


def _settings(schema: pa.Schema) -> RunSettings:
    values = json.loads(schema.metadata[SETTINGS_KEY])
    tuples = {
        "class_names": tuple(values["class_names"]),
        "palette": tuple(tuple(colour) for colour in values["palette"]),
        "ensemble": tuple(values.get("ensemble", ())),  # plans of older versions have none
    }
    return RunSettings(**values | tuples)


def stage(
    tables: str, settings: RunSettings, *, shard: int, planned: list[str], rows: Mapping[str, pa.Table]
) -> ShardCommit:
    """Write an attempt's files where nobody looks.

    Args:
        tables: URI of the tables' folder.
        settings: of the run.
        shard: number of the shard, or `WHOLE_RUN`.
        planned: work ids of the shard, each of which must have one prediction with its mask, one failure or one mark
            of its deletion.
        rows: tables by their names, `TABLES`, or of a whole run `metrics`; those without rows may be left out.
    """
    rows = {name: rows.get(name, schema.empty_table()) for name, schema in SCHEMAS.items()}
    _check_complete(planned, rows)
    part = _part(shard)
    attempt = secrets.token_hex(6)
    folder = f"_staging/{settings.run_id}/{part}/{attempt}"
    files: list[PartFile] = []
    for name in SCHEMAS:
        if not rows[name].num_rows and (
            shard != 0 or name not in IMAGE_TABLES
        ):  # the first shard writes empty ones too
            continue
        data = parquet_bytes(name, rows[name], settings.footer)
        staged = f"{folder}/{name}.parquet"
        storage.write_atomic(storage.join(tables, staged), data)
        fault_point("commits.stage")
        files.append(
            PartFile(
                table=name,
                staged=staged,
                path=f"{name}/run_date={settings.run_date}/part-{settings.run_id}-{part}.parquet",
                num_rows=rows[name].num_rows,
                num_bytes=len(data),
                sha256=storage.sha256(data),
            )
        )
    return ShardCommit(run_id=settings.run_id, shard=shard, attempt=attempt, files=tuple(files))


def commit(tables: str, attempt: ShardCommit) -> ShardCommit:
    """Make a staged attempt the shard's result, or discard it where there is one; returns the result that stands."""
    fault_point("commits.staged")
    if storage.create_exclusive(_commit_uri(tables, attempt.run_id, attempt.shard), _commit_bytes(attempt)):
        return attempt
    winner = read_commit(tables, attempt.run_id, attempt.shard)
    assert winner is not None
    if winner.attempt != attempt.attempt:  # equal where the store answered a retried request twice
        logger.info("shard %d of run %s was committed by another attempt", attempt.shard, attempt.run_id)
        for file in attempt.files:
            storage.remove_tree(storage.join(tables, file.staged).rpartition("/")[0])
    return winner


def promote(tables: str, committed: ShardCommit) -> None:
    """Move a committed shard's files to their places; again and by several processes at once, if it must be."""
    fault_point("commits.committed")
    for file in committed.files:
        source, target = storage.join(tables, file.staged), storage.join(tables, file.path)
        try:
            storage.move(source, target)
        except FileNotFoundError:  # another process moved it between our look and our move
            storage.move(source, target)
        fault_point("commits.promote")
    fault_point("commits.promoted")


def read_commit(tables: str, run_id: str, shard: int) -> ShardCommit | None:
    """The result of a shard, or None while it has none."""
    try:
        values = storage.read_json(_commit_uri(tables, run_id, shard))
    except FileNotFoundError:
        return None
    return ShardCommit.from_dict(values)


def read_commits(tables: str, run_id: str, *, known: Mapping[int, ShardCommit] | None = None) -> dict[int, ShardCommit]:
    """Every committed shard of a run, in order; of those that are `known` nothing is read, since a commit stays."""
    known = known or {}
    names = [uri.rpartition("/")[2] for uri in storage.list_files(storage.join(tables, "runs", run_id, "commits"))]
    shards = sorted(int(name.removesuffix(".json")) for name in names if re.fullmatch(r"\d+\.json", name))
    with ThreadPoolExecutor(STORE_THREADS) as pool:
        found = pool.map(lambda shard: known.get(shard) or read_commit(tables, run_id, shard), shards)
        return {committed.shard: committed for committed in found if committed is not None}


def abandon(tables: str, run: Run) -> int:
    """Commit every open shard of a run with no files, and return their number.

    Their images are in no table, so the next run plans them again; a worker that still computes one loses the commit.
    """
    num_open = 0
    for shard in sorted(set(range(run.num_shards)) - read_commits(tables, run.settings.run_id).keys()):
        empty = ShardCommit(run_id=run.settings.run_id, shard=shard, attempt=ABANDONED, files=())
        num_open += commit(tables, empty).attempt == ABANDONED
    return num_open


def publish(
    tables: str,
    run: Run,
    *,
    known: Mapping[int, ShardCommit] | None = None,
    stage_of_run: Callable[[list[ShardCommit]], ShardCommit] | None = None,
) -> Snapshot:
    """Finish the promotions of a run whose shards are all committed, and publish it; idempotent.

    Args:
        tables: URI of the tables' folder.
        run: the run.
        known: shards' results that need not be read again.
        stage_of_run: given the shards' results, which are in their places, stages the files of the run as a whole
            (`WHOLE_RUN`); called where they have no commit yet. None: there are none.

    Raises:
        RuntimeError: a shard has no commit.
    """
    run_id = run.settings.run_id
    fault_point("commits.publish")
    newest = newest_snapshot(tables)
    if run_id in newest.run_ids:  # nothing to look after: `maintain` may have merged and removed its files since
        return newest
    commits = read_commits(tables, run_id, known=known)
    missing = set(range(run.num_shards)) - commits.keys()
    if missing:
        raise RuntimeError(f"{len(missing)} shards of run {run_id} have no commit, {min(missing)} first; run it again")
    _promote_missing(tables, run.settings, commits)
    of_run = read_commit(tables, run_id, WHOLE_RUN)
    if of_run is None and stage_of_run is not None:
        of_run = commit(tables, stage_of_run(list(commits.values())))
    if of_run is not None:
        promote(tables, of_run)
        commits[WHOLE_RUN] = of_run
    while True:
        newest = newest_snapshot(tables)
        if run_id in newest.run_ids:
            return newest
        added = [
            {"run_id": run_id} | dataclasses.asdict(file) for shard in sorted(commits) for file in commits[shard].files
        ]
        for file in added:
            del file["staged"]
        snapshot = Snapshot(
            number=newest.number + 1,
            run_ids=(*newest.run_ids, run_id),
            files=(*newest.files, *added),
            class_names=run.settings.class_names,
            palette=run.settings.palette,
        )
        fault_point("commits.snapshot")
        if create_snapshot(tables, snapshot):
            fault_point("commits.published")
        # and look again: ours, or another writer's, which had the number first


def create_snapshot(tables: str, snapshot: Snapshot) -> bool:
    """Publish a snapshot; False where another writer has taken its number. Look afterwards whether it is the newest."""
    values = dataclasses.replace(snapshot, created_at=datetime.now(UTC).isoformat())
    return storage.create_exclusive(snapshot_uri(tables, snapshot.number), _snapshot_bytes(values))


def newest_snapshot(tables: str) -> Snapshot:
    """The newest published snapshot; number 0, with nothing in it, before the first."""
    numbers = snapshot_numbers(tables)
    if not numbers:
        return Snapshot(number=0, run_ids=(), files=(), class_names=(), palette=())
    return read_snapshot(tables, numbers[-1])


def snapshot_numbers(tables: str) -> list[int]:
    """Of every snapshot that has not been removed as expired, ascending. The newest is never removed."""
    names = [uri.rpartition("/")[2] for uri in storage.list_files(storage.join(tables, "snapshots"))]
    return sorted(int(name.removesuffix(".json")) for name in names if re.fullmatch(r"\d+\.json", name))


def read_snapshot(tables: str, number: int) -> Snapshot:
    """One snapshot.

    Raises:
        FileNotFoundError: there is none of this number, or no longer.
        ValueError: a newer version of this package wrote it.
    """
    values = storage.read_json(snapshot_uri(tables, number))
    if values["schema_version"] > SCHEMA_VERSION:
        raise ValueError(
            f"{snapshot_uri(tables, number)} has schema version {values['schema_version']}; this package reads "
            f"up to {SCHEMA_VERSION}; install the version of segpipe that wrote these tables, or a later one"
        )
    return Snapshot(
        number=values["number"],
        run_ids=tuple(values["run_ids"]),
        files=tuple(values["files"]),
        class_names=tuple(values["class_names"]),
        palette=tuple((red, green, blue) for red, green, blue in values["palette"]),
        created_at=values["created_at"],
    )


def snapshot_uri(tables: str, number: int) -> str:
    """Where a snapshot lies."""
    return storage.join(tables, "snapshots", f"{number:08d}.json")


def sweep(tables: str, *, older_than_days: float = STAGING_DAYS) -> int:
    """Remove staged files that no commit names and that are old, and old empty folders; returns the files' number."""
    fs, root = storage.filesystem(storage.join(tables, "_staging"))
    if not fs.exists(root):
        return 0
    limit = time.time() - older_than_days * 86400
    removed = 0
    for run_id in storage.list_folders(storage.join(tables, "_staging")):
        old = [path for path in fs.find(f"{root}/{run_id}") if _is_older(fs, path, limit)]
        for path in old:
            relative = "_staging/" + path.removeprefix(root).lstrip("/")
            part = relative.split("/")[2]
            committed = read_commit(tables, run_id, WHOLE_RUN if part == _part(WHOLE_RUN) else int(part))
            if committed is None or relative not in {file.staged for file in committed.files}:
                with contextlib.suppress(FileNotFoundError):  # another job discarded it this moment
                    fs.rm_file(path)
                    removed += 1
    if storage.is_local(fs):
        for folder in sorted(Path(root).rglob("*"), reverse=True):  # deepest first
            if folder.is_dir() and folder.stat().st_mtime <= limit:
                with contextlib.suppress(OSError):  # it is not empty
                    folder.rmdir()
    return removed


def _is_older(fs: AbstractFileSystem, path: str, limit: float) -> bool:
    try:
        return bool(fs.modified(path).timestamp() <= limit)
    except FileNotFoundError:  # another job promoted or discarded it this moment
        return False


def exclusive_create_works(tables: str) -> bool:
    """Whether the store refuses to create a file that exists; some S3 servers ignore the condition."""
    probe = storage.join(tables, f".exclusive-probe-{secrets.token_hex(4)}")
    first = storage.create_exclusive(probe, b"1")
    second = storage.create_exclusive(probe, b"2")
    fs, path = storage.filesystem(probe)
    fs.rm_file(path)
    return first and not second


def _check_complete(planned: list[str], rows: Mapping[str, pa.Table]) -> None:
    work_ids = {name: Counter(rows[name]["work_id"].to_pylist()) for name in TABLES}
    assert work_ids["predictions"] == work_ids["masks"], "predictions and masks differ"
    found = work_ids["predictions"] + work_ids["failures"] + work_ids["deletions"]
    assert found == Counter(planned), "not every planned image exactly once"
    assert work_ids["comparisons"] <= work_ids["predictions"], "a comparison without its prediction"


def _promote_missing(tables: str, settings: RunSettings, commits: dict[int, ShardCommit]) -> None:
    day = f"run_date={settings.run_date}"
    present = {
        f"{name}/{day}/{uri.rpartition('/')[2]}"
        for name in TABLES
        for uri in storage.list_files(storage.join(tables, name, day))
    }
    missing = [each for each in commits.values() if any(file.path not in present for file in each.files)]
    with ThreadPoolExecutor(STORE_THREADS) as pool:
        list(pool.map(lambda committed: promote(tables, committed), missing))


def _commit_bytes(attempt: ShardCommit) -> bytes:
    return storage.json_bytes(dataclasses.asdict(attempt) | {"committed_at": datetime.now(UTC).isoformat()})


def _snapshot_bytes(snapshot: Snapshot) -> bytes:
    totals = {name: sum(file["num_rows"] for file in snapshot.files if file["table"] == name) for name in TABLES}
    return storage.json_bytes(dataclasses.asdict(snapshot) | {"schema_version": SCHEMA_VERSION, "num_rows": totals})


def _plan_uri(tables: str, run_id: str) -> str:
    return storage.join(tables, "runs", run_id, "plan.parquet")


def _commit_uri(tables: str, run_id: str, shard: int) -> str:
    return storage.join(tables, "runs", run_id, "commits", f"{_part(shard)}.json")


def _part(shard: int) -> str:
    return "run" if shard == WHOLE_RUN else f"{shard:05d}"
