"""The perceptual hash against what photographs go through, and the search against comparing all pairs."""

import io

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from pipelines.datasets.scenes import draw_scene
from pipelines.health.hashing import near_pairs, perceptual_hash, shrunk, standardised, thumbnail

Gray = NDArray[np.uint8]


def distance(first: int, second: int) -> int:
    return (first ^ second).bit_count()


@pytest.fixture(scope="module")
def scenes() -> list[Gray]:
    drawn = (draw_scene(seed, height=120, width=160)[0] for seed in range(6))
    return [np.asarray(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), dtype=np.uint8) for pixels in drawn]


def recompressed(gray: Gray) -> Gray:
    file = io.BytesIO()
    Image.fromarray(gray).save(file, "JPEG", quality=40)
    return np.array(Image.open(file))


def test_hash_survives_size_compression_and_light_and_tells_scenes_apart(scenes: list[Gray]) -> None:
    for gray in scenes:
        own = perceptual_hash(shrunk(gray))
        larger = np.asarray(cv2.resize(gray, (400, 300), interpolation=cv2.INTER_CUBIC), dtype=np.uint8)
        darker = (gray * 0.7).astype(np.uint8)
        for changed in (larger, darker, recompressed(gray)):
            assert distance(own, perceptual_hash(shrunk(changed))) <= 6
            pair = standardised(
                np.frombuffer(thumbnail(shrunk(gray)) + thumbnail(shrunk(changed)), np.uint8).reshape(2, -1)
            )
            assert pair[0] @ pair[1] > 0.99
    hashes = [perceptual_hash(shrunk(gray)) for gray in scenes]
    assert min(distance(a, b) for index, a in enumerate(hashes) for b in hashes[:index]) > 7


@pytest.mark.parametrize("max_distance", [0, 3, 6, 7])
def test_search_finds_each_pair_once_as_comparing_all_pairs_does(max_distance: int) -> None:
    rng = np.random.default_rng(0)
    centres = rng.integers(0, 2**64, 60, dtype=np.uint64)
    hashes = list(np.repeat(centres, 5))
    for index in range(len(hashes)):
        for bit in rng.choice(64, size=int(rng.integers(0, 6)), replace=False):
            hashes[index] ^= np.uint64(1) << np.uint64(bit)
    expected = {
        (i, j, distance(int(hashes[i]), int(hashes[j])))
        for j in range(len(hashes))
        for i in range(j)
        if distance(int(hashes[i]), int(hashes[j])) <= max_distance
    }
    found = [
        triple
        for chunk in near_pairs(np.array(hashes, dtype=np.uint64), max_distance=max_distance)
        for triple in zip(*(part.tolist() for part in chunk), strict=True)
    ]
    assert len(expected) > 10
    assert len(found) == len(set(found))
    assert set(found) == expected


def test_search_of_a_camera_that_stands_still_ends_and_says_so() -> None:
    with pytest.raises(OverflowError, match="more than 1000 pairs"):
        list(near_pairs(np.zeros(100, dtype=np.uint64), max_distance=6, max_candidates=1000))


def test_distance_beyond_the_search_is_refused() -> None:
    with pytest.raises(ValueError, match="max_distance is 8, expected 0 to 7"):
        list(near_pairs(np.zeros(2, dtype=np.uint64), max_distance=8))
