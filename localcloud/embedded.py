"""The embedded metric format: what CloudWatch reads from a line of a log, pure.

Source: CloudWatch user guide, "Specification: Embedded metric format". What does not keep to it is no metric, which
CloudWatch says nowhere; the local cloud's log does.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from localcloud.metrics import NO_UNIT, Metric, Sample, sample

log = logging.getLogger(__name__)

MOST_VALUES, MOST_DIMENSIONS, MOST_METRICS = 100, 30, 100


def samples(line: str, delay: float) -> Iterator[tuple[Metric, Sample]]:
    """The metrics in one line, each known `delay` seconds after the time it tells."""
    if '"_aws"' not in line:
        return
    try:
        told = json.loads(line)
        meta = told["_aws"]
        at = meta["Timestamp"] / 1000
        directives = list(meta["CloudWatchMetrics"])
    except (ValueError, KeyError, TypeError) as error:
        log.warning("no metrics in %.200s: %s", line, error)
        return
    for directive in directives:
        for dimensions in directive["Dimensions"]:
            for definition in directive["Metrics"][:MOST_METRICS]:
                yield from _one(told, directive["Namespace"], dimensions, definition, (at, at + delay))


def _one(
    told: Mapping[str, Any],
    namespace: str,
    dimensions: Sequence[str],
    definition: Mapping[str, Any],
    times: tuple[float, float],
) -> Iterator[tuple[Metric, Sample]]:
    value: Any = told.get(definition["Name"])
    values: list[Any] = value if isinstance(value, list) else [value]
    named = {name: told.get(name) for name in dimensions}
    if (
        len(dimensions) > MOST_DIMENSIONS
        or not 1 <= len(values) <= MOST_VALUES
        or not all(isinstance(one, int | float) and not isinstance(one, bool) for one in values)
        or not all(isinstance(one, str) for one in named.values())
    ):
        log.warning("%s of %s is not in embedded metric format: %r by %r", definition["Name"], namespace, value, named)
        return
    metric = Metric.of(namespace, definition["Name"], {name: str(one) for name, one in named.items()})
    yield metric, sample(*times, [(one, 1.0) for one in values], definition.get("Unit", NO_UNIT))
