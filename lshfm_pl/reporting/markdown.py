"""Markdown text and tables."""

from collections.abc import Iterable, Sequence

__all__ = ["markdown_table", "markdown_text"]


MARKDOWN_ENTITIES = {
    "&": "&amp;",
    "<": "&lt;",
    ">": "&gt;",
    "|": "&#124;",
    "`": "&#96;",
    "\\": "&#92;",
    "](": "]&#40;",
}


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]], *, left: int = 1) -> str:
    """A Markdown table; the first `left` columns are aligned to the left, all others to the right."""
    lines = [[markdown_text(cell) for cell in header], ["---"] * left + ["---:"] * (len(header) - left)]
    lines += [[markdown_text(cell) for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def markdown_text(text: str) -> str:
    """A text in one line, escaped: it contains no HTML, link, end of a table cell, or terminal escape sequence."""
    for character, entity in MARKDOWN_ENTITIES.items():
        text = text.replace(character, entity)
    return "".join(sign if sign.isprintable() else "\ufffd" for sign in " ".join(text.split()))
