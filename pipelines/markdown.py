"""A page's sections as Markdown: the same data as `pipelines.pages`, for a pull request, a wiki or an e-mail."""

from collections.abc import Iterable, Sequence

from pipelines.pages import Code, Facts, Gallery, Legend, Paragraph, Section, Table


def render_markdown(title: str, sections: Sequence[Section], *, subtitle: str = "", footer: str = "") -> bytes:
    """Render as UTF-8 Markdown with tables as GitHub shows them; pictures and legends are left out, with what only
    belonged to them: a section of which nothing else is left is not there.

    Args:
        title: of the document.
        sections: in order.
        subtitle: one line below the title.
        footer: one line at the end.
    """
    parts = [f"# {_plain(title)}", _plain(subtitle)]
    for section in sections:
        blocks = [text for block in section.blocks if (text := _block(block))]
        if any(isinstance(block, Gallery) for block in section.blocks) and len(blocks) < 2:
            continue
        parts += [f"## {_plain(section.title)}" if section.title else "", *blocks]
    return ("\n\n".join(part for part in [*parts, _plain(footer)] if part) + "\n").encode()


def table_line(cells: Iterable[str]) -> str:
    """One line of a table; a bar inside a cell is escaped."""
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _block(block: Paragraph | Facts | Code | Table | Gallery | Legend) -> str:
    if isinstance(block, Paragraph):
        return f"> **Note:** {_plain(block.text)}" if block.warning else _plain(block.text)
    if isinstance(block, Facts):
        return "\n".join(f"- {_plain(name)}: {_plain(value)}" for name, value in block.facts)
    if isinstance(block, Code):
        return f"```\n{block.text}\n```"
    if isinstance(block, Table):
        rules = ("---:" if index in block.numeric else "---" for index in range(len(block.columns)))
        rows = ((f"**{_plain(cell.text)}**" if cell.best else _plain(cell.text) for cell in row) for row in block.rows)
        return "\n".join([table_line(map(_plain, block.columns)), table_line(rules), *map(table_line, rows)])
    return ""


def _plain(text: str) -> str:
    """Text that Markdown shows as it is, on one line."""
    for mark in ("\\", "*", "`", "[", "]"):
        text = text.replace(mark, f"\\{mark}")
    return " ".join(text.replace("<", "&lt;").split())
