"""Keep the tables of `segment` small and quick to read: drop old masks, merge small files, remove what has expired.

Nothing is done without `apply`: the job only says what it would do. Nothing is overwritten in place. Every step is a
new snapshot, or the removal of files that no snapshot names which somebody may still read. Killed at any point, it
leaves tables in which every reader by snapshot sees each row once, and the same command finishes; a nightly job may run
beside it (`pipelines.tables.compaction` says how, and what globbing readers see). Let one `maintain` run at a time.

In order:

1. Left over   staged files of published runs; files that no snapshot names, of published runs or killed merges.
2. Drop        masks of old nights: the next snapshot does not name them. Their predictions stay.
3. Merge       small files of one table and night.
4. Expire      snapshots that were replaced some days ago, and the files that no kept snapshot names. Only this frees
               space, and only now do globbing readers notice the steps above.
5. Commits     `runs/<run>/commits/` of runs that were published long ago. Plans stay: they say how masks were made.
"""

import logging
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from pipelines import storage
from pipelines.progress import progress
from pipelines.tables import commits
from pipelines.tables.commits import STAGING_DAYS, STORE_THREADS
from pipelines.tables.compaction import (
    HIDDEN,
    Change,
    Merge,
    changed,
    paths_of,
    plan_expiry,
    plan_merges,
    replace_files,
    reveal,
    run_date_of,
    write_merged,
)
from pipelines.tables.reader import open_snapshot
from pipelines.tables.runs import Snapshot
from pipelines.tables.schemas import SCHEMAS

PART_NAME = re.compile(r"part-(\d{6,})-(?:\d+|run)\.parquet|merged-(\d{6,})-(\d{6,})-[0-9a-f]{16}\.parquet")
UNFINISHED_NAME = re.compile(r"\..*" + re.escape(storage.UNFINISHED_SUFFIX))
MEGABYTE = 10**6

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class MaintainConfig:
    """Tables, and what to do with them; without --apply the job only says what it would do."""

    tables: str
    """Folder or URI of the tables that jobs/segment.py writes."""
    apply: bool = False
    """Do it. Without this nothing is changed."""
    drop_masks_older_than_days: int | None = None
    """Drop the masks of nights (run_date) older than this; their predictions stay."""
    compact: bool = False
    """Merge the small files of each table and night."""
    target_megabytes: int = 100
    """Size of a merged file; files of half this size and more stay as they are. Merging takes about ten times this
    memory."""
    expire_snapshots_days: float | None = None
    """Remove snapshots that were replaced by a newer one more than this many days ago, and the files that only they
    name. No reader or job may take longer than this; 1 or more unless nothing else reads the tables."""
    remove_commits_older_than_days: float | None = None
    """Remove the commit records of published runs that are older than this (3 or more: no worker of those runs may be
    alive). Plans and pages stay."""

    def __post_init__(self) -> None:
        for name in ("drop_masks_older_than_days", "expire_snapshots_days"):
            if (days := getattr(self, name)) is not None and days < 0:
                raise ValueError(f"--{name.replace('_', '-')} is {days}; give 0 or more")
        if self.target_megabytes < 1:
            raise ValueError(f"--target-megabytes is {self.target_megabytes}; give 1 or more")
        days = self.remove_commits_older_than_days
        if days is not None and days < STAGING_DAYS:
            raise ValueError(
                f"--remove-commits-older-than-days is {days}; give {STAGING_DAYS:g} or more: a worker that comes back "
                "within that time must find its shard committed"
            )


@dataclass(kw_only=True, slots=True)
class MaintainResult:
    """What was done, or would be.

    Attributes:
        applied: whether it was.
        snapshot: number of the newest snapshot.
        num_left_over: files of killed processes removed.
        num_dropped: mask files dropped from the newest snapshot.
        num_small, num_merged: files merged, and files that they became.
        num_snapshots, num_expired: snapshots and data files removed.
        num_commits: commit records removed.
    """

    applied: bool
    snapshot: int
    num_left_over: int = 0
    num_dropped: int = 0
    num_small: int = 0
    num_merged: int = 0
    num_snapshots: int = 0
    num_expired: int = 0
    num_commits: int = 0

    @property
    def closing_line(self) -> str:
        steps = {
            f"drop {self.num_dropped} mask files": self.num_dropped,
            f"merge {self.num_small} files into {self.num_merged}": self.num_small,
            f"expire {self.num_snapshots} snapshots and {self.num_expired} files": self.num_snapshots
            + self.num_expired,
            f"remove {self.num_commits} commit records": self.num_commits,
            f"remove {self.num_left_over} files of killed jobs": self.num_left_over,
        }
        todo = ", ".join(step for step, count in steps.items() if count) or "nothing to do"
        if self.applied:
            return f"done: {todo}; newest snapshot {self.snapshot}"
        return f"dry run, nothing was changed: {todo}; give --apply to do it (newest snapshot {self.snapshot})"


@dataclass(kw_only=True, slots=True)
class _Work:
    """One invocation."""

    config: MaintainConfig
    tables: str
    now: datetime
    newest: Snapshot
    result: MaintainResult

    def days_ago(self, days: float) -> datetime:
        return self.now - timedelta(days=days)


def maintain(config: MaintainConfig, *, now: datetime | None = None) -> MaintainResult:
    """Do what the configuration asks for, or say what that would be.

    Args:
        config: what to do.
        now: time zone aware; None: this moment.

    Raises:
        ValueError: there are no tables, they cannot be written, or a file is damaged.
    """
    tables = storage.absolute(config.tables)
    newest = open_snapshot(tables)
    if config.apply:
        storage.check_writable(tables)
        if not commits.exclusive_create_works(tables):
            logger.warning("the store of %s ignores conditional writes: let no other job run over these tables", tables)
    result = MaintainResult(applied=config.apply, snapshot=newest.number)
    work = _Work(config=config, tables=tables, now=now or datetime.now(UTC), newest=newest, result=result)
    _remove_left_over(work)
    if config.drop_masks_older_than_days is not None:
        _drop_masks(work, config.drop_masks_older_than_days)
    if config.compact:
        _compact(work)
    if config.expire_snapshots_days is not None:
        _expire(work, work.days_ago(config.expire_snapshots_days))
    if config.remove_commits_older_than_days is not None:
        _remove_commits(work, work.days_ago(config.remove_commits_older_than_days))
    result.snapshot = commits.newest_snapshot(tables).number
    return result


def _remove_left_over(work: _Work) -> None:
    """What killed processes left: old files that no snapshot names, never of a run that is not published.

    Files are listed before snapshots are read: what a job publishes in between is then named.
    """
    folders = [*SCHEMAS, *(f"{HIDDEN}{name}" for name in SCHEMAS)]
    listed = [path for folder in folders for path in _files_below(work.tables, folder)]
    snapshots = _all_snapshots(work.tables)
    published = set(snapshots[-1].run_ids)
    named = {path for snapshot in snapshots for path in paths_of(snapshot)}
    left_over = [path for path in listed if path not in named and _is_left_over(path, published)]
    for run_id in storage.list_folders(storage.join(work.tables, "_staging")):
        if run_id in published:  # a lost attempt, or a copy that its mover did not come to remove
            left_over += _files_below(work.tables, f"_staging/{run_id}")
    left_over = _written_before(work.tables, left_over, work.days_ago(STAGING_DAYS))
    work.result.num_left_over = len(left_over)
    _remove(work, left_over, "files of killed jobs")


def _drop_masks(work: _Work, days: int) -> None:
    first_kept = work.days_ago(days).date().isoformat()
    files = [file for file in work.newest.files if file["table"] == "masks" and run_date_of(file["path"]) < first_kept]
    work.result.num_dropped = len(files)
    size = sum(file["num_bytes"] for file in files) / MEGABYTE
    _say(work, f"drop the masks of nights before {first_kept}: {len(files)} files, {size:.1f} MB")
    _replace(work, [Change(old=frozenset([file["path"]]), new=None) for file in files])


def _compact(work: _Work) -> None:
    newest = work.newest
    merges = plan_merges(newest, target_bytes=work.config.target_megabytes * MEGABYTE)
    work.result.num_merged = len(merges)
    work.result.num_small = sum(len(merge.files) for merge in merges)
    for merge in merges:
        size = f"{merge.num_bytes / MEGABYTE:.1f} MB"
        _say(work, f"merge {len(merge.files)} files of {merge.table}, {merge.run_date}: {size}")
    if not work.config.apply or not merges:
        return
    with progress("merge", total=len(merges), unit="files") as advance:
        for night in sorted({merge.run_date for merge in merges}):  # a snapshot for each: little is lost to a kill
            changes = []
            for merge in merges:
                if merge.run_date == night:
                    change = _merged(work.tables, merge, newest)
                    changes += [change] if change else []
                    advance(1)
            _replace(work, changes)


def _merged(tables: str, merge: Merge, snapshot: Snapshot) -> Change | None:
    try:
        return write_merged(tables, merge, snapshot)
    except FileNotFoundError as error:
        logger.warning("another job has merged the %s of %s meanwhile: %s", merge.table, merge.run_date, error)
        return None


def _expire(work: _Work, before: datetime) -> None:
    expiry = plan_expiry(_all_snapshots(work.tables), before=before)
    work.result.num_snapshots = len(expiry.expired)
    work.result.num_expired = expiry.num_removed
    _say(
        work,
        f"remove {len(expiry.expired)} snapshots and {expiry.num_removed} files that only they name, and show "
        f"{len(expiry.revealed)} merged files to readers that glob",
    )
    if not work.config.apply:
        return
    # Merged files first, then what they replace, then the snapshots: killed in between, all is found again.
    _replace(work, [reveal(work.tables, file) for file in expiry.revealed])
    _remove(work, expiry.removed, "expired files")
    for number in expiry.expired:
        storage.remove_file(commits.snapshot_uri(work.tables, number))


def _remove_commits(work: _Work, before: datetime) -> None:
    """Of runs all of whose commit records are old."""
    found: list[str] = []
    for run_id in work.newest.run_ids:
        records = _files_below(work.tables, f"runs/{run_id}/commits")
        old = _written_before(work.tables, records, before)
        found += old if len(old) == len(records) else []
    work.result.num_commits = len(found)
    _remove(work, found, "commit records")


def _replace(work: _Work, changes: Sequence[Change]) -> None:
    """Publish, or see what would be published."""
    if work.config.apply:
        replace_files(work.tables, changes)
        work.newest = commits.newest_snapshot(work.tables)
    else:
        work.newest = changed(work.newest, changes) or work.newest


def _all_snapshots(tables: str) -> list[Snapshot]:
    with ThreadPoolExecutor(STORE_THREADS) as pool:
        return list(pool.map(lambda number: commits.read_snapshot(tables, number), commits.snapshot_numbers(tables)))


def _files_below(tables: str, folder: str) -> list[str]:
    """Paths relative to the tables, unfinished files included."""
    fs, root = storage.filesystem(storage.join(tables, folder))
    if not fs.exists(root):
        return []
    return [f"{folder}/{path.removeprefix(root).lstrip('/')}" for path in sorted(fs.find(root))]


def _written_before(tables: str, paths: Sequence[str], limit: datetime) -> list[str]:
    fs, root = storage.filesystem(tables)
    with ThreadPoolExecutor(STORE_THREADS) as pool:
        times = list(pool.map(lambda path: fs.modified(storage.join(root, path)).timestamp(), paths))
    return [path for path, written in zip(paths, times, strict=True) if written <= limit.timestamp()]


def _is_left_over(path: str, published: set[str]) -> bool:
    """Of a file that no snapshot names: whether only a killed process can have left it, once it is old."""
    name = path.rpartition("/")[2]
    found = PART_NAME.fullmatch(name)
    if found is None:
        return UNFINISHED_NAME.fullmatch(name) is not None  # anything else is not ours
    return {run_id for run_id in found.groups() if run_id} <= published


def _remove(work: _Work, paths: Sequence[str], what: str) -> None:
    if paths:
        _say(work, f"remove {len(paths)} {what}, {paths[0]} first")
    if work.config.apply:
        with ThreadPoolExecutor(STORE_THREADS) as pool:
            list(pool.map(lambda path: storage.remove_file(storage.join(work.tables, path)), paths))


def _say(work: _Work, text: str) -> None:
    logger.info("%s%s", "" if work.config.apply else "would ", text)
