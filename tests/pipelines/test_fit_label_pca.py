"""The label PCA stage over generated datasets: exact for any number of workers, restartable, and strict about input."""

import csv
import dataclasses
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines import storage
from pipelines.fit_label_pca import FitLabelPCAConfig, fit_label_pca
from pipelines.intake.labels import decode_labels
from pipelines.label_pca.fitting import FitSettings
from pipelines.label_pca.tasks import (
    add_arrays,
    collect_rows,
    count_blocks,
    fetch,
    merge_counts,
    merge_tree,
    multiply_rows,
    run_shares,
    run_task,
    score_labels,
    share_out,
)
from pipelines.label_pcas import load_label_pca
from pipelines.manifests import MANIFEST
from pipelines.shards import Part, PreparedDataset, open_dataset, read_part
from segcore.label_blocks import BlockStatistics
from segcore.label_pca import LabelPCA, solve
from segcore.label_recovery import METHODS, Recovery
from segcore.label_solvers import LearnConfig
from segcore.metrics import scores
from tests.pipelines.learnable_dataset import NUM_TRAIN, NUM_VAL, write_learnable_dataset
from tests.pipelines.tiny_inputs import CLASS_NAMES, random_pairs, write_dataset

SIDE, COMPONENTS = 8, 12
FILES = {"basis.safetensors", "components.png", "index.html", "recovery.csv", "recovery.json", "recovery.png", MANIFEST}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_learnable_dataset(tmp_path_factory.mktemp("data"))


def config(data: str, output: Path, **changes: Any) -> FitLabelPCAConfig:
    settings = FitLabelPCAConfig(data=data, output=str(output), block_side=SIDE, num_components=COMPONENTS, workers=2)
    return dataclasses.replace(settings, **changes)


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def counted_here(dataset: PreparedDataset, split: str) -> BlockStatistics:
    statistics = BlockStatistics.zero(SIDE, dataset.num_classes)
    for part in dataset.split(split).parts:
        for label in read_part(dataset, part)["label"].to_pylist():
            statistics.update(decode_labels(label).astype(np.uint8))
    return statistics


def killed_once(task: Callable[..., Iterator[Any]], marker: Path) -> Callable[..., Iterator[Any]]:
    """The task; the worker with three parts dies after its first one, the first time."""

    def dies_once(parts: Sequence[Part], *arguments: Any) -> Iterator[Any]:
        for index, item in enumerate(task(parts, *arguments)):
            yield item
            if index == 0 and len(parts) == 3 and not marker.exists():
                marker.touch()
                os.kill(os.getpid(), signal.SIGKILL)

    return dies_once


@pytest.mark.usefixtures("ray_session")
def test_one_and_three_workers_write_the_same_bytes(data: str, tmp_path: Path) -> None:
    fit_label_pca(config(data, tmp_path / "one", workers=1))
    fit_label_pca(config(data, tmp_path / "three", workers=3))
    one, three = files_of(tmp_path / "one"), files_of(tmp_path / "three")
    assert set(one) == FILES
    for name in one:
        assert one[name] == three[name], name


@pytest.mark.usefixtures("ray_session")
def test_the_folder_holds_what_one_loop_over_the_labels_finds(data: str, tmp_path: Path) -> None:
    result = fit_label_pca(config(data, tmp_path / "pca", centred=True))
    dataset = open_dataset(data)
    expected = solve(counted_here(dataset, "train"), num_components=COMPONENTS, centred=True)
    folder = load_label_pca(str(tmp_path / "pca"))
    for name in ("basis_DP", "eigenvalues_P", "mean_D"):
        np.testing.assert_array_equal(getattr(folder.code, name), getattr(expected, name))
    assert isinstance(folder.code, LabelPCA) and folder.code.centred
    assert (folder.code.total_energy, folder.code.num_blocks) == (expected.total_energy, expected.num_blocks)
    assert folder.digest == result.folder.digest
    assert folder.manifest["statistics_digest"] == counted_here(dataset, "train").digest()
    assert folder.manifest["settings"]["dataset_digest"] == dataset.digest
    assert folder.manifest["class_pixels"] == list(dataset.split("train").class_pixels)
    assert folder.class_names == CLASS_NAMES
    assert (tmp_path / "pca" / "components.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.usefixtures("ray_session")
def test_recovery_is_measured_on_the_split_and_on_val(data: str, tmp_path: Path) -> None:
    result = fit_label_pca(config(data, tmp_path / "pca"))
    dataset = open_dataset(data)
    table = storage.read_json(str(tmp_path / "pca" / "recovery.json"))
    assert set(table) == {"train", "val"}
    for split in table:
        recovery = Recovery.zero(dataset.num_classes)
        for part in dataset.split(split).parts:
            for label in read_part(dataset, part)["label"].to_pylist():
                recovery.update(result.folder.code, decode_labels(label).astype(np.uint8))
        for method in METHODS:
            expected = scores(recovery.confusion[method])
            assert table[split][method]["mean_iou"] == pytest.approx(expected.mean_iou, abs=1e-12)
            assert table[split][method]["pixel_accuracy"] == pytest.approx(expected.pixel_accuracy, abs=1e-12)
            assert table[split][method]["num_pixels"] == sum(dataset.split(split).class_pixels)
            assert table[split][method]["iou"][CLASS_NAMES[3]] is None  # never occurs
    short = result.folder.manifest["recovery"]["val"]["basis"]
    assert short["mean_iou"] == table["val"]["basis"]["mean_iou"]
    assert f"labels of val come back with mIoU {short['mean_iou']:.3f}" in result.closing_line
    assert table["val"]["basis"]["mean_iou"] > table["val"]["bilinear"]["mean_iou"] > 0.5


@pytest.mark.usefixtures("ray_session")
def test_recovery_takes_whole_parts_up_to_the_number_asked_for(data: str, tmp_path: Path) -> None:
    fit_label_pca(config(data, tmp_path / "pca", max_recovery_images=9))
    table = storage.read_json(str(tmp_path / "pca" / "recovery.json"))
    dataset = open_dataset(data)
    first_two = [read_part(dataset, part)["class_pixels"].to_pylist() for part in dataset.split("train").parts[:2]]
    assert table["train"]["basis"]["num_pixels"] == sum(sum(pixels) for rows in first_two for pixels in rows)


@pytest.mark.usefixtures("ray_session")
def test_a_finished_folder_is_used_again_and_other_settings_are_refused(data: str, tmp_path: Path) -> None:
    first = fit_label_pca(config(data, tmp_path / "pca"))
    before = files_of(tmp_path / "pca")
    again = fit_label_pca(config(data, tmp_path / "pca", workers=1))
    assert not first.already_complete
    assert again.already_complete
    assert again.closing_line.startswith("already fitted by this command, nothing to do")
    assert again.folder.digest == first.folder.digest
    with pytest.raises(ValueError, match=r"other settings or data: num_components is 12 there; give another --output"):
        fit_label_pca(config(data, tmp_path / "pca", num_components=13))
    other_data = write_dataset(tmp_path / "other", random_pairs(3, seed=9), images_per_part=2, split="train")
    with pytest.raises(ValueError, match=r"other settings or data: dataset_digest is"):
        fit_label_pca(config(other_data, tmp_path / "pca"))
    assert files_of(tmp_path / "pca") == before


@pytest.mark.usefixtures("ray_session")
def test_an_unfinished_folder_is_finished(data: str, tmp_path: Path) -> None:
    fit_label_pca(config(data, tmp_path / "pca"))
    expected = files_of(tmp_path / "pca")
    (tmp_path / "pca" / MANIFEST).unlink()
    (tmp_path / "pca" / "basis.safetensors").write_bytes(b"half")
    assert not fit_label_pca(config(data, tmp_path / "pca")).already_complete
    assert files_of(tmp_path / "pca") == expected


@pytest.mark.usefixtures("ray_session")
def test_a_dataset_without_val_is_measured_on_its_own_split(tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "data", random_pairs(3, seed=1), images_per_part=2, split="train")
    result = fit_label_pca(config(data, tmp_path / "pca", workers=3))  # more workers than parts
    assert set(result.folder.manifest["recovery"]) == {"train"}
    assert "labels of train come back" in result.closing_line


@pytest.mark.usefixtures("ray_session")
def test_the_parts_of_a_killed_worker_are_counted_again_and_once(data: str, tmp_path: Path) -> None:
    marker = tmp_path / "killed"
    dataset = open_dataset(data)
    parts = dataset.split("train").parts
    rows: list[int] = []
    (references,) = run_shares(
        killed_once(count_blocks, marker), share_out(parts, 2), dataset, SIDE, on_part=rows.append
    )
    merged = BlockStatistics.from_arrays(fetch(merge_tree(references, merge_counts)))
    assert marker.exists()
    assert merged.digest() == counted_here(dataset, "train").digest()
    assert sum(rows) == NUM_TRAIN


@pytest.mark.usefixtures("ray_session")
def test_a_corrupt_part_ends_the_job_with_its_name_and_leaves_no_manifest(tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "data", random_pairs(6, seed=2), images_per_part=2, split="train")
    part = tmp_path / "data" / "train" / "part-00001.parquet"
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 1
    part.write_bytes(content)
    with pytest.raises(ValueError, match=r"part-00001\.parquet is corrupt or was changed") as caught:
        fit_label_pca(config(data, tmp_path / "pca"))
    assert "Traceback" not in str(caught.value)
    assert not (tmp_path / "pca" / MANIFEST).exists()


def test_a_label_outside_the_class_table_is_named(data: str) -> None:
    dataset = dataclasses.replace(open_dataset(data), class_names=("sky", "road"))
    parts = dataset.split("train").parts
    with pytest.raises(ValueError, match=r"label of 'scene/\d+' in train/part-00000.parquet: label value 2 is outside"):
        list(count_blocks(parts, dataset, SIDE))


def test_only_the_label_column_is_decoded(data: str, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Any] = []

    def spy(dataset: PreparedDataset, part: Part, *, columns: Sequence[str] | None = None) -> Any:
        read.append(columns)
        return read_part(dataset, part, columns=columns)

    monkeypatch.setattr("pipelines.label_pca.tasks.read_part", spy)
    dataset = open_dataset(data)
    *progress, arrays = list(count_blocks(dataset.split("val").parts, dataset, SIDE))
    assert sum(rows for rows in progress if isinstance(rows, int)) == NUM_VAL
    assert isinstance(arrays, dict)
    *_, recovery, _ = score_labels(
        dataset.split("val").parts,
        dataset,
        solve(BlockStatistics.from_arrays(arrays), num_components=3),
    )
    assert isinstance(recovery, Recovery)
    assert set(read) == {("image_id", "label")}


def test_parts_are_dealt_out_without_empty_hands() -> None:
    parts = tuple(Part(path=str(i), num_rows=1, num_bytes=1, sha256="") for i in range(5))
    for workers in (1, 2, 3, 5, 9):
        shares = share_out(parts, workers)
        assert len(shares) == min(workers, 5)
        assert sorted(part.path for share in shares for part in share) == ["0", "1", "2", "3", "4"]
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"split": "test"}, r"has no split 'test'; it has 'train', 'val'"),
        ({"block_side": 64, "method": "exact"}, r"16,384 entries; exact statistics of them need"),
        ({"num_components": 300}, r"--num-components is 300, but blocks of side 8 with 4 classes give at most 256"),
    ],
)
def test_what_cannot_work_is_refused_before_a_cluster_starts(
    data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], message: str
) -> None:
    def no_cluster(**_: Any) -> None:
        raise AssertionError("a cluster was asked for")

    monkeypatch.setattr("pipelines.fit_label_pca.ray_cluster", no_cluster)
    with pytest.raises(ValueError, match=message):
        fit_label_pca(config(data, tmp_path / "pca", **changes))
    assert not (tmp_path / "pca").exists()


@pytest.mark.parametrize("name", ["block_side", "num_components", "max_recovery_images", "workers"])
def test_numbers_below_one_are_refused(data: str, tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=f"--{name.replace('_', '-')} is 0, expected at least 1"):
        config(data, tmp_path, **{name: 0})


def test_an_output_that_holds_something_else_is_refused(data: str) -> None:
    with pytest.raises(ValueError, match="is a 'prepared_dataset', expected a 'label_pca'"):
        fit_label_pca(config(data, Path(data)))


@pytest.mark.usefixtures("ray_session")
def test_the_krylov_method_writes_the_same_bytes_for_any_workers_and_what_the_exact_one_finds(
    data: str, tmp_path: Path
) -> None:
    exact = fit_label_pca(config(data, tmp_path / "exact", method="exact")).folder
    one = fit_label_pca(config(data, tmp_path / "one", method="krylov", workers=1)).folder
    fit_label_pca(config(data, tmp_path / "three", method="krylov", workers=3))
    assert files_of(tmp_path / "one") == files_of(tmp_path / "three")
    assert (one.manifest["method"], exact.manifest["method"]) == ("krylov", "exact")
    for name in ("class_pixels", "num_noisy_blocks", "num_blocks"):
        assert one.manifest[name] == exact.manifest[name]
    assert one.code.captured_energy == pytest.approx(exact.code.captured_energy, abs=1e-6)
    assert one.code.captured_energy <= exact.code.captured_energy + 1e-12


@pytest.mark.usefixtures("ray_session")
def test_large_blocks_are_left_to_the_krylov_method(
    data: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", logger="pipelines.label_pca.fitting"):
        folder = fit_label_pca(config(data, tmp_path / "pca", block_side=64)).folder
    assert folder.manifest["method"] == "krylov"
    (line,) = [record.getMessage() for record in caplog.records if "entries" in record.getMessage()]
    assert re.search(
        r"have 16384 entries: block Krylov .* with \d\.\d\d GB for each of 2 workers, \d\.\d\d GB to", line
    )


@pytest.mark.usefixtures("ray_session")
def test_the_compressed_rows_of_a_killed_worker_are_collected_again_and_once(data: str, tmp_path: Path) -> None:
    marker = tmp_path / "killed"
    dataset = open_dataset(data)
    parts = dataset.split("train").parts
    images: list[int] = []
    coarse, sums, rows = run_shares(
        killed_once(collect_rows, marker), share_out(parts, 2), dataset, SIDE, 2, on_part=images.append, num_results=3
    )
    assert marker.exists() and sum(images) == NUM_TRAIN
    expected = counted_here(dataset, "train")
    total = fetch(merge_tree(sums, add_arrays))
    np.testing.assert_array_equal(total["counts_D"], np.diag(expected.gram()))
    block_DL = np.random.default_rng(0).integers(-(2**18), 2**18, (total["counts_D"].size, 3), dtype=np.int32)
    product = fetch(merge_tree([run_task(multiply_rows, part, block_DL) for part in rows], add_arrays))["product_DL"]
    np.testing.assert_array_equal(product, expected.gram() @ block_DL)
    assert BlockStatistics.from_arrays(fetch(merge_tree(coarse, merge_counts))).block_side == SIDE // 2


@pytest.mark.usefixtures("ray_session")
def test_the_fewest_components_that_reach_a_target_are_chosen(data: str, tmp_path: Path) -> None:
    target = 0.9
    folder = fit_label_pca(config(data, tmp_path / "pca", num_components=None, target_miou_bound=target)).folder
    chosen = folder.code.num_components
    assert chosen % 8 == 0
    assert folder.manifest["recovery"]["val"]["basis"]["mean_iou"] >= target
    fewer = fit_label_pca(config(data, tmp_path / "fewer", num_components=max(1, chosen - 8))).folder
    assert fewer.manifest["recovery"]["val"]["basis"]["mean_iou"] < target
    one_worker = config(data, tmp_path / "one", num_components=None, target_miou_bound=target, workers=1)
    fit_label_pca(one_worker)
    assert files_of(tmp_path / "one") == files_of(tmp_path / "pca")


@pytest.mark.usefixtures("ray_session")
def test_a_target_out_of_reach_says_how_far_one_gets(
    data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.label_pca.fitting.FIRST_COMPONENTS", 8)
    monkeypatch.setattr("pipelines.label_pca.fitting.MAX_CHOSEN_COMPONENTS", 16)
    with pytest.raises(
        ValueError, match=r"target-miou-bound is 1.0, and 16 components .* bring val back with mIoU 0\."
    ):
        fit_label_pca(config(data, tmp_path / "pca", num_components=None, target_miou_bound=1.0))


@pytest.mark.usefixtures("ray_session")
def test_the_report_lays_block_sides_beside_the_plain_ways(data: str, tmp_path: Path) -> None:
    fit_label_pca(config(data, tmp_path / "pca", report_block_sides=(4, 16)))
    with (tmp_path / "pca" / "recovery.csv").open() as lines:
        rows = list(csv.DictReader(lines))
    assert {(row["block_side"], row["method"]) for row in rows} == {
        (side, method) for side in ("4", "8", "16") for method in METHODS
    }
    for side in ("4", "8", "16"):
        curve = [row for row in rows if row["block_side"] == side and row["method"] == "basis"]
        assert [int(row["num_components"]) for row in curve] == [1, 2, 4, 8, 12]
        energies = [float(row["captured_energy"]) for row in curve]
        assert energies == sorted(energies)
    own = next(row for row in rows if row["block_side"] == "8" and row["num_components"] == "12")
    short = load_label_pca(str(tmp_path / "pca")).manifest["recovery"]["val"]["basis"]
    assert float(own["mean_iou"]) == short["mean_iou"]
    assert (tmp_path / "pca" / "recovery.png").read_bytes().startswith(b"\x89PNG")
    page = (tmp_path / "pca" / "index.html").read_text()
    assert "Recovery by class" in page and CLASS_NAMES[0] in page


@pytest.mark.usefixtures("ray_session")
def test_a_recipe_decides_block_side_and_components(data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_fit(_dataset: PreparedDataset, settings: FitSettings, **_: Any) -> None:
        raise RuntimeError(f"{settings.block_side} and {settings.num_components}")

    monkeypatch.setattr("pipelines.fit_label_pca.fit", no_fit)
    given = FitLabelPCAConfig(data=data, output=str(tmp_path / "pca"), recipe="scenes.dupsampling_mobilenetv3")
    for settings, expected in (
        (given, "32 and 128"),
        (dataclasses.replace(given, num_components=200), "32 and 200"),
        (dataclasses.replace(given, target_miou_bound=0.9), "32 and None"),
        (dataclasses.replace(given, recipe=None), "32 and 64"),
    ):
        with pytest.raises(RuntimeError, match=expected):
            fit_label_pca(settings)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"recipe": "scenes.deeplab_v3plus_mobilenetv3"}, "has no data-dependent decoder and needs no label PCA"),
        ({"recipe": "scenes.dupsampling_mobilenetv3"}, "--block-side is 8 and recipe .* needs 32; leave it out"),
        ({"recipe": "scenes.unet"}, "unknown recipe 'scenes.unet'; known: "),
        ({"target_miou_bound": 0.9}, "give it without --num-components and without another --solver"),
        (
            {"target_miou_bound": 1.5, "num_components": None},
            r"--target-miou-bound is 1.5, expected a number in \(0, 1\]",
        ),
        ({"solver": "svd"}, "unknown --solver 'svd'; known: pca, sgd, orthogonal_sgd, autoencoder"),
        ({"block_side": 7, "method": "krylov"}, "too few for the Krylov method; choose --method exact"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(
    data: str, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        fit_label_pca(config(data, tmp_path / "pca", **changes))
    assert not (tmp_path / "pca").exists()


@pytest.mark.usefixtures("ray_session")
def test_memory_that_no_node_has_is_refused_before_anything_is_read(
    data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.label_pca.fitting.WORKER_BASE_BYTES", 10**14)
    with pytest.raises(ValueError, match=r"has \d+\.\d GB for tasks and .* take\(s\) 100000\.0 GB in each; choose a"):
        fit_label_pca(config(data, tmp_path / "pca"))
    monkeypatch.undo()
    monkeypatch.setattr("pipelines.label_pca.fitting.solve_bytes", lambda entries: 10**14)
    with pytest.raises(ValueError, match=r"take\(s\) 100000\.0 GB in the job's own process; choose a smaller"):
        fit_label_pca(config(data, tmp_path / "pca"))


def test_a_worker_keeps_to_the_memory_that_it_states(data: str) -> None:
    """Blocks of every pair of classes, so that every page of every tile is touched; a process of its own."""
    program = (
        "import resource, sys\n"
        "import numpy as np\n"
        "from segcore.label_blocks import BlockStatistics\n"
        "resident = lambda: int(open('/proc/self/statm').read().split()[1]) * resource.getpagesize()\n"
        "rng = np.random.default_rng(0)\n"
        "maps = [np.repeat(np.repeat(rng.integers(0, 19, (32, 64)), 8, 0), 8, 1).astype(np.uint8) for _ in range(40)]\n"
        "BlockStatistics.zero(4, 19).update(maps[0])\n"
        "before = resident()\n"
        "state = BlockStatistics.zero(16, 19)\n"
        "for labels in maps:\n"
        "    state.update(np.roll(labels, (3, 5), (0, 1)))\n"
        "print(resident() - before)\n"
    )
    taken = int(subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout)
    entries = 19 * 16**2
    assert (
        1.5 * entries**2 < taken < 2.2 * entries**2
    )  # tiles of classes a <= b in int32: 2 bytes per entry of the matrix


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize("solver", ["sgd", "autoencoder"])
def test_learned_codes_are_stored_and_scored_as_the_pca_is(data: str, tmp_path: Path, solver: Any) -> None:
    learn = LearnConfig(steps=60, hidden_channels=16)
    first = fit_label_pca(config(data, tmp_path / "first", solver=solver, learn=learn)).folder
    fit_label_pca(config(data, tmp_path / "second", solver=solver, learn=learn, workers=1))
    assert files_of(tmp_path / "first") == files_of(tmp_path / "second")
    assert set(files_of(tmp_path / "first")) == FILES - {"components.png"}
    assert (first.code.solver, first.manifest["solver"], first.manifest["method"]) == (solver, solver, "learned")
    assert (first.code.num_components, first.code.block_side) == (COMPONENTS, SIDE)
    assert 0 < first.code.captured_energy < 1
    with (tmp_path / "first" / "recovery.csv").open() as lines:
        rows = list(csv.DictReader(lines))
    assert [row["method"] for row in rows] == list(METHODS)  # no curve: its components have no order
    with pytest.raises(ValueError, match="other settings or data: learn is"):
        fit_label_pca(config(data, tmp_path / "first", solver=solver, learn=LearnConfig(steps=61, hidden_channels=16)))
