"""What a run takes from its labels: class weights, shares of visits, donors; and what cannot work is refused."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.numpy

from pipelines import storage
from pipelines.manifests import MANIFEST
from pipelines.recipes import Recipe, find_recipe
from pipelines.shards import SHARD_SCHEMA, PreparedDataset, open_dataset, parquet_bytes, read_part
from pipelines.training.balance import (
    DONORS_FILE,
    check_class_names,
    class_weights_of,
    read_class_pixels,
    write_balance,
)
from pipelines.training.batches import decoded
from pipelines.training.visits import IMAGE_WEIGHTS_FILE
from segcore.class_balance import SamplingConfig, image_weights, inverse_log_weights, median_frequency_weights
from segcore.copy_paste import CopyPasteConfig
from segcore.models.main_loss import ClassWeights, LossConfig
from tests.pipelines.learnable_dataset import NUM_TRAIN, tiny_recipe, write_learnable_dataset


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    return open_dataset(write_learnable_dataset(tmp_path_factory.mktemp("data")))


def recipe_with(**fields: Any) -> Recipe:
    return dataclasses.replace(tiny_recipe(), **fields)


def counted(dataset: PreparedDataset) -> np.ndarray:
    """Pixels of each class in each training image, from the labels themselves."""
    rows = [row for part in dataset.splits["train"].parts for row in read_part(dataset, part).to_pylist()]
    return np.array([np.bincount(decoded(row)[1].numpy().ravel(), minlength=256)[:4] for row in rows])


def test_the_counts_are_those_of_the_labels_in_the_order_of_the_parts(dataset: PreparedDataset) -> None:
    found = read_class_pixels(dataset, "train")
    assert found.dtype == np.int64 and found.shape == (NUM_TRAIN, 4)
    assert np.array_equal(found, counted(dataset))


@pytest.mark.parametrize("weights", ["none", "median_frequency", "inverse_log"])
def test_class_weights_are_those_of_the_training_labels(dataset: PreparedDataset, weights: ClassWeights) -> None:
    pixels = counted(dataset)
    expected: dict[ClassWeights, list[float]] = {
        "none": [],
        "median_frequency": median_frequency_weights(pixels, pixels.sum(axis=1)),
        "inverse_log": inverse_log_weights(pixels.sum(axis=0)),
    }
    recipe = recipe_with(loss=LossConfig(class_weights=weights))
    assert list(class_weights_of(recipe, dataset, "train")) == expected[weights]


def test_published_recipes_have_the_losses_of_their_papers(dataset: PreparedDataset) -> None:
    shares = np.array(dataset.splits["train"].class_pixels) / sum(dataset.splits["train"].class_pixels)
    espnet = find_recipe("cityscapes.espnet")
    assert class_weights_of(espnet, dataset, "train") == pytest.approx(1 / np.log(1.1 + shares))
    assert class_weights_of(find_recipe("camvid.enet"), dataset, "train") == pytest.approx(1 / np.log(1.02 + shares))
    assert find_recipe("camvid.segnet").loss.class_weights == "median_frequency"
    assert find_recipe("cityscapes.bisenet_resnet18").loss.main == "ohem"


def test_shares_and_donors_are_written_for_a_recipe_that_asks(dataset: PreparedDataset, tmp_path: Path) -> None:
    write_balance(tiny_recipe(), dataset, "train", str(tmp_path))
    assert not list(tmp_path.iterdir())
    sampling = SamplingConfig(method="rare_class", temperature=0.1)
    copy_paste = CopyPasteConfig(classes=("tree (tall)", "sky"), donors=6, min_pixels=300)
    write_balance(recipe_with(sampling=sampling, copy_paste=copy_paste), dataset, "train", str(tmp_path))
    pixels = counted(dataset)
    (shares,) = safetensors.numpy.load((tmp_path / IMAGE_WEIGHTS_FILE).read_bytes()).values()
    assert np.array_equal(shares, image_weights(pixels, sampling))
    donors = pq.read_table(tmp_path / DONORS_FILE).to_pylist()
    assert len(donors) == 6 and len({donor["image_id"] for donor in donors}) == 6
    shown = np.array([donor["class_pixels"] for donor in donors])
    assert ((shown[:, 2] >= 300) | (shown[:, 0] >= 300)).all()
    assert min((shown[:, index] >= 300).sum() for index in (0, 2)) >= 3, "each class has its share"


def test_hard_classes_are_found_by_name(dataset: PreparedDataset, tmp_path: Path) -> None:
    sampling = SamplingConfig(method="hard_class", hard_classes=("road",))
    write_balance(recipe_with(sampling=sampling), dataset, "train", str(tmp_path))
    (shares,) = safetensors.numpy.load((tmp_path / IMAGE_WEIGHTS_FILE).read_bytes()).values()
    assert np.array_equal(shares, image_weights(counted(dataset), sampling, hard_indices=(1,)))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"sampling": SamplingConfig(method="hard_class", hard_classes=("car",))},
            r"--sampling.hard-classes names 'car', .* it has 'sky', 'road'",
        ),
        ({"copy_paste": CopyPasteConfig(classes=("sky", "car"))}, "--copy-paste.classes names 'car'"),
    ],
)
def test_classes_that_the_dataset_does_not_have_are_refused(
    dataset: PreparedDataset, fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        check_class_names(recipe_with(**fields), dataset)


def test_a_class_without_a_donor_is_refused(dataset: PreparedDataset, tmp_path: Path) -> None:
    recipe = recipe_with(copy_paste=CopyPasteConfig(classes=("sky", "never")))
    with pytest.raises(ValueError, match=r"no training image shows 'never' with 100 pixels or more"):
        write_balance(recipe, dataset, "train", str(tmp_path))


def test_shards_without_counts_or_with_others_are_refused(tmp_path: Path) -> None:
    """A dataset that something else wrote: what is missing, and what to do."""
    folder = write_learnable_dataset(tmp_path)
    part = Path(folder, "train", "part-00001.parquet")
    rows = pq.read_table(part)
    changed = rows.to_pylist()
    changed[0]["class_pixels"][1] += 1
    part.write_bytes(parquet_bytes(changed, SHARD_SCHEMA))
    with pytest.raises(ValueError, match=r"the sums \[.*the manifest says .* run jobs/prepare.py again"):
        read_class_pixels(open_dataset(folder), "train")
    pq.write_table(rows.drop_columns(["class_pixels"]), part)
    with pytest.raises(ValueError, match=r"part-00001.parquet has no column 'class_pixels'.*jobs/prepare.py again"):
        read_class_pixels(open_dataset(folder), "train")
    part.write_bytes(b"PAR1")
    with pytest.raises(ValueError, match=r"part-00001.parquet is corrupt"):
        read_class_pixels(open_dataset(folder), "train")
    part.unlink()
    with pytest.raises(ValueError, match=r"part-00001.parquet is missing"):
        read_class_pixels(open_dataset(folder), "train")


def test_a_dataset_of_the_first_format_has_counts(dataset: PreparedDataset, tmp_path: Path) -> None:
    folder = write_learnable_dataset(tmp_path)
    manifest = storage.read_json(f"{folder}/{MANIFEST}")
    manifest.pop("task", None)
    storage.write_atomic(f"{folder}/{MANIFEST}", storage.json_bytes(manifest | {"format_version": 1}))
    assert np.array_equal(read_class_pixels(open_dataset(folder), "train"), counted(dataset))
    assert pa.types.is_list(SHARD_SCHEMA.field("class_pixels").type)
