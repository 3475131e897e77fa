"""Groups of images: every image is in one group of a kind, and wrong tables are named."""

import logging
from pathlib import Path

import pytest

from pipelines.evaluation.groups import (
    NO_FOLDER,
    NO_GROUP,
    ImageGroup,
    folder_groups,
    read_groups,
    size_groups,
    table_groups,
)


def members(groups: list[ImageGroup]) -> dict[str, tuple[int, ...]]:
    return {group.name: group.indices for group in groups}


def test_sizes_are_cut_into_quarters_of_the_images() -> None:
    found = size_groups([50, 10, 80, 20, 70, 30, 60, 40])
    assert [group.indices for group in found] == [(1, 3), (5, 7), (0, 6), (2, 4)]
    assert found[0].name == "10 to 20 pixels" and {group.kind for group in found} == {"size"}


def test_images_of_one_size_stay_together() -> None:
    assert members(size_groups([172_800] * 5)) == {"172,800 pixels": (0, 1, 2, 3, 4)}
    assert members(size_groups([6, 6, 6, 6, 6, 6, 6, 9])) == {"6 pixels": (0, 1, 2, 3, 4, 5, 6), "9 pixels": (7,)}
    assert members(size_groups([4])) == {"4 pixels": (0,)}


@pytest.mark.parametrize("count", [2, 3, 5, 17])
def test_every_image_is_in_one_group_of_sizes(count: int) -> None:
    found = size_groups([(7 * index) % 5 + 1 for index in range(count)])
    assert sorted(index for group in found for index in group.indices) == list(range(count))
    assert all(group.indices for group in found)


def test_folders_are_the_first_part_of_an_id() -> None:
    found = folder_groups(["aachen/a/1", "bonn/2", "aachen/3", "4"])
    assert members(found) == {NO_FOLDER: (3,), "aachen": (0, 2), "bonn": (1,)}


def test_a_table_groups_by_id_and_says_whom_it_does_not_know(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        found = table_groups(["a", "b", "c", "d"], {"c": "night", "a": "day", "b": "night", "other": "fog"})
    assert members(found) == {NO_GROUP: (3,), "day": (0,), "night": (1, 2)}
    assert "1 images are not in the table of groups, the first is 'd'" in caplog.text
    with pytest.raises(ValueError, match=r"names none of the split's 2 images; its ids are like 'x', .* like 'a'"):
        table_groups(["a", "b"], {"x": "day"})


def test_a_table_is_read_with_other_columns_beside_it(tmp_path: Path) -> None:
    file = tmp_path / "groups.csv"
    file.write_text('\ufeffweather,image_id,group\nrain,scene/1,"day, wet"\n,scene/2,night\n')
    assert read_groups(str(file)) == {"scene/1": "day, wet", "scene/2": "night"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,group\n1,a\n", r"has the columns \['id', 'group'\]; expected image_id and group"),
        ("image_id,group\n1,a\n1,b\n", "puts image '1' into 'a' and 'b'"),
        ("image_id,group\n1\n", "line 2 .*expected an image id and a group"),
        ("image_id,group\n", "has no rows"),
        ("", "has the columns None"),
    ],
)
def test_broken_tables_are_named(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "groups.csv"
    file.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_groups(str(file))


def test_a_missing_table_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"--groups .*none\.csv.*give a CSV file"):
        read_groups(str(tmp_path / "none.csv"))
