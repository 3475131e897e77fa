"""Images, tables and started jobs of `segment`, as several test modules need them."""

import io
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.dataset as ds
from numpy.typing import NDArray
from PIL import ExifTags, Image

from pipelines import fault_points, storage
from pipelines.nightly.config import SegmentConfig
from pipelines.tables import commits
from pipelines.tables.schemas import TABLES
from tests.pipelines.processes import command_of, descendants, kill, stopped_at, wait_for
from tests.pipelines.tiny_inputs import random_pairs

REPOSITORY = Path(__file__).resolve().parents[2]


def encoded(pixels: NDArray[Any], suffix: str, *, mode: str | None = None, orientation: int = 1) -> bytes:
    image = Image.fromarray(pixels)
    image = image.convert(mode) if mode else image
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    file = io.BytesIO()
    image.save(file, suffix, exif=exif.tobytes())
    return file.getvalue()


def write_images(folder: str, count: int, *, seed: int = 0) -> list[str]:
    for index, (pixels_HW3, _) in enumerate(random_pairs(count, seed=seed, sizes=((48, 64), (40, 56)))):
        Path(folder, f"plain-{seed}-{index:03d}.jpg").write_bytes(encoded(pixels_HW3, "JPEG"))
    return sorted(os.listdir(folder))


def table_rows(tables: str, name: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = ds.dataset(storage.join(tables, name), partitioning="hive").to_table().to_pylist()
    return rows


def file_names(rows: list[dict[str, Any]]) -> list[str]:
    return sorted(Path(row["uri"]).name for row in rows)


def check_every_image_once(config: SegmentConfig, names: list[str]) -> None:
    """The multiset of rows is the multiset of files; each prediction has its mask; the snapshot lists every file."""
    predictions, failures = table_rows(config.tables, "predictions"), []
    if Path(config.tables, "failures").exists():
        failures = table_rows(config.tables, "failures")
    assert Counter(file_names(predictions + failures)) == Counter(names)
    masks = Counter(row["work_id"] for row in table_rows(config.tables, "masks"))
    assert masks == Counter(row["work_id"] for row in predictions)
    live = {file["path"] for file in commits.newest_snapshot(config.tables).files}
    on_disk = {
        path.relative_to(config.tables).as_posix()
        for name in (*TABLES, "metrics")
        for path in Path(config.tables, name).rglob("*.*")
    }
    assert live == on_disk


class StartedJob:
    """`jobs/segment.py` in a process of its own; on leaving, whatever is left of it is killed by its ids."""

    def __init__(self, config: SegmentConfig, log: Path, *, fault: str = "") -> None:
        self.log, self.fault = log, fault
        self.family: list[int] = []
        self.command = [sys.executable, str(REPOSITORY / "jobs" / "segment.py"), "--no-page", "--images-per-shard", "1"]
        for flag in ("images", "model", "tables", "workers", "tracking_uri"):
            self.command += [f"--{flag.replace('_', '-')}", str(getattr(config, flag))]

    def __enter__(self) -> "StartedJob":
        environment = os.environ | {"PYTHONPATH": str(REPOSITORY), fault_points.VARIABLE: self.fault}
        with self.log.open("wb") as file:
            self.driver = subprocess.Popen(self.command, stdout=file, stderr=file, env=environment, cwd=self.log.parent)
        return self

    def __exit__(self, *error: object) -> None:
        self.kill_driver()
        kill(self.family)

    def kill_driver(self) -> None:
        """The driver alone; Ray's processes notice its death some seconds later."""
        if self.driver.poll() is None:
            self.family = descendants(self.driver.pid)
            self.driver.kill()
            self.driver.wait()

    def kill_everything(self) -> None:
        """The driver and all processes below it at once, Ray's among them: the machine loses its power."""
        family = [self.driver.pid, *descendants(self.driver.pid)]
        kill(family)
        self.driver.wait()
        kill(self.family)

    def workers(self) -> list[int]:
        """Processes that hold the model."""
        return [pid for pid in descendants(self.driver.pid) if "ShardSegmenter" in command_of(pid)]

    def wait_for(self, condition: Callable[[], bool]) -> None:
        """Until it holds; the job's log where the job ends or hangs before."""
        wait_for(condition, self.driver, self.log)

    def stopped_at(self, token: Path) -> int:
        """The id of the process that waits at the fault point of `token`, once there is one."""
        return stopped_at(token, self.driver, self.log)
