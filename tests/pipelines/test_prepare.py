"""Raw data to prepared dataset: the same bytes however it is run, nothing lost, every refusal explained."""

import dataclasses
import itertools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow.parquet as pq
import pytest
import tyro
from PIL import Image

from pipelines import storage
from pipelines.datasets import DATASETS, DatasetListing, list_dataset
from pipelines.datasets.camvid import CamVidConfig
from pipelines.datasets.folder import FolderConfig
from pipelines.datasets.scenes import ScenesConfig
from pipelines.manifests import read_manifest
from pipelines.prepare import PrepareConfig, cut_into_shards, prepare
from pipelines.shards import KIND, open_dataset, read_part
from tests.data.camvid.make import make_camvid
from tests.data.folder.make import make_folder

ROOT = Path(__file__).resolve().parents[2]


def files_below(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def camvid_config(root: Path, output: Path, **changes: Any) -> PrepareConfig:
    config = PrepareConfig(dataset=CamVidConfig(root=str(root)), output=str(output), images_per_part=2, workers=2)
    return dataclasses.replace(config, **changes)


@pytest.mark.usefixtures("ray_session")
def test_output_is_byte_identical_for_1_and_3_workers(tmp_path: Path) -> None:
    raw = make_camvid(tmp_path / "raw", num_train=11, num_val=4)
    (raw / "train/0001TP_train003.png").write_bytes(b"")
    one = prepare(camvid_config(raw, tmp_path / "one", workers=1, max_failures=0.1))
    prepare(camvid_config(raw, tmp_path / "three", workers=3, max_failures=0.1))
    files = files_below(tmp_path / "one")
    assert files == files_below(tmp_path / "three")
    assert set(files) == {
        "manifest.json",
        "failures.parquet",
        *(f"train/part-{n:05d}.parquet" for n in range(6)),
        *(f"val/part-{n:05d}.parquet" for n in range(2)),
    }
    assert (one.num_images, one.num_failures, one.already_complete) == ({"train": 10, "val": 4}, 1, False)
    assert "1 pairs left out, see" in one.closing_line


@pytest.mark.usefixtures("ray_session")
def test_black_and_white_masks_whose_white_is_ignored_are_refused(tmp_path: Path) -> None:
    made = make_folder(tmp_path, classes="names: [background, thing]\nignore: [255]\n")
    for path in Path(made.labels).rglob("*.png"):
        Image.fromarray(np.where(np.arange(30) < 10, 255, 0)[None].repeat(20, 0).astype(np.uint8)).save(path)
    dataset = FolderConfig(images=made.images, labels=made.labels, classes=made.classes)
    with pytest.raises(ValueError, match="every label pixel is 'background' or ignored.*black and white masks"):
        prepare(PrepareConfig(dataset=dataset, output=str(tmp_path / "out")))


@pytest.mark.usefixtures("ray_session")
def test_every_pair_is_in_a_part_or_in_the_failures_once(tmp_path: Path) -> None:
    raw = make_camvid(tmp_path / "raw", num_train=9, num_val=3)
    (raw / "valannot/0001TP_val001.png").unlink()
    prepare(camvid_config(raw, tmp_path / "out", max_failures=0.1))
    dataset = open_dataset(str(tmp_path / "out"))
    ids = [
        image_id
        for split in dataset.splits.values()
        for part in split.parts
        for image_id in read_part(dataset, part)["image_id"].to_pylist()
    ]
    failed = pq.read_table(tmp_path / "out/failures.parquet").to_pylist()
    expected = [f"0001TP_train{n:03d}" for n in range(9)] + [f"0001TP_val{n:03d}" for n in range(3)]
    assert sorted(ids + [row["image_id"] for row in failed]) == expected
    assert [(row["image_id"], row["stage"]) for row in failed] == [("0001TP_val001", "fetch")]
    train = dataset.split("train")
    assert sum(part.num_rows for part in train.parts) == train.num_images == 9
    assert sum(train.class_pixels) < 9 * 30 * 40  # value 11 is ignored
    assert read_manifest(dataset.uri, kind=KIND)["channel_statistics_of"] == "train"
    counted = duckdb.sql(
        f"select count(*), sum(list_sum(class_pixels)) from '{tmp_path}/out/train/*.parquet'"
    ).fetchall()
    assert counted == [(9, sum(train.class_pixels))]


def test_order_is_mixed_and_does_not_depend_on_the_listing(tmp_path: Path) -> None:
    config = camvid_config(make_camvid(tmp_path, num_train=30, num_val=2), tmp_path / "out", images_per_part=7)
    listing = list_dataset(config.dataset)
    assert isinstance(listing, DatasetListing)
    backwards = dataclasses.replace(listing, samples=listing.samples[::-1])
    shards = list(cut_into_shards(listing, config))
    assert shards == list(cut_into_shards(backwards, config))
    assert [(shard.split, shard.index, len(shard.samples)) for shard in shards] == [
        ("train", 0, 7), ("train", 1, 7), ("train", 2, 7), ("train", 3, 7), ("train", 4, 2), ("val", 0, 2)
    ]  # fmt: skip
    frames = [int(sample.image_id[-3:]) for shard in shards[:5] for sample in shard.samples]
    steps = [abs(after - before) for before, after in itertools.pairwise(frames)]
    assert sum(steps) / len(steps) > 6  # a random order of 30 has 31/3 on average, the order of the drive 1
    reseeded = next(cut_into_shards(listing, dataclasses.replace(config, shuffle_seed=1)))
    assert reseeded.samples != shards[0].samples


@pytest.mark.usefixtures("ray_session")
def test_too_many_failures_stop_the_job_and_after_mending_the_same_command_finishes(tmp_path: Path) -> None:
    raw = make_camvid(tmp_path / "raw", num_train=8, num_val=2)
    broken = [raw / f"trainannot/0001TP_train{n:03d}.png" for n in (1, 5)]
    whole = [path.read_bytes() for path in broken]
    for path in broken:
        path.write_bytes(path.read_bytes()[:30])
    config = camvid_config(raw, tmp_path / "out", max_failures=0.1)
    with pytest.raises(
        ValueError, match="2 of 10 pairs cannot be used, more than the 1 that --max-failures 0.1"
    ) as caught:
        prepare(config)
    assert "trainannot/0001TP_train001.png: label: the PNG file is truncated" in str(caught.value)
    assert f"are in {tmp_path}/out/failures.parquet" in str(caught.value)
    assert pq.read_table(tmp_path / "out/failures.parquet").num_rows == 2
    with pytest.raises(ValueError, match="is not a finished prepared_dataset"):
        open_dataset(str(tmp_path / "out"))
    for path, data in zip(broken, whole, strict=True):
        path.write_bytes(data)
    assert prepare(config).num_failures == 0
    prepare(dataclasses.replace(config, output=str(tmp_path / "straight")))
    assert files_below(tmp_path / "out") == files_below(tmp_path / "straight")


@pytest.mark.usefixtures("ray_session")
def test_images_without_labels_count_as_failures(tmp_path: Path) -> None:
    fake = make_folder(tmp_path / "raw", stems=tuple(f"train/{n}" for n in range(5)))
    (tmp_path / "raw/labels/train/3.png").unlink()
    config = PrepareConfig(dataset=FolderConfig(**dataclasses.asdict(fake)), output=str(tmp_path / "out"), workers=1)
    with pytest.raises(ValueError, match=r"1 of 5 pairs cannot be used.*\n.*train/3.jpg: the image has no label"):
        prepare(config)
    assert prepare(dataclasses.replace(config, max_failures=0.2)).num_images == {"train": 4}


@pytest.mark.usefixtures("ray_session")
def test_a_dataset_without_one_usable_pair_is_refused_whatever_is_allowed(tmp_path: Path) -> None:
    raw = make_camvid(tmp_path / "raw", num_train=2, num_val=1)
    for path in raw.glob("*annot/*.png"):
        path.unlink()
    with pytest.raises(ValueError, match="3 of 3 pairs cannot be used"):
        prepare(camvid_config(raw, tmp_path / "out", max_failures=1.0))


@pytest.mark.usefixtures("ray_session")
def test_a_finished_dataset_is_left_alone_and_other_settings_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = make_camvid(tmp_path / "raw", num_train=3, num_val=1)
    config = camvid_config(raw, tmp_path / "out")
    prepare(config)
    before = files_below(tmp_path / "out")
    monkeypatch.setattr("pipelines.prepare.ray_cluster", None)  # nothing may be started
    again = prepare(dataclasses.replace(config, workers=1, max_failures=0.5))
    assert again.already_complete
    assert again.closing_line.startswith("already prepared by this command, nothing to do: ")
    with pytest.raises(
        ValueError, match="with other settings: images_per_part, shuffle_seed differ .*another --output"
    ):
        prepare(dataclasses.replace(config, images_per_part=3, shuffle_seed=9))
    (raw / "val.txt").write_text("")
    with pytest.raises(ValueError, match="num_pairs, pairs_sha256 differ"):
        prepare(config)
    assert files_below(tmp_path / "out") == before


def test_a_folder_that_was_begun_with_other_settings_is_refused(tmp_path: Path) -> None:
    config = camvid_config(make_camvid(tmp_path / "raw"), tmp_path / "out")
    storage.write_atomic(str(tmp_path / "out/_progress/plan.json"), b'{"dataset": "camvid"}')
    with pytest.raises(ValueError, match="was begun or finished with other settings: config, class_table, "):
        prepare(config)


def test_an_output_that_holds_other_files_or_is_one_is_refused(tmp_path: Path) -> None:
    raw = make_camvid(tmp_path / "raw")
    with pytest.raises(ValueError, match=r"holds other files \(.*train.txt and \d+ more\)|holds other files"):
        prepare(camvid_config(raw, raw))
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(
        ValueError, match="cannot write below '.*file'.*give a folder or bucket that this user may write to"
    ):
        prepare(camvid_config(raw, tmp_path / "file"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images_per_part": 0}, "--images-per-part is 0, expected 1 to 4096"),
        ({"max_failures": 1.5}, "--max-failures is 1.5, expected a share from 0 to 1"),
        ({"workers": 0}, "--workers is 0, expected at least 1"),
    ],
)
def test_senseless_numbers_are_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        camvid_config(tmp_path, tmp_path, **change)


def test_more_workers_than_the_cluster_has_are_refused(tmp_path: Path, ray_session: None) -> None:
    raw = make_camvid(tmp_path / "raw")
    with pytest.raises(ValueError, match="6 logical CPUs and 50 prepare tasks need 50; ask for fewer --workers"):
        prepare(camvid_config(raw, tmp_path / "out", workers=50))


@pytest.mark.parametrize("name", sorted(DATASETS))
def test_every_dataset_is_a_subcommand_that_explains_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        tyro.cli(PrepareConfig, args=["--output", "o", f"dataset:{name}", "--help"])
    said = capsys.readouterr().out
    assert ended.value.code == 0
    for each in dataclasses.fields(DATASETS[name].config_type):
        assert f"--dataset.{each.name.replace('_', '-')}" in said


def job(*arguments: str) -> list[str]:
    return [sys.executable, str(ROOT / "jobs/prepare.py"), *arguments]


def test_the_job_tells_bad_input_in_one_message_and_exits_with_2(tmp_path: Path) -> None:
    process = subprocess.run(
        job("camvid", "--root", str(tmp_path / "absent"), "--output", str(tmp_path / "out")),
        capture_output=True,
        text=True,
    )
    assert process.returncode == 2
    assert process.stderr == f"error: the CamVid folder '{tmp_path}/absent' does not exist; check the path\n"


def descendants(pid: int) -> list[int]:
    """Process ids below `pid`, from /proc."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        children.setdefault(int(fields[1]), []).append(int(stat.parent.name))
    found = [pid]
    for parent in found:
        found += children.get(parent, [])
    return found[1:]


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds the orphans of a killed driver in /proc")
@pytest.mark.usefixtures("ray_session")
def test_a_driver_killed_in_the_middle_is_continued_by_the_same_command_to_the_same_bytes(tmp_path: Path) -> None:
    dataset = ScenesConfig(num_train=60, num_val=10)
    output = tmp_path / "killed"
    options = ("--num-train", "60", "--num-val", "10", "--images-per-part", "5", "--workers", "2")
    command = job("scenes", *options, "--output", str(output))
    driver = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 240
    while len(list(output.glob("_progress/train-*.json"))) < 3:
        assert time.monotonic() < deadline, "the job has not finished three parts in four minutes"
        assert driver.poll() is None, driver.communicate()[1]
        time.sleep(0.01)
    below = descendants(driver.pid)
    driver.kill()
    assert driver.wait() == -signal.SIGKILL
    for pid in below:  # as if the machine had died; by themselves they end some seconds later
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    assert driver.stderr is not None
    driver.stderr.close()
    assert not (output / "manifest.json").exists()
    finished = {path.stem: path.stat().st_mtime_ns for path in output.glob("_progress/train-*.json")}
    assert 3 <= len(finished) < 12
    parts = {stem: output / f"train/part-{stem.removeprefix('train-')}.parquet" for stem in finished}
    written = {stem: path.stat().st_mtime_ns for stem, path in parts.items()}

    rerun = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "continuing an earlier run" in rerun.stderr
    assert rerun.stdout == f"prepared: {output} (train 60, val 10 images)\n"
    assert written == {stem: path.stat().st_mtime_ns for stem, path in parts.items()}  # not done twice

    prepare(PrepareConfig(dataset=dataset, output=str(tmp_path / "straight"), images_per_part=5, workers=3))
    assert files_below(output) == files_below(tmp_path / "straight")
