"""Fake Mapillary Vistas, in the layout of the download of v2.0 (labels of both versions) and in that of v1.x."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from tests.data.fake_files import every_value, write_image, write_label

LABELS: dict[str, tuple[tuple[str, str, tuple[int, int, int], bool], ...]] = {
    # name, readable, color, evaluate; both real tables end in what is not evaluated
    "v1.2": (
        ("animal--bird", "Bird", (165, 42, 42), True),
        ("construction--flat--road", "Road", (128, 64, 128), True),
        ("nature--sky", "Sky", (70, 130, 180), True),
        ("void--unlabeled", "Unlabeled", (0, 0, 0), False),
    ),
    "v2.0": (
        ("animal--bird", "Bird", (165, 42, 42), True),
        ("void--dynamic", "Dynamic", (111, 74, 0), False),
        ("construction--flat--road", "Road", (128, 64, 128), True),
        ("construction--flat--road-shoulder", "Road", (110, 110, 110), True),
        ("nature--sky", "Sky", (70, 130, 180), True),
        ("void--unlabeled", "Unlabeled", (0, 0, 0), False),
    ),
}


def make_mapillary(
    folder: Path, *, num_train: int = 3, num_val: int = 2, with_versions: bool = True, palette: bool = True
) -> Path:
    """Pairs whose labels hold every index. Without versions: config.json and labels of v1.2 alone. Returns `folder`."""
    versions = LABELS if with_versions else {"v1.2": LABELS["v1.2"]}
    for split, count in (("training", num_train), ("validation", num_val), ("testing", 1)):
        for index in range(count):
            key = f"{split[:2]}{index:02d}_abcdefghijklmnop-_"  # 22 characters
            write_image(folder / split / "images" / f"{key}.jpg", height=20, width=30)
            for version, labels in versions.items() if split != "testing" else ():
                place = folder / split / (f"{version}/labels" if with_versions else "labels")
                colours = [colour for _, _, colour, _ in labels] if palette else None
                indices_HW = every_value(range(len(labels)), height=20, width=30).astype(np.uint8)
                write_label(place / f"{key}.png", indices_HW, palette=colours)
    for version, labels in versions.items():
        config = folder / (f"config_{version}.json" if with_versions else "config.json")
        config.write_text(json.dumps(_config(labels)))
    return folder


def _config(labels: tuple[tuple[str, str, tuple[int, int, int], bool], ...]) -> dict[str, Any]:
    return {
        "version": 1.1,
        "mapping": "public",
        "folder_structure": "{split}/{content}/{key:.{22}}.{ext}",
        "labels": [
            {"name": name, "readable": readable, "color": colour, "evaluate": evaluate, "instances": evaluate}
            for name, readable, colour, evaluate in labels
        ],
    }
