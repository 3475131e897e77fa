"""Pixels of chosen classes from one crop onto another."""

import pytest
import torch

from segcore import IGNORE_INDEX
from segcore.copy_paste import CopyPasteConfig, paste_classes


def test_pixels_of_the_classes_and_no_others_come_from_the_donor() -> None:
    generator = torch.Generator().manual_seed(0)
    image, donor = (torch.randint(0, 256, (3, 6, 8), generator=generator, dtype=torch.uint8) for _ in range(2))
    labels, donor_labels = (torch.randint(0, 5, (6, 8), generator=generator, dtype=torch.uint8) for _ in range(2))
    donor_labels[0] = IGNORE_INDEX
    before = image.clone()
    pasted, pasted_labels = paste_classes(
        image, labels, donor, donor_labels, classes=torch.tensor([1, 4], dtype=torch.uint8)
    )
    for row in range(6):
        for column in range(8):
            from_donor = int(donor_labels[row, column]) in (1, 4)
            source, source_labels = (donor, donor_labels) if from_donor else (image, labels)
            assert torch.equal(pasted[:, row, column], source[:, row, column])
            assert pasted_labels[row, column] == source_labels[row, column]
    assert torch.equal(image, before), "the crop itself stays"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"probability": 0.0}, "probability is 0.0"),
        ({"donors": 0}, "donors is 0"),
        ({"min_pixels": 0}, "min_pixels 0"),
        ({"classes": ("car", "car")}, "name each once"),
    ],
)
def test_settings_that_cannot_work_are_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CopyPasteConfig(**fields)  # type: ignore[arg-type]
