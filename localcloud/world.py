"""What every part of the local cloud shares: the clock, the dice, the lock, the state and the diary."""

from __future__ import annotations

import json
import logging
import random
import sqlite3
import threading
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from localcloud.engine import Engine

log = logging.getLogger("localcloud")

ACCOUNT = "123456789012"
REGION = "us-east-1"
ZONES = ("us-east-1a", "us-east-1b", "us-east-1c")
HEARTBEAT_SECONDS = 0.2


class Documents(MutableMapping[str, dict[str, Any]]):
    """A table of JSON documents: read from memory, written through to SQLite.

    A document that was changed in place is kept by assigning it again: `table[key] = document`.
    """

    def __init__(self, database: sqlite3.Connection, name: str) -> None:
        self._database = database
        self._name = name
        database.execute(f'CREATE TABLE IF NOT EXISTS "{name}" (key TEXT PRIMARY KEY, document TEXT NOT NULL)')
        rows = database.execute(f'SELECT key, document FROM "{name}" ORDER BY rowid')  # noqa: S608
        self._held: dict[str, dict[str, Any]] = {key: json.loads(document) for key, document in rows}

    def __getitem__(self, key: str) -> dict[str, Any]:
        return self._held[key]

    def __setitem__(self, key: str, document: dict[str, Any]) -> None:
        self._held[key] = document
        self._database.execute(
            f'INSERT INTO "{self._name}" VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET document = excluded.document',  # noqa: S608
            (key, json.dumps(document)),
        )

    def __delitem__(self, key: str) -> None:
        del self._held[key]
        self._database.execute(f'DELETE FROM "{self._name}" WHERE key = ?', (key,))  # noqa: S608

    def __iter__(self) -> Iterator[str]:
        return iter(list(self._held))

    def __len__(self) -> int:
        return len(self._held)


@dataclass
class World:
    """One local cloud. Every look at and change of the state happens with `lock` held."""

    state: Path
    """Folder of this cloud: state.sqlite, one folder an instance, the logs."""
    endpoint: str
    """Where the API answers, e.g. http://127.0.0.1:4566."""
    speed: float = 1.0
    """How many times faster AWS's own times pass: boot, notice, schedules. Clocks are not changed."""
    seed: int = 0
    engine: Engine | None = None
    """What runs the containers of tasks; without one each is a plain process."""
    speeds: Mapping[str, float] = field(default_factory=dict)
    """How fast the GPUs of an instance type are, for a processor that plays one: tasks find it in LOCALCLOUD_SPEED."""
    lock: threading.RLock = field(default_factory=threading.RLock)
    _steps: list[Callable[[datetime], None]] = field(default_factory=list)
    _farewells: list[Callable[[], None]] = field(default_factory=list)
    _stopped: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.state.mkdir(parents=True, exist_ok=True)
        self.dice = random.Random(self.seed)  # noqa: S311
        self._database = sqlite3.connect(self.state / "state.sqlite", check_same_thread=False, isolation_level=None)
        self._database.execute("PRAGMA synchronous = OFF")
        self._database.execute("CREATE TABLE IF NOT EXISTS diary (at TEXT, what TEXT, subject TEXT, detail TEXT)")

    def table(self, name: str) -> Documents:
        """The table of that name, made when it is not there."""
        return Documents(self._database, name)

    def now(self) -> datetime:
        """The time, in UTC."""
        return datetime.now(UTC)

    def scaled(self, seconds: float) -> float:
        """Real seconds that `seconds` of AWS's time last here."""
        return seconds / self.speed

    def note(self, what: str, subject: str, **detail: object) -> None:
        """Write one line of the diary: what happened to whom, now. Tests, the demo and its bill read it."""
        with self.lock:
            self._database.execute(
                "INSERT INTO diary VALUES (?, ?, ?, ?)",
                (self.now().isoformat(), what, subject, json.dumps(detail, default=str)),
            )
        log.info("%s %s %s", what, subject, detail or "")

    def diary(self, what: str | None = None) -> list[dict[str, Any]]:
        """The diary's lines in order, or those of one kind: `{"at", "what", "subject", …detail}`."""
        with self.lock:
            rows = self._database.execute("SELECT at, what, subject, detail FROM diary ORDER BY rowid").fetchall()
        return [
            {"at": at, "what": kind, "subject": subject, **json.loads(detail)}
            for at, kind, subject, detail in rows
            if what in (None, kind)
        ]

    def every_heartbeat(self, step: Callable[[datetime], None]) -> None:
        """Have `step(now)` called about five times a second, with the lock held, until the cloud stops."""
        self._steps.append(step)

    def start(self) -> threading.Thread:
        """Let time pass."""
        thread = threading.Thread(target=self._live, name="heartbeat", daemon=True)
        thread.start()
        return thread

    def on_stop(self, farewell: Callable[[], None]) -> None:
        """Have `farewell()` called when the cloud stops, last said first: what started a process ends it here."""
        self._farewells.append(farewell)

    def stop(self) -> None:
        """Let no more time pass, and end what was started."""
        self._stopped.set()
        while self._farewells:
            farewell = self._farewells.pop()
            try:
                farewell()
            except Exception:  # the other farewells must still be said, or processes outlive the cloud
                log.exception("%s failed", farewell)

    def _live(self) -> None:
        while not self._stopped.wait(HEARTBEAT_SECONDS):
            for step in self._steps:
                try:
                    with self.lock:
                        step(self.now())
                except Exception:  # one part's fault must not stop the others' time; the diary shows it
                    log.exception("a step of %s failed", step)
                    self.note("fault", getattr(step, "__qualname__", repr(step)))
