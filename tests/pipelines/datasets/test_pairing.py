"""Images and labels by name, whoever lists them."""

from pathlib import Path

import pytest

from pipelines.datasets.pairing import Layer, SplitFiles, find_folder, list_layer, pair, read_id_list


def layer(folder: Path, ending: str, *keys: str) -> Layer:
    for key in keys:
        path = folder / f"{key}{ending}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return list_layer(str(folder), ending)


def test_a_layer_holds_what_has_its_ending_by_path_and_no_hidden_file(tmp_path: Path) -> None:
    layer(tmp_path, "_color.png", "city/a")
    layer(tmp_path, "_ids.png", ".hidden")
    assert layer(tmp_path, "_ids.png", "city/a", "b").uris == {
        "b": str(tmp_path / "b_ids.png"),
        "city/a": str(tmp_path / "city/a_ids.png"),
    }


def test_files_without_partner_are_reported_with_the_place_where_it_was_expected(tmp_path: Path) -> None:
    images, labels = layer(tmp_path / "i", ".jpg", "a", "c/b"), layer(tmp_path / "l", ".png", "a", "d")
    samples, unpaired = pair([SplitFiles(split="val", images=images, labels=labels)], remedy="look")
    assert [(sample.image_id, sample.split, sample.label_uri) for sample in samples] == [
        ("a", "val", str(tmp_path / "l/a.png"))
    ]
    assert [(entry.image_id, entry.uri, entry.reason) for entry in unpaired] == [
        ("b", str(tmp_path / "i/c/b.jpg"), f"the image has no label; expected {tmp_path}/l/c/b.png"),
        ("d", str(tmp_path / "l/d.png"), f"the label has no image; expected {tmp_path}/i/d.jpg"),
    ]


def test_a_list_decides_what_there_should_be(tmp_path: Path) -> None:
    images, labels = layer(tmp_path / "i", ".jpg", "a", "b"), layer(tmp_path / "l", ".png", "a", "b")
    files = SplitFiles(split="val", images=images, labels=labels, keys=("b", "gone"))
    samples, unpaired = pair([files], remedy="look")
    assert [sample.image_id for sample in samples] == ["b"]
    (gone,) = unpaired
    assert gone.reason.startswith("it is listed, but there is neither an image nor a label; expected")


def test_a_split_without_one_pair_and_nothing_at_all_are_refused(tmp_path: Path) -> None:
    images, labels = layer(tmp_path / "i", ".jpg", "a"), layer(tmp_path / "l", ".png", "a_mask")
    with pytest.raises(
        ValueError,
        match=r"none of the 2 names of val has an image and a label: for 'a' they .*i/a.jpg and .*l/a.png; look here",
    ):
        pair([SplitFiles(split="val", images=images, labels=labels)], remedy="look here")
    nothing = layer(tmp_path / "absent", ".jpg")
    with pytest.raises(ValueError, match=r"not one pair in .*absent \(\*.jpg\); look here"):
        pair([SplitFiles(split="val", images=nothing, labels=nothing)], remedy="look here")


def test_the_first_folder_that_holds_something_is_taken_or_the_message_says_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "kit" / "2012" / "lists").mkdir(parents=True)
    found = find_folder(str(tmp_path), ("", "kit/2012"), holding=("sets", "lists"), remedy="look")
    assert found == str(tmp_path / "kit/2012")
    with pytest.raises(ValueError, match=r"holds kit; expected sets or other in it; look here"):
        find_folder(str(tmp_path), ("", "kit"), holding=("sets", "other"), remedy="look here")


def test_lists_may_have_a_byte_order_mark_other_line_ends_and_empty_lines(tmp_path: Path) -> None:
    path = tmp_path / "train.txt"
    path.write_bytes(b"\xef\xbb\xbf2007_000032\r\n\r\n 2007_000033 \r\n\r\n")
    assert read_id_list(str(path)) == ("2007_000032", "2007_000033")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a\nb 1\n", "line 2: found 'b 1', expected one image's name"),
        ("JPEGImages/a\n", "line 1: found 'JPEGImages/a', expected one image's name"),
        ("a.jpg\n", "line 1: found 'a.jpg', expected one image's name without folder and ending"),
        ("a\nb\na\n", "names 'a' in line 1 and again in line 3; remove one"),
        ("\n\n", "is empty; expected one image's name per line"),
    ],
)
def test_lists_of_something_else_are_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "train.txt").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_id_list(str(tmp_path / "train.txt"))
