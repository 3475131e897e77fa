"""GeoJSON of polygons: winding, coordinates, world files."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.tables.geojson import Affine, feature_collection, read_world_file
from segcore.mask_polygons import class_polygons


def _mask() -> np.ndarray[Any, np.dtype[np.uint8]]:
    mask_HW = np.zeros((6, 8), np.uint8)
    mask_HW[1:5, 2:7] = 1
    mask_HW[2:4, 3:5] = 0
    return mask_HW


def _features(affine: Affine | None) -> list[dict[str, Any]]:
    data = feature_collection(class_polygons(_mask()), ("sky", "road"), affine=affine, properties={"uri": "a.jpg"})
    content = json.loads(data)
    assert content["type"] == "FeatureCollection"
    features: list[dict[str, Any]] = content["features"]
    return features


def _signed_area(ring: list[list[float]]) -> float:
    assert ring[0] == ring[-1] and len(ring) >= 4
    x, y = np.array(ring).T
    return float(np.dot(x[:-1], y[1:]) - np.dot(x[1:], y[:-1])) / 2


@pytest.mark.parametrize("affine", [None, Affine(a=0.5, b=0, c=100, d=0, e=-0.25, f=50)])
def test_outer_rings_turn_left_and_holes_right(affine: Affine | None) -> None:
    features = _features(affine)
    assert [feature["properties"] for feature in features] == [
        {"class": "sky", "class_index": 0, "uri": "a.jpg"},
        {"class": "road", "class_index": 1, "uri": "a.jpg"},
    ]
    scale = 0.125 if affine else 1
    for index, feature in enumerate(features):
        assert feature["geometry"]["type"] == "MultiPolygon"
        areas = [[_signed_area(ring) for ring in rings] for rings in feature["geometry"]["coordinates"]]
        assert all(outer > 0 and all(hole < 0 for hole in holes) for outer, *holes in areas)
        assert sum(map(sum, areas)) == pytest.approx(scale * (_mask() == index).sum())


def test_a_transform_is_applied_to_pixel_corners() -> None:
    (road,) = [
        each for each in _features(Affine(a=2, b=0, c=10, d=0, e=-3, f=100)) if each["properties"]["class_index"]
    ]
    outer = np.array(road["geometry"]["coordinates"][0][0])
    assert (outer.min(axis=0).tolist(), outer.max(axis=0).tolist()) == ([14, 85], [24, 97])


def test_a_world_file_counts_from_the_centre_of_the_first_pixel(tmp_path: Path) -> None:
    (tmp_path / "a.jgw").write_text("2.0\n0\n0\n-3.0\n11.0\n98.5\n")
    affine = read_world_file(str(tmp_path / "a.jpg"))
    assert affine == Affine(a=2, b=0, c=10, d=0, e=-3, f=100)
    (tmp_path / "b.wld").write_text("2.0\n0.5\n0.25\n-3.0\n11.0\n98.5\n")
    turned = read_world_file(str(tmp_path / "b.JPG"))
    assert turned.apply(np.array([[0.5, 0.5]])).tolist() == [[11.0, 98.5]]
    assert (turned.b, turned.d) == (0.25, 0.5)


def test_missing_and_broken_world_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"a.tif has no world file .*a.tfw or .*a.wld; put it there"):
        read_world_file(str(tmp_path / "a.tif"))
    (tmp_path / "a.tfw").write_text("1 2 3")
    with pytest.raises(ValueError, match=r"a.tfw is no world file .*; it must hold six numbers"):
        read_world_file(str(tmp_path / "a.tif"))
