"""Planning of a large listing against long-grown tables: seconds, and peak memory of the process that plans.

    python benchmarks/plan_scale.py [--listed 1000000] [--committed 10000000] [--rows-per-file 100000]

Tables of ten cameras, whose images are mixed in every file, so that no file can be left out by its statistics; one
camera is listed. Of its images 93 % are committed under the same identity, 3 % in another version, 2 % by another
model, and 2 % are new. A second plan lists the whole bucket, from which all but those images have gone and are marked
as deleted. Each plan runs in a process of its own, from the newest snapshot to the plan's rows. DuckDB's anti-join of
the work ids alone, over the same files, stands beside it.
"""

import json
import multiprocessing
import shutil
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import report
import tyro
from numpy.typing import NDArray

from pipelines import storage
from pipelines.nightly.listing import LISTING, Listing
from pipelines.nightly.plan import compare, plan_work, work_ids
from pipelines.tables import commits
from pipelines.tables.runs import Snapshot
from pipelines.tables.schemas import DELETIONS, PREDICTIONS, SCHEMA_VERSION, Footer, parquet_bytes

CAMERAS = 10
LISTED_CAMERA = 4
PREFIX = "s3://cams-eu/"
MODEL, OTHER_MODEL, SETTINGS = "m" * 64, "o" * 64, "c" * 64
TARGET_SECONDS, TARGET_BYTES = 60, 4 * 10**9

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchmarkConfig:
    """What is measured."""

    listed: int = 1_000_000
    """Objects in the listing."""
    committed: int = 10_000_000
    """Rows of `predictions`; ten times as many as are listed, or more."""
    rows_per_file: int = 100_000
    """As compaction leaves them; a run writes at most `images_per_shard` rows per file."""
    rounds: int = 3
    """Each plan is made as often as this."""
    folder: str = ""
    """Where about 2 GB of tables are made for the time of the run; default: the system's temporary folder."""


def main(config: BenchmarkConfig) -> None:
    """Measure, print, and write the section of docs/benchmarks.md."""
    with tempfile.TemporaryDirectory(dir=config.folder or None) as scratch:
        started = time.perf_counter()
        _alone(_write_tables, scratch, config)
        size = sum(path.stat().st_size for path in Path(scratch).rglob("*.parquet"))
        print(f"{size / 1e9:.2f} GB of tables in {time.perf_counter() - started:.0f} s", flush=True)
        sides: dict[str, Callable[[], Measured]] = {
            "plan, one camera of ten": lambda: _alone(_plan, scratch, False),
            "plan, whole bucket, the rest marked as deleted": lambda: _alone(_plan, scratch, True),
            "DuckDB, anti-join of work ids alone": lambda: _alone(_duckdb, scratch, False),
        }
        found: dict[str, list[Measured]] = {name: [] for name in sides}
        for _ in range(config.rounds):
            for name, side in sides.items():
                found[name].append(side())
                print(f"{name}: {found[name][-1]}", flush=True)
        shutil.rmtree(Path(scratch, "tables"))
    _write(config, size, found)


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """One process.

    Attributes:
        seconds: from the snapshot to the result.
        cpu_seconds: of all its threads, likewise.
        peak_bytes: largest resident memory of the process, imports included.
        planned: rows found to be done.
    """

    seconds: float
    cpu_seconds: float
    peak_bytes: int
    planned: int


def _write(config: BenchmarkConfig, size: int, found: dict[str, list[Measured]]) -> None:
    rows = [
        (
            name,
            f"{np.median([each.seconds for each in rounds]):.1f}",
            f"{np.median([each.cpu_seconds for each in rounds]):.1f}",
            f"{max(each.peak_bytes for each in rounds) / 1e9:.2f}",
            f"{rounds[0].planned:,}",
        )
        for name, rounds in found.items()
    ]
    text = f"""## Planning

{config.listed:,} listed objects against {config.committed:,} committed ones in files of {config.rows_per_file:,} rows
({size / 1e9:.1f} GB, marks included), {config.rounds} rounds, each in a process of its own. Every file holds images of
the listed camera, so all are read. DuckDB joins the identities alone; the plan also tells new images from changed ones
and from those of another model, and finds what has gone.

{report.table(("", "seconds (median)", "CPU seconds", "peak memory, GB", "planned"), rows)}

Target: below {TARGET_SECONDS} s and {TARGET_BYTES / 1e9:.0f} GB."""
    print(text)
    report.write_section("plan_scale", text)


def _alone(function: Callable[..., T], *arguments: object) -> T:
    """Call in a process of its own, so that its memory is its own."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


# --- tables -----------------------------------------------------------------------------------------------------------


def _write_tables(scratch: str, config: BenchmarkConfig) -> None:
    """Predictions, marks, a snapshot without them and one with them, and the listing."""
    assert config.committed >= CAMERAS * config.listed, "give --committed ten times --listed, or more"
    rng = np.random.default_rng(0)
    tables = f"{scratch}/tables"
    listed_share = config.listed / config.committed
    files: list[dict[str, Any]] = []
    marks: list[dict[str, Any]] = []
    listed: list[pa.Table] = []
    for number, start in enumerate(range(0, config.committed, config.rows_per_file)):
        count = min(config.rows_per_file, config.committed - start)
        kind_N = rng.random(count)
        is_listed_N = rng.random(count) < listed_share
        objects = _objects(rng, np.arange(start, start + count), is_listed_N)
        listed.append(_tonight(rng, objects.filter(pa.array(is_listed_N)), kind_N[is_listed_N]))
        # 95 % by the model of the plan; of the rest, what is listed in the same version is there by another model
        is_other_N = (kind_N >= 0.93) & (kind_N < 0.95)
        model = np.where(is_other_N, OTHER_MODEL, MODEL)
        ids = np.array(_ids(objects, MODEL))
        ids[is_other_N] = _ids(objects.filter(pa.array(is_other_N)), OTHER_MODEL)
        is_committed = pa.array(~is_listed_N | (kind_N < 0.98))  # the last 2 % are new
        rows = objects.append_column("work_id", pa.array(ids)).append_column("model_digest", pa.array(model))
        files.append(_write_part(tables, "predictions", number, _filled(PREDICTIONS, rows.filter(is_committed))))
        gone = objects.filter(pa.array(~is_listed_N))
        gone = gone.append_column("work_id", pa.array([f"000002-mark-{start + place}" for place in range(len(gone))]))
        gone = gone.append_column("reason", pa.repeat("deleted", gone.num_rows))
        marks.append(_write_part(tables, "deletions", number, _filled(DELETIONS, gone)))
    pq.write_table(pa.concat_tables(listed).sort_by("uri"), f"{scratch}/listing.parquet")
    for number, live in ((1, files), (2, [*files, *marks])):
        values = {"number": number, "run_ids": ["000001"], "files": live, "class_names": ["a"], "palette": [[0, 0, 0]]}
        values |= {"schema_version": SCHEMA_VERSION, "created_at": "2026-11-20T03:00:00+00:00"}
        storage.write_atomic(f"{tables}/snapshots/{number:08d}.json", json.dumps(values).encode())


def _objects(rng: np.random.Generator, numbers: NDArray[np.int64], is_listed_N: NDArray[np.bool_]) -> pa.Table:
    """`LISTING` of generated objects; the listed ones are all of one camera, the others of the other cameras."""
    others = np.delete(np.arange(CAMERAS), LISTED_CAMERA)[numbers % (CAMERAS - 1)]
    cameras = np.where(is_listed_N, LISTED_CAMERA, others)
    uris = [
        f"{PREFIX}camera-{camera:02d}/2026-{1 + number % 12:02d}/frame-{number:09d}.jpg"
        for camera, number in zip(cameras.tolist(), numbers.tolist(), strict=True)
    ]
    times = pa.array(np.full(len(numbers), 1_790_000_000_000_000), pa.timestamp("us"))
    columns = [pa.array(uris), _hex(rng, len(numbers), 32), pa.array(rng.integers(10**5, 10**6, len(numbers))), times]
    return pa.Table.from_arrays(columns, schema=LISTING)


def _tonight(rng: np.random.Generator, objects: pa.Table, kind_N: NDArray[np.float64]) -> pa.Table:
    """The same objects, some of them in another version."""
    is_changed = (kind_N >= 0.95) & (kind_N < 0.98)
    etags = np.where(is_changed, _hex(rng, objects.num_rows, 32).to_pylist(), objects["etag"].to_pylist())
    return objects.set_column(1, LISTING.field("etag"), pa.array(etags.tolist(), pa.string()))


def _hex(rng: np.random.Generator, count: int, length: int) -> pa.Array:
    offsets = pa.array(np.arange(count + 1, dtype=np.int32) * length)
    digits = rng.bytes(count * length // 2).hex().encode()
    return pa.StringArray.from_buffers(count, offsets.buffers()[1], pa.py_buffer(digits))


def _ids(objects: pa.Table, model: str) -> list[str]:
    found: list[str] = work_ids(objects, model_digest=model, config_digest=SETTINGS).to_pylist()
    return found


def _filled(schema: pa.Schema, rows: pa.Table) -> pa.Table:
    """A constant in every column that is not given."""
    constants = {"run_id": "000001", "config_digest": SETTINGS}
    columns = []
    for field in schema:
        if field.name in rows.column_names:
            columns.append(rows[field.name].cast(field.type))
            continue
        if pa.types.is_list(field.type):
            value: object = []
        elif pa.types.is_string(field.type):
            value = constants.get(field.name, "x")
        else:
            value = 0
        columns.append(pa.repeat(pa.scalar(value, field.type), rows.num_rows))
    return pa.Table.from_arrays(columns, schema=schema)


def _write_part(tables: str, name: str, number: int, rows: pa.Table) -> dict[str, Any]:
    footer = Footer(class_names=("a",), palette=((0, 0, 0),), model_digest=MODEL, run_id="000001")
    data = parquet_bytes(name, rows, footer)
    path = f"{name}/run_date=2026-11-20/part-000001-{number:05d}.parquet"
    target = Path(tables, path)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(data)
    return {
        "table": name,
        "path": path,
        "num_rows": rows.num_rows,
        "num_bytes": len(data),
        "sha256": "",
        "run_id": "000001",
    }


# --- sides ------------------------------------------------------------------------------------------------------------


def _plan(scratch: str, whole_bucket: bool) -> Measured:
    started = time.perf_counter(), time.process_time()
    tables = f"{scratch}/tables"
    snapshot = _snapshot(tables, marked=whole_bucket)
    prefix = PREFIX if whole_bucket else f"{PREFIX}camera-{LISTED_CAMERA:02d}/"
    listing = Listing(objects=pq.read_table(f"{scratch}/listing.parquet").combine_chunks(), prefix=prefix)
    ids = work_ids(listing.objects, model_digest=MODEL, config_digest=SETTINGS)
    compared = compare(listing, ids, tables, snapshot)
    plan = plan_work(listing, ids, compared, run_id="000003", images_per_shard=64, workers=8)
    counts = plan.group_by("reason").aggregate([("uri", "count")]).to_pylist()
    print({each["reason"]: each["uri_count"] for each in counts}, flush=True)
    return _measured(started, planned=plan.num_rows)


def _snapshot(tables: str, *, marked: bool) -> Snapshot:
    newest = commits.newest_snapshot(tables)  # lists the marks too
    if marked:
        return newest
    files = tuple(file for file in newest.files if file["table"] != "deletions")
    return Snapshot(number=1, run_ids=newest.run_ids, files=files, class_names=("a",), palette=((0, 0, 0),))


def _duckdb(scratch: str, whole_bucket: bool) -> Measured:
    import duckdb

    started = time.perf_counter(), time.process_time()
    objects = pq.read_table(f"{scratch}/listing.parquet")
    listed = pa.table({"work_id": work_ids(objects, model_digest=MODEL, config_digest=SETTINGS)})
    connection = duckdb.connect()
    connection.register("listed", listed)
    rows = connection.sql(
        f"SELECT count(*) FROM listed ANTI JOIN '{scratch}/tables/predictions/*/*.parquet' USING (work_id)"
    ).fetchall()
    return _measured(started, planned=rows[0][0])


def _measured(started: tuple[float, float], *, planned: int) -> Measured:
    wall, cpu = time.perf_counter() - started[0], time.process_time() - started[1]
    return Measured(seconds=wall, cpu_seconds=cpu, peak_bytes=_peak_bytes(), planned=planned)


def _peak_bytes() -> int:
    """Of this process since its start; `getrusage` would count its parent's memory too."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("this system does not tell a process's peak memory in /proc/self/status")


if __name__ == "__main__":
    main(tyro.cli(BenchmarkConfig, description=__doc__))
