"""What passes leave for each other, as tags of the fleet. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

from capacity.nouns import Bad, Notes, Wave

SHORT_SINCE = "spindrift:short-since"
AMPLE_SINCE = "spindrift:ample-since"
WAVES = "spindrift:waves"
WORKED = "spindrift:worked"
ON_DEMAND_TOOK = "spindrift:on-demand-took"
BAD = "spindrift:bad"
KINDS = {"spot": True, "on-demand": False}
MOST_DIGITS = 9
"""More make no sense, in units as in seconds."""


def written(notes: Notes) -> dict[str, str]:
    """The tags: what there is nothing of has none."""
    kinds = {spot: name for name, spot in KINDS.items()}
    tags = {
        SHORT_SINCE: notes.short_since.isoformat() if notes.short_since else "",
        AMPLE_SINCE: notes.ample_since.isoformat() if notes.ample_since else "",
        WAVES: " ".join(f"{int(wave.at.timestamp())}={wave.share:g}" for wave in notes.waves),
        WORKED: str(notes.worked or ""),
        ON_DEMAND_TOOK: "" if notes.on_demand_took is None else str(round(notes.on_demand_took.total_seconds())),
        BAD: " ".join(f"{one.id}={kinds[one.spot]}={int(one.launched.timestamp())}" for one in notes.bad),
    }
    return {key: value for key, value in tags.items() if value}


def read(tags: Mapping[str, str]) -> Notes:
    """The notes. A value that makes no sense is none: people can write tags, too, and the next pass mends it."""
    return Notes(
        short_since=moment(tags.get(SHORT_SINCE, "")),
        ample_since=moment(tags.get(AMPLE_SINCE, "")),
        waves=_waves(tags.get(WAVES, "")),
        worked=_number(tags.get(WORKED, "")) or 0,
        on_demand_took=None if (took := _number(tags.get(ON_DEMAND_TOOK, ""))) is None else timedelta(seconds=took),
        bad=_bad(tags.get(BAD, "")),
    )


def moment(text: str) -> datetime | None:
    """A moment with its time zone, None for anything else."""
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        return None
    return found if found.tzinfo else None


def _number(text: str) -> int | None:
    return int(text) if text.isdecimal() and len(text) <= MOST_DIGITS else None


def _waves(text: str) -> tuple[Wave, ...]:
    try:
        pairs = [pair.split("=") for pair in text.split()]
        return tuple(Wave(datetime.fromtimestamp(int(at), UTC), float(share)) for at, share in pairs)
    except (ValueError, OverflowError, OSError):
        return ()


def _bad(text: str) -> tuple[Bad, ...]:
    try:
        parts = [each.split("=") for each in text.split()]
        return tuple(Bad(name, KINDS[kind], datetime.fromtimestamp(int(at), UTC)) for name, kind, at in parts)
    except (KeyError, ValueError, OverflowError, OSError):
        return ()
