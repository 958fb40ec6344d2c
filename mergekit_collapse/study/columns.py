"""Tables of text: the first column to the left, the others to the right."""

from collections.abc import Iterable, Sequence


def columns(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines of one width each, indented by two.

    Raises:
        ValueError: a row has more or fewer cells than the header.
    """
    table = [header, *rows]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return [
        "  " + "  ".join([first.ljust(widths[0]), *map(str.rjust, rest, widths[1:])]).rstrip()
        for first, *rest in table
    ]


def p_text(p: float) -> str:
    """Five decimals, or two digits where those would be zeros."""
    return f"{p:.5f}" if not p < 5e-5 else f"{p:.1e}"
