"""Pages as Markdown: tables that survive any name, and nothing left of what was only pictures."""

from pipelines.markdown import render_markdown
from pipelines.pages import Cell, Code, Facts, Gallery, Legend, Paragraph, Picture, Section, Table

TABLE = Table(
    columns=("name", "mIoU*, %"),
    rows=((Cell(text="a|b"), Cell(text="71.2", best=True)), (Cell(text="<i>\nx"), Cell(text="-"))),
    numeric=(1,),
)


def test_words_tables_and_code_are_there() -> None:
    blocks = (Paragraph(text="take *care*", warning=True), TABLE, Facts(facts=(("n", "3"),)), Code(text="SELECT *"))
    text = render_markdown("A page", [Section(title="Scores", blocks=blocks)], subtitle="of two", footer="end").decode()
    assert text.splitlines() == [
        *("# A page", "", "of two", "", "## Scores", "", r"> **Note:** take \*care\*", ""),
        *(r"| name | mIoU\*, % |", "| --- | ---: |", r"| a\|b | **71.2** |", "| &lt;i> x | - |", ""),
        *("- n: 3", "", "```", "SELECT *", "```", "", "end"),
    ]


def test_sections_of_pictures_alone_are_left_out() -> None:
    gallery = Gallery(pictures=(Picture(data=b"\x89PNG\r\n\x1a\n"),))
    pictures = Section(title="Seen", blocks=(Paragraph(text="look"), Legend(class_names=(), palette=()), gallery))
    both = Section(title="Both", blocks=(Paragraph(text="look"), TABLE, gallery))
    text = render_markdown("A page", [pictures, both]).decode()
    assert "Seen" not in text and "## Both" in text
