"""Groups of a split's images, each scored by itself: by size, by the folder of its id, by a table of the user's."""

import csv
import io
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pipelines import storage

logger = logging.getLogger(__name__)

SIZE_GROUPS = 4
NO_GROUP = "(not in the table)"
NO_FOLDER = "(no folder)"

Kind = Literal["size", "folder", "table"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageGroup:
    """Some images of a split.

    Attributes:
        kind: what groups them.
        name: of the group.
        indices: of its images in the split's order; at least one.
    """

    kind: Kind
    name: str
    indices: tuple[int, ...]


def size_groups(pixels_N: Sequence[int], *, groups: int = SIZE_GROUPS) -> list[ImageGroup]:
    """Quantile groups of the images' sizes: about as many images each, smallest first, equal sizes in one group.

    Args:
        pixels_N: height times width of each image.
        groups: at most so many; fewer where few sizes occur.
    """
    sizes_N = np.asarray(pixels_N, dtype=np.int64)
    bounds = np.unique(np.quantile(sizes_N, np.arange(1, groups) / groups, method="inverted_cdf"))
    group_N = np.searchsorted(bounds, sizes_N)  # a size that is a bound belongs to the group below it
    found = []
    for number in np.unique(group_N):
        indices = np.flatnonzero(group_N == number)
        low, high = int(sizes_N[indices].min()), int(sizes_N[indices].max())
        name = f"{low:,} pixels" if low == high else f"{low:,} to {high:,} pixels"
        found.append(ImageGroup(kind="size", name=name, indices=tuple(indices.tolist())))
    return found


def folder_groups(image_ids: Sequence[str]) -> list[ImageGroup]:
    """Images by the first folder of their ids: `aachen` of `aachen/000_19`."""
    names = [image_id.partition("/")[0] if "/" in image_id else NO_FOLDER for image_id in image_ids]
    return _by_name("folder", names)


def table_groups(image_ids: Sequence[str], groups: dict[str, str]) -> list[ImageGroup]:
    """Images by the group that a table gives their ids; those it does not know are a group of their own.

    Raises:
        ValueError: it knows none of them.
    """
    missing = [image_id for image_id in image_ids if image_id not in groups]
    if len(missing) == len(image_ids):
        raise ValueError(
            f"the table of groups names none of the split's {len(image_ids)} images; its ids are like "
            f"{next(iter(groups))!r}, the split's like {image_ids[0]!r}"
        )
    if missing:
        logger.warning("%d images are not in the table of groups, the first is %r", len(missing), missing[0])
    return _by_name("table", [groups.get(image_id, NO_GROUP) for image_id in image_ids])


def read_groups(uri: str) -> dict[str, str]:
    """Group by image id from a CSV file with the columns `image_id` and `group`; others are left alone.

    Raises:
        ValueError: the file is missing, is no such table, or gives an image two groups.
    """
    try:
        text = storage.read_bytes(uri).decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"--groups {uri}: {error}; give a CSV file with the columns image_id and group") from error
    rows = csv.DictReader(io.StringIO(text))
    if not {"image_id", "group"} <= set(rows.fieldnames or ()):
        raise ValueError(f"--groups {uri} has the columns {rows.fieldnames}; expected image_id and group")
    groups: dict[str, str] = {}
    for row in rows:
        image_id, group = row["image_id"], row["group"]
        if not image_id or not group:
            raise ValueError(f"line {rows.line_num} of {uri} is {row}; expected an image id and a group")
        if groups.setdefault(image_id, group) != group:
            raise ValueError(
                f"{uri} puts image {image_id!r} into {groups[image_id]!r} and {group!r}; give it one group"
            )
    if not groups:
        raise ValueError(f"--groups {uri} has no rows; expected one per image")
    return groups


def _by_name(kind: Kind, names_N: Sequence[str]) -> list[ImageGroup]:
    names: NDArray[np.str_] = np.asarray(names_N, dtype=np.str_)
    return [
        ImageGroup(kind=kind, name=str(name), indices=tuple(np.flatnonzero(names == name).tolist()))
        for name in np.unique(names)
    ]
