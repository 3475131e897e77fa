"""Copy-paste within a training: the generator of the image decides, and nothing else."""

from pathlib import Path

import numpy as np
import pytest
import torch

from pipelines.shards import SHARD_SCHEMA, PreparedDataset, open_dataset, parquet_bytes, read_part
from pipelines.training.batches import Pair, Row, decoded
from pipelines.training.donors import Draw, pasting
from segcore.augment import augment
from segcore.augment_config import AugmentConfig
from segcore.copy_paste import CopyPasteConfig
from tests.pipelines.learnable_dataset import write_learnable_dataset

AUGMENT = AugmentConfig(crop_height=40, crop_width=48, scale_min=0.75, scale_max=1.5)
FILL = (1, 2, 3)
TREE = 2


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    return open_dataset(write_learnable_dataset(tmp_path_factory.mktemp("data")))


@pytest.fixture(scope="module")
def rows(dataset: PreparedDataset) -> list[Row]:
    found: list[Row] = read_part(dataset, dataset.splits["train"].parts[0]).to_pylist()
    return found


def plain(row: Row, generator: torch.Generator) -> Pair:
    return augment(*decoded(row), AUGMENT, generator, fill=FILL)


def drawing(dataset: PreparedDataset, rows: list[Row], folder: Path, **settings: object) -> Draw:
    (folder / "donors.parquet").write_bytes(parquet_bytes(rows[1:3], SHARD_SCHEMA))
    config = CopyPasteConfig(classes=("tree (tall)",), **settings)  # type: ignore[arg-type]
    donors = str(folder / "donors.parquet")
    return pasting(plain, donors, config, dataset=dataset, augmentation=AUGMENT, fill=FILL)


def test_only_pixels_of_the_class_change_and_they_are_a_donors(
    dataset: PreparedDataset, rows: list[Row], tmp_path: Path
) -> None:
    draw = drawing(dataset, rows, tmp_path, probability=1.0)
    pasted = 0
    for seed in range(12):
        image, labels = plain(rows[0], torch.Generator().manual_seed(seed))
        found, found_labels = draw(rows[0], torch.Generator().manual_seed(seed))
        assert found.shape == image.shape and found_labels.dtype == torch.uint8
        changed = (found != image).any(dim=0) | (found_labels != labels)
        assert (found_labels[changed] == TREE).all()
        pasted += int((found_labels != labels).sum())
    assert pasted > 1000


def test_the_same_generator_gives_the_same_crop_and_goes_on_from_the_same_state(
    dataset: PreparedDataset, rows: list[Row], tmp_path: Path
) -> None:
    draw = drawing(dataset, rows, tmp_path)
    for seed in range(6):
        one, two = (torch.Generator().manual_seed(seed) for _ in range(2))
        for first, second in zip(draw(rows[0], one), draw(rows[0], two), strict=True):
            assert torch.equal(first, second)
        assert torch.equal(one.get_state(), two.get_state())


def test_about_as_many_crops_are_pasted_on_as_the_recipe_says(
    dataset: PreparedDataset, rows: list[Row], tmp_path: Path
) -> None:
    draw = drawing(dataset, rows, tmp_path, probability=0.25)
    generators = [(torch.Generator().manual_seed(seed), torch.Generator().manual_seed(seed)) for seed in range(100)]
    changed = [not torch.equal(draw(rows[0], one)[0], plain(rows[0], two)[0]) for one, two in generators]
    assert 0.12 < np.mean(changed) < 0.38
