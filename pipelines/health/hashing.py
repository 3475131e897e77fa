"""Images that look alike: a perceptual hash of 64 bits, and all pairs of hashes that differ in a few bits.

The hash is the sign, against their median, of the 63 lowest frequencies but the mean in an 8 x 8 corner of the discrete
cosine transform of the image at 32 x 32 pixels; the mean's own bit is 0. It survives another size, another compression
and a change of brightness or contrast, and neither a crop nor a reflection.

Pairs are found without comparing all: four bands of 16 bits are tables, and where two hashes differ in at most 7 bits,
one band differs in at most one (pigeonhole). So each hash looks up 17 values in each of four tables.

Source: Zauner, "Implementation and Benchmarking of Perceptual Image Hash Functions", 2010, section 3.2 (the hash);
Norouzi, Punjani and Fleet, "Fast Search in Hamming Space with Multi-Index Hashing", CVPR 2012 (the search).
"""

from collections.abc import Iterator

import cv2
import numpy as np
from numpy.typing import NDArray

from pipelines.health.limits import MAX_HASH_DISTANCE

HASHED_PX = 32
CORNER = 8
THUMBNAIL_PX = 16
BANDS, BAND_BITS = 4, 16
CHUNK = 2**22
"""Candidates that are compared at a time."""
MAX_CANDIDATES = 2 * 10**9
"""Where there are more, as in hours of one camera that stands still, the search ends early and says so."""


def shrunk(gray_HW: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Brightness at 32 x 32 points, of which hash and thumbnail are made."""
    height, width = gray_HW.shape
    while height % 2 == width % 2 == 0 and min(height, width) >= 4 * HASHED_PX:  # whole halves take a tenth of the time
        height, width = height // 2, width // 2
        gray_HW = np.asarray(cv2.resize(gray_HW, (width, height), interpolation=cv2.INTER_AREA), dtype=np.uint8)
    return np.asarray(cv2.resize(gray_HW, (HASHED_PX, HASHED_PX), interpolation=cv2.INTER_AREA), dtype=np.uint8)


def perceptual_hash(gray_32: NDArray[np.uint8]) -> int:
    """64 bits that are much alike for images that look alike; of an image without contrast they mean nothing."""
    frequencies = cv2.dct(gray_32.astype(np.float32))[:CORNER, :CORNER].ravel()
    others = np.sort(frequencies[1:])
    bits = frequencies > others[len(others) // 2]  # the median of an odd number, in a tenth of np.median's time
    bits[0] = False
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def thumbnail(gray_32: NDArray[np.uint8]) -> bytes:
    """Brightness at 16 x 16 points, row by row."""
    return np.asarray(cv2.resize(gray_32, (THUMBNAIL_PX, THUMBNAIL_PX), interpolation=cv2.INTER_AREA)).tobytes()


def standardised(thumbnails_NT: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Thumbnails without their mean, of length 1: the scalar product of two is their correlation."""
    centred_NT = thumbnails_NT.astype(np.float32)
    centred_NT -= centred_NT.mean(axis=1, keepdims=True)
    centred_NT /= np.maximum(np.linalg.norm(centred_NT, axis=1, keepdims=True), np.float32(1e-9))
    return centred_NT


def near_pairs(
    hashes_N: NDArray[np.uint64], *, max_distance: int, max_candidates: int = MAX_CANDIDATES
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]]:
    """Every pair of hashes that differ in at most `max_distance` bits, once.

    Args:
        hashes_N: hashes.
        max_distance: 0 to 7.
        max_candidates: how many pairs that agree in a band are compared at most.

    Yields:
        Chunks of first index, second index (larger) and distance.

    Raises:
        OverflowError: there are more candidates; what was yielded before is right, and not all.
        ValueError: `max_distance` is out of range.
    """
    if not 0 <= max_distance <= MAX_HASH_DISTANCE:
        raise ValueError(f"max_distance is {max_distance}, expected 0 to {MAX_HASH_DISTANCE}")
    radius = max_distance // BANDS
    compared = 0
    for band in range(BANDS):
        for first, second in _candidates(_band(hashes_N, band), flips=radius):
            compared += len(first)
            if compared > max_candidates:
                raise OverflowError(f"more than {max_candidates} pairs of hashes agree in a band")
            differing = hashes_N[first] ^ hashes_N[second]
            distance = np.bitwise_count(differing).astype(np.int64)
            keep = distance <= max_distance
            for earlier in range(band):  # a pair belongs to the first band that finds it
                keep &= np.bitwise_count(_band(differing, earlier)) > radius
            if keep.any():
                yield first[keep], second[keep], distance[keep]


def _band(hashes: NDArray[np.uint64], band: int) -> NDArray[np.int64]:
    return ((hashes >> np.uint64(band * BAND_BITS)) & np.uint64(2**BAND_BITS - 1)).astype(np.int64)


def _candidates(keys_N: NDArray[np.int64], *, flips: int) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Pairs i < j whose keys differ in at most `flips` bits, 0 or 1, in chunks."""
    order_N = np.argsort(keys_N, kind="stable")
    starts = np.searchsorted(keys_N[order_N], np.arange(2**BAND_BITS + 1))
    for mask in (0, *(1 << bit for bit in range(BAND_BITS if flips else 0))):
        wanted_N = keys_N ^ mask
        counts_N = starts[wanted_N + 1] - starts[wanted_N]
        ends_N = np.cumsum(counts_N)
        begin = 0
        while begin < len(keys_N):
            before = ends_N[begin - 1] if begin else 0
            end = max(int(np.searchsorted(ends_N, before + CHUNK, side="right")), begin + 1)
            counts = counts_N[begin:end]
            first = np.repeat(np.arange(begin, end), counts)
            offsets = np.arange(len(first)) - np.repeat(np.cumsum(counts) - counts, counts)
            second = order_N[np.repeat(starts[wanted_N[begin:end]], counts) + offsets]
            keep = first < second
            yield first[keep], second[keep]
            begin = end
