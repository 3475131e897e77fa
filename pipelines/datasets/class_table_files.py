"""The small file in which a user names the classes of a dataset, and says whether labels hold values or colours."""

import json
from dataclasses import dataclass
from typing import Any

import yaml

from pipelines import storage
from pipelines.datasets.colour_labels import Colour, ColourTable
from pipelines.datasets.listing import ClassTable, default_palette
from segcore import IGNORE_INDEX

EXAMPLE = "names: [sky, road, car]\npalette: [[70, 130, 180], [128, 64, 128], [0, 0, 142]]\nignore: [255]"
COLOUR_EXAMPLE = "colours: rgb\nnames: [sky, road]\npalette: [[70, 130, 180], [128, 64, 128]]\nignore: [[0, 0, 0]]"
KEYS = {"names", "palette", "ignore", "colours"}


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelCoding:
    """How classes are stored in label files.

    Attributes:
        class_table: with stored values; where labels hold colours, those that `colours` turns them into.
        colours: of the labels; None: they hold values.
        palette_given: the file says the classes' colours.
    """

    class_table: ClassTable
    colours: ColourTable | None = None
    palette_given: bool = False

    def settings(self) -> dict[str, Any]:
        """What a prepared dataset depends on beyond the class table: JSON values."""
        return {} if self.colours is None else {"colour_values": self.colours.values}


def read_label_coding(uri: str) -> LabelCoding:
    """Parse a class table file.

    Raises:
        ValueError: it is missing, or says something else than `names`, `palette`, `ignore` and `colours`.
    """
    try:
        text = storage.read_bytes(uri).decode()
        content = json.loads(text) if uri.endswith(".json") else yaml.safe_load(text)
    except FileNotFoundError:
        raise ValueError(f"the class table {uri!r} does not exist; write one, for example\n{EXAMPLE}") from None
    except (UnicodeDecodeError, json.JSONDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"the class table {uri!r} is neither YAML nor JSON: {error}") from error
    if not isinstance(content, dict) or "names" not in content or set(content) - KEYS:
        found = sorted(map(str, content)) if isinstance(content, dict) else type(content).__name__
        raise ValueError(
            f"the class table {uri!r} holds {found}, expected `names` and, if wanted, `palette`, `ignore` and "
            f"`colours`, for example\n{EXAMPLE}"
        )
    in_colours = "colours" in content
    try:
        if in_colours:
            return _colour_coding(content)
        return LabelCoding(class_table=_class_table(content), palette_given=content.get("palette") is not None)
    except (TypeError, ValueError) as error:
        example = COLOUR_EXAMPLE if in_colours else EXAMPLE
        raise ValueError(f"the class table {uri!r} is not usable: {error}; an example:\n{example}") from error


def _class_table(content: dict[str, Any]) -> ClassTable:
    names = content["names"]
    if isinstance(names, dict):
        by_value = sorted((int(value), str(name)) for value, name in names.items())
    elif isinstance(names, list):
        by_value = list(enumerate(map(str, names)))
    else:
        raise TypeError(f"`names` is a {type(names).__name__}, expected a list, or a map from stored value to name")
    palette = content.get("palette")
    return ClassTable(
        names=tuple(name for _, name in by_value),
        palette=default_palette(len(by_value)) if palette is None else _colours(palette),
        values=tuple(value for value, _ in by_value),
        ignore_values=tuple(int(value) for value in content.get("ignore") or ()),
    )


def _colour_coding(content: dict[str, Any]) -> LabelCoding:
    """Labels hold the palette's colours: they become class indices, and the ignored ones `IGNORE_INDEX`."""
    if content["colours"] != "rgb":
        raise ValueError(f"`colours` is {content['colours']!r}, expected rgb; leave it out where labels hold values")
    if not isinstance(content["names"], list) or content.get("palette") is None:
        raise ValueError("labels in colours need `names` as a list, and a `palette` with the colour of each")
    ignored = content.get("ignore") or ()
    if not all(isinstance(colour, list | tuple) for colour in ignored):
        raise ValueError(f"`ignore` is {ignored}, expected colours [r, g, b], since labels hold colours")
    class_table = _class_table(content | {"ignore": [IGNORE_INDEX]})
    values = [*enumerate(class_table.palette), *((IGNORE_INDEX, colour) for colour in _colours(ignored))]
    colours = ColourTable(tuple((colour, value) for value, colour in values))
    return LabelCoding(class_table=class_table, colours=colours, palette_given=True)


def _colours(listed: Any) -> tuple[Colour, ...]:
    return tuple((int(red), int(green), int(blue)) for red, green, blue in listed)
