"""Crops of a segmentation dataset as image classification: which windows, how many, and always the same ones."""

import dataclasses
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines.datasets.label_crops import LabelCropsConfig, list_samples, windows_of
from pipelines.intake.images import decode_image
from pipelines.intake.labels import decode_labels
from pipelines.prepare import PrepareConfig, prepare
from pipelines.shards import open_dataset, spread_rows
from segcore import IGNORE_INDEX
from tests.pipelines.learnable_dataset import write_learnable_dataset


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_learnable_dataset(tmp_path_factory.mktemp("data"))


def config_of(data: str, folder: Path) -> LabelCropsConfig:
    return LabelCropsConfig(data=data, crops=str(folder / "crops"), crop_px=16, min_share=0.8, max_per_class=50)


def files_below(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_windows_are_those_of_a_plain_loop_over_pixels() -> None:
    rng = np.random.default_rng(0)
    labels_HW = np.repeat(np.repeat(rng.choice([0, 1, 2, IGNORE_INDEX], (9, 7)), 5, 0), 5, 1).astype(np.uint8)
    expected = []
    for row in range(0, 45 - 8 + 1, 4):
        for column in range(0, 35 - 8 + 1, 4):
            values = [int(labels_HW[row + r, column + c]) for r in range(8) for c in range(8)]
            labelled = [value for value in values if value != IGNORE_INDEX]
            for index in range(3):
                if len(labelled) >= 32 and labelled.count(index) >= 0.7 * len(labelled):
                    expected.append((row, column, index))
    assert 10 < len(expected) < 60
    assert list(windows_of(labels_HW, crop_px=8, min_share=0.7)) == expected
    assert not list(windows_of(labels_HW, crop_px=46, min_share=0.7))


def test_crops_are_cut_out_of_the_images_and_bear_the_class_of_their_labels(data: str, tmp_path: Path) -> None:
    listing = list_samples(config_of(data, tmp_path))
    assert listing.class_table.names == ("road", "sky", "tree (tall)")  # "never" has no crop
    source = {}
    for split in ("train", "val"):
        for pair in spread_rows(open_dataset(data), split, count=100, columns=("image_id", "image", "label")):
            source[split, pair["image_id"]] = (decode_image(pair["image"]).pixels_HW3, decode_labels(pair["label"]))
    index_in_labels = {"road": 1, "sky": 0, "tree (tall)": 2}
    for sample in listing.samples:
        split, class_name, name = sample.image_id.split("/")
        image_id, row, column = name.replace("%2F", "/").rsplit("-", 2)
        pixels_HW3, labels_HW = source[split, image_id]
        window = (slice(int(row), int(row) + 16), slice(int(column), int(column) + 16))
        with Image.open(sample.image_uri) as crop:
            assert np.array_equal(np.asarray(crop), pixels_HW3[window])
        labelled = labels_HW[window][labels_HW[window] != IGNORE_INDEX]
        assert (labelled == index_in_labels[class_name]).mean() >= 0.8
        assert listing.class_table.names[sample.class_index] == class_name


def test_the_cap_holds_per_class_and_split_and_keeps_a_part_of_the_larger_choice(data: str, tmp_path: Path) -> None:
    config = config_of(data, tmp_path)
    few = list_samples(dataclasses.replace(config, crops=str(tmp_path / "few"), max_per_class=7))
    counts = {
        (split, index): sum(sample.split == split and sample.class_index == index for sample in few.samples)
        for split in ("train", "val")
        for index in range(3)
    }
    assert set(counts.values()) == {7}
    assert {sample.image_id for sample in few.samples} < {sample.image_id for sample in list_samples(config).samples}


@pytest.mark.usefixtures("ray_session")
def test_the_same_command_gives_the_same_files_and_continues_what_was_begun(data: str, tmp_path: Path) -> None:
    config = dataclasses.replace(config_of(data, tmp_path), max_per_class=5)
    listing = list_samples(config)
    before = files_below(tmp_path / "crops")
    for lost in (
        "manifest.json",
        *[name for name in before if name.endswith(".png")][:4],
    ):  # as if killed in the middle
        Path(tmp_path, "crops", lost).unlink(missing_ok=True)
    assert list_samples(config) == listing
    assert files_below(tmp_path / "crops") == before
    outputs = []
    for workers in (1, 3):
        output = tmp_path / f"prepared-{workers}"
        prepare(PrepareConfig(dataset=config, output=str(output), workers=workers, images_per_part=4))
        outputs.append(files_below(output))
    assert outputs[0] == outputs[1]
    dataset = open_dataset(str(output), task="classification")
    assert dataset.split("val").class_images == (5, 5, 5)


def test_other_settings_data_or_files_in_the_folder_are_refused(data: str, tmp_path: Path) -> None:
    config = config_of(data, tmp_path)
    list_samples(dataclasses.replace(config, max_per_class=1))
    with pytest.raises(ValueError, match="holds crops of another dataset or settings .*give another --crops"):
        list_samples(config)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds other files .*thesis.txt.*new or empty folder"):
        list_samples(dataclasses.replace(config, crops=str(tmp_path / "other")))


def test_windows_without_a_class_are_an_error(data: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no window of 64 x 64 px in the train split .*smaller --crop-px"):
        list_samples(dataclasses.replace(config_of(data, tmp_path), crop_px=64))


def test_a_dataset_for_classification_is_refused(data: str, tmp_path: Path) -> None:
    file = io.BytesIO()
    Image.new("RGB", (4, 4)).save(file, "PNG")
    for name in "ab":
        (tmp_path / "raw" / "train" / name).mkdir(parents=True)
        (tmp_path / "raw" / "train" / name / "1.png").write_bytes(file.getvalue())
    from pipelines.datasets.class_folders import ClassFoldersConfig

    prepared = PrepareConfig(dataset=ClassFoldersConfig(root=str(tmp_path / "raw")), output=str(tmp_path / "out"))
    prepare(prepared)
    with pytest.raises(ValueError, match="is a dataset for classification"):
        list_samples(config_of(str(tmp_path / "out"), tmp_path))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("crop_px", 1, "--crop-px is 1, expected 2 or more"),
        ("min_share", 0.5, "--min-share is 0.5, expected above 0.5"),
        ("max_per_class", 0, "--max-per-class is 0, expected 1 or more"),
    ],
)
def test_senseless_numbers_are_refused(tmp_path: Path, field: str, value: float, message: str) -> None:
    config = config_of("data", tmp_path)
    with pytest.raises(ValueError, match=message):
        LabelCropsConfig(**(dataclasses.asdict(config) | {field: value}))
