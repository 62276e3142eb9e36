"""One HTML file that needs nothing else: the frontier, the table, and each policy's capacity over time."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from replay.plots import capacity, colour, frontier
from replay.results import BOUNDS, SHIPPED, Answer, Question, Result
from replay.table import rows

STYLE = """
:root { color-scheme: light dark; --ink: light-dark(#1d2433, #e4e8f0); --soft: light-dark(#667085, #98a2b3);
  --line: light-dark(#e4e7ec, #2b3444); --paper: light-dark(#fff, #131a26); --back: light-dark(#f5f6f8, #0b1018);
  --ours: light-dark(#0b62d6, #6aa9ff); --bad: light-dark(#d92d20, #ff7a6b); --bound: light-dark(#12805c, #4ccb9f) }
body { margin: 0 auto; padding: 2.5rem 1.25rem 4rem; max-width: 62rem; background: var(--back); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif }
h1 { font-size: 1.7rem; margin: 0 0 .3rem; letter-spacing: -.02em } h2 { font-size: 1.1rem; margin: 2.4rem 0 .6rem }
p { margin: .2rem 0 .8rem; color: var(--soft) }
figure, details, .table { background: var(--paper); border: 1px solid var(--line); border-radius: 10px; margin: .6rem 0;
  padding: .9rem }
.table { overflow-x: auto } summary { cursor: pointer; font-weight: 600 } summary span { color: var(--soft);
  font-weight: 400; margin-left: .6rem } svg { display: block; width: 100%; height: auto; margin-top: .4rem }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums } th, td { padding: .32rem .45rem;
  text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap } th:first-child, td:first-child {
  text-align: left } th { color: var(--soft); font-weight: 500 } tr:last-child td { border: 0 }
tr.ours td { color: var(--ours); font-weight: 600 } tr.bound td { color: var(--bound) }
svg text { font: 11px system-ui, sans-serif; fill: var(--ink); paint-order: stroke; stroke: var(--paper);
  stroke-width: 3px } svg text.tick, svg text.axis { fill: var(--soft) }
.grid { stroke: var(--line) } .theirs, svg text.theirs { fill: var(--soft) } .ours { fill: var(--ours) }
svg text.ours { fill: var(--ours); font-weight: 600 }
.frontier { fill: none; stroke: var(--soft); stroke-width: 1.5; stroke-dasharray: 1 4; stroke-linecap: round }
line.bound { stroke: var(--bound); stroke-width: 1.5; stroke-dasharray: 5 4 } svg text.bound { fill: var(--bound) }
.need { fill: none; stroke: var(--ink); stroke-width: 1.4 } .notice { fill: var(--soft) } .short { fill: var(--bad) }
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1.1rem; color: var(--soft); margin: .4rem 0 } .legend i {
  display: inline-block; width: .8em; height: .8em; border-radius: 3px; margin-right: .4em }
"""


def page(question: Question, told: str, answers: Sequence[Answer]) -> str:
    """The report. `told` says in a sentence what was asked."""
    results = [each.result for each in answers]
    zones = question.market.zones
    legend = "".join(
        f'<span><i style="background:{colour(layer, zones)}"></i>{escape(name)}</span>'
        for layer, name in enumerate([*zones, "On-Demand"])
    )
    lives = "".join(
        f"<details{' open' if index == 0 else ''}><summary>{each.result.policy}<span>cost "
        f"{each.result.cost_share:.3f}, short {100 * each.result.short_share:.2f} % of the time, "
        f"{each.result.interruptions:,} interruptions</span></summary>"
        f"{capacity(each.diary, zones, question.market.end)}</details>"
        for index, each in enumerate(each for each in answers if each.diary)
        if each.diary
    )
    return f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Spindrift replay</title><style>{STYLE}</style>
<h1>What this market would have cost</h1>
<p>{escape(told)}</p>
<h2>Cost and shortage</h2>
<figure>{frontier(results)}</figure>
<p>Cheaper is to the left, less short is below. The dotted line is the best of the policies to compare with; the dashed
ones are what it would cost never to be short if one knew the future (bound: and if launches took no time).</p>
<div class="table">{_table(results)}</div>
<h2>Capacity over time</h2>
<p>Units that served, by zone, and the need as a line. Under each plot are the interruption notices, and in red when
less served than was needed.</p>
<div class="legend">{legend}</div>
{lives}
</html>
"""


def _table(results: Sequence[Result]) -> str:
    header, *body = rows(results)
    head = "".join(f"<th>{name}</th>" for name in header)
    lines = [f'<tr class="{_kind(row[0])}">{"".join(f"<td>{cell}</td>" for cell in row)}</tr>' for row in body]
    return f"<table><tr>{head}</tr>{''.join(lines)}</table>"


def _kind(policy: str) -> str:
    return "ours" if policy in SHIPPED else "bound" if policy in BOUNDS else "theirs"
