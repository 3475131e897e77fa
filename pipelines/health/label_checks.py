"""Findings about how labels use the class table, seen in a whole split: one off, black and white, constant, empty."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipelines.health.findings import Finding
from pipelines.health.limits import Limits
from pipelines.health.pair_faults import WHITE
from pipelines.health.survey import Survey

MIN_CLASSES_SHIFTED = 3
"""Fewer may well begin with one that does not occur."""
SYSTEMATIC_SHARE = 0.5
"""Of a dataset's pairs whose labels are at fault, from where on its classes are not judged."""
LABEL_FAULTS = {"label_unreadable", "label_in_colours", "label_lossy", "binary_mask", "label_value_outside_table"}


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelVerdict:
    """What the labels' values say.

    Attributes:
        findings: about whole splits.
        explained: (code, split) of the pairs' own faults that these findings explain.
        classes_can_be_judged: the class table fits the labels well enough to say which classes are rare.
    """

    findings: tuple[Finding, ...]
    explained: frozenset[tuple[str, str]]
    classes_can_be_judged: bool


def check_labels(survey: Survey, limits: Limits) -> LabelVerdict:
    """All of this module."""
    findings: list[Finding] = []
    explained: set[tuple[str, str]] = set()
    labelled = survey.labelled()
    for split in survey.splits:
        rows = labelled[survey.in_split(split)[labelled]]
        if shifted := _shifted(survey, split, rows):
            findings.append(shifted)
            explained.add(("label_value_outside_table", split))
        if binary := _white_is_ignored(survey, split, rows):
            findings.append(binary)
    systematic = bool(findings)
    faulty = [any(fault["code"] in LABEL_FAULTS for fault in faults) for faults in survey.values("faults")]
    systematic |= bool(faulty) and float(np.mean(faulty)) > SYSTEMATIC_SHARE
    if not systematic:
        findings += _constant(survey, labelled, limits) + _void(survey, labelled, limits)
    return LabelVerdict(findings=tuple(findings), explained=frozenset(explained), classes_can_be_judged=not systematic)


def _shifted(survey: Survey, split: str, rows: NDArray[np.int64]) -> Finding | None:
    """Labels that count from one where the table counts from zero, or the other way round."""
    values = survey.class_table.values
    first, last = min(values), max(values)
    if sorted(values) != list(range(first, last + 1)):
        return None
    found = {value for row in rows for value in survey.values("label_values")[row]}
    outside = {value for row in rows for value in survey.values("outside_values")[row]}
    if outside == {last + 1} and first not in found:
        begin, by = first + 1, "all class values are one too high: subtract 1, or begin the class table one later"
        severity = "error"
    elif outside == {first - 1} and last not in found:
        begin, by = first - 1, "all class values are one too low: add 1, or begin the class table one earlier"
        severity = "error"
    elif (
        not outside
        and first - 1 in survey.class_table.ignore_values
        and {*range(first - 1, last)} <= found
        and last not in found
        and len(values) >= MIN_CLASSES_SHIFTED
    ):
        begin, severity = first - 1, "warning"
        by = (
            f"look at the examples: if {first - 1} shows a class and not 'no label', all class values are one too low "
            "(the zero label has been reduced already): add 1, or begin the class table one earlier"
        )
    else:
        return None
    return Finding(
        code="labels_one_off",
        severity="error" if severity == "error" else "warning",
        count=len(rows),
        splits=(split,),
        found=f"the labels of {split} hold values from {begin} to {begin + last - first}, and "
        f"{first if begin > first else last} in no image",
        expected=f"values from {first} to {last}, as the class table says",
        remedy=by,
        examples=survey.examples(rows.tolist(), lambda row: f"values {survey.values('label_values')[row]}"),
    )


def _white_is_ignored(survey: Survey, split: str, rows: NDArray[np.int64]) -> Finding | None:
    """Every label holds 0 and 255, and 255 means "no label": what is white will never be learned."""
    if WHITE not in survey.class_table.ignore_values or len(survey.class_table.names) < 2:
        return None
    found = {value for row in rows for value in survey.values("label_values")[row]}
    if found != {0, WHITE} or 0 not in survey.class_table.values:
        return None
    return Finding(
        code="binary_mask",
        severity="error",
        count=len(rows),
        splits=(split,),
        found=f"every label of {split} holds 0 and 255 alone, and 255 means 'no label': there is nothing to learn",
        expected="class numbers: 0 and 1",
        remedy="store 1 in place of 255, or give the class the value 255 in the class table, and take it out of "
        "`ignore`",
        examples=survey.examples(rows.tolist(), lambda row: f"values {survey.values('label_values')[row]}"),
    )


def _constant(survey: Survey, labelled: NDArray[np.int64], limits: Limits) -> list[Finding]:
    values = survey.values("label_values")
    rows = [row for row in labelled.tolist() if len(values[row]) == 1 and survey.values("void_share")[row] < 1]
    if not rows:
        return []
    share = len(rows) / len(labelled)
    return [
        Finding(
            code="label_constant",
            severity="warning" if share > limits.max_constant_share else "note",
            count=len(rows),
            splits=survey.splits_of(rows),
            found=f"{share:.1%} of the labels are one single value",
            expected=f"borders between classes in most labels (a warning above {limits.max_constant_share:.0%})",
            remedy="look whether these images were labelled at all",
            examples=survey.examples(rows, lambda row: f"value {values[row][0]} everywhere"),
        )
    ]


def _void(survey: Survey, labelled: NDArray[np.int64], limits: Limits) -> list[Finding]:
    shares_N = survey.numbers("void_share")[labelled]
    pixels_N = survey.numbers("label_height")[labelled] * survey.numbers("label_width")[labelled]
    overall = float((shares_N * pixels_N).sum() / pixels_N.sum()) if len(labelled) else 0.0
    findings = []
    if overall > limits.max_void_share:
        findings.append(
            Finding(
                code="void_share_high",
                severity="warning",
                count=len(labelled),
                splits=survey.splits_of(labelled.tolist()),
                found=f"{overall:.1%} of all pixels have no label",
                expected=f"at most {limits.max_void_share:.0%}",
                remedy="check that the values under `ignore` are not classes; else label more, as nothing is learned "
                "from such pixels",
            )
        )
    empty = labelled[shares_N > limits.max_image_void_share]
    if len(empty) and not findings:
        findings.append(
            Finding(
                code="images_mostly_void",
                severity="warning",
                count=len(empty),
                splits=survey.splits_of(empty.tolist()),
                found=f"images of which more than {limits.max_image_void_share:.0%} has no label",
                expected="labels on most of an image",
                remedy="label them, or take them out: they cost time in training and teach next to nothing",
                examples=survey.examples(
                    empty.tolist(), lambda row: f"{survey.values('void_share')[row]:.1%} without a label"
                ),
            )
        )
    return findings
