"""Findings about images that are there twice: the same file, or a picture that looks the same."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipelines.health.findings import EXAMPLES_KEPT, Example, Finding
from pipelines.health.hashing import THUMBNAIL_PX, near_pairs, standardised
from pipelines.health.limits import Limits
from pipelines.health.survey import Survey


class _Near(NamedTuple):
    """What the search for near-duplicates found.

    Attributes:
        across: (distance, first row, second row) of the nearest pairs across splits.
        leaked: rows of later splits that have a near-duplicate in an earlier one.
        within: rows that have one in their own split.
        complete: all pairs were compared.
    """

    across: list[tuple[int, int, int]]
    leaked: NDArray[np.int64]
    within: NDArray[np.int64]
    complete: bool


def check_duplicates(survey: Survey, limits: Limits) -> list[Finding]:
    """All of this module; what is the same file is not reported as alike too."""
    groups: dict[str, list[int]] = {}
    for row, digest in enumerate(survey.values("image_sha256")):
        if digest is not None:
            groups.setdefault(digest, []).append(row)
    same = [rows for rows in groups.values() if len(rows) > 1]
    split_of = survey.values("split")
    across = [rows for rows in same if len({split_of[row] for row in rows}) > 1]
    within = [rows for rows in same if len({split_of[row] for row in rows}) == 1]
    findings = []
    if across:
        findings.append(
            Finding(
                code="duplicates_across_splits",
                severity="error",
                count=len(across),
                splits=survey.splits_of(row for rows in across for row in rows),
                found="images whose file is in two splits or more",
                expected="no image of one split in another: scores on it would be too good",
                remedy="take each out of one of the splits",
                examples=_same_examples(survey, across),
            )
        )
    if within:
        findings.append(
            Finding(
                code="duplicates",
                severity="warning",
                count=len(within),
                splits=survey.splits_of(row for rows in within for row in rows),
                found="images whose file is there twice or more",
                expected="every image once",
                remedy="remove the copies; where their labels differ, find out which is right",
                examples=_same_examples(survey, within),
            )
        )
    return findings + _near_findings(survey, limits)


def _same_examples(survey: Survey, groups: Sequence[list[int]]) -> tuple[Example, ...]:
    ids, labels, splits = (survey.values(name) for name in ("image_id", "label_sha256", "split"))
    return tuple(
        Example(
            image_ids=(ids[rows[0]], ids[rows[1]]),
            text=f"{' and '.join(f'{ids[row]} ({splits[row]})' for row in rows[:2])}: the same image, "
            + ("the same label" if labels[rows[0]] == labels[rows[1]] else "different labels"),
        )
        for rows in groups[:EXAMPLES_KEPT]
    )


def _near_findings(survey: Survey, limits: Limits) -> list[Finding]:
    near = _search(survey, limits)
    ids, splits = survey.values("image_id"), survey.values("split")
    findings = []
    cut = "" if near.complete else " (the search was cut short: too many look alike)"
    if len(near.leaked):
        findings.append(
            Finding(
                code="near_duplicates_across_splits",
                severity="warning",
                count=len(near.leaked),
                splits=survey.splits_of(row for _, *pair in near.across for row in pair),
                found=f"images that look the same as one of another split{cut}",
                expected=f"perceptual hashes of different splits that differ in more than {limits.hash_distance} of 64 "
                f"bits, or a likeness below {limits.min_likeness:g}",
                remedy="look at the pairs; split by scene or by drive and not by image, or scores will be too good",
                examples=tuple(
                    Example(
                        image_ids=(ids[first], ids[second]),
                        text=f"{ids[first]} ({splits[first]}) and {ids[second]} ({splits[second]}): "
                        f"{distance} bits differ",
                    )
                    for distance, first, second in near.across
                ),
            )
        )
    if len(near.within):
        findings.append(
            Finding(
                code="near_duplicates_within_split",
                severity="note",
                count=len(near.within),
                splits=survey.splits_of(near.within.tolist()),
                found=f"images that look the same as another one of their split{cut}",
                expected="different pictures; frames of a video look alike by nature",
                remedy="nothing, if this is video; else thin them out: they count several times",
                examples=survey.examples(near.within.tolist(), lambda row: "looks like another one"),
            )
        )
    return findings


def _search(survey: Survey, limits: Limits) -> _Near:
    contrast = survey.numbers("contrast")
    rows = np.flatnonzero(contrast >= limits.min_contrast)  # false for NaN: unreadable
    hashes = np.array([survey.values("perceptual_hash")[row] for row in rows], dtype=np.uint64)
    digests = [survey.values("image_sha256")[row] for row in rows]
    digest_of = np.unique(np.array(digests, dtype=str), return_inverse=True)[1]
    order = {split: position for position, split in enumerate(survey.splits)}
    split_of = np.array([order[survey.values("split")[row]] for row in rows], dtype=np.int64)
    thumbnails = np.frombuffer(b"".join(survey.values("thumbnail")[row] for row in rows), dtype=np.uint8)
    thumbnails_NT = standardised(thumbnails.reshape(-1, THUMBNAIL_PX**2))
    leaked, within = np.zeros(len(rows), dtype=bool), np.zeros(len(rows), dtype=bool)
    across: list[tuple[int, int, int]] = []
    complete = True
    try:
        for first, second, distance in near_pairs(hashes, max_distance=limits.hash_distance):
            likeness = np.einsum("pt,pt->p", thumbnails_NT[first], thumbnails_NT[second])
            keep = (digest_of[first] != digest_of[second]) & (likeness >= limits.min_likeness)
            first, second, distance = first[keep], second[keep], distance[keep]
            other = split_of[first] != split_of[second]
            within[first[~other]] = within[second[~other]] = True
            later = np.where(split_of[first] > split_of[second], first, second)
            leaked[later[other]] = True
            pairs = zip(
                distance[other].tolist(), rows[first[other]].tolist(), rows[second[other]].tolist(), strict=True
            )
            across = sorted([*across, *pairs])[:EXAMPLES_KEPT]
    except OverflowError:
        complete = False
    return _Near(across=across, leaked=rows[leaked], within=rows[within], complete=complete)
