"""Findings about files and pairs, each seen in one pair alone."""

from collections.abc import Collection
from typing import NamedTuple

from pipelines.health.findings import EXAMPLES_KEPT, Example, Finding, Severity
from pipelines.health.survey import Survey

LEFT_OUT = "`prepare` leaves such a pair out"


class _Words(NamedTuple):
    severity: Severity
    found: str
    expected: str
    remedy: str


FAULTS: dict[str, _Words] = {
    "image_unreadable": _Words(
        "error",
        "image files that are missing, empty, truncated, broken or no images",
        "a JPEG, PNG, WebP, TIFF, BMP or GIF file that can be decoded",
        f"fetch the files again, or take them out of the dataset; {LEFT_OUT}",
    ),
    "label_unreadable": _Words(
        "error",
        "label files that are missing, truncated, broken or no images",
        "a file of one channel that can be decoded, such as an 8-bit PNG",
        f"export the labels again, or take the pairs out; {LEFT_OUT}",
    ),
    "size_differs": _Words(
        "error",
        "images and labels of different height or width",
        "one label value per pixel of the image",
        f"export the labels at the size of their images (nearest neighbour, never interpolated); {LEFT_OUT}",
    ),
    "orientation_not_on_label": _Words(
        "error",
        "images that EXIF turns, with labels that were drawn on the image as it lies in the file",
        "labels that show what an image viewer shows",
        "turn the labels as the orientation says, or remove the orientation from the images (exiftool -Orientation=)",
    ),
    "orientation_doubtful": _Words(
        "warning",
        "images that EXIF turns, whose labels seem to be drawn on the image as it lies in the file",
        "labels that show what an image viewer shows",
        "look at the examples; if the label does not fit, turn it as the orientation says",
    ),
    "label_in_colours": _Words(
        "error",
        "labels in colours",
        "one channel of class numbers (modes P, L, I;16 or 1)",
        "convert colours to class numbers with the dataset's colour map, and save 8-bit PNGs; `folder` can read them "
        f"through a colour map where its class table has one; {LEFT_OUT}",
    ),
    "label_lossy": _Words(
        "error",
        "labels compressed as JPEG or WebP, which changes class numbers",
        "labels without loss, as PNG",
        f"export them again from the tool that drew them: the true values cannot be had from such a file; {LEFT_OUT}",
    ),
    "binary_mask": _Words(
        "error",
        "black and white masks: labels of 0 and 255 alone, where 255 is no class",
        "class numbers: 0 and 1",
        "store 1 in place of 255, or give the class the value 255 in the class table; "
        f"list 255 under `ignore` only if it means 'no label'; {LEFT_OUT}",
    ),
    "label_value_outside_table": _Words(
        "error",
        "label values that the class table does not know",
        "values of classes, or values listed under `ignore`",
        f"add the classes to the class table, or list the values under `ignore`; {LEFT_OUT}",
    ),
}
"""By code, what a pair's own faults mean."""


def check_files(survey: Survey, *, explained: Collection[tuple[str, str]] = ()) -> list[Finding]:
    """Files without a partner, and the faults of pairs.

    Args:
        survey: of the dataset.
        explained: codes and splits that another finding explains; they are left out.
    """
    findings = _partners(survey)
    rows_of: dict[str, list[int]] = {}
    texts: dict[tuple[str, int], str] = {}
    for row, (split, faults) in enumerate(zip(survey.values("split"), survey.values("faults"), strict=True)):
        for fault in faults:
            if (fault["code"], split) not in explained:
                rows_of.setdefault(fault["code"], []).append(row)
                texts[fault["code"], row] = fault["text"]
    for code, rows in rows_of.items():
        words = FAULTS[code]
        findings.append(
            Finding(
                code=code,
                severity=words.severity,
                count=len(rows),
                unit="pairs",
                splits=survey.splits_of(rows),
                found=f"{words.found}; the first: {texts[code, rows[0]]}",
                expected=words.expected,
                remedy=words.remedy,
                examples=survey.examples(rows, lambda row, code=code: texts[code, row]),  # type: ignore[misc]
            )
        )
    return findings


def _partners(survey: Survey) -> list[Finding]:
    findings = []
    severity: Severity
    for code, severity, files, expected, remedy in (
        (
            "unpaired_files",
            "error",
            survey.unpaired,
            "an image and a label of one name",
            f"rename or add the partner, or remove the file; {LEFT_OUT}",
        ),
        (
            "left_out_by_prepare",
            "note",
            survey.left_out,
            "every pair in the prepared dataset",
            "see failures.parquet there; mend the files and prepare the dataset anew",
        ),
    ):
        if files:
            findings.append(
                Finding(
                    code=code,
                    severity=severity,
                    count=len(files),
                    unit="files",
                    splits=tuple(sorted({file.split for file in files})),
                    found=f"files that cannot be used; the first: {files[0].uri}: {files[0].reason}",
                    expected=expected,
                    remedy=remedy,
                    examples=tuple(
                        Example(image_ids=(), text=f"{file.uri}: {file.reason}") for file in files[:EXAMPLES_KEPT]
                    ),
                )
            )
    return findings
