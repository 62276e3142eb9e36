"""The report of a benchmark as one SVG: what a thousand jobs cost on each type, in both markets."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

from ops.throughput import Report

WIDTH, LEFT, RIGHT = 720, 130, 90
ROW, BAR, TOP = 44, 14, 34
MARKETS = (("Spot", "spot", "#2a7f62"), ("On-Demand", "on_demand", "#c98b2b"))
STYLE = (
    "text{font:13px system-ui,sans-serif;fill:#333}.value{fill:#666}@media(prefers-color-scheme:dark){text{fill:#ddd}}"
)


def svg(report: Report) -> str:
    """A pair of bars for each type that was measured, in the order of the report."""
    lines = [one for one in report.lines if one.rate]
    costs = [[one.per_thousand(getattr(one, key)) for _, key, _ in MARKETS] for one in lines]
    most = max((usd for pair in costs for usd in pair if usd), default=1.0)
    parts = list(_legend())
    for row, (one, pair) in enumerate(zip(lines, costs, strict=True)):
        top = TOP + row * ROW
        parts.append(f'<text x="{LEFT - 10}" y="{top + BAR + 5}" text-anchor="end">{escape(one.type)}</text>')
        for place, (usd, (_, _, colour)) in enumerate(zip(pair, MARKETS, strict=True)):
            if usd:
                parts += _bar(top + place * (BAR + 3), usd / most * (WIDTH - LEFT - RIGHT), usd, colour)
    height = TOP + len(lines) * ROW
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img">'
        f"<style>{STYLE}</style>{''.join(parts)}</svg>\n"
    )


def _legend() -> Iterator[str]:
    yield '<text x="10" y="18">US dollars for 1,000 jobs</text>'
    for place, (name, _, colour) in enumerate(MARKETS):
        x = 250 + 120 * place
        yield f'<rect x="{x}" y="7" width="{BAR}" height="{BAR}" fill="{colour}"/>'
        yield f'<text x="{x + BAR + 6}" y="18">{name}</text>'


def _bar(y: float, width: float, usd: float, colour: str) -> Iterator[str]:
    yield f'<rect x="{LEFT}" y="{y}" width="{width:.1f}" height="{BAR}" fill="{colour}"/>'
    yield f'<text class="value" x="{LEFT + width + 6:.1f}" y="{y + BAR - 3}">{usd:.3f}</text>'
