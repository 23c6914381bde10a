"""Tables of a report as Markdown: plain, because they read in a terminal, a pull request and a browser alike.

Cells may hold strangers' text (replies, questions, names): it is escaped and brought to one line, never left out.
"""

from collections.abc import Sequence


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table; its rows are escaped."""
    lines = [header, ["---"] * len(header), *([escaped(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def escaped(text: str) -> str:
    """Return a text on one line, without what Markdown tables or HTML would read in it."""
    return " ".join(text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").split())
