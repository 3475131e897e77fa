"""How far apart colours are, for trichromats and for simulated dichromats: what the tests of palettes measure with.

Colours are sRGB in 0..255, differences are CIEDE2000: 1 is just noticeable side by side, 10 is seen at a glance.

Sources:
    G. M. Machado, M. M. Oliveira, L. A. F. Fernandes, A Physiologically-based Model for Simulation of Color Vision
    Deficiency, IEEE TVCG 15 (2009), matrices of severity 1.0, applied to linear RGB.
    G. Sharma, W. Wu, E. N. Dalal, The CIEDE2000 Color-Difference Formula, Color Research and Application 30 (2005).
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

Values = NDArray[np.float64]

VISIONS: dict[str, Values] = {
    "normal": np.eye(3),
    "protanopia": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "deuteranopia": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
    "tritanopia": np.array(
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]]
    ),
}
XYZ_OF_RGB = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)
WHITE = XYZ_OF_RGB.sum(axis=1)


def lab(colours_N3: ArrayLike, vision: str = "normal") -> Values:
    """CIE L*a*b* (white point D65) of sRGB colours (..., 3) in 0..255, as a vision sees them."""
    encoded = np.asarray(colours_N3, dtype=np.float64) / 255
    linear = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
    seen = np.clip(linear @ VISIONS[vision].T, 0, 1)
    relative = seen @ XYZ_OF_RGB.T / WHITE
    root = np.where(relative > (6 / 29) ** 3, np.cbrt(relative), relative / (3 * (6 / 29) ** 2) + 4 / 29)
    x, y, z = np.moveaxis(root, -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


def ciede2000(first: ArrayLike, second: ArrayLike) -> Values:
    """CIEDE2000 differences of L*a*b* colours (..., 3), broadcast against each other. Sharma's equations 2 to 22."""
    lightness_1, a_1, b_1 = np.moveaxis(np.asarray(first, dtype=np.float64), -1, 0)
    lightness_2, a_2, b_2 = np.moveaxis(np.asarray(second, dtype=np.float64), -1, 0)
    mean_chroma = (np.hypot(a_1, b_1) + np.hypot(a_2, b_2)) / 2
    stretch = 1.5 - 0.5 * np.sqrt(mean_chroma**7 / (mean_chroma**7 + 25.0**7))
    chroma_1, chroma_2 = np.hypot(stretch * a_1, b_1), np.hypot(stretch * a_2, b_2)
    hue_1, hue_2 = np.arctan2(b_1, stretch * a_1) % (2 * np.pi), np.arctan2(b_2, stretch * a_2) % (2 * np.pi)
    coloured = chroma_1 * chroma_2 > 0
    turn = np.where(coloured, (hue_2 - hue_1 + np.pi) % (2 * np.pi) - np.pi, 0)
    # Of two opposite hues the published data takes the turn of +180 degrees.
    turn = np.where(turn == -np.pi, np.pi, turn)
    hue_difference = 2 * np.sqrt(chroma_1 * chroma_2) * np.sin(turn / 2)
    hue = np.where(coloured, hue_1 + turn / 2, hue_1 + hue_2) % (2 * np.pi)
    lightness, chroma = (lightness_1 + lightness_2) / 2, (chroma_1 + chroma_2) / 2
    weight = (
        1
        - 0.17 * np.cos(hue - np.pi / 6)
        + 0.24 * np.cos(2 * hue)
        + 0.32 * np.cos(3 * hue + np.radians(6))
        - 0.20 * np.cos(4 * hue - np.radians(63))
    )
    scale_lightness = 1 + 0.015 * (lightness - 50) ** 2 / np.sqrt(20 + (lightness - 50) ** 2)
    scale_chroma, scale_hue = 1 + 0.045 * chroma, 1 + 0.015 * chroma * weight
    rotation = np.radians(30) * np.exp(-(((np.degrees(hue) - 275) / 25) ** 2))
    turning = -np.sin(2 * rotation) * 2 * np.sqrt(chroma**7 / (chroma**7 + 25.0**7))
    lightness_part = (lightness_2 - lightness_1) / scale_lightness
    chroma_part, hue_part = (chroma_2 - chroma_1) / scale_chroma, hue_difference / scale_hue
    squared = lightness_part**2 + chroma_part**2 + hue_part**2 + turning * chroma_part * hue_part
    return np.asarray(np.sqrt(np.maximum(squared, 0)))


def differences(first_N3: ArrayLike, second_M3: ArrayLike) -> Values:
    """The least difference over all visions of each pair of sRGB colours: (N, M)."""
    first, second = np.asarray(first_N3), np.asarray(second_M3)
    seen = [ciede2000(lab(first, vision)[:, None], lab(second, vision)[None]) for vision in VISIONS]
    return np.asarray(np.min(seen, axis=0))


def least_difference(colours_N3: Sequence[tuple[int, int, int]]) -> float:
    """The least difference of any two of some colours over all visions."""
    found = differences(colours_N3, colours_N3)
    return float(found[np.triu_indices(len(found), 1)].min())
