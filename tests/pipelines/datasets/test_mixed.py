"""Several prepared datasets as one: classes mapped by name, image bytes as they were, images interleaved."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from pipelines import storage
from pipelines.datasets import list_dataset
from pipelines.datasets.listing import MappedImage
from pipelines.datasets.mixed import MixedConfig, interleaved, list_samples
from pipelines.manifests import MANIFEST
from pipelines.prepare import PrepareConfig, cut_into_shards, prepare
from pipelines.prepare_shard import Statistics, mapped_rows
from pipelines.shards import open_dataset, read_part
from pipelines.training.batches import decoded
from segcore import IGNORE_INDEX
from tests.pipelines.tiny_inputs import random_pairs, write_dataset

CITY = {"sky": "sky", "road": "ground", "tree (tall)": "plant", "never": "ignore"}
FARM = {"air": "sky", "mud": "ground", "barn": None, "tractor": "machine"}


def write_pair(folder: Path) -> dict[str, Any]:
    """Two prepared datasets of 20 and 5 images with different class tables, and their mapping."""
    write_dataset(folder / "city", random_pairs(20, seed=1), images_per_part=8, split="train")
    write_dataset(folder / "farm", random_pairs(5, seed=2), images_per_part=4, split="day")
    manifest = storage.read_json(str(folder / "farm" / MANIFEST)) | {"class_names": list(FARM)}
    storage.write_atomic(str(folder / "farm" / MANIFEST), storage.json_bytes(manifest))
    return {
        "names": ["sky", "ground", "plant", "machine"],
        "datasets": {
            "city": {"data": str(folder / "city"), "classes": dict(CITY)},
            "farm": {"data": str(folder / "farm"), "classes": dict(FARM), "splits": {"day": "train"}},
        },
    }


def config_of(mapping: dict[str, Any], folder: Path) -> MixedConfig:
    (folder / "mix.yaml").write_text(yaml.safe_dump(mapping))
    return MixedConfig(mapping=str(folder / "mix.yaml"))


def rows_below(uri: str, split: str) -> dict[str, dict[str, Any]]:
    dataset = open_dataset(uri)
    return {
        row["image_id"]: row for part in dataset.splits[split].parts for row in read_part(dataset, part).to_pylist()
    }


def test_labels_get_the_mapped_classes_and_images_stay_as_they_are(tmp_path: Path) -> None:
    listing = list_samples(config_of(write_pair(tmp_path), tmp_path))
    assert listing.class_table.names == ("sky", "ground", "plant", "machine")
    assert [sample.split for sample in listing.samples] == ["train"] * 25
    sources = {
        f"{name}/{image_id}": (name, row)
        for name, split in (("city", "train"), ("farm", "day"))
        for image_id, row in rows_below(str(tmp_path / name), split).items()
    }
    assert {sample.image_id for sample in listing.samples} == sources.keys()
    expected = {"city": [0, 1, 2, IGNORE_INDEX], "farm": [0, 1, IGNORE_INDEX, 3]}
    statistics = Statistics.zero(4)
    for sample in listing.samples:
        (row,) = mapped_rows(sample, statistics, class_table=listing.class_table, targets=listing.targets)
        name, source = sources[sample.image_id]
        assert row["image"] == source["image"] and row["source"] == source["source"]
        assert row["image_sha256"] == source["image_sha256"]
        before, after = decoded(source)[1].numpy(), decoded(row)[1].numpy()
        for value in np.unique(before):
            target = IGNORE_INDEX if value == IGNORE_INDEX else expected[name][value]
            assert (after[before == value] == target).all()
        assert row["class_pixels"] == [int((after == index).sum()) for index in range(4)]
    assert statistics.class_pixels_C[3] == 0 and min(statistics.class_pixels_C[:3]) > 0


def test_shards_hold_images_of_all_datasets_in_proportion_and_few_parts(tmp_path: Path) -> None:
    listing = list_dataset(config_of(write_pair(tmp_path), tmp_path))
    config = PrepareConfig(dataset=None, output="", images_per_part=10)
    shards = list(cut_into_shards(listing, config))
    assert [len(shard.samples) for shard in shards] == [10, 10, 5]
    for shard in shards:
        mapped = [sample for sample in shard.samples if isinstance(sample, MappedImage)]
        assert sum(sample.dataset == "farm" for sample in mapped) == len(mapped) // 5
        uris = [sample.part_uri for sample in mapped]
        assert len(set(uris)) <= 4 and uris == sorted(uris), "a task reads each part once"


def test_images_of_each_dataset_keep_their_order_when_they_are_interleaved() -> None:
    def images(dataset: str, count: int) -> list[MappedImage]:
        fields = {"split": "train", "part_uri": "", "part_sha256": "", "dataset": dataset}
        return [MappedImage(image_id=f"{dataset}{row}", row=row, **fields) for row in range(count)]

    mixed = interleaved([images("a", 6), images("b", 2), []])
    assert [each.image_id for each in mixed] == ["a0", "a1", "b0", "a2", "a3", "a4", "b1", "a5"]


@pytest.mark.usefixtures("ray_session")
def test_a_mixed_dataset_is_prepared_as_any_other(tmp_path: Path) -> None:
    mapping = write_pair(tmp_path)
    config = PrepareConfig(dataset=config_of(mapping, tmp_path), output=str(tmp_path / "mixed"), images_per_part=10)
    result = prepare(config)
    assert result.num_images == {"train": 25} and not result.num_failures
    found = rows_below(result.uri, "train")
    assert list(found) != sorted(found), "rows of a shard are mixed"
    dataset = open_dataset(result.uri)
    assert (
        list(dataset.splits["train"].class_pixels)
        == np.sum([row["class_pixels"] for row in found.values()], 0).tolist()
    )
    assert prepare(dataclasses.replace(config, workers=1)).already_complete
    mapping["datasets"]["city"]["classes"]["road"] = "ignore"
    with pytest.raises(ValueError, match=r"begun or finished with other settings: config differ"):
        prepare(dataclasses.replace(config, dataset=config_of(mapping, tmp_path)))


def changed(mapping: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    *folders, last = path.split(".")
    place = mapping
    for name in folders:
        place = place[name]
    place.pop(last) if value is None else place.update({last: value})
    return mapping


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("names", None, r"holds \['datasets'\], expected `names`, `datasets`"),
        ("names", ["sky", "ignore"], "expected a list of class names without 'ignore'"),
        ("names", ["sky", "sky"], "class table in .* has the name sky twice"),
        ("palette", [[1, 2, 3]], "4 names, 1 colours"),
        ("datasets", {}, "expected a map from names of datasets"),
        ("datasets.city.data", None, "expected `data`, a map `classes`"),
        ("datasets.city.classes", ["sky"], "expected `data`, a map `classes`"),
        ("datasets.city.data", "nowhere", "holds no manifest.json"),
        ("datasets.city.classes.road", None, "not named: road; not in the dataset: none"),
        ("datasets.city.classes.roof", "sky", "not named: none; not in the dataset: roof"),
        ("datasets.city.classes.road", "water", "leads to water, which `names` does not have; it has sky, ground"),
        ("datasets.farm.splits", {"night": "train"}, r"no split 'night'; it has 'day'"),
        ("datasets.farm.splits", {"day": "a/b"}, "a split's name is a folder's"),
    ],
)
def test_mappings_that_cannot_be_meant_are_refused(tmp_path: Path, path: str, value: Any, message: str) -> None:
    mapping = changed(write_pair(tmp_path), path, value)
    with pytest.raises(ValueError, match=message):
        list_samples(config_of(mapping, tmp_path))


def test_a_missing_or_broken_mapping_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not exist"):
        list_samples(MixedConfig(mapping=str(tmp_path / "absent.yaml")))
    (tmp_path / "broken.yaml").write_text("names: [a")
    with pytest.raises(ValueError, match="is not YAML"):
        list_samples(MixedConfig(mapping=str(tmp_path / "broken.yaml")))
