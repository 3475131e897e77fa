"""PASCAL Context, from PNGs and from MATLAB files."""

from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from scipy.io import savemat

from pipelines.datasets.pascal_context import NUMBER_OF_NAME, PascalContextConfig, list_samples
from pipelines.intake.formats import ImageError
from segcore import IGNORE_INDEX
from tests.data.pascal_context.make import TRAIN, VAL, make_pascal_context
from tests.pipelines.datasets.listed_labels import class_indices, ids_of, lines_digest, stored_values

Classes = Literal[59, 60]


@pytest.mark.parametrize("num_classes", [59, 60])
@pytest.mark.parametrize("original", [False, True])
def test_the_background_is_a_class_or_ignored(tmp_path: Path, num_classes: Classes, original: bool) -> None:
    fake = make_pascal_context(tmp_path)
    annotations = fake.annotations if original else None
    config = PascalContextConfig(root=fake.root, annotations=annotations, num_classes=num_classes)
    listing = list_samples(config)
    assert len(listing.class_table.names) == num_classes
    assert (listing.class_table.names[0] == "background") == (num_classes == 60)
    assert set(np.unique(class_indices(listing, VAL[0]))) == {
        *range(num_classes),
        *([IGNORE_INDEX] if num_classes == 59 else []),
    }


def test_the_59_come_in_the_order_of_the_releases_list_with_the_numbers_of_the_459() -> None:
    names = list(NUMBER_OF_NAME)
    assert names[:3] == ["aeroplane", "bicycle", "bird"]
    assert names[20:22] == ["bag", "bed"]
    assert (names[10], names[27], names[51], names[58]) == ("table", "cloth", "bedclothes", "wood")
    # The 459 are numbered by the alphabet, but for hyphens and blanks, which none of the 59 has.
    assert sorted(names) == sorted(names, key=NUMBER_OF_NAME.__getitem__)
    # Of `classes-59.txt` with the names of the 459, and their numbers in `classes-400.txt`: "aeroplane 2" and so on.
    assert lines_digest(f"{name} {number}" for name, number in NUMBER_OF_NAME.items()) == "8f8b9ec4e7304b24"


def test_values_of_pngs_are_alphabetical_unless_they_are_said_to_be_as_listed(tmp_path: Path) -> None:
    root = make_pascal_context(tmp_path).root
    listing = list_samples(PascalContextConfig(root=root, num_classes=60))
    stored_HW, indices_HW = stored_values(listing, VAL[0]), class_indices(listing, VAL[0])
    alphabet = ["background", *sorted(NUMBER_OF_NAME)]
    named = [listing.class_table.names[index] for index in indices_HW[stored_HW == 55]]
    assert (
        set(named) == {"tvmonitor"} == {alphabet[55]}
    )  # taken for truck, the list's 55th, in mmsegmentation's issue 1940
    assert {alphabet[value]: int(indices_HW[stored_HW == value][0]) for value in range(60)} == {
        name: index for index, name in enumerate(listing.class_table.names)
    }
    listed = list_samples(PascalContextConfig(root=root, num_classes=60, png_order="listed"))
    assert np.array_equal(class_indices(listed, VAL[0]), stored_HW)


def test_matlab_files_and_alphabetical_pngs_of_the_same_labels_come_out_alike(tmp_path: Path) -> None:
    fake = make_pascal_context(tmp_path)
    from_pngs = list_samples(PascalContextConfig(root=fake.root, num_classes=60))
    values_HW = stored_values(from_pngs, VAL[0])
    numbers = np.array([431, *sorted(NUMBER_OF_NAME.values())], dtype=np.uint16)  # 431 = unknown
    savemat(Path(fake.annotations) / "trainval" / f"{VAL[0]}.mat", {"LabelMap": numbers[values_HW]})
    config = PascalContextConfig(root=fake.root, num_classes=60, annotations=fake.annotations)
    from_files = list_samples(config)
    assert np.array_equal(class_indices(from_files, VAL[0]), class_indices(from_pngs, VAL[0]))
    assert from_files.class_table.names == from_pngs.class_table.names


def test_lists_are_those_of_context_or_else_vocs_own(tmp_path: Path) -> None:
    root = make_pascal_context(tmp_path).root
    for name in ("train", "val"):
        (Path(root) / f"VOC2010/ImageSets/SegmentationContext/{name}.txt").unlink()
    listing = list_samples(PascalContextConfig(root=root, num_classes=59))
    assert (ids_of(listing, "train"), ids_of(listing, "val")) == (set(TRAIN), set(VAL))


def test_label_lists_that_number_otherwise_are_refused(tmp_path: Path) -> None:
    fake = make_pascal_context(tmp_path)
    config = PascalContextConfig(root=fake.root, num_classes=59, annotations=fake.annotations)
    by_number = {number: name for name, number in NUMBER_OF_NAME.items()}
    names = [by_number.get(number, "air conditioner") for number in range(1, 460)]
    lists = {"labels.txt": names, "59_labels.txt": list(NUMBER_OF_NAME)}
    lists["59_labels.txt"][10] = "diningtable"  # as the release spells it there
    for name, labels in lists.items():
        lines = [f"{number}: {label}\r\n" for number, label in enumerate(labels, start=1)]
        (Path(fake.annotations) / name).write_text("".join(lines))
    assert len(list_samples(config).samples) == 3
    for name, labels in lists.items():
        path = Path(fake.annotations) / name
        right = path.read_bytes()
        path.write_text("".join(f"{number}: {label}\n" for number, label in enumerate(labels)))
        with pytest.raises(ValueError, match=f"{name} calls label .* expected 'aeroplane'; put back the published"):
            list_samples(config)
        path.write_text("aeroplane\n")
        with pytest.raises(ValueError, match="line 1: found 'aeroplane', expected a number and a name"):
            list_samples(config)
        path.write_bytes(right)


def test_a_label_beyond_459_is_refused(tmp_path: Path) -> None:
    fake = make_pascal_context(tmp_path)
    savemat(Path(fake.annotations) / f"trainval/{VAL[0]}.mat", {"LabelMap": np.array([[1, 460]])})
    config = PascalContextConfig(root=fake.root, num_classes=59, annotations=fake.annotations)
    with pytest.raises(ImageError, match="LabelMap has the value 460, expected 0 to 459; restore the file"):
        stored_values(list_samples(config), VAL[0])


def test_settings_that_make_no_sense_and_missing_labels_are_refused(tmp_path: Path) -> None:
    fake = make_pascal_context(tmp_path)
    with pytest.raises(ValueError, match="--num-classes is 33, expected 59, or 60 with the background"):
        PascalContextConfig(root=fake.root, num_classes=33)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="--png-order is given beside --annotations"):
        PascalContextConfig(root=fake.root, num_classes=59, annotations=fake.annotations, png_order="listed")
    (Path(fake.root) / "VOC2010/SegmentationClassContext").rename(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=r"none of the 2 names of train .* or --annotations names the original"):
        list_samples(PascalContextConfig(root=fake.root, num_classes=59))
