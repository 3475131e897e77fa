"""SIGKILL of a worker, of the driver and of everything, at every step of a run: nothing lost, nothing twice."""

from pathlib import Path

import pytest

from pipelines import tracking
from pipelines.exit_codes import BUSY, DONE, OUTAGE
from pipelines.fault_points import DRIVER_POINTS, WORKER_POINTS
from pipelines.nightly.claims import read_progress
from pipelines.nightly.config import SegmentConfig
from pipelines.segment import segment
from pipelines.tables import commits
from tests.pipelines.processes import kill, needs_proc
from tests.pipelines.segment_jobs import StartedJob, check_every_image_once, file_names, table_rows, write_images
from tests.pipelines.tiny_inputs import write_model

# Ray 2.60 reads its own deprecated settings when a DataContext is copied; goes when Ray drops them.
pytestmark = [
    pytest.mark.slow,
    needs_proc,
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.data.context"),
]

KILLS = [
    *((point, victim) for point in DRIVER_POINTS for victim in ("driver", "everything")),
    *((point, victim) for point in WORKER_POINTS for victim in ("worker", "driver", "everything")),
]


@pytest.fixture
def config(tmp_path: Path) -> SegmentConfig:
    images = tmp_path / "images"
    images.mkdir()
    return SegmentConfig(
        images=str(images),
        model=write_model(tmp_path / "street"),
        tables=str(tmp_path / "tables"),
        tracking_uri=f"sqlite:///{tmp_path / 'mlflow.db'}",
        page=False,
    )


@pytest.mark.parametrize(("point", "victim"), KILLS)
def test_whatever_dies_at_whichever_step_the_same_command_makes_it_whole(
    config: SegmentConfig, tmp_path: Path, ray_session: None, point: str, victim: str
) -> None:
    names = write_images(config.images, 8)
    Path(config.images, "broken.jpg").write_bytes(b"\xff\xd8\xff broken")
    names.append("broken.jpg")
    token = tmp_path / "token"
    with StartedJob(config, tmp_path / "job.log", fault=f"{point}@{token}") as job:
        stopped = job.stopped_at(token)
        assert (stopped == job.driver.pid) == (point in DRIVER_POINTS)
        if victim == "worker":
            kill([stopped])
            assert job.driver.wait(timeout=240) == DONE, job.log.read_text()[-3000:]
        elif victim == "driver":
            job.kill_driver()
        else:
            job.kill_everything()
        at_death = _committed(config.tables)
        result = segment(config)
    if victim != "worker":
        _check_one_run_in_mlflow(config, num_rows=len(names))
    assert result.num_images + result.num_failures <= len(names) - len(at_death)
    if victim == "everything":  # else workers of the dead driver may have committed more, after we looked
        assert result.num_images + result.num_failures == len(names) - len(at_death)
    check_every_image_once(config, names)
    after = _committed(config.tables)
    assert {name: after[name] for name in at_death} == at_death
    assert segment(config).run_ids == ()


def test_of_two_jobs_for_one_night_one_wins_and_the_other_says_so(config: SegmentConfig, tmp_path: Path) -> None:
    names = write_images(config.images, 40)
    with StartedJob(config, tmp_path / "a.log") as first, StartedJob(config, tmp_path / "b.log") as second:
        codes = sorted(job.driver.wait(timeout=240) for job in (first, second))
    logs = "\n".join(Path(tmp_path, name).read_text() for name in ("a.log", "b.log"))
    assert codes == [DONE, BUSY], logs
    assert "is being worked on by process" in logs
    check_every_image_once(config, names)
    assert commits.newest_snapshot(config.tables).run_ids == ("000001",)
    assert read_progress(config.tables, "000001")["state"] == "finished"


def test_a_night_of_failures_is_stopped_and_goes_on_once_the_cause_is_mended(
    config: SegmentConfig, tmp_path: Path, ray_session: None
) -> None:
    names = write_images(config.images, 60)
    token, away = tmp_path / "token", tmp_path / "away"
    away.mkdir()
    with StartedJob(config, tmp_path / "plan.log", fault=f"commits.planned@{token}") as job:
        job.stopped_at(token)
        job.kill_driver()
    for name in names[:40]:  # as with a disk that has gone: listed, and not there when it is read
        Path(config.images, name).rename(away / name)
    with StartedJob(config, tmp_path / "outage.log") as job:
        assert job.driver.wait(timeout=240) == OUTAGE, job.log.read_text()[-3000:]
    assert "over --max-failure-rate 0.05" in job.log.read_text()
    assert commits.newest_snapshot(config.tables).number == 0
    assert read_progress(config.tables, "000001")["state"] == "stopped"
    for name in names[:40]:
        (away / name).rename(Path(config.images, name))
    assert segment(config).run_ids == ("000001", "000002")  # the second tries again what the first could not read
    assert file_names(table_rows(config.tables, "predictions")) == names
    assert 20 < len(table_rows(config.tables, "failures")) < 40


def _check_one_run_in_mlflow(config: SegmentConfig, *, num_rows: int) -> None:
    """Of the night's two starts, with the figures of both."""
    (night,) = tracking.find_runs_by_tag(tracking.TABLES_TAG, config.tables, job="segment")
    assert (night.status, night.tags[tracking.STARTS_TAG]) == ("FINISHED", "2")
    assert "ended without a word" in night.tags[tracking.LOST_TAG]
    assert night.metrics["num_images"] + night.metrics["num_failures"] == num_rows
    assert night.tags[tracking.TABLE_RUNS_TAG] == ",000001,"


def _committed(tables: str) -> dict[str, bytes]:
    folder = Path(tables, "runs", "000001", "commits")
    return {path.name: path.read_bytes() for path in folder.glob("[0-9]*.json")}
