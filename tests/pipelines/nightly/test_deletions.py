"""Marks of objects that have gone: their shards, their rows, and a driver that dies while it writes them."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipelines import storage
from pipelines.nightly import deletions
from pipelines.nightly.deletions import (
    are_among,
    commit_marks,
    deleted_hashes,
    mark_shards,
    newest_of_each,
    num_images,
    plan_marks,
    uri_hashes,
)
from pipelines.nightly.listing import LISTING
from pipelines.tables import commits
from pipelines.tables.runs import PLAN
from tests.pipelines.committed_nights import committed_work_ids, create_night, listing, night, read

pytestmark = pytest.mark.usefixtures("no_waiting_for_the_disk")


def _gone(tables: str, prefix: str = "s3://cams/") -> list[str]:
    """Names that are marked as deleted, of the few that the tests use."""
    uris = pa.chunked_array([[f"s3://cams/{name}" for name in "abcdef"]])
    found = are_among(uri_hashes(uris), deleted_hashes(tables, commits.newest_snapshot(tables), prefix))
    return [str(uri)[-1] for uri in uris.filter(pa.array(found))]


def test_the_newest_mark_of_a_uri_counts(tables: str) -> None:
    for names in ("abcd", "ab", "abc", "ab", "abd"):
        night(tables, listing(dict.fromkeys(names, "v1")))
    assert _gone(tables) == ["c"]
    assert _gone(tables, "s3://cams/a") == []


def test_hashes_tell_uris_apart_and_find_them_again() -> None:
    uris = [f"s3://cams/{index}" for index in range(50_000)]
    hashes_N = uri_hashes(pa.chunked_array([uris[:10], [], uris[10:]], pa.string()))
    assert len(np.unique(hashes_N)) == len(uris)
    assert (uri_hashes(pa.chunked_array([uris], pa.string())) == hashes_N).all()
    some = np.sort(hashes_N[1000:2000])
    assert (np.flatnonzero(are_among(hashes_N, some)) == np.arange(1000, 2000)).all()
    assert not are_among(hashes_N, some[:0]).any() and len(are_among(hashes_N[:0], some)) == 0
    assert len(uri_hashes(pa.chunked_array([], pa.string()))) == 0


def test_of_equal_hashes_the_newest_run_is_taken() -> None:
    hashes_N, runs_N = np.array([7, 5, 7, 5, 9, 7], np.uint64), np.array([1, 4, 3, 2, 1, 2], np.int32)
    assert newest_of_each(hashes_N, runs_N).tolist() == [1, 2, 4]
    assert newest_of_each(hashes_N[:0], runs_N[:0]).tolist() == []


def test_marks_fill_shards_of_their_own_after_the_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deletions, "MARKS_PER_SHARD", 2)
    rows = listing(dict.fromkeys("abcd", "v1")).objects
    plan = plan_marks(rows, rows.slice(0, 1), run_id="000007", first_shard=3)
    assert plan.schema.equals(PLAN)
    assert plan["shard"].to_pylist() == [3, 3, 4, 4, 5]
    assert plan["reason"].to_pylist() == ["deleted"] * 4 + ["restored"]
    assert len(set(plan["work_id"].to_pylist())) == 5 and num_images(plan) == 0
    empty = LISTING.empty_table()
    assert plan_marks(empty, empty, run_id="000007", first_shard=0).num_rows == 0
    assert num_images(PLAN.empty_table()) == 0


def test_a_driver_that_died_between_two_shards_of_marks_finishes_them(
    tables: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deletions, "MARKS_PER_SHARD", 1)
    names = dict.fromkeys("abcdef", "v1")
    first = night(tables, listing(names))
    empty = LISTING.empty_table()
    run = create_night(tables, plan_marks(listing(names).objects.slice(3), empty, run_id="000002", first_shard=0))
    assert mark_shards(run) == {0, 1, 2} and mark_shards(first) == set()
    commit_marks(tables, run, [0])
    found = commits.read_run(tables, "000002")
    with pytest.raises(RuntimeError, match="2 shards of run 000002 have no commit, 1 first"):
        commits.publish(tables, found)
    commit_marks(tables, found, [0, 1, 2])  # again, as by a second driver
    commits.publish(tables, found)
    planned = [*first.plan["work_id"].to_pylist(), *run.plan["work_id"].to_pylist()]
    assert committed_work_ids(tables) == dict.fromkeys(planned, 1)
    assert _gone(tables) == ["d", "e", "f"]
    assert [uri for uri in storage.list_files(tables) if "_staging/" in uri] == []


def test_a_mark_that_was_lost_is_not_committed(tables: str) -> None:
    marks = plan_marks(
        listing(dict.fromkeys("ab", "v1")).objects, LISTING.empty_table(), run_id="000001", first_shard=0
    )
    run = create_night(tables, marks)
    planned = run.plan["work_id"].to_pylist()
    with pytest.raises(AssertionError, match="not every planned image exactly once"):
        commits.stage(tables, run.settings, shard=0, planned=planned, rows={})


def test_marks_say_when_and_by_which_run_they_were_noticed(tmp_path: Path) -> None:
    tables = str(tmp_path)
    for names in ("abc", "ab"):
        night(tables, listing(dict.fromkeys(names, "v1")))
    (mark,) = read(tables, "deletions")
    settings = commits.read_settings(tables, "000002")
    assert (mark["uri"], mark["etag"], mark["run_id"]) == ("s3://cams/c", "v1", "000002")
    assert f"{mark['noticed_at'].isoformat()}+00:00" == settings.created_at
    assert isinstance(pa.scalar(mark["noticed_at"]), pa.TimestampScalar)
