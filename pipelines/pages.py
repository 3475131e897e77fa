"""Self-contained HTML pages: one file with its pictures inside, readable offline, in light and dark, years from now.

A page is data (sections of blocks below); `templates/page.html.jinja` is the only place that knows HTML.
"""

import base64
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

import jinja2

from pipelines import storage

MEDIA_TYPES = {b"\x89PNG\r\n\x1a\n": "image/png", b"\xff\xd8\xff": "image/jpeg"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Paragraph:
    """Plain text; `warning` puts it into a coloured box."""

    text: str
    warning: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """A row of large figures, each with its name above: (("mIoU", "71.2 %"), ...)."""

    facts: tuple[tuple[str, str], ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Code:
    """Text to copy: a command, a query."""

    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """One cell of a table.

    Attributes:
        text: what is shown.
        order: what a click on the column's head sorts by; None sorts by the text.
        best: emphasised.
        link: relative address, or "".
        tone: "warn" and "bad" colour the cell.
        bar: share of the cell's width, 0 to 1, that a bar behind the text takes; None for no bar.
    """

    text: str
    order: float | None = None
    best: bool = False
    link: str = ""
    tone: Literal["", "warn", "bad"] = ""
    bar: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """A sortable table; `numeric` columns are aligned to the right.

    Attributes:
        columns: heads.
        rows: as many cells each as there are columns.
        numeric: indices of columns that hold numbers.
        wide: indices of columns that hold sentences or long words, which are not squeezed on a phone.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    numeric: tuple[int, ...] = ()
    wide: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"a row of {len(row)} cells in a table of {len(self.columns)} columns: {row}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """A PNG or JPEG with words below it.

    Attributes:
        data: encoded bytes.
        caption: shown below, and read to those who do not see.
        card: on white, for charts: their letters are dark.
    """

    data: bytes
    caption: str = ""
    card: bool = False

    @property
    def address(self) -> str:
        """The picture as a `data:` address.

        Raises:
            ValueError: neither PNG nor JPEG.
        """
        return _address(self.data)


@dataclass(frozen=True, kw_only=True, slots=True)
class LayeredPicture:
    """Two pictures of one shape above each other; a slider over the gallery sets the upper one's opacity, for all
    galleries of the page at once, and a click on a picture takes its upper one away and brings it back.

    Attributes:
        data: the lower one, encoded PNG or JPEG.
        layer: the upper one, likewise; stretched to the lower one's size.
        caption: as a `Picture`'s.
    """

    data: bytes
    layer: bytes
    caption: str = ""

    @property
    def addresses(self) -> tuple[str, str]:
        """Lower and upper picture as `data:` addresses.

        Raises:
            ValueError: one is neither PNG nor JPEG.
        """
        return _address(self.data), _address(self.layer)


@dataclass(frozen=True, kw_only=True, slots=True)
class Gallery:
    """Pictures in a grid of columns of at least `min_width_px`."""

    pictures: tuple[Picture | LayeredPicture, ...]
    min_width_px: int = 420

    @property
    def has_layers(self) -> bool:
        """Whether it needs a slider."""
        return any(isinstance(picture, LayeredPicture) for picture in self.pictures)


@dataclass(frozen=True, kw_only=True, slots=True)
class Legend:
    """The class table: names and RGB colours; `ignored` adds the hatch of pixels without a class."""

    class_names: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    ignored: bool = True


Block = Paragraph | Facts | Code | Table | Gallery | Legend


@dataclass(frozen=True, kw_only=True, slots=True)
class Section:
    """A heading and what stands below it; `title` "" leaves the heading out."""

    title: str
    blocks: tuple[Block, ...]


def render_page(title: str, sections: Sequence[Section], *, subtitle: str = "", footer: str = "") -> bytes:
    """Render a page as UTF-8 HTML. Everything is escaped; the same input gives the same bytes.

    Args:
        title: of the browser's tab and of the page.
        sections: in order.
        subtitle: one line below the title.
        footer: one line at the end: what wrote the page, from what.
    """
    html: str = _template().render(title=title, subtitle=subtitle, sections=sections, footer=footer)
    return html.encode()


def write_page(uri: str, page: bytes) -> None:
    """Store a page, all-or-nothing."""
    storage.write_atomic(uri, page)


def number_cell(
    value: float | None, *, digits: int = 1, scale: float = 1.0, unit: str = "", best: bool = False
) -> Cell:
    """A number as a cell; None and NaN show as a dash and sort below every number."""
    if value is None or math.isnan(value):
        return Cell(text="-", order=-sys.float_info.max)
    return Cell(text=f"{value * scale:,.{digits}f}{unit}", order=value, best=best)


def _address(data: bytes) -> str:
    for magic, media_type in MEDIA_TYPES.items():
        if data.startswith(magic):
            return f"data:{media_type};base64,{base64.b64encode(data).decode()}"
    raise ValueError(f"a picture starts with {data[:8].hex()}, which is neither PNG nor JPEG")


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("pipelines"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.tests["kind"] = lambda block, name: type(block).__name__ == name
    return environment.get_template("page.html.jinja")
