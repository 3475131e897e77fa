"""Findings about the class histogram: classes that never occur, are rare, or are missing where they are learned."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pipelines.health.findings import EXAMPLES_KEPT, Example, Finding, Severity
from pipelines.health.limits import Limits
from pipelines.health.survey import TRAIN, Survey, listed

MANY_TIMES_MORE = 4


def class_histogram(survey: Survey) -> dict[str, tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """By split: pixels of each class, and images that hold it, both of length C."""
    labelled = survey.labelled()
    histogram = {}
    for split in survey.splits:
        pixels_NC = survey.class_pixels(labelled[survey.in_split(split)[labelled]])
        histogram[split] = (pixels_NC.sum(axis=0), (pixels_NC > 0).sum(axis=0))
    return histogram


def check_classes(survey: Survey, limits: Limits) -> list[Finding]:
    """All of this module; a class is named by one finding at most."""
    histogram = class_histogram(survey)
    images_SC = np.stack([images_C for _, images_C in histogram.values()])
    num_classes = images_SC.shape[1]
    nowhere = [c for c in range(num_classes) if not images_SC[:, c].any()]
    findings = []
    if nowhere:
        findings.append(
            _finding(
                survey,
                "class_absent",
                "warning",
                nowhere,
                splits=survey.splits,
                found=f"classes that occur in no label: {_names(survey, nowhere)}",
                expected="every class of the class table in the labels",
                remedy="check the class table, and whether files are missing; such a class is never learned",
            )
        )
    train_images_C = histogram[TRAIN][1] if TRAIN in histogram else images_SC.sum(axis=0)
    if TRAIN in histogram:
        findings += _not_in_train(survey, histogram, nowhere)
    findings += _rare(survey, histogram, limits)
    for split, (_, images_C) in histogram.items():
        missing = [c for c in range(num_classes) if not images_C[c] and train_images_C[c]]
        if missing and split != TRAIN:
            findings.append(
                _finding(
                    survey,
                    "class_absent_from_split",
                    "note",
                    missing,
                    splits=(split,),
                    found=f"classes that occur in {TRAIN} and not in {split}: {_names(survey, missing)}",
                    expected="every class in every split",
                    remedy="scores on this split say nothing about them; move images, if they matter",
                )
            )
    return findings


def _not_in_train(
    survey: Survey, histogram: dict[str, tuple[NDArray[np.int64], NDArray[np.int64]]], nowhere: Sequence[int]
) -> list[Finding]:
    train_images_C = histogram[TRAIN][1]
    missing = [c for c in range(len(train_images_C)) if not train_images_C[c] and c not in nowhere]
    if not missing:
        return []
    labelled = survey.labelled()
    holding = labelled[(survey.class_pixels(labelled)[:, missing] > 0).any(axis=1)].tolist()
    return [
        _finding(
            survey,
            "class_not_in_train",
            "warning",
            missing,
            splits=survey.splits_of(holding),
            found=f"classes that occur elsewhere and not in {TRAIN}: {_names(survey, missing)}",
            expected=f"every class that is scored in {TRAIN} too",
            remedy="move images with them into train, or drop the classes: their IoU will be 0",
            examples=survey.examples(holding, lambda row: "holds such a class"),
        )
    ]


def _rare(
    survey: Survey, histogram: dict[str, tuple[NDArray[np.int64], NDArray[np.int64]]], limits: Limits
) -> list[Finding]:
    split = TRAIN if TRAIN in histogram else next(iter(histogram))
    pixels_C, images_C = histogram[split]
    num_images = int(survey.in_split(split).sum())
    share_C = pixels_C / max(int(pixels_C.sum()), 1)
    enough = num_images >= MANY_TIMES_MORE * limits.min_train_images
    rare = [
        c
        for c in range(len(pixels_C))
        if images_C[c] and ((enough and images_C[c] < limits.min_train_images) or share_C[c] < limits.min_train_share)
    ]
    if not rare:
        return []
    rows = np.flatnonzero(survey.in_split(split) & np.isin(np.arange(survey.table.num_rows), survey.labelled()))
    holding = rows[(survey.class_pixels(rows)[:, rare] > 0).any(axis=1)].tolist()
    return [
        _finding(
            survey,
            "class_rare",
            "warning",
            rare,
            splits=(split,),
            found=f"rare classes in {split}: "
            + listed([f"{survey.class_name(c)} in {images_C[c]} images, {share_C[c]:.5%} of the pixels" for c in rare]),
            expected=f"each in at least {limits.min_train_images} images and {limits.min_train_share:.5%} of pixels",
            remedy="label more of them, merge them with others, or sample and weigh them more in training",
            examples=survey.examples(holding, lambda row: "holds such a class"),
        )
    ]


def _finding(
    survey: Survey,
    code: str,
    severity: Severity,
    classes: Sequence[int],
    *,
    splits: tuple[str, ...],
    found: str,
    expected: str,
    remedy: str,
    examples: tuple[Example, ...] = (),
) -> Finding:
    return Finding(
        code=code,
        severity=severity,
        count=len(classes),
        unit="classes",
        splits=splits,
        found=found,
        expected=expected,
        remedy=remedy,
        examples=examples or tuple(Example(image_ids=(), text=survey.class_name(c)) for c in classes[:EXAMPLES_KEPT]),
    )


def _names(survey: Survey, classes: Sequence[int]) -> str:
    return listed([survey.class_name(c) for c in classes])
