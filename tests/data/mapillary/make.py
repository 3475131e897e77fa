"""Fake Mapillary Vistas, in the layout of the download of v2.0 (labels of both versions) and in that of v1.x."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

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
    rng = np.random.default_rng(0)
    versions = LABELS if with_versions else {"v1.2": LABELS["v1.2"]}
    for split, count in (("training", num_train), ("validation", num_val), ("testing", 1)):
        (folder / split / "images").mkdir(parents=True)
        for index in range(count):
            key = f"{split[:2]}{index:02d}_abcdefghijklmnop-_"  # 22 characters
            image = Image.fromarray(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8))
            image.save(folder / split / "images" / f"{key}.jpg")
            for version, labels in versions.items() if split != "testing" else ():
                place = folder / split / (f"{version}/labels" if with_versions else "labels")
                place.mkdir(parents=True, exist_ok=True)
                label = Image.fromarray((np.arange(600).reshape(20, 30) % len(labels)).astype(np.uint8))
                if palette:
                    label.putpalette([level for _, _, colour, _ in labels for level in colour])
                label.save(place / f"{key}.png")
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
