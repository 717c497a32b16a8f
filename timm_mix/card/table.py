"""Markdown tables as text, for cards and for the tables of releases and comparisons."""

from collections.abc import Iterable, Sequence

__all__ = ["markdown_table"]

_RULES = {"l": "---", "r": "---:"}


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[object]], align: str = "") -> str:
    """A table of one line per row, without a line feed at its end.

    Args:
        header: the titles, one per column.
        rows: the cells, written as str() gives them; each row has one per column.
        align: one letter per column, `l` or `r` for numbers; all `l` where it is empty.
    Raises:
        ValueError: align or a row does not fit the header.

    >>> print(markdown_table(["network", "top-1"], [["resnet18", 80.25]], align="lr"))
    | network | top-1 |
    | --- | ---: |
    | resnet18 | 80.25 |
    """
    align = align or "l" * len(header)
    if len(align) != len(header) or not set(align) <= set(_RULES):
        raise ValueError(f"align must be {len(header)} letters l or r, one per column, got {align!r}")
    lines = [list(header), [_RULES[letter] for letter in align]]
    for row in rows:
        if len(row) != len(header):
            raise ValueError(f"a row must have {len(header)} cells, one per column, got {len(row)}: {list(row)}")
        lines.append([str(cell) for cell in row])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
