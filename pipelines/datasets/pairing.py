"""Images and labels that belong together by name, for importers of layouts with an image tree and a label tree."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

from pipelines import storage
from pipelines.datasets.listing import Sample, Unpaired


@dataclass(frozen=True, kw_only=True, slots=True)
class Layer:
    """The files of one kind in a folder and below it, such as all `*_leftImg8bit.png`.

    Attributes:
        folder: URI.
        ending: what follows a file's key in its name.
        uris: by key, which is the path below the folder without the ending.
    """

    folder: str
    ending: str
    uris: dict[str, str]

    def expected(self, key: str) -> str:
        """Where the file of a key lies, or would lie."""
        return self.uris.get(key, storage.join(self.folder, key + self.ending))

    def completed_by(self, other: "Layer") -> "Layer":
        """This layer, with the files of another one where it has none itself."""
        return replace(self, uris=other.uris | self.uris)


@dataclass(frozen=True, kw_only=True, slots=True)
class SplitFiles:
    """What a split consists of.

    Attributes:
        keys: the pairs that there should be, where a list file says so; None: every key of either layer.
    """

    split: str
    images: Layer
    labels: Layer
    keys: Sequence[str] | None = None


def list_layer(folder: str, ending: str) -> Layer:
    """List the files below `folder`, an absolute URI, whose names end in `ending`. Hidden ones are left out."""
    uris = {}
    for uri in storage.list_files(folder):
        key = uri[len(folder) + 1 :]
        if key.endswith(ending) and not PurePosixPath(key).name.startswith("."):
            uris[key.removesuffix(ending)] = uri
    return Layer(folder=folder, ending=ending, uris=uris)


def pair(splits: Iterable[SplitFiles], *, remedy: str) -> tuple[tuple[Sample, ...], tuple[Unpaired, ...]]:
    """Pair every split's images and labels; an image's id is its file name without the ending.

    Raises:
        ValueError: a split has files but not one pair, or there is nothing at all; the message ends in `remedy`.
    """
    samples: list[Sample] = []
    unpaired: list[Unpaired] = []
    looked_at = []
    for files in splits:
        keys = sorted(files.images.uris | files.labels.uris) if files.keys is None else files.keys
        found = [key for key in keys if key in files.images.uris and key in files.labels.uris]
        if keys and not found:
            raise ValueError(
                f"none of the {len(keys)} names of {files.split} has an image and a label: for {keys[0]!r} they were "
                f"expected at {files.images.expected(keys[0])} and {files.labels.expected(keys[0])}; {remedy}"
            )
        samples += (
            Sample(
                image_id=PurePosixPath(key).name,
                split=files.split,
                image_uri=files.images.uris[key],
                label_uri=files.labels.uris[key],
            )
            for key in found
        )
        unpaired += _unpaired(keys, files)
        looked_at.append(f"{files.images.folder} (*{files.images.ending})")
    if not samples:
        raise ValueError(f"there is not one pair in {', '.join(looked_at)}; {remedy}")
    return tuple(samples), tuple(unpaired)


def find_folder(root: str, starts: Sequence[str], *, holding: Sequence[str], remedy: str) -> str:
    """The first of some folders below `root` ("" is the root itself) that holds one of some paths.

    Raises:
        ValueError: none does; the message says what lies in `root`, and ends in `remedy`.
    """
    for start in starts:
        folder = storage.join(root, start) if start else root
        if any(storage.exists(storage.join(folder, path)) for path in holding):
            return folder
    found = storage.list_folders(root)
    shown = ", ".join(found[:8]) + (", ..." if len(found) > 8 else "") if found else "no folders"
    raise ValueError(f"{root!r} holds {shown}; expected {' or '.join(holding)} in it; {remedy}")


def read_id_list(uri: str) -> tuple[str, ...]:
    """The names in a list file, one per line; empty lines and either kind of line end are allowed.

    Raises:
        ValueError: a line is no bare name, the same name stands twice, or there is none.
    """
    names: dict[str, int] = {}
    for number, line in enumerate(storage.read_bytes(uri).decode("utf-8-sig").splitlines(), start=1):
        name = line.strip()
        if not name:
            continue
        if name.split() != [name] or "/" in name or "." in name:
            raise ValueError(
                f"{uri}, line {number}: found {line!r}, expected one image's name without folder and ending, "
                "such as '2007_000032'"
            )
        if name in names:
            raise ValueError(f"{uri} names {name!r} in line {names[name]} and again in line {number}; remove one")
        names[name] = number
    if not names:
        raise ValueError(f"{uri} is empty; expected one image's name per line")
    return tuple(names)


def _unpaired(keys: Iterable[str], files: SplitFiles) -> Iterator[Unpaired]:
    for key in keys:
        image, label = files.images.expected(key), files.labels.expected(key)
        has_image, has_label = key in files.images.uris, key in files.labels.uris
        if has_image and has_label:
            continue
        if has_image:
            reason = f"the image has no label; expected {label}"
        elif has_label:
            reason = f"the label has no image; expected {image}"
        else:
            reason = f"it is listed, but there is neither an image nor a label; expected {image} and {label}"
        yield Unpaired(
            image_id=PurePosixPath(key).name, split=files.split, uri=label if has_label else image, reason=reason
        )
