"""The class table that a user writes: values or colours, and what is said of broken ones."""

import json
from pathlib import Path

import numpy as np
import pytest

from pipelines.datasets.class_table_files import read_label_coding
from tests.data.folder.make import COLOUR_CLASSES


def test_class_table_from_yaml_and_json_with_values_palette_and_ignore(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("names: {7: road, 0: sky}\npalette: [[1, 2, 3], [4, 5, 6]]\nignore: [255, 9]\n")
    coding = read_label_coding(str(tmp_path / "c.yaml"))
    table = coding.class_table
    assert coding.colours is None
    assert coding.settings() == {}
    assert (table.names, table.values, table.palette) == (("sky", "road"), (0, 7), ((1, 2, 3), (4, 5, 6)))
    assert table.class_indices(np.array([[0, 7, 9, 255]], dtype=np.uint8)).tolist() == [[0, 1, 255, 255]]
    (tmp_path / "c.json").write_text(json.dumps({"names": ["sky", "road"]}))
    plain = read_label_coding(str(tmp_path / "c.json")).class_table
    assert plain.palette == ((128, 0, 0), (0, 128, 0))  # PASCAL VOC's classes 1 and 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[sky, road]", "holds list, expected `names`"),
        ("names: [a]\ncolors: rgb", r"holds \['colors', 'names'\], expected `names`"),
        ("colours: bgr\nnames: [a]\npalette: [[0, 0, 0]]", "`colours` is 'bgr', expected rgb"),
        ("colours: rgb\nnames: [a]", "need `names` as a list, and a `palette`"),
        ("colours: rgb\nnames: {1: a}\npalette: [[0, 0, 0]]", "need `names` as a list"),
        ("colours: rgb\nnames: [a]\npalette: [[0, 0, 0]]\nignore: [255]", r"`ignore` is \[255\], expected colours"),
        ("colours: rgb\nnames: [a, b]\npalette: [[0, 0, 0], [0, 0, 0]]", r"\(0, 0, 0\) stands twice"),
        ("colours: rgb\nnames: [a]\npalette: [[0, 0]]", "not enough values to unpack"),
        ("names: a", "`names` is a str, expected a list"),
        ("names: [a, a]", "has the name a twice"),
        ("names: [a, b]\npalette: [[0, 0, 0]]", "2 names, 1 colours"),
        ("names: [a]\npalette: [[0, 0, 256]]", "a level outside 0..255"),
        ("names: [a, b]\nignore: [1]", "the label value 1 twice"),
        ("names: [a, '']", "an empty name"),
        ("names: []", "0 classes, expected 1 to 254"),
        ("names: {-1: a}", "outside 0..65535"),
        ("names: [", "neither YAML nor JSON"),
    ],
)
def test_broken_class_tables_are_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_label_coding(str(tmp_path / "c.yaml"))


def test_missing_class_table_shows_an_example(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"does not exist; write one, for example\nnames: \[sky, road, car\]"):
        read_label_coding(str(tmp_path / "absent.yaml"))


def test_colours_get_the_indices_of_their_names_and_ignored_ones_255(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(COLOUR_CLASSES)
    coding = read_label_coding(str(tmp_path / "c.yaml"))
    assert coding.colours is not None
    assert coding.colours.values == (((70, 130, 180), 0), ((128, 64, 128), 1), ((0, 0, 0), 255))
    assert (coding.class_table.values, coding.class_table.ignore_values) == ((0, 1), (255,))
    assert coding.class_table.palette == ((70, 130, 180), (128, 64, 128))
