"""Results as rows of text, for the screen and the page."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from replay.results import Result

COLUMNS: Mapping[str, Callable[[Result], str]] = {
    "policy": lambda result: result.policy,
    "cost": lambda result: f"{result.cost_share:.3f}",
    "cost, first hour free": lambda result: _or_dash(result.cost_share_free_hour, "{:.3f}"),
    "short": lambda result: f"{100 * result.short_share:.2f} %",
    "short of capacity": lambda result: f"{100 * result.short_capacity_share:.2f} %",
    "interruptions": lambda result: _or_dash(result.interruptions, "{:,}"),
    "launches": lambda result: _or_dash(result.launches, "{:,}"),
    "On-Demand hours": lambda result: f"{result.on_demand_unit_hours:,.0f}",
}
LOAD_COLUMNS: Mapping[str, Callable[[Result], str]] = {
    "jobs": lambda result: _or_dash(result.jobs, "{:,}"),
    "in time": lambda result: _or_dash(result.in_time_share, "{:.2%}"),
    "half done in": lambda result: _or_dash(result.done_seconds_p50, "{:,.0f} s"),
    "99 % done in": lambda result: _or_dash(result.done_seconds_p99, "{:,.0f} s"),
}


def rows(results: Sequence[Result]) -> list[list[str]]:
    """A header and a row for each result; what only a load has is left out when nobody has it."""
    columns = dict(COLUMNS)
    columns |= {name: cell for name, cell in LOAD_COLUMNS.items() if any(cell(each) != "–" for each in results)}
    return [list(columns), *([cell(result) for cell in columns.values()] for result in results)]


def text(results: Sequence[Result]) -> str:
    """The rows in columns: names to the left, numbers to the right."""
    table = rows(results)
    widths = [max(len(row[index]) for row in table) for index in range(len(table[0]))]
    return "\n".join(
        "  ".join(
            f"{cell:<{width}}" if not index else f"{cell:>{width}}"
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in table
    )


def _or_dash(value: float | None, form: str) -> str:
    return "–" if value is None else form.format(value)
