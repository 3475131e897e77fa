"""Polygons of a mask as GeoJSON, in pixels or through an affine transform."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines import storage
from segcore.mask_polygons import Ring

WORLD_SUFFIXES = {"jpg": "jgw", "jpeg": "jgw", "tif": "tfw", "tiff": "tfw", "png": "pgw", "bmp": "bpw", "gif": "gfw"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Affine:
    """x = a * column + b * row + c, y = d * column + e * row + f; (0, 0) is the upper left corner of the image."""

    a: float
    b: float
    c: float
    d: float
    e: float
    f: float

    def apply(self, points_N2: NDArray[Any]) -> NDArray[np.float64]:
        """Columns and rows to x and y."""
        column, row = points_N2[:, 0], points_N2[:, 1]
        return np.stack(
            [self.a * column + self.b * row + self.c, self.d * column + self.e * row + self.f], axis=1
        ).astype(np.float64)


def read_world_file(image_uri: str) -> Affine:
    """The transform that the world file beside an image gives: `a.jgw` of `a.jpg`, or `a.wld`.

    Raises:
        ValueError: there is none, or it does not hold six numbers.
    """
    stem, _, suffix = image_uri.rpartition(".")
    candidates = [f"{stem}.{WORLD_SUFFIXES.get(suffix.lower(), 'wld')}", f"{stem}.wld"]
    uri = next((each for each in candidates if storage.exists(each)), None)
    if uri is None:
        raise ValueError(
            f"{image_uri} has no world file {' or '.join(sorted(set(candidates)))}; put it there, or give --affine or "
            "neither for pixel coordinates"
        )
    try:
        a, d, b, e, c, f = (float(line) for line in storage.read_bytes(uri).decode().split())
    except ValueError as error:
        raise ValueError(f"{uri} is no world file ({error}); it must hold six numbers, one per line") from error
    # a world file's origin is the centre of the first pixel
    return Affine(a=a, b=b, c=c - (a + b) / 2, d=d, e=e, f=f - (d + e) / 2)


def feature_collection(
    polygons: Mapping[int, Sequence[Sequence[Ring]]],
    class_names: Sequence[str],
    *,
    affine: Affine | None,
    properties: Mapping[str, Any],
) -> bytes:
    """One feature per class, a MultiPolygon, outer rings counterclockwise and holes clockwise (RFC 7946).

    Args:
        polygons: by class index, as `segcore.mask_polygons` gives them.
        class_names: by class index.
        affine: None: coordinates are pixels, x to the right, y down.
        properties: of every feature, beside `class` and `class_index`.
    """
    features = [
        {
            "type": "Feature",
            "properties": {
                "class": class_names[index] if index < len(class_names) else "ignored",
                "class_index": index,
                **properties,
            },
            "geometry": {
                "type": "MultiPolygon",
                "coordinates": [
                    [_coordinates(ring, affine, is_hole=number > 0) for number, ring in enumerate(rings)]
                    for rings in found
                ],
            },
        }
        for index, found in polygons.items()
    ]
    return (json.dumps({"type": "FeatureCollection", "features": features}, separators=(",", ":")) + "\n").encode()


def _coordinates(ring: Ring, affine: Affine | None, *, is_hole: bool) -> list[list[float]]:
    points_N2 = ring if affine is None else affine.apply(ring)
    x, y = points_N2[:, 0] - points_N2[0, 0], points_N2[:, 1] - points_N2[0, 1]
    doubled_area = float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1)))
    if (doubled_area < 0) != is_hole:
        points_N2 = points_N2[::-1]
    closed: list[list[float]] = [*points_N2.tolist(), points_N2[0].tolist()]
    return closed
