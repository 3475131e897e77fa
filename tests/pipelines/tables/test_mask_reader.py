"""One mask of many: found by the footer's statistics, without reading other row groups."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipelines.maintain import MaintainConfig, maintain
from pipelines.tables import schemas
from pipelines.tables.mask_reader import find_masks, mask_index, read_mask
from tests.pipelines.night_tables import Mask, blocky_masks, publish_night


@pytest.fixture
def masks() -> dict[str, Mask]:
    """Ids in no order."""
    rng = np.random.default_rng(0)
    return {
        f"{key:08x}": mask for key, mask in zip(rng.permutation(40).tolist(), blocky_masks(40, seed=1), strict=True)
    }


@pytest.fixture
def folder(tmp_path: Path, masks: dict[str, Mask]) -> str:
    """Two nights in shards of seven."""
    folder = str(tmp_path / "tables")
    nights = [dict(list(masks.items())[:25]), dict(list(masks.items())[25:])]
    publish_night(folder, "000001", nights[0], images_per_shard=7)
    publish_night(folder, "000002", nights[1], images_per_shard=7, run_date="2026-11-21", failed=["broken"])
    return folder


@pytest.mark.parametrize("merged", [False, True])
def test_every_mask_is_found_by_its_id(folder: str, masks: dict[str, Mask], merged: bool) -> None:
    if merged:
        maintain(MaintainConfig(tables=folder, compact=True, apply=True))
    for work_id in list(masks)[::9]:
        np.testing.assert_array_equal(read_mask(folder, work_id).pixels(), masks[work_id])
    found = {mask.work_id: mask for mask in find_masks(mask_index(folder), [*masks, "unknown", "broken"])}
    assert found.keys() == masks.keys()
    for work_id, mask in found.items():
        assert (mask.height, mask.width) == masks[work_id].shape
        np.testing.assert_array_equal(mask.pixels(), masks[work_id])
    with pytest.raises(KeyError, match="holds no mask of work id 'broken': its image failed"):
        read_mask(folder, "broken")


def test_only_the_nights_asked_for_are_looked_into(folder: str, masks: dict[str, Mask]) -> None:
    index = mask_index(folder, run_dates=["2026-11-21"])
    assert {mask.work_id for mask in find_masks(index, list(masks))} == set(list(masks)[25:])


def test_one_row_group_of_a_merged_file_is_read(
    folder: str, masks: dict[str, Mask], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schemas, "MASKS_PER_ROW_GROUP", 4)
    maintain(MaintainConfig(tables=folder, compact=True, apply=True))
    read: list[int] = []
    read_row_group = pq.ParquetFile.read_row_group

    def counted(self: pq.ParquetFile, group: int, columns: list[str]) -> object:
        read.append(group)
        return read_row_group(self, group, columns=columns)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", counted)
    index = mask_index(folder, run_dates=["2026-11-20"])
    assert [len(file.first_ids) for file in index.files] == [7]
    for work_id in list(masks)[:25]:
        read.clear()
        assert next(find_masks(index, [work_id])).work_id == work_id
        assert len(read) == 2 and len(set(read)) == 1  # ids first, then the rest, of one group


def test_of_masks_with_one_id_the_newest_is_given(tmp_path: Path) -> None:
    """A work list may be forced: the same id in a later run."""
    folder = str(tmp_path)
    old, new = blocky_masks(2, seed=5)
    publish_night(folder, "000001", {"a": old})
    publish_night(folder, "000002", {"a": new})
    np.testing.assert_array_equal(read_mask(folder, "a").pixels(), new)
    maintain(MaintainConfig(tables=folder, compact=True, apply=True))
    np.testing.assert_array_equal(read_mask(folder, "a").pixels(), new)
