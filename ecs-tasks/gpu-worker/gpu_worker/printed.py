"""What a processor prints, for the log: the first lines of a job as they come, the last ones when it is over (pure).

So the log has its bound, and still the end of a traceback.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

FIRST, LAST = 200, 20
LONGEST_LINE = 2000
"""Bytes; a longer line is broken."""


class Printed:
    """The output of one job, fed in pieces of any size; `say` gets the lines that are worth the log."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.last = ""
        """The last line that is not blank."""
        self._say = say
        self._left = FIRST
        self._ends: deque[str] = deque(maxlen=LAST)
        self._skipped = 0
        self._begun = b""

    def feed(self, data: bytes) -> None:
        """Take what was printed since the last time."""
        *lines, self._begun = (self._begun + data).split(b"\n")
        for line in lines:
            self._take(line)
        while len(self._begun) > LONGEST_LINE:
            self._line(self._begun[:LONGEST_LINE])
            self._begun = self._begun[LONGEST_LINE:]

    def end(self) -> None:
        """The job is over: say what was kept for the end."""
        self._take(self._begun)
        if self._skipped > len(self._ends):
            self._say(f"... {self._skipped - len(self._ends)} lines are left out ...")
        for line in self._ends:
            self._say(line)

    def _take(self, line: bytes) -> None:
        for start in range(0, len(line), LONGEST_LINE):
            self._line(line[start : start + LONGEST_LINE])

    def _line(self, line: bytes) -> None:
        # A progress bar goes back to the start of its line: what stands there in the end is the line.
        text = line.decode(errors="replace").rstrip("\r").rpartition("\r")[2]
        if not text.strip():
            return
        self.last = text
        if self._left:
            self._left -= 1
            self._say(text)
        else:
            self._skipped += 1
            self._ends.append(text)
