"""`segment --plan`: what there is to do, how long it will take and what it will cost. Nothing is run or written."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta

import pyarrow as pa
import pyarrow.compute as pc

from pipelines import tracking
from pipelines.ensembles import ensemble_uri
from pipelines.nightly.config import SegmentConfig, checked_places
from pipelines.nightly.deletions import MARKS, num_images
from pipelines.nightly.forecast import Forecast, forecast_run
from pipelines.nightly.listing import Listing, take_listing
from pipelines.nightly.plan import (
    IDENTITY_LENGTH,
    REASONS,
    Comparison,
    compare,
    plan_work,
    work_ids,
)
from pipelines.nightly.table_checks import check_class_table
from pipelines.segment import find_models, identity_digests
from pipelines.tables import commits
from pipelines.tables.runs import Run


@dataclass(frozen=True, kw_only=True, slots=True)
class Amount:
    """Images or objects, and their bytes."""

    count: int
    num_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Preview:
    """What a run would do.

    Attributes:
        source: what was listed, or stood for a listing.
        model: as resolved.
        tables: the tables' folder.
        unfinished: what earlier runs have left to do, by run; it is done first.
        reasons: images to segment, by reason, in the order of `REASONS`.
        num_shards: of these images.
        num_present: listed images with nothing to be done.
        marks: objects to be marked, by reason: deleted, restored.
        forecast: of all images to segment; None without an earlier run to go by.
        workers: of the run.
        cost_per_hour: of the whole cluster; 0 where it is not known.
    """

    source: str
    model: str
    tables: str
    unfinished: Mapping[str, Amount]
    reasons: Mapping[str, Amount]
    num_shards: int
    num_present: int
    marks: Mapping[str, int]
    forecast: Forecast | None
    workers: int
    cost_per_hour: float

    @property
    def num_images(self) -> int:
        """To segment, unfinished runs apart."""
        return sum(amount.count for amount in self.reasons.values())

    @property
    def cost(self) -> float | None:
        """In the currency of `cost_per_hour`; None where it cannot be told."""
        if self.forecast is None or not self.cost_per_hour:
            return None
        return self.forecast.seconds / 3600 * self.cost_per_hour

    @property
    def closing_line(self) -> str:
        """All of it, in lines."""
        lines = [f"plan of {self.source} with {self.model} into {self.tables}; nothing was run"]
        lines += [
            _line(f"run {run_id}", amount, "unfinished; done first") for run_id, amount in self.unfinished.items()
        ]
        lines += [_line(reason, amount) for reason, amount in self.reasons.items()]
        total = Amount(count=self.num_images, num_bytes=sum(each.num_bytes for each in self.reasons.values()))
        lines.append(_line("to segment", total, f"in {self.num_shards} shards"))
        lines.append(f"  {'present':<14}{self.num_present:>12,} images")
        lines += [f"  {reason:<14}{count:>12,} objects, to be marked" for reason, count in self.marks.items() if count]
        return "\n".join([*lines, *self._prediction()])

    def _prediction(self) -> list[str]:
        if self.forecast is None:
            what = "time and cost" if self.cost_per_hour else "time"
            return [f"  predicted {what}: unknown, since no run with this model and these settings has finished here"]
        time = timedelta(seconds=round(self.forecast.seconds))
        runs = "1 earlier run" if self.forecast.num_runs == 1 else f"{self.forecast.num_runs} earlier runs"
        speed = f"{self.forecast.images_per_second:.3g} images/s with {self.workers} worker(s), by {runs}"
        lines = [f"  predicted time: {time} and the start-up, at {speed}"]
        if self.cost is not None:
            lines.append(f"  predicted cost: {self.cost:,.2f} at {self.cost_per_hour:,.2f} per hour")
        return lines


def preview(config: SegmentConfig) -> Preview:
    """Plan what `segment` would do, without Ray.

    Raises:
        ValueError: as `segment` would, for what it reads.
    """
    config = checked_places(config)
    if any(model.startswith(tracking.MODELS_PREFIX) for model in (config.model, *config.ensemble)):
        tracking.connect(config.tracking_uri)
    config, members, card = find_models(config)
    check_class_table(config.tables, card, model=ensemble_uri(members))
    listing = take_listing(config.images, config.manifest)
    model_digest, config_digest = identity_digests(members, config.tiling)
    ids = work_ids(listing.objects, model_digest=model_digest, config_digest=config_digest)
    snapshot = commits.newest_snapshot(config.tables)
    comparison = compare(
        listing, ids, config.tables, snapshot, retry=config.retry, accept_deletions=config.accept_deletions
    )
    unfinished: list[Run] = []
    if not config.abandon_unfinished:
        open_ids = [run_id for run_id in commits.run_ids(config.tables) if run_id not in snapshot.run_ids]
        unfinished = [commits.read_run(config.tables, run_id) for run_id in open_ids]
        comparison = _once_finished(comparison, listing, ids, unfinished)
    plan = plan_work(
        listing,
        ids,
        comparison,
        run_id=commits.next_run_id(snapshot),
        force=config.force,
        images_per_shard=config.images_per_shard,
        workers=config.workers,
    )
    amounts = _amounts(plan)
    left = {run.settings.run_id: _left(config.tables, run) for run in unfinished}
    count = num_images(plan)
    shards = plan["shard"].slice(0, count)  # marks come after the images
    return Preview(
        source=config.source,
        model=ensemble_uri(members),
        tables=config.tables,
        unfinished=left,
        reasons={reason: amounts[reason] for reason in REASONS if reason in amounts},
        num_shards=shards[-1].as_py() + 1 if count else 0,
        num_present=listing.objects.num_rows - count,
        marks={reason: amounts[reason].count for reason in MARKS if reason in amounts},
        forecast=forecast_run(
            config.tables,
            num_images=count + sum(each.count for each in left.values()),
            model_digest=model_digest,
            config_digest=config_digest,
            workers=config.workers,
            threads=config.threads,
            use_gpu=config.use_gpu,
        ),
        workers=config.workers,
        cost_per_hour=config.cost_per_hour,
    )


def _once_finished(comparison: Comparison, listing: Listing, ids: pa.Array, runs: Sequence[Run]) -> Comparison:
    """The comparison as it will be when these runs have done what they planned."""
    for run in runs:
        is_mark = pc.is_in(run.plan["reason"], value_set=pa.array(MARKS))
        marked = run.plan["uri"].filter(is_mark)
        identities = pc.utf8_slice_codeunits(run.plan["work_id"], 0, IDENTITY_LENGTH)
        is_planned_N = pc.is_in(ids, value_set=identities).to_numpy(zero_copy_only=False)
        is_marked_N = pc.is_in(listing.objects["uri"], value_set=marked).to_numpy()
        is_marked = pc.is_in(comparison.missing["uri"], value_set=marked)
        comparison = dataclasses.replace(
            comparison,
            done_N=comparison.done_N | is_planned_N,
            fresh_N=comparison.fresh_N | is_planned_N,
            restored_N=comparison.restored_N & ~is_marked_N,
            missing=comparison.missing.filter(pc.invert(is_marked)),
        )
    return comparison


def _left(tables: str, run: Run) -> Amount:
    """Images of a run's shards that have no commit."""
    done = pa.array(list(commits.read_commits(tables, run.settings.run_id)), pa.int32())
    rows = run.plan.filter(pc.invert(pc.is_in(run.plan["shard"], value_set=done)))
    rows = rows.filter(pc.invert(pc.is_in(rows["reason"], value_set=pa.array(MARKS))))
    return Amount(count=rows.num_rows, num_bytes=pc.sum(rows["size_bytes"], min_count=0).as_py())


def _amounts(plan: pa.Table) -> dict[str, Amount]:
    """Rows and bytes of a plan by reason."""
    groups = plan.group_by("reason").aggregate([("size_bytes", "count"), ("size_bytes", "sum")]).to_pylist()
    return {
        group["reason"]: Amount(count=group["size_bytes_count"], num_bytes=group["size_bytes_sum"]) for group in groups
    }


def _line(what: str, amount: Amount, note: str = "") -> str:
    return f"  {what:<14}{amount.count:>12,} images {amount.num_bytes / 1e6:>14,.1f} MB  {note}".rstrip()
