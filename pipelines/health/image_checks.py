"""Findings about images alone: dark, blown out, empty, of odd sizes or formats."""

import numpy as np
from numpy.typing import NDArray

from pipelines.health.findings import Finding
from pipelines.health.limits import Limits
from pipelines.health.survey import Survey

SMALLEST_DEVIATION = 0.03
"""Of brightness: images of one lamp differ less, and none of them is an outlier for it."""
NORMAL = 1.4826
"""Standard deviation of a normal distribution over its median absolute deviation."""


def check_images(survey: Survey, limits: Limits) -> list[Finding]:
    """All of this module; an image that shows nothing is not reported as dark too."""
    readable = np.flatnonzero(np.array(survey.table["height"].is_valid()))
    if not len(readable):
        return []
    contrast_N = survey.numbers("contrast")[readable]
    flat = readable[contrast_N < limits.min_contrast]
    findings = []
    if len(flat):
        findings.append(
            Finding(
                code="image_flat",
                severity="warning",
                count=len(flat),
                splits=survey.splits_of(flat.tolist()),
                found="images of one brightness: they show nothing",
                expected=f"a standard deviation of brightness of at least {limits.min_contrast:g} (0 to 1)",
                remedy="take them out, or fetch them again",
                examples=survey.examples(
                    flat.tolist(), lambda row: f"standard deviation {survey.values('contrast')[row]:.4f}"
                ),
            )
        )
    findings += _brightness(survey, readable[contrast_N >= limits.min_contrast], limits)
    findings += _sizes(survey, readable, limits)
    return findings + _formats(survey, readable, limits)


def _brightness(survey: Survey, rows: NDArray[np.int64], limits: Limits) -> list[Finding]:
    if not len(rows):
        return []
    brightness_N = survey.numbers("brightness")[rows]
    median = float(np.median(brightness_N))
    deviation = max(NORMAL * float(np.median(np.abs(brightness_N - median))), SMALLEST_DEVIATION)
    farthest = limits.brightness_deviations * deviation
    low = max(limits.min_brightness, median - farthest)
    high = min(limits.max_brightness, median + farthest)
    odd = rows[(brightness_N < low) | (brightness_N > high)].tolist()
    if not odd:
        return []

    def text(row: int) -> str:
        return (
            f"brightness {survey.values('brightness')[row]:.3f}, {survey.values('dark_share')[row]:.0%} black, "
            f"{survey.values('bright_share')[row]:.0%} white"
        )

    return [
        Finding(
            code="brightness_outlier",
            severity="warning",
            count=len(odd),
            splits=survey.splits_of(odd),
            found="images that are much darker or brighter than the others",
            expected=f"a mean brightness from {low:.2f} to {high:.2f} (0 to 1; the median is {median:.2f})",
            remedy="look at the examples: take out what is black or blown out; keep what is only another light",
            examples=survey.examples(odd, text),
        )
    ]


def _sizes(survey: Survey, rows: NDArray[np.int64], limits: Limits) -> list[Finding]:
    height_N, width_N = survey.numbers("height")[rows], survey.numbers("width")[rows]
    area_N, aspect_N = np.log(height_N * width_N), np.log(height_N / width_N)
    far_N = np.abs(area_N - np.median(area_N)) > np.log(limits.area_ratio)
    # Photos lie and stand: an aspect is held against the median of both.
    long_N = np.abs(aspect_N) - np.median(np.abs(aspect_N)) > np.log(limits.aspect_ratio)
    odd = rows[far_N | long_N].tolist()
    if not odd:
        return []
    return [
        Finding(
            code="size_outlier",
            severity="warning",
            count=len(odd),
            splits=survey.splits_of(odd),
            found="images that are much larger, smaller or longer than the others",
            expected=f"an area within {limits.area_ratio:g} times the median's ({np.exp(np.median(area_N)):,.0f} "
            f"pixels), and no side {limits.aspect_ratio:g} times longer than usual",
            remedy="look whether thumbnails or panoramas have come in between; else cut or scale them",
            examples=survey.examples(
                odd, lambda row: f"{survey.values('height')[row]} x {survey.values('width')[row]} (height x width)"
            ),
        )
    ]


def _formats(survey: Survey, rows: NDArray[np.int64], limits: Limits) -> list[Finding]:
    """Notes: what the images' files are, where it is not plain 8-bit RGB stored upright."""
    modes, orientations, gray, contrast = (
        survey.values(name) for name in ("mode", "orientation", "is_gray", "contrast")
    )
    everything = rows.tolist()
    kinds = (
        (
            "images_gray",
            [row for row in everything if gray[row] and contrast[row] >= limits.min_contrast],
            "images without colour",
            "they are shown to a network as RGB with equal channels; mixed with colour ones, they are harder",
        ),
        (
            "images_16_bit",
            [row for row in everything if modes[row].endswith(";16") or modes[row] in ("I", "I;12")],
            "images of more than 8 bits",
            "they are reduced to 8 bits when they are read; see docs of pipelines.intake.images",
        ),
        (
            "images_with_alpha",
            [row for row in everything if modes[row].partition(";")[0] in ("LA", "La", "PA", "RGBA", "RGBa")],
            "images with transparency",
            "they are laid over white when they are read; save them without it if another background is meant",
        ),
        (
            "images_with_orientation",
            [row for row in everything if orientations[row] != 1 and not _turned_alone(survey.values("faults")[row])],
            "images that EXIF turns",
            "they are read upright; their labels must show them upright too",
        ),
    )
    return [
        Finding(
            code=code,
            severity="note",
            count=len(found),
            splits=survey.splits_of(found),
            found=f"{what}: {len(found)} of {len(rows)}",
            expected="8-bit RGB, stored upright",
            remedy=remedy,
            examples=survey.examples(found, lambda row: f"mode {modes[row]}, orientation {orientations[row]}"),
        )
        for code, found, what, remedy in kinds
        if found
    ]


def _turned_alone(faults: list[dict[str, str]]) -> bool:
    """Whether another finding says already that the image is turned and its label not."""
    return any(fault["code"].startswith("orientation") for fault in faults)
