"""The facts of a whole dataset, as the checks read them: columns, rows by split, examples."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipelines.datasets.listing import ClassTable, DatasetListing, Unpaired
from pipelines.health.facts import IMAGES_SCHEMA
from pipelines.health.findings import EXAMPLES_KEPT, Example

TRAIN = "train"
FIRST_SPLITS = (TRAIN, "val", "test")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Survey:
    """What is known of a dataset once every pair was read.

    Attributes:
        table: rows of IMAGES_SCHEMA, in the order of the listing.
        class_table: of the dataset.
        splits: their names, in order.
        unpaired: files without a partner.
        left_out: pairs that `prepare` left out before, where the dataset is a prepared one.
        columns: of the table, as they were asked for.
    """

    table: pa.Table
    class_table: ClassTable
    splits: tuple[str, ...]
    unpaired: tuple[Unpaired, ...] = ()
    left_out: tuple[Unpaired, ...] = ()
    columns: dict[str, Any] = field(default_factory=dict)

    def values(self, name: str) -> list[Any]:
        """A column as Python values, None for null."""
        if name not in self.columns:
            self.columns[name] = self.table[name].to_pylist()
        found: list[Any] = self.columns[name]
        return found

    def numbers(self, name: str) -> NDArray[np.float64]:
        """A column of numbers, NaN for null."""
        numbers: NDArray[np.float64] = self.table[name].to_numpy().astype(np.float64)
        return numbers

    def in_split(self, split: str) -> NDArray[np.bool_]:
        """Which rows belong to a split."""
        return np.array([found == split for found in self.values("split")], dtype=bool)

    def labelled(self) -> NDArray[np.int64]:
        """Rows whose label could be read."""
        return np.flatnonzero(np.array(self.table["label_height"].is_valid()))

    def class_pixels(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Pixels of each class in some of the labelled rows, (rows, C)."""
        num_classes = len(self.class_table.names)
        taken = self.table["class_pixels"].combine_chunks().take(pa.array(rows)).flatten()
        return np.asarray(taken.to_numpy(), dtype=np.int64).reshape(-1, num_classes)

    def splits_of(self, rows: Iterable[int]) -> tuple[str, ...]:
        """The splits in which some rows are, in order."""
        found = {self.values("split")[row] for row in rows}
        return tuple(split for split in self.splits if split in found)

    def examples(self, rows: Sequence[int], text: Callable[[int], str]) -> tuple[Example, ...]:
        """The first of some rows as examples; `text` says of a row what is to be seen."""
        ids = self.values("image_id")
        return tuple(Example(image_ids=(ids[row],), text=text(row)) for row in rows[:EXAMPLES_KEPT])

    def class_name(self, index: int) -> str:
        """The name of a class, quoted."""
        return repr(self.class_table.names[index])


def listed(words: Sequence[str], *, most: int = 8) -> str:
    """`a, b, c and 4 more`."""
    rest = len(words) - most
    return ", ".join(words[:most]) + (f" and {rest} more" if rest > 0 else "")


def survey_of(listing: DatasetListing, tables: Iterable[pa.Table], left_out: tuple[Unpaired, ...] = ()) -> Survey:
    """What was found in a listing.

    Args:
        listing: of the dataset.
        tables: rows of IMAGES_SCHEMA, in the order of the listing.
        left_out: pairs that `prepare` left out.
    """
    found = {sample.split for sample in listing.samples}
    return Survey(
        table=pa.concat_tables([IMAGES_SCHEMA.empty_table(), *tables]).combine_chunks(),
        class_table=listing.class_table,
        splits=(*(split for split in FIRST_SPLITS if split in found), *sorted(found - set(FIRST_SPLITS))),
        unpaired=listing.unpaired,
        left_out=left_out,
    )
