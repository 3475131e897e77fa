"""Crops of objects: what is cut out, what its labels keep, and the same bytes however the job is run."""

import dataclasses
import io
import os
import signal
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from pipelines import storage
from pipelines.datasets.object_crops import (
    NO_OBJECT,
    NO_PROPOSAL,
    ObjectClasses,
    ObjectCropsConfig,
    crop_labels,
    list_samples,
    object_regions,
)
from pipelines.intake.images import decode_image
from pipelines.intake.labels import decode_labels
from pipelines.manifests import MANIFEST, read_manifest
from pipelines.prepare import PrepareConfig, prepare
from pipelines.prepare_shard import Shard, ShardJob, crop_rows, prepare_shard
from pipelines.shards import KIND, PreparedDataset, open_dataset, read_part
from segcore import IGNORE_INDEX
from segcore.proposals import ProposalConfig, box_ious, propose
from tests.pipelines.tiny_inputs import CLASS_NAMES, PALETTE, Pair, write_dataset

SKY, ROAD, TREE = 0, 1, 2
NEW_BACKGROUND = ObjectClasses(object_indices=(SKY, ROAD, TREE), background_index=0, shift=1)
HEIGHT, WIDTH = 60, 80
SEARCH = ProposalConfig(best=200, candidates=200, min_area_px=64)

Rows = dict[str, dict[str, Any]]


def scene(*things: tuple[int, int, int, int, int], seed: int = 0) -> Pair:
    """Sky with rectangles (class, top, left, bottom, right), each in its colour, and three ignored rows at the top."""
    labels_HW = np.full((HEIGHT, WIDTH), SKY, np.uint8)
    for class_index, top, left, bottom, right in things:
        labels_HW[top:bottom, left:right] = class_index
    noise = np.random.default_rng(seed).integers(-3, 4, (HEIGHT, WIDTH, 3))
    pixels_HW3 = np.clip(np.array(PALETTE)[labels_HW] + noise, 0, 255).astype(np.uint8)
    labels_HW[:3] = IGNORE_INDEX
    return pixels_HW3, labels_HW


PAIRS = [
    scene((ROAD, 10, 10, 30, 30), (TREE, 20, 40, 50, 60)),
    scene((ROAD, 0, 0, 20, 20), (ROAD, 40, 50, 60, 80), (TREE, 30, 10, 45, 25), seed=1),
    scene(seed=2),
    scene((ROAD, 20, 20, 40, 60), (ROAD, 50, 0, 60, 40), seed=3),
    scene((ROAD, 5, 5, 25, 45), (TREE, 25, 5, 45, 25), seed=4),
]


def write_data(folder: Path, pairs: list[Pair] = PAIRS, val: list[Pair] | None = None) -> str:
    """A prepared dataset of parts of two images."""
    splits = []
    for split, own in (("train", pairs), ("val", val or [])):
        if own:
            write_dataset(folder, own, images_per_part=2, split=split)
            manifest = storage.read_json(str(folder / MANIFEST))
            splits += manifest["splits"]
    storage.write_atomic(str(folder / MANIFEST), storage.json_bytes(manifest | {"splits": splits}))
    return str(folder)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_data(tmp_path_factory.mktemp("data"))


def config_of(data: str, **changes: Any) -> ObjectCropsConfig:
    """No repeats, without loss."""
    config = ObjectCropsConfig(
        data=data, stage=1, min_object_px=100, crop_px=48, png=True, max_repeats=1, proposals=SEARCH
    )
    return dataclasses.replace(config, **changes)


def cut(config: ObjectCropsConfig, pair: Pair, *, split: str = "train") -> tuple[Rows, list[str]]:
    """What becomes of one image: window, pixels and labels by id."""
    crops, notes = list_samples(config).cut(*pair, image_id="scene", split=split)
    rows = {
        crop.image_id: {
            "window": crop.window,
            "pixels": decode_image(crop.image).pixels_HW3,
            "labels": decode_labels(crop.label),
        }
        for crop in crops
    }
    assert len(rows) == len(crops)
    return rows, notes


def all_rows(uri: str) -> tuple[PreparedDataset, dict[str, list[dict[str, Any]]]]:
    dataset = open_dataset(uri)
    rows = {
        name: [row for part in split.parts for row in read_part(dataset, part).to_pylist()]
        for name, split in dataset.splits.items()
    }
    return dataset, rows


def files_below(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_an_object_is_a_connected_region_of_its_class_that_is_large_enough() -> None:
    labels_HW = PAIRS[1][1].copy()
    labels_HW[25, 70:75] = TREE
    labels_HW[45:47, 25:27] = TREE  # joined at the corner of the tree
    found = object_regions(labels_HW, NEW_BACKGROUND, min_object_px=6)
    assert found == [
        (SKY, (3, 0, 60, 80), 60 * 80 - 240 - 340 - 600 - 225 - 4 - 5),
        (ROAD, (3, 0, 20, 20), 340),
        (ROAD, (40, 50, 60, 80), 600),
        (TREE, (30, 10, 47, 27), 229),
    ]
    assert (TREE, (25, 70, 26, 75), 5) in object_regions(labels_HW, NEW_BACKGROUND, min_object_px=5)


def test_a_stage_one_crop_keeps_the_class_of_its_object_and_makes_the_rest_background(data: str) -> None:
    rows, notes = cut(config_of(data, object_classes=("road", "tree (tall)")), PAIRS[1])
    assert notes == []
    assert list(rows) == ["scene/object000", "scene/object001", "scene/object002"]
    values = [set(np.unique(row["labels"])) for row in rows.values()]
    assert values == [{0, ROAD + 1, IGNORE_INDEX}, {0, ROAD + 1}, {0, TREE + 1}]  # a new background comes first
    corner, _, tree = rows.values()
    assert corner["window"] == (0, 1, 22, 20)  # (3, 0) to (20, 20) by 1.2, cut off at the image's border
    assert tree["window"] == (8, 28, 18, 18)  # 15 px by 1.2: 1.44 times the area
    labelled = tree["labels"] == TREE + 1
    assert labelled.mean() == pytest.approx(1 / 1.44, abs=0.02)
    ignored = corner["labels"] == IGNORE_INDEX
    assert ignored.mean() == pytest.approx(2 / 20, abs=0.02)


def test_other_regions_of_the_class_are_kept_and_other_classes_are_not() -> None:
    everything = np.array([[SKY, ROAD, TREE, IGNORE_INDEX]], np.uint8)
    new = NEW_BACKGROUND
    assert crop_labels(everything, new, ROAD).tolist() == [[0, ROAD + 1, 0, IGNORE_INDEX]]
    assert crop_labels(everything, new, None).tolist() == [[SKY + 1, ROAD + 1, TREE + 1, IGNORE_INDEX]]
    known = ObjectClasses(object_indices=(SKY, TREE), background_index=ROAD, shift=0)
    assert crop_labels(everything, known, TREE).tolist() == [[ROAD, ROAD, TREE, IGNORE_INDEX]]
    assert crop_labels(everything, known, None).tolist() == everything.tolist()


def test_crops_are_the_windows_resized_bilinearly_and_labels_by_the_nearest_pixel(data: str) -> None:
    pixels_HW3, labels_HW = PAIRS[0]
    rows, _ = cut(config_of(data, stage=2, crop_px=64), PAIRS[0])  # 64: no pixel centre falls between two
    assert rows
    for row in rows.values():
        left, top, width, height = row["window"]
        window = (slice(top, top + height), slice(left, left + width))
        resized = Image.fromarray(pixels_HW3[window]).resize((64, 64), Image.Resampling.BILINEAR)
        assert np.array_equal(row["pixels"], np.asarray(resized))
        nearest = (np.arange(64) + 0.5) / 64
        source = labels_HW[window][(nearest * height).astype(int)][:, (nearest * width).astype(int)]
        assert np.array_equal(row["labels"], np.where(source == IGNORE_INDEX, source, source + 1))


def test_a_stage_two_crop_is_a_proposal_that_overlaps_an_object_and_has_all_classes(data: str) -> None:
    config = config_of(data, stage=2, object_classes=("road", "tree (tall)"))
    rows, notes = cut(config, PAIRS[0])
    assert notes == []
    true_K4 = np.array([(10, 10, 30, 30), (20, 40, 50, 60)], np.int32)
    proposed_K4 = propose(PAIRS[0][0], SEARCH).boxes_K4
    enough = np.flatnonzero(box_ious(proposed_K4, true_K4).max(axis=1) >= 0.5)
    assert [f"scene/proposal{number:04d}" for number in enough] == list(rows)
    assert 0 < len(enough) < len(proposed_K4)
    values = [set(np.unique(row["labels"])) for row in rows.values()]
    assert {SKY + 1, ROAD + 1, TREE + 1} in values or {SKY + 1, TREE + 1, ROAD + 1, IGNORE_INDEX} in values
    assert all(0 not in each for each in values)  # the new background is nowhere: every pixel has its own class
    few, _ = cut(dataclasses.replace(config, max_per_image=2), PAIRS[0])
    assert list(few) == list(rows)[:2]
    strict, _ = cut(dataclasses.replace(config, min_iou=0.8), PAIRS[0])
    assert set(strict) < set(rows)


def test_a_class_of_the_dataset_may_be_the_background(data: str) -> None:
    listing = list_samples(config_of(data, background_class="sky"))
    assert listing.class_table.names == CLASS_NAMES
    rows, _ = cut(config_of(data, background_class="sky"), PAIRS[0])
    assert [set(np.unique(row["labels"])) for row in rows.values()] == [{SKY, ROAD}, {SKY, TREE}]
    added = list_samples(config_of(data))
    assert added.class_table.names == ("background", *CLASS_NAMES)
    assert added.class_table.palette == ((0, 0, 0), *PALETTE)


def test_the_largest_objects_are_kept_where_there_are_too_many(data: str) -> None:
    rows, _ = cut(config_of(data, background_class="sky", max_per_image=2), PAIRS[1])
    assert [row["window"] for row in rows.values()] == [(0, 1, 22, 20), (47, 38, 33, 22)]


def test_an_image_smaller_than_a_crop_is_enlarged(data: str) -> None:
    rows, _ = cut(config_of(data, crop_px=250), PAIRS[0])
    assert {row["pixels"].shape for row in rows.values()} == {(250, 250, 3)}
    assert {row["labels"].shape for row in rows.values()} == {(250, 250)}


def test_an_image_without_objects_gives_no_crop_and_one_without_proposals_its_whole(data: str) -> None:
    assert cut(config_of(data, background_class="sky"), PAIRS[2]) == ({}, [NO_OBJECT])
    plain = np.full((HEIGHT, WIDTH, 3), 90, np.uint8)
    config = config_of(data, stage=2, background_class="sky")
    rows, notes = cut(config, (plain, scene((TREE, 5, 5, 55, 75))[1]))
    assert notes == [NO_PROPOSAL]
    assert [row["window"] for row in rows.values()] == [(0, 0, WIDTH, HEIGHT)]
    assert cut(config, (plain, scene((TREE, 5, 5, 25, 25))[1])) == ({}, [NO_PROPOSAL])  # too little of it is the object


def test_objects_of_rare_classes_are_repeated_in_train_under_other_ids(data: str) -> None:
    config = config_of(data, background_class="sky", max_repeats=4)
    listing = list_samples(config)
    assert listing.config["repeats"] == [1, 1, 2, 1]  # 6 roads and 3 trees: the median is 4.5
    more = write_data(Path(data).parent / "rare", [*PAIRS, PAIRS[3], PAIRS[3], PAIRS[3]])
    config = dataclasses.replace(config, data=more)
    assert list_samples(config).config["repeats"] == [1, 1, 3, 1]  # 12 roads and 3 trees: the median is 7.5
    assert list_samples(dataclasses.replace(config, max_repeats=2)).config["repeats"] == [1, 1, 2, 1]
    rows, _ = cut(config, PAIRS[0])
    assert list(rows) == [
        "scene/object000",
        "scene/object001",
        "scene/object001-copy1",
        "scene/object001-copy2",
    ]
    assert np.array_equal(rows["scene/object001"]["pixels"], rows["scene/object001-copy2"]["pixels"])
    assert len(cut(config, PAIRS[0], split="val")[0]) == 2


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize("stage", [1, 2])
def test_crops_are_the_same_for_any_number_of_workers_and_shards(tmp_path: Path, stage: Any) -> None:
    data = write_data(tmp_path / "data", val=[PAIRS[4], PAIRS[0]])
    crops = config_of(data, stage=stage, background_class="sky", max_repeats=3, png=False)
    one = PrepareConfig(dataset=crops, output=str(tmp_path / "one"), workers=1, images_per_part=2)
    result = prepare(one)
    prepare(dataclasses.replace(one, output=str(tmp_path / "three"), workers=3))
    assert files_below(tmp_path / "one") == files_below(tmp_path / "three")
    prepare(dataclasses.replace(one, output=str(tmp_path / "large"), images_per_part=50))
    dataset, rows = all_rows(str(tmp_path / "one"))
    _, in_one_part = all_rows(str(tmp_path / "large"))
    for split, own in rows.items():
        assert sorted(own, key=lambda row: row["image_id"]) == sorted(
            in_one_part[split], key=lambda row: row["image_id"]
        )
        assert len({row["image_id"] for row in own}) == len(own) == result.num_images[split]
        totals = np.sum([row["class_pixels"] for row in own], axis=0)
        assert dataset.split(split).class_pixels == tuple(totals)
        assert {(row["height"], row["width"]) for row in own} == {(48, 48)}
    assert not any("copy" in row["image_id"] for row in rows["val"])
    assert any("copy" in row["image_id"] for row in rows["train"])
    ids = [row["image_id"] for row in in_one_part["train"]]
    assert ids != sorted(ids)  # mixed within their part
    left, top, width, height = map(int, rows["val"][0]["source"].rpartition("#xywh=")[2].split(","))
    assert 0 <= left < left + width <= WIDTH
    assert 0 <= top < top + height <= HEIGHT
    manifest = read_manifest(str(tmp_path / "one"), kind=KIND)
    assert manifest["notes"] == {NO_OBJECT: 1}
    assert manifest["task"] == "segmentation"
    assert prepare(one).already_complete


@pytest.mark.usefixtures("ray_session")
def test_a_worker_that_dies_costs_nothing(data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = PrepareConfig(dataset=config_of(data), output=str(tmp_path / "whole"), workers=2, images_per_part=1)
    prepare(config)
    listing = list_samples(config_of(data))
    unharmed, marker = listing.cut, tmp_path / "died"

    def dies_once(pixels_HW3: NDArray[np.uint8], labels_HW: NDArray[np.uint8], *, image_id: str, split: str) -> Any:
        if image_id == "scene/003" and not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return unharmed(pixels_HW3, labels_HW, image_id=image_id, split=split)

    monkeypatch.setattr("pipelines.prepare.list_dataset", lambda _: dataclasses.replace(listing, cut=dies_once))
    prepare(dataclasses.replace(config, output=str(tmp_path / "struck")))
    assert marker.exists()
    assert files_below(tmp_path / "whole") == files_below(tmp_path / "struck")


@pytest.mark.usefixtures("ray_session")
def test_a_dataset_without_one_object_is_refused(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data", [PAIRS[2]])
    config = PrepareConfig(dataset=config_of(data, background_class="sky"), output=str(tmp_path / "out"), workers=1)
    with pytest.raises(ValueError, match="none of the 1 images holds an object .*smaller --min-object-px"):
        prepare(config)


def test_a_part_that_was_changed_is_refused_and_becomes_a_failure_where_it_changes_later(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data")
    listing = list_samples(config_of(data))
    part = tmp_path / "data/train/part-00001.parquet"
    part.write_bytes(part.read_bytes()[:-1])
    with pytest.raises(ValueError, match="part-00001.parquet is corrupt or was changed"):
        list_samples(config_of(data))
    shard = Shard(split="train", index=0, samples=listing.samples)
    make_rows = partial(crop_rows, class_table=listing.class_table, cut=listing.cut)
    output = str(tmp_path / "out")
    job = ShardJob(
        output=output, plan_digest="p", task="segmentation", num_classes=5, make_rows=make_rows, resume=False
    )
    failures = prepare_shard(shard, job).failures
    assert [failure["image_id"] for failure in failures] == ["scene/002", "scene/003"]
    assert all("part-00001.parquet is corrupt or was changed" in failure["reason"] for failure in failures)
    part.unlink()
    failures = prepare_shard(shard, job).failures
    assert ["cannot be read: FileNotFoundError" in failure["reason"] for failure in failures] == [True, True]


@pytest.mark.parametrize(("num_classes", "refused"), [(253, False), (254, True)])
def test_a_class_table_that_has_no_room_for_the_background_is_refused(
    tmp_path: Path, num_classes: int, refused: bool
) -> None:
    data = write_data(tmp_path / "data")
    manifest = storage.read_json(str(tmp_path / "data" / MANIFEST))
    names = [f"class {index}" for index in range(num_classes)]
    palette = [[index, index, index] for index in range(num_classes)]
    changed = manifest | {"class_names": names, "palette": palette}
    storage.write_atomic(str(tmp_path / "data" / MANIFEST), storage.json_bytes(changed))
    if refused:
        message = "the class table has 255 classes, expected 1 to 254; of them 'background' is new"
        with pytest.raises(ValueError, match=message):
            list_samples(config_of(data))
    else:
        assert len(list_samples(config_of(data)).class_table.names) == 254
    assert len(list_samples(config_of(data, background_class="class 7")).class_table.names) == num_classes


def test_classes_that_do_not_exist_or_are_both_are_refused(data: str) -> None:
    with pytest.raises(ValueError, match="--object-classes names car, which .* its classes are sky, road"):
        list_samples(config_of(data, object_classes=("road", "car")))
    with pytest.raises(ValueError, match="'sky' is the background and among --object-classes"):
        list_samples(config_of(data, object_classes=("sky",), background_class="sky"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"background_class": " "}, "--background-class is empty"),
        ({"min_object_px": 0}, "--min-object-px is 0, expected 1 or more"),
        ({"min_iou": 0.0}, "--min-iou is 0.0, expected above 0"),
        ({"max_per_image": 0}, "--max-per-image is 0"),
        ({"max_repeats": 0}, "--max-repeats 0, expected 1 or more"),
        ({"crop_px": 1}, "--crop-px is 1, expected 2 or more"),
    ],
)
def test_senseless_numbers_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config_of("data", **change)


def test_jpeg_is_the_default_and_close_to_the_original(data: str) -> None:
    without_loss, _ = list_samples(config_of(data)).cut(*PAIRS[0], image_id="a", split="train")
    crops, _ = list_samples(config_of(data, png=False)).cut(*PAIRS[0], image_id="a", split="train")
    assert not ObjectCropsConfig(data=data, stage=1).png
    for crop, original in zip(crops, without_loss, strict=True):
        assert Image.open(io.BytesIO(crop.image)).format == "JPEG"
        assert crop.label == original.label
        difference = decode_image(crop.image).pixels_HW3.astype(int) - decode_image(original.image).pixels_HW3
        assert np.abs(difference).mean() < 4
