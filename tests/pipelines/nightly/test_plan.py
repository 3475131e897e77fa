"""What is left to do, why, and how it is cut."""

import hashlib
from collections import Counter
from datetime import timedelta
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest

from pipelines.nightly import plan as segment_plan
from pipelines.nightly.listing import LISTING, Listing
from pipelines.nightly.plan import work_ids
from pipelines.tables import commits, committed_rows
from pipelines.tables.runs import PLAN
from tests.pipelines.committed_nights import (
    commit_night,
    committed_work_ids,
    listing,
    night,
    plan_night,
    read,
    reasons,
)
from tests.pipelines.night_tables import NOW

pytestmark = pytest.mark.usefixtures("no_waiting_for_the_disk")


@pytest.fixture
def tables(tmp_path: Path) -> str:
    return str(tmp_path / "tables")


def _ids(objects: pa.Table, *, model: str = "m", settings: str = "c") -> list[str]:
    found: list[str] = work_ids(objects, model_digest=model, config_digest=settings).to_pylist()
    return found


def _shard_sizes(plan: pa.Table) -> list[int]:
    shards = plan["shard"].to_pylist()
    assert shards == sorted(shards) and set(shards) == set(range(len(set(shards))))
    return [shards.count(shard) for shard in range(len(set(shards)))]


# --- work identity ----------------------------------------------------------------------------------------------------


def test_a_work_id_changes_with_everything_that_a_mask_depends_on() -> None:
    base = pa.Table.from_pylist([{"uri": "u", "etag": "e", "size_bytes": 1}], schema=LISTING)
    ids = {_ids(base)[0], _ids(base, model="other")[0], _ids(base, settings="other")[0]}
    for column, value in (("uri", "v"), ("etag", "f"), ("size_bytes", 2)):
        row = base.to_pylist()[0] | {column: value}
        ids.add(_ids(pa.Table.from_pylist([row], schema=LISTING))[0])
    assert len(ids) == 6
    touched = base.set_column(3, LISTING.field("last_modified"), pa.array([10**15], pa.timestamp("us")))
    assert _ids(touched) == _ids(base)  # the etag tells whether the object changed


def test_a_work_id_is_the_one_that_tables_hold_already() -> None:
    """Whatever the schema's version: otherwise millions of images would be segmented anew for a new column."""
    row = {"uri": "s3://cams/a.jpg", "etag": "e", "size_bytes": 7, "last_modified": None}
    listing = pa.Table.from_pylist([row], schema=LISTING)
    expected = hashlib.sha256(b"s3://cams/a.jpg\0e\x007\0m\0c\x001").hexdigest()
    assert work_ids(listing, model_digest="m", config_digest="c").to_pylist() == [expected]


def test_a_work_id_does_not_run_its_parts_together() -> None:
    rows = [{"uri": "ab", "etag": "c", "size_bytes": 1}, {"uri": "a", "etag": "bc", "size_bytes": 1}]
    assert len(set(_ids(pa.Table.from_pylist(rows, schema=LISTING)))) == 2


# --- reasons ----------------------------------------------------------------------------------------------------------


def _second_night() -> tuple[dict[str, str], dict[str, str], dict[str, str]]:
    """Versions by name on the first and the second night, and the reasons that the second one must give."""
    first = {f"{index:04d}.jpg": "v1" for index in range(973)}
    names = sorted(first)
    deleted, changed = names[100:103], names[500:505]
    new = [f"new-{index}.jpg" for index in range(30)]
    second = {name: etag for name, etag in first.items() if name not in deleted}
    second |= dict.fromkeys(changed, "v2") | dict.fromkeys(new, "v1")
    expected = dict.fromkeys(new, "new") | dict.fromkeys(changed, "changed") | dict.fromkeys(deleted, "deleted")
    return first, second, expected


def test_on_the_second_night_what_is_new_changed_and_deleted_is_planned_and_nothing_else(tables: str) -> None:
    first, second, expected = _second_night()
    runs = [night(tables, listing(first))]
    assert len(second) == 1000
    plan = plan_night(tables, listing(second))
    assert plan.schema.equals(PLAN)
    assert reasons(plan) == expected
    assert Counter(expected.values()) == {"new": 30, "changed": 5, "deleted": 3}

    runs.append(commit_night(tables, plan, failing={"new-3.jpg": ("decode", False)}))
    planned = Counter(work_id for run in runs for work_id in run.plan["work_id"].to_pylist())
    assert committed_work_ids(tables) == planned and max(planned.values()) == 1
    assert sorted(row["uri"][-8:] for row in read(tables, "deletions")) == ["0100.jpg", "0101.jpg", "0102.jpg"]
    assert plan_night(tables, listing(second)).num_rows == 0


def test_however_the_committed_rows_are_cut_the_plan_is_the_same(tables: str, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second, expected = _second_night()
    night(tables, listing(first))
    for rows_at_once, ahead in ((1, 1), (100, 64), (10**9, 10**9)):
        monkeypatch.setattr(segment_plan, "ROWS_AT_ONCE", rows_at_once)
        monkeypatch.setattr(committed_rows, "READ_AHEAD_ROWS", ahead)
        assert reasons(plan_night(tables, listing(second))) == expected


def test_another_model_or_other_settings_do_everything_anew_and_say_why(tables: str) -> None:
    night(tables, listing({"a": "v1", "b": "v1"}))
    found = listing({"a": "v1", "b": "v2", "c": "v1"})
    expected = {"a": "model_changed", "b": "changed", "c": "new"}
    plan = plan_night(tables, found, config="c2")
    assert reasons(plan) == reasons(plan_night(tables, found, model="m2")) == expected
    commit_night(tables, plan, config="c2")
    assert plan_night(tables, found, config="c2").num_rows == 0
    # back at the first settings: "a" is there as ever, this version of "b" only by the second
    assert reasons(plan_night(tables, found)) == {"b": "model_changed", "c": "model_changed"}


def test_an_object_of_the_same_etag_and_another_size_has_changed(tables: str) -> None:
    found = listing({"a": "v1"})
    night(tables, found)
    sizes = pa.array([11], pa.int64())
    grown = Listing(objects=found.objects.set_column(2, LISTING.field("size_bytes"), sizes), prefix=found.prefix)
    assert reasons(plan_night(tables, grown)) == {"a": "changed"}


def test_failures_are_tried_again_where_that_may_help_or_where_it_is_asked_for(tables: str) -> None:
    found = listing(dict.fromkeys("abcd", "v1"))
    outage = {"a": ("fetch", True), "b": ("decode", False), "c": ("infer", False)}
    night(tables, found, failing=outage)
    assert reasons(plan_night(tables, found)) == {"a": "retry"}
    assert reasons(plan_night(tables, found, retry=["decode"])) == {"a": "retry", "b": "retry"}
    again = plan_night(tables, found, retry=["decode", "infer"])
    assert reasons(again) == dict.fromkeys("abc", "retry")
    commit_night(tables, again, failing={"b": ("decode", False)})
    assert plan_night(tables, found).num_rows == 0
    assert reasons(plan_night(tables, found, retry=["decode", "infer"])) == {"b": "retry"}
    assert plan_night(tables, found, retry=["decode"], fresh_runs=["000002"]).num_rows == 0


def test_a_forced_run_gives_every_image_a_second_row_of_which_the_newest_counts(tables: str) -> None:
    found = listing(dict.fromkeys("abc", "v1"))
    night(tables, found, failing={"c": ("decode", False)})
    grown = listing(dict.fromkeys("abcd", "v1"))
    plan = plan_night(tables, grown, force=True)
    assert reasons(plan) == {"a": "forced", "b": "forced", "c": "forced", "d": "new"}
    commit_night(tables, plan)
    assert max(committed_work_ids(tables).values()) == 1
    live = duckdb.sql(
        f"SELECT uri, run_id, work_id FROM '{tables}/predictions/*/*.parquet' "
        "QUALIFY row_number() OVER (PARTITION BY uri ORDER BY run_id DESC) = 1 ORDER BY uri"
    )
    rows = live.fetchall()
    assert [(uri[-1], run_id) for uri, run_id, _ in rows] == [(name, "000002") for name in "abcd"]
    masks = duckdb.sql(f"SELECT count(*) FROM live JOIN '{tables}/masks/*/*.parquet' USING (work_id)")
    assert masks.fetchall() == [(4,)]

    assert plan_night(tables, grown).num_rows == 0, "a forced row holds its image as any other does"
    assert plan_night(tables, grown, force=True, fresh_runs=["000002"]).num_rows == 0, "a resumed job forces once"
    assert reasons(plan_night(tables, grown, force=True)) == dict.fromkeys("abcd", "forced")
    # even where somebody has dropped the older rows
    for part in Path(tables).glob("predictions/*/part-000001-*"):
        part.write_bytes(next(Path(tables).glob("predictions/*/part-000002-*")).read_bytes())
    assert plan_night(tables, grown).num_rows == 0


# --- deletions --------------------------------------------------------------------------------------------------------


def test_an_object_is_marked_when_it_goes_and_when_it_comes_back(tables: str) -> None:
    whole, without = listing(dict.fromkeys("abc", "v1")), listing(dict.fromkeys("ab", "v1"))
    night(tables, whole)
    marks = [night(tables, found).plan for found in (without, whole, without)]
    assert [reasons(plan) for plan in marks] == [{"c": "deleted"}, {"c": "restored"}, {"c": "deleted"}]
    assert plan_night(tables, without).num_rows == 0
    changed = plan_night(tables, listing({"a": "v1", "b": "v1", "c": "v2"}))
    assert changed["reason"].to_pylist() == ["changed", "restored"] and changed["shard"].to_pylist() == [0, 1]
    rows = read(tables, "deletions")
    assert [(row["uri"][-1], row["etag"], row["reason"], row["run_id"]) for row in rows] == [
        ("c", "v1", "deleted", "000002"),
        ("c", "v1", "restored", "000003"),
        ("c", "v1", "deleted", "000004"),
    ]
    assert {row["noticed_at"] for row in rows} == {NOW} and len({row["work_id"] for row in rows}) == 3
    assert len(read(tables, "predictions")) == 3, "nothing is dropped"


def test_only_what_lies_below_a_listed_prefix_can_be_missing(tables: str) -> None:
    names = dict.fromkeys(("a/1", "a/2", "a/3", "ab/1", "b/1"), "v1")
    night(tables, listing(names), failing={"a/3": ("decode", False)})
    below = listing({"a/1": "v1"}, prefix="s3://cams/a/")
    with pytest.raises(ValueError, match="2 objects .* below 's3://cams/a/' are listed no more, and at most 1"):
        plan_night(tables, below)
    plan = plan_night(tables, below, accept_deletions=True)
    assert reasons(plan) == {"a/2": "deleted", "a/3": "deleted"}
    assert plan_night(tables, listing({"a/1": "v1"}, prefix="")).num_rows == 0, "a manifest names what it likes"


def test_of_several_versions_the_newest_is_marked(tables: str) -> None:
    for etag in ("v1", "v2"):
        night(tables, listing({"a": etag, "b": "v1"}))
    plan = night(tables, listing({"b": "v1"})).plan
    assert plan.select(["uri", "etag", "reason"]).to_pylist() == [
        {"uri": "s3://cams/a", "etag": "v2", "reason": "deleted"}
    ]


def test_a_listing_that_has_lost_more_than_half_is_taken_for_an_outage(tables: str) -> None:
    night(tables, listing(dict.fromkeys("abcd", "v1")))
    assert plan_night(tables, listing(dict.fromkeys("ab", "v1"))).num_rows == 2
    lost = listing({"a": "v1", "new1": "v1", "new2": "v1", "new3": "v1"})
    with pytest.raises(ValueError, match="3 objects .* at most 1 still .* outage of the listing.* --accept-deletions"):
        plan_night(tables, lost)
    assert sorted(reasons(plan_night(tables, lost, accept_deletions=True)).values()) == ["deleted"] * 3 + ["new"] * 3


def test_an_outage_is_noticed_before_everything_that_is_missing_is_in_memory(
    tables: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    night(tables, listing({f"{index:04d}": "v1" for index in range(640)}))
    monkeypatch.setattr(segment_plan, "ROWS_AT_ONCE", 160)
    with pytest.raises(ValueError, match="^160 objects .* and at most 3 still are"):
        plan_night(tables, listing(dict.fromkeys(("0630", "0631", "new"), "v1")))


def test_an_inventory_says_nothing_of_what_was_segmented_after_it(tables: str) -> None:
    night(tables, listing(dict.fromkeys("abc", "v1")))
    for taken_at, expected in ((NOW, {}), (NOW + timedelta(seconds=1), {"c": "deleted"})):
        found = listing(dict.fromkeys("ab", "v1"), taken_at=taken_at)
        assert reasons(plan_night(tables, found)) == expected


# --- shards -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "count, images_per_shard, workers, expected",
    [(200, 64, 1, [50] * 4), (1000, 64, 1, [64] * 15 + [40]), (10, 64, 2, [2] * 5), (3, 64, 4, [1] * 3)],
)
def test_shards_are_full_or_small_enough_for_every_worker(
    tables: str, count: int, images_per_shard: int, workers: int, expected: list[int]
) -> None:
    plan = _first_plan(tables, count, images_per_shard=images_per_shard, workers=workers)
    assert _shard_sizes(plan) == expected


def test_a_shard_of_large_files_holds_fewer(tables: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for max_bytes, expected in ((25, [2] * 10), (5, [1] * 20)):
        monkeypatch.setattr(segment_plan, "MAX_SHARD_BYTES", max_bytes)
        assert _shard_sizes(_first_plan(tables, 20, images_per_shard=64, workers=1)) == expected


def _first_plan(tables: str, count: int, *, images_per_shard: int, workers: int) -> pa.Table:
    found = listing({f"{index:04d}": "v1" for index in range(count)})
    ids = work_ids(found.objects, model_digest="m", config_digest="c")
    comparison = segment_plan.compare(found, ids, tables, commits.newest_snapshot(tables))
    return segment_plan.plan_work(
        found, ids, comparison, run_id="000001", images_per_shard=images_per_shard, workers=workers
    )
