"""COCO's JSON: what is drawn, what lies on top, and files that contradict themselves."""

import dataclasses
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pycocotools import mask as coco

from pipelines.datasets.coco_json import CocoJsonConfig, DrawnSample, draw, list_samples
from pipelines.datasets.listing import DatasetListing, Sample
from pipelines.intake.formats import ImageError
from pipelines.intake.images import decode_image
from pipelines.intake.labels import decode_labels
from tests.data.coco_json.make import HEIGHT, WIDTH, make_coco, polygon_box

BACKGROUND, PERSON, DOG, BRUSH = 0, 1, 2, 3


def config_of(root: Path, **settings: Any) -> CocoJsonConfig:
    return CocoJsonConfig(
        annotations=tuple(str(root / "annotations" / f"instances_{split}2017.json") for split in ("train", "val")),
        images=(str(root / "train2017"), str(root / "val2017")),
        splits=("train", "val"),
        **settings,
    )


def one_file(root: Path, **settings: Any) -> CocoJsonConfig:
    both = config_of(root)
    return CocoJsonConfig(annotations=both.annotations[:1], images=both.images[:1], **settings)


def changed(root: Path, change: Callable[[dict[str, Any]], object]) -> CocoJsonConfig:
    """COCO whose training file was changed."""
    config = one_file(make_coco(root))
    path = Path(config.annotations[0])
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    return config


def labels_of(listing: DatasetListing, sample: Sample) -> NDArray[np.uint8]:
    _, label = listing.read(sample)
    return listing.class_table.class_indices(decode_labels(label))


def test_files_are_splits_and_categories_classes_in_the_order_of_their_ids(tmp_path: Path) -> None:
    listing = list_samples(config_of(make_coco(tmp_path)))
    assert [sample.image_id for sample in listing.samples] == [
        "train/000000000001", "train/000000000002", "train/000000000003", "val/000000001001", "val/000000001002",
    ]  # fmt: skip
    assert [sample.split for sample in listing.samples] == ["train"] * 3 + ["val"] * 2
    assert listing.class_table.names == ("background", "person", "dog", "toothbrush")
    assert len(set(listing.class_table.palette)) == 4
    image, _ = pickle.loads(pickle.dumps(listing.read))(listing.samples[3])
    assert decode_image(image).pixels_HW3.shape == (HEIGHT, WIDTH, 3)


def test_small_objects_lie_on_top_and_crowds_below(tmp_path: Path) -> None:
    listing = list_samples(config_of(make_coco(tmp_path)))
    expected_HW = np.full((HEIGHT, WIDTH), BACKGROUND)
    expected_HW[:, :20] = PERSON  # the crowd
    expected_HW[4:16, 4:14] = PERSON
    expected_HW[6:10, 6:10] = DOG  # has the smallest id
    expected_HW[2:6, 24:28] = BRUSH
    assert labels_of(listing, listing.samples[0]).tolist() == expected_HW.tolist()


def test_what_lies_in_no_object_may_be_ignored(tmp_path: Path) -> None:
    listing = list_samples(config_of(make_coco(tmp_path), background="ignore"))
    assert listing.class_table.names == ("person", "dog", "toothbrush")
    assert np.unique(labels_of(listing, listing.samples[0])).tolist() == [PERSON - 1, DOG - 1, BRUSH - 1, 255]


def test_random_objects_are_those_of_pycocotools_drawn_by_falling_area() -> None:
    rng = np.random.default_rng(0)
    for _ in range(40):
        height, width = (int(side) for side in rng.integers(8, 60, 2))
        objects: list[tuple[int, int, Any]] = []
        masks = []
        for number in range(int(rng.integers(0, 9))):
            kind = number % 3
            if kind == 0:
                points = rng.uniform(-0.2, 1.2, (int(rng.integers(3, 12)), 2)) * (width, height)
                segmentation: Any = [points.ravel().tolist(), polygon_box(1, 1, 3, 3)]
                masks.append(coco.decode(coco.merge(coco.frPyObjects(segmentation, height, width))))
            else:
                inside_HW = np.asfortranarray(rng.random((height, width)) < rng.random(), dtype=np.uint8)
                masks.append(inside_HW)
                segmentation = {"size": [height, width], "counts": coco.encode(inside_HW)["counts"].decode()}
                if kind == 2:
                    segmentation["counts"] = plain_counts(inside_HW)
            objects.append((int(rng.integers(1, 9)), 100 - number, segmentation))
        expected_HW = np.zeros((height, width), np.uint8)
        order = sorted(range(len(masks)), key=lambda index: (-int(masks[index].sum()), objects[index][1]))
        for index in order:
            expected_HW[masks[index] > 0] = objects[index][0]
        found_HW = draw(objects, height=height, width=width, background=0)
        np.testing.assert_array_equal(found_HW, expected_HW)


def plain_counts(mask_HW: NDArray[np.uint8]) -> list[int]:
    counts, last = [0], 0
    for value in mask_HW.T.ravel().tolist():
        if value != last:
            counts.append(0)
        counts[-1] += 1
        last = value
    return counts


def test_of_two_objects_of_one_size_the_later_annotation_is_on_top() -> None:
    left, right = polygon_box(0, 0, 4, 4), polygon_box(2, 0, 6, 4)
    for first, second in ((1, 2), (2, 1)):
        labels_HW = draw([(5, first, [left]), (7, second, [right])], height=4, width=6, background=0)
        assert labels_HW[0].tolist() == ([5, 5, 7, 7, 7, 7] if first < second else [5, 5, 5, 5, 7, 7])


def test_one_file_is_split_by_a_hash_of_the_names(tmp_path: Path) -> None:
    listing = list_samples(one_file(make_coco(tmp_path, num_train=40), val_fraction=0.5))
    assert {sample.image_id for sample in listing.samples} == {f"{number:012d}" for number in range(1, 41)}
    assert 10 <= sum(sample.split == "val" for sample in listing.samples) <= 30


def test_an_image_without_annotations_is_all_background(tmp_path: Path) -> None:
    config = changed(tmp_path, lambda content: content["annotations"].clear())
    listing = list_samples(config)
    assert len(listing.samples) == 3
    assert np.unique(labels_of(listing, listing.samples[0])).tolist() == [BACKGROUND]


def test_an_object_with_a_box_alone_makes_its_image_unusable(tmp_path: Path) -> None:
    listing = list_samples(changed(tmp_path, lambda content: content["annotations"][5].update(segmentation=[])))
    assert [sample.image_id for sample in listing.samples] == ["000000000001", "000000000003"]
    (entry,) = listing.unpaired
    assert entry.image_id == "000000000002"
    assert entry.reason.startswith("annotation 21 of this image has a box and no segmentation")


def test_polygons_of_two_points_are_counted_and_not_drawn(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = changed(tmp_path, lambda content: content["annotations"][0]["segmentation"].append([1, 1, 2, 2]))
    listing = list_samples(config)
    assert "1 polygons of fewer than three points enclose nothing; not drawn" in caplog.text
    assert DOG in labels_of(listing, listing.samples[0])


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ({"size": [WIDTH, HEIGHT], "counts": [0, HEIGHT * WIDTH]}, r"its size is \[32, 24\], the image's \[24, 32\]"),
        ({"size": [HEIGHT, WIDTH], "counts": [0, 5]}, "counts hold 5 pixels; expected 24 x 32"),
        ({"size": [HEIGHT, WIDTH], "counts": "0P"}, "packed counts end within a number"),
        ({"counts": [0, 5]}, "annotation 10 cannot be drawn: 'size'"),
        ([[1, 1, 2, 2, 3, 3, 4]], "a polygon has 7 coordinates"),
        ([[1, 1, 1e9, 2, 3, 3]], "not finite or beyond"),
        ([1, 1, 2, 2, 3, 3], "annotation 10 cannot be drawn"),
    ],
)
def test_segmentations_that_cannot_be_drawn_cost_their_image(tmp_path: Path, segmentation: Any, message: str) -> None:
    config = changed(tmp_path, lambda content: content["annotations"][0].update(segmentation=segmentation))
    listing = list_samples(config)
    with pytest.raises(ImageError, match=message) as caught:
        listing.read(listing.samples[0])
    assert caught.value.stage == "validate"
    listing.read(listing.samples[1])


def rename(content: dict[str, Any], name: str) -> None:
    content["images"][0]["file_name"] = name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content.pop("categories"), r"expected COCO's lists images, annotations, categories"),
        (lambda content: content["annotations"][0].update(category_id=19), "annotation 10 has the category 19, which"),
        (lambda content: content["annotations"][0].update(image_id=77), "annotation 10 belongs to the image 77, which"),
        (lambda content: content["annotations"][0].pop("category_id"), "no usable id, image_id and category_id"),
        (lambda content: content["images"].append(content["images"][0]), "has the image id 1 twice"),
        (lambda content: content["images"][0].pop("height"), "has no usable id, file_name, height and width"),
        (lambda content: rename(content, "../a.jpg"), "has the file_name '../a.jpg', expected a path below"),
        (lambda content: rename(content, "/a.jpg"), "has the file_name '/a.jpg', expected a path below"),
        (lambda content: content["categories"].append({"id": 18, "name": "cat"}), "has the category id 18 twice"),
        (lambda content: content["categories"].append({"id": 19}), "has no usable `id` and `name`"),
        (lambda content: content["categories"][0].update(name="background"), "has a category 'background' itself"),
        (lambda content: content["categories"][0].update(name="person"), "has the name person twice"),
    ],
)
def test_files_that_contradict_themselves_are_refused(tmp_path: Path, change: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        list_samples(changed(tmp_path, change))


def test_missing_and_foreign_files_are_refused(tmp_path: Path) -> None:
    config = one_file(make_coco(tmp_path))
    with pytest.raises(ValueError, match="the annotations '.*absent.json' do not exist"):
        list_samples(dataclasses.replace(config, annotations=(str(tmp_path / "absent.json"),)))
    (tmp_path / "text.json").write_text("{")
    with pytest.raises(ValueError, match="text.json' is not JSON"):
        list_samples(dataclasses.replace(config, annotations=(str(tmp_path / "text.json"),)))


def test_splits_with_other_categories_are_refused(tmp_path: Path) -> None:
    config = config_of(make_coco(tmp_path))
    path = Path(config.annotations[1])
    path.write_text(path.read_text().replace('"dog"', '"cat"'))
    with pytest.raises(ValueError, match=r"have other categories \(\(18, 'cat'\), \(18, 'dog'\)\)"):
        list_samples(config)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"annotations": ("a", "b"), "images": ("a",)}, "names 2 files and --images 1 folders"),
        ({"annotations": (), "images": ()}, "names 0 files"),
        ({"annotations": ("a", "b"), "images": ("a", "b")}, "say with --splits which split each is"),
        ({"annotations": ("a", "b"), "images": ("a", "b"), "splits": ("x", "x")}, "expected 2 different names"),
        ({"annotations": ("a",), "images": ("a",), "splits": ("x",), "val_fraction": 0.1}, "are both given"),
        ({"annotations": ("a",), "images": ("a",), "val_fraction": 1.0}, "--val-fraction is 1.0"),
    ],
)
def test_lists_that_do_not_fit_together_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CocoJsonConfig(**settings)


def test_annotations_of_a_sample_do_not_carry_the_boxes(tmp_path: Path) -> None:
    sample = list_samples(config_of(make_coco(tmp_path))).samples[0]
    assert isinstance(sample, DrawnSample)
    assert json.loads(sample.objects)[0] == [DOG, 10, [polygon_box(6, 6, 10, 10)]]
    assert len(pickle.dumps(sample)) < 1000
