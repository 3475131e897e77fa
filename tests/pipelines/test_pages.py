import base64
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from pipelines.pages import (
    Cell,
    Code,
    Facts,
    Gallery,
    LayeredPicture,
    Legend,
    Paragraph,
    Picture,
    Section,
    Table,
    number_cell,
    render_page,
    write_page,
)
from pipelines.pictures import jpeg_bytes, png_bytes

PIXELS = np.full((3, 4, 3), 90, dtype=np.uint8)
VOID_TAGS = {"meta", "img", "br", "link", "input"}


class Outline(HTMLParser):
    """Collects tags with attributes and text, and fails where tags do not nest."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID_TAGS:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip() and self.open[-1] not in ("style", "script"):
            self.text.append(data.strip())


def outline(page: bytes) -> Outline:
    parsed = Outline()
    parsed.feed(page.decode())
    assert parsed.open == []
    return parsed


def everything() -> bytes:
    table = Table(
        columns=("run", "mIoU"),
        rows=(
            (Cell(text="a", link="runs/a.html"), number_cell(0.5, scale=100, best=True)),
            (Cell(text="b"), number_cell(None)),
        ),
        numeric=(1,),
    )
    blocks = (
        Paragraph(text="words"),
        Paragraph(text="careful", warning=True),
        Facts(facts=(("mIoU", "50 %"),)),
        Code(text="SELECT 1"),
        table,
        Gallery(pictures=(Picture(data=png_bytes(PIXELS), caption="png"), Picture(data=jpeg_bytes(PIXELS), card=True))),
        Legend(class_names=("road",), palette=((1, 2, 3),)),
    )
    return render_page("A page", [Section(title="All", blocks=blocks)], subtitle="below", footer="the end")


def test_every_block_appears_and_tags_nest() -> None:
    page = outline(everything())
    for words in (
        "A page",
        "below",
        "All",
        "words",
        "careful",
        "mIoU",
        "50 %",
        "SELECT 1",
        "50.0",
        "-",
        "png",
        "road",
        "the end",
    ):
        assert words in page.text


def test_page_needs_nothing_from_outside() -> None:
    page = outline(everything())
    sources = [attributes["src"] for _, attributes in page.tags if "src" in attributes]
    assert len(sources) == 2
    assert all(source is not None and source.startswith("data:image/") for source in sources)
    assert not [tag for tag, _ in page.tags if tag in ("link", "iframe")]
    assert not re.search(rb"https?://|@import|url\(", everything())


def test_pictures_arrive_byte_for_byte() -> None:
    source = next(attributes["src"] for tag, attributes in outline(everything()).tags if tag == "img")
    assert source is not None
    assert base64.b64decode(source.removeprefix("data:image/png;base64,")) == png_bytes(PIXELS)


def test_text_is_escaped_everywhere() -> None:
    nasty = '<script>alert("1")</script>&'
    blocks = (
        Paragraph(text=nasty),
        Facts(facts=((nasty, nasty),)),
        Code(text=nasty),
        Table(columns=(nasty,), rows=((Cell(text=nasty, link=nasty),),)),
        Gallery(pictures=(Picture(data=png_bytes(PIXELS), caption=nasty),)),
        Legend(class_names=(nasty,), palette=((0, 0, 0),)),
    )
    page = outline(render_page(nasty, [Section(title=nasty, blocks=blocks)], subtitle=nasty, footer=nasty))
    assert [tag for tag, _ in page.tags].count("script") == 1, "only the page's own"
    assert page.text.count(nasty) == 13


def test_numbers_sort_by_value_and_missing_ones_below_all() -> None:
    cells = [number_cell(value, scale=100) for value in (0.1, 0.02, None, float("nan"))]
    assert [cell.text for cell in cells] == ["10.0", "2.0", "-", "-"]
    orders = [cell.order for cell in cells]
    assert orders == sorted(orders, key=lambda order: -(order or 0))
    assert b'data-order="0.5"' in everything()


def test_layered_pictures_have_one_slider_per_gallery_and_lie_above_each_other() -> None:
    layered = LayeredPicture(data=jpeg_bytes(PIXELS), layer=png_bytes(PIXELS), caption="an <image>")
    plain = Picture(data=png_bytes(PIXELS))
    galleries = (Gallery(pictures=(layered, layered)), Gallery(pictures=(plain,)), Gallery(pictures=(plain, layered)))
    page = outline(render_page("t", [Section(title="", blocks=galleries)]))
    assert len([1 for tag, attributes in page.tags if tag == "input" and attributes["type"] == "range"]) == 2
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert [(image["src"] or "")[:15] for image in images[:2]] == ["data:image/jpeg", "data:image/png;"]
    assert [image["alt"] for image in images[:2]] == ["an <image>", ""], "a reader hears each image once"
    assert page.text.count("an <image>") == 3


def test_cells_show_their_tone_and_a_bar() -> None:
    row = (Cell(text="a", tone="bad"), Cell(text="b", bar=0.125, tone="warn"), Cell(text="c", bar=0.0))
    page = outline(render_page("t", [Section(title="", blocks=(Table(columns=("x", "y", "z"), rows=(row,)),))]))
    cells = [attributes for tag, attributes in page.tags if tag == "td"]
    assert [cell["class"] for cell in cells] == ["text bad", "text warn bar", "text bar"]
    assert [cell.get("style") for cell in cells] == [None, "--share: 12.5%", "--share: 0.0%"]


def test_a_table_of_sentences_tells_the_head_of_each_cell() -> None:
    def cells(wide: tuple[int, ...]) -> list[str | None]:
        table = Table(columns=("what", '"to" do'), rows=((Cell(text="a"), Cell(text="b")),), wide=wide)
        page = outline(render_page("t", [Section(title="", blocks=(table,))]))
        return [attributes.get("data-head") for tag, attributes in page.tags if tag == "td"]

    assert cells((1,)) == ["what", '"to" do'] and cells(()) == [None, None]


def test_a_legend_may_leave_ignored_pixels_out() -> None:
    def texts(*, ignored: bool) -> list[str]:
        legend = Legend(class_names=("road",), palette=((1, 2, 3),), ignored=ignored)
        return outline(render_page("t", [Section(title="", blocks=(legend,))])).text

    assert "ignored" in texts(ignored=True) and "ignored" not in texts(ignored=False)


def test_equal_input_gives_equal_bytes() -> None:
    assert everything() == everything()


def test_row_of_the_wrong_length_is_refused() -> None:
    with pytest.raises(ValueError, match="a row of 1 cells in a table of 2 columns"):
        Table(columns=("a", "b"), rows=((Cell(text="x"),),))


def test_picture_of_an_unknown_format_is_refused() -> None:
    with pytest.raises(ValueError, match="neither PNG nor JPEG"):
        render_page("t", [Section(title="", blocks=(Gallery(pictures=(Picture(data=b"GIF89a"),)),))])


def test_page_is_written_below_folders_that_do_not_exist_yet(tmp_path: Path) -> None:
    write_page(str(tmp_path / "new" / "index.html"), everything())
    assert (tmp_path / "new" / "index.html").read_bytes() == everything()
