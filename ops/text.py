"""How the operator's commands put things on the screen."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from datetime import timedelta


def table(rows: Sequence[Sequence[str]], numbers: Collection[int] = ()) -> Iterator[str]:
    """Rows as lines, the first one the head; the columns at the places `numbers` are aligned to the right."""
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    for row in rows:
        cells = (
            cell.rjust(width) if place in numbers else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        yield "  ".join(cells).rstrip()


def count(number: int, noun: str) -> str:
    """`1 job`, `2 jobs`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def lasting(span: timedelta) -> str:
    """A time in the two largest units that it has: `42 s`, `3 min 20 s`, `2 h 5 min`, `3 d 4 h`."""
    left, parts = max(0, round(span.total_seconds())), []
    for unit, seconds in (("d", 86_400), ("h", 3600), ("min", 60), ("s", 1)):
        whole, left = divmod(left, seconds)
        if whole:
            parts.append(f"{whole} {unit}")
    return " ".join(parts[:2]) or "0 s"


def short(text: str, longest: int = 100) -> str:
    """The text on one line and no longer than that; what others wrote may be anything."""
    line = " ".join("".join(one if one.isprintable() else " " for one in text).split())
    return line if len(line) <= longest else line[: longest - 1] + "…"
