"""What `commits` keeps: a run's settings and plan, what an attempt at a shard left, a snapshot. Only data."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines.tables.schemas import Footer

PLAN = pa.schema(
    [
        pa.field("work_id", pa.string(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("etag", pa.string(), nullable=False),
        pa.field("size_bytes", pa.int64(), nullable=False),
        pa.field("last_modified", pa.timestamp("us")),
        pa.field("reason", pa.string(), nullable=False),  # `nightly.plan.REASONS`; of marks `deletions.MARKS`
        pa.field("shard", pa.int32(), nullable=False),  # ascending from 0
    ]
)
WHOLE_RUN = -1
"""In place of a shard's number: files of the run as a whole."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunSettings:
    """What every shard of a run is computed with, fixed in its plan.

    Attributes:
        run_id: the run's number, "000001".
        run_date: UTC day of the plan, "2026-11-20"; the tables' partition.
        created_at: UTC, ISO 8601.
        images: the folder or bucket that was listed, or the manifest that stood for a listing.
        model_uri: as resolved, `models:/name/3` or the folder; of an ensemble all of them, joined by " + ".
        model_version: of the registered model, or "".
        model_folder: that every worker can read.
        model_digest: of that folder, or of an ensemble's.
        class_names, palette: the model's class table.
        inference: fields of the `InferenceConfig`.
        config_digest: of all else that a mask depends on.
        code_commit: that planned it.
        ensemble: fields of every `MemberModel`, where the class probabilities of several models are averaged or classes
            are left out; `model_version`, `model_folder` and `inference` above are the first one's. Empty otherwise.
        tiling: fields of the `TilingConfig`; none in plans of older versions.
        challenger: fields of the `Challenger` that is compared with it; empty without one.
    """

    run_id: str
    run_date: str
    created_at: str
    images: str
    model_uri: str
    model_version: str
    model_folder: str
    model_digest: str
    class_names: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    inference: dict[str, Any]
    config_digest: str
    code_commit: str
    ensemble: tuple[dict[str, Any], ...] = ()
    tiling: dict[str, Any] = field(default_factory=dict)
    challenger: dict[str, Any] = field(default_factory=dict)

    @property
    def footer(self) -> Footer:
        return Footer(
            class_names=self.class_names, palette=self.palette, model_digest=self.model_digest, run_id=self.run_id
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """A planned run: its settings and its work list (`PLAN`), ordered by shard."""

    settings: RunSettings
    plan: pa.Table

    @property
    def num_shards(self) -> int:
        return int(self.plan["shard"][-1].as_py()) + 1 if self.plan.num_rows else 0

    def shard_items(self, shards: Sequence[int]) -> list[pa.Table]:
        """The work list of each of some shards."""
        return shard_items(self.plan, shards)


def shard_items(plan: pa.Table, shards: Sequence[int]) -> list[pa.Table]:
    """The rows of each of some shards in a plan, or in a piece of one."""
    shard_of_row = plan["shard"].to_numpy()
    starts = np.searchsorted(shard_of_row, shards, side="left")
    stops = np.searchsorted(shard_of_row, shards, side="right")
    return [plan.slice(start, stop - start) for start, stop in zip(starts, stops, strict=True)]


@dataclass(frozen=True, kw_only=True, slots=True)
class PartFile:
    """One file of an attempt: where it was staged and where it belongs, both relative to the tables."""

    table: str
    staged: str
    path: str
    num_rows: int
    num_bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardCommit:
    """What an attempt at a shard made of it; once committed, the shard's result. Tables without rows have no file."""

    run_id: str
    shard: int
    attempt: str
    files: tuple[PartFile, ...]

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> "ShardCommit":
        """From its fields as JSON gives them back; others are left out."""
        return ShardCommit(
            run_id=values["run_id"],
            shard=values["shard"],
            attempt=values["attempt"],
            files=tuple(PartFile(**file) for file in values["files"]),
        )

    def num_rows(self, table: str) -> int:
        """Rows that this shard adds to `table`."""
        return sum(file.num_rows for file in self.files if file.table == table)


@dataclass(frozen=True, kw_only=True, slots=True)
class Snapshot:
    """The tables after some number of published runs; number 0 is the empty beginning.

    Attributes:
        number: n of `snapshots/<n>.json`.
        run_ids: every published run.
        files: every live file, as dicts with table, path, num_rows, num_bytes, sha256 and run_id.
        class_names, palette: the tables' class table; empty in number 0.
        created_at: when it was published, UTC, ISO 8601; set by `create_snapshot`.
    """

    number: int
    run_ids: tuple[str, ...]
    files: tuple[dict[str, Any], ...]
    class_names: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    created_at: str = ""
