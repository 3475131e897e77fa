"""What the doctor says: findings with their severity, as objects and as rows."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")
"""error: `prepare` leaves the pair out, or training and scores are wrong. warning: a person should look. note: good to
know."""

EXAMPLES_KEPT = 12

FINDINGS_SCHEMA = pa.schema(
    [
        pa.field("code", pa.string(), nullable=False),
        pa.field("severity", pa.string(), nullable=False),
        pa.field("count", pa.int64(), nullable=False),  # of images, files or classes, as `unit` says
        pa.field("unit", pa.string(), nullable=False),
        pa.field("splits", pa.list_(pa.string()), nullable=False),
        pa.field("found", pa.string(), nullable=False),
        pa.field("expected", pa.string(), nullable=False),
        pa.field("remedy", pa.string(), nullable=False),
        pa.field(
            "examples",
            pa.list_(pa.struct([("image_ids", pa.list_(pa.string())), ("text", pa.string())])),
            nullable=False,
        ),
    ]
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Example:
    """Images that show a finding, and what is to be seen.

    Attributes:
        image_ids: one image; two where they are alike; none where only `text` can tell.
        text: what was found in it.
    """

    image_ids: tuple[str, ...]
    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One thing that is wrong with a dataset, or good to know.

    Attributes:
        code: its name, lower case with underscores.
        severity: see `SEVERITIES`.
        count: how many images, files, classes or pairs.
        unit: what is counted, plural.
        splits: where they are.
        found, expected, remedy: sentences.
        examples: the first in the order of the listing, or the clearest; at most `EXAMPLES_KEPT`.
    """

    code: str
    severity: Severity
    count: int
    unit: str = "images"
    splits: tuple[str, ...]
    found: str
    expected: str
    remedy: str
    examples: tuple[Example, ...] = ()

    @property
    def title(self) -> str:
        """The code in words."""
        return self.code.replace("_", " ")

    def row(self) -> dict[str, Any]:
        """As a row of FINDINGS_SCHEMA."""
        return dataclasses.asdict(self)


def in_order(findings: Sequence[Finding]) -> list[Finding]:
    """Errors first; within a severity by code."""
    return sorted(findings, key=lambda finding: (SEVERITIES.index(finding.severity), finding.code))


def counted(findings: Sequence[Finding]) -> dict[Severity, int]:
    """How many findings there are of each severity."""
    return {severity: sum(finding.severity == severity for finding in findings) for severity in SEVERITIES}
