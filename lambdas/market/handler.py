"""One invocation: look at the market, judge every pool, remember, offer the fleet those worth having, tell."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from typing import Any

import boto3

from market.cloud import Aws, Cloud, CouldNotApply, CouldNotLook
from market.settings import Settings
from market.worth import State, judge


def handler(event: Mapping[str, Any], context: object) -> None:  # noqa: ARG001 - Lambda passes them
    """Every five minutes. What fails is raised: Lambda counts it as an error, and tries twice more."""
    run(_wired(), now=datetime.now(UTC))


@cache
def _wired() -> Cloud:
    """Built on the first invocation, kept while the sandbox is warm."""
    return Aws(boto3.Session(), Settings.read(os.environ))


def run(cloud: Cloud, now: datetime) -> None:
    """Judge once. The table is written before the fleet is asked: what is decided is remembered, done or put off."""
    try:
        seen = cloud.look(now)
        verdicts = judge((row.look for row in seen.rows), now)
        cloud.remember(seen, verdicts, now)
        open_pools = {pool for pool, verdict in verdicts.items() if verdict.state is State.OPEN}
        done = cloud.offer(open_pools)
    except (CouldNotLook, CouldNotApply) as error:
        _log("market-failed", why=f"{type(error).__name__}: {error}")
        raise
    shut = {pool: verdict for pool, verdict in verdicts.items() if pool not in open_pools}
    was = {row.look.pool: row.look.state for row in seen.rows}
    _log(
        "market",
        why=f"{len(open_pools)} of {len(verdicts)} pools are worth having; {done}",
        shut={str(pool): verdict.why for pool, verdict in sorted(shut.items())},
        back=sorted(str(pool) for pool in open_pools if was[pool] is not State.OPEN),
        unknown=seen.unknown,
    )


def _log(event: str, *, why: str, **details: object) -> None:
    """Write one JSON object on one line."""
    sys.stdout.write(json.dumps({"event": event, "why": why, **details}) + "\n")
    sys.stdout.flush()
