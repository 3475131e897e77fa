"""The default colours of classes, measured: how far apart they are for every vision, and how they were chosen."""

import itertools
import re
from pathlib import Path

import numpy as np
import pytest

from pipelines.charts import SERIES_COLOURS
from pipelines.datasets.camvid import CLASSES as CAMVID
from pipelines.datasets.cityscapes_labels import TRAINED
from pipelines.datasets.listing import MAX_CLASSES, default_palette
from pipelines.palettes import BLACK, distinct_palette, shown_palette
from pipelines.pictures import HATCH_GREY, WRONG_COLOUR
from tests.pipelines.colour_vision import VISIONS, Values, ciede2000, differences, lab, least_difference

FAR = 10.0
NUM_FAR = 20
DOCUMENT = Path(__file__).parents[2] / "docs" / "pictures.md"
HATCH = (HATCH_GREY,) * 3
# Pairs of Sharma's table 1 that take each branch: hues on both sides of 0, opposite ones, greys, darkness, blue.
PUBLISHED = [
    ((50.0, 2.6772, -79.7751), (50.0, 0.0, -82.7485), 2.0425),
    ((50.0, -1.3802, -84.2814), (50.0, 0.0, -82.7485), 1.0000),
    ((50.0, 0.0, 0.0), (50.0, -1.0, 2.0), 2.3669),
    ((50.0, 2.4900, -0.0010), (50.0, -2.4900, 0.0009), 7.1792),
    ((50.0, 2.4900, -0.0010), (50.0, -2.4900, 0.0011), 7.2195),
    ((50.0, -0.0010, 2.4900), (50.0, 0.0009, -2.4900), 4.8045),
    ((50.0, 2.5, 0.0), (50.0, 0.0, -2.5), 4.3065),
    ((50.0, 2.5, 0.0), (73.0, 25.0, -18.0), 27.1492),
    ((60.2574, -34.0099, 36.2677), (60.4626, -34.1751, 39.4387), 1.2644),
    ((22.7233, 20.0904, -46.6940), (23.0331, 14.9730, -42.5619), 2.0373),
    ((90.8027, -2.0831, 1.4410), (91.1528, -1.6435, 0.0447), 1.4441),
    ((2.0776, 0.0795, -1.1350), (0.9033, -0.0636, -0.5514), 0.9082),
]


@pytest.mark.parametrize(("first", "second", "expected"), PUBLISHED)
def test_the_measure_gives_the_published_differences(
    first: tuple[float, ...], second: tuple[float, ...], expected: float
) -> None:
    assert float(ciede2000(first, second)) == pytest.approx(expected, abs=5e-5)
    assert float(ciede2000(second, first)) == pytest.approx(expected, abs=5e-5)


def test_the_simulations_leave_greys_and_take_away_what_each_vision_lacks() -> None:
    greys = [(level,) * 3 for level in range(0, 256, 15)]
    for vision in VISIONS:
        assert ciede2000(lab(greys, vision), lab(greys)).max() < 0.5
    red, green, blue_green, grey = (226, 70, 60), (120, 130, 40), (0, 150, 150), (130, 130, 130)

    def seen(first: tuple[int, ...], second: tuple[int, ...], vision: str) -> float:
        return float(ciede2000(lab(first, vision), lab(second, vision)))

    for vision in ("protanopia", "deuteranopia"):
        assert seen(red, green, vision) < 0.5 * seen(red, green, "normal")
    assert seen(blue_green, (0, 130, 190), "tritanopia") < 0.5 * seen(blue_green, (0, 130, 190), "normal")
    assert lab(grey)[0] == pytest.approx(54.4, abs=0.1)


def test_twenty_classes_are_far_apart_for_every_vision_and_from_ignored_pixels() -> None:
    colours = distinct_palette(NUM_FAR)
    assert least_difference([*colours, BLACK]) > FAR
    assert differences(colours, [HATCH]).min() > FAR
    for official in ([colour for _, colour in CAMVID], [label.colour for label in TRAINED], default_palette(NUM_FAR)):
        assert least_difference(official) < 0.4 * least_difference(distinct_palette(len(official)))


def test_there_are_as_many_different_colours_as_there_may_be_classes() -> None:
    colours = distinct_palette(MAX_CLASSES)
    assert len(set(colours)) == MAX_CLASSES and colours[:NUM_FAR] == distinct_palette(NUM_FAR)
    assert least_difference(colours) > 2, "more than is just noticeable"
    with pytest.raises(ValueError, match="255 classes, expected 0 to 254"):
        distinct_palette(MAX_CLASSES + 1)


def chosen(count: int) -> list[tuple[int, int, int]]:
    """The rule that `pipelines.palettes` tells, followed from its first colour on."""
    candidates = np.array(list(itertools.product(range(0, 256, 15), repeat=3)))
    lightness, a, b = lab(candidates).T
    candidates = candidates[(lightness >= 20) & (lightness <= 95) & (np.hypot(a, b) >= 25)]
    seen = [(1.0, lab(candidates, vision), vision) for vision in VISIONS]

    def distances(colour: tuple[int, int, int], normal: float) -> Values:
        weighed = [
            ciede2000(labs, lab(colour, vision)) * (normal if vision == "normal" else weight)
            for weight, labs, vision in seen
        ]
        return np.asarray(np.min(weighed, axis=0))

    found = [distinct_palette(1)[0]]
    least = np.minimum(distances(BLACK, 1.0), distances(HATCH, 1.0))
    while len(found) < count:
        least = np.minimum(least, distances(found[-1], 0.7))
        red, green, blue = candidates[least.argmax()].tolist()
        found.append((red, green, blue))
    return found


def test_each_colour_is_the_farthest_from_those_before_it() -> None:
    assert tuple(chosen(NUM_FAR)) == distinct_palette(NUM_FAR)


@pytest.mark.slow
def test_every_colour_is_the_farthest_from_those_before_it() -> None:
    assert tuple(chosen(MAX_CLASSES)) == distinct_palette(MAX_CLASSES)


def test_series_of_charts_and_wrong_pixels_are_seen_by_every_vision() -> None:
    series = [tuple(bytes.fromhex(colour[1:])) for colour in SERIES_COLOURS]
    assert len(series) == 8
    assert differences([(255, 255, 255)], series).min() > 20
    assert least_difference([(red, green, blue) for red, green, blue in series]) > FAR
    greys = [(level,) * 3 for level in range(100, 228)]  # of the image below them
    assert differences([WRONG_COLOUR], [*greys, BLACK, HATCH]).min() > 15


def test_the_document_says_what_is_measured() -> None:
    rows = re.findall(r"^\| (\d+) \| ([\d.]+) \| ([\d.]+) \|$", DOCUMENT.read_text(), re.MULTILINE)
    assert len(rows) > 5
    for classes, every, normal in rows:
        colours = distinct_palette(int(classes))
        own = ciede2000(lab(colours)[:, None], lab(colours)[None])[np.triu_indices(len(colours), 1)].min()
        assert (f"{least_difference(colours):.1f}", f"{own:.1f}") == (every, normal), classes


def test_own_colours_are_kept_where_they_are_asked_for_or_given() -> None:
    own = ((1, 2, 3), (4, 5, 6))
    assert shown_palette(own, choice="official", given=False) == own
    assert shown_palette(own, choice="distinct", given=True) == own
    assert shown_palette(own, choice="distinct", given=False) == distinct_palette(2)
    assert shown_palette((), choice="distinct", given=False) == ()


def test_a_black_background_stays_black() -> None:
    first, second = distinct_palette(2)
    for own, expected in (
        ((BLACK, (9, 9, 9), (1, 1, 1)), (BLACK, first, second)),
        (((9, 9, 9), BLACK), (first, BLACK)),
    ):
        assert shown_palette(own, choice="distinct", given=False) == expected
