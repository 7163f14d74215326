"""Heart's own voice: sentences to stderr that never make the loop wait.

A line on a serial console can stall its writer for 10 ms and a full pipe for ever, so a thread of
its own writes, from a bounded queue; what does not fit is counted and the count is written later.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections import deque

from haclusterd.core.text import printable

LINES_MAX = 1000
INFO, WARNING, ERROR = 6, 4, 3  # syslog levels: the journal reads the "<N>" prefix


class Journal:
    """`say` costs a microsecond. Start it before the process becomes real-time."""

    def __init__(self, descriptor: int = 2, levels: bool | None = None) -> None:
        """`levels`: write the "<N>" prefixes; by default only under systemd."""
        self._descriptor = descriptor
        self._levels = "JOURNAL_STREAM" in os.environ if levels is None else levels
        self._lines: deque[str] = deque()
        self._wake = threading.Semaphore(0)
        self._dropped = 0
        self._closing = False
        self._thread = threading.Thread(target=self._write, name="journal", daemon=True)
        self._thread.start()

    def say(self, text: str, level: int = INFO) -> None:
        """Queue one line."""
        if len(self._lines) >= LINES_MAX:
            self._dropped += 1
            return
        prefix = f"<{level}>" if self._levels else ""
        self._lines.append(f"{prefix}{printable(text.translate(_ONE_LINE))}\n")
        self._wake.release()

    def close(self, timeout_s: float = 1.0) -> None:
        """Write what is queued, for at most `timeout_s`."""
        self._closing = True
        self._wake.release()
        self._thread.join(timeout_s)

    def _write(self) -> None:
        while True:
            self._wake.acquire()
            while self._lines:
                line = self._lines.popleft()
                if self._dropped:
                    line += f"({self._dropped} lines were dropped here)\n"
                    self._dropped = 0
                with contextlib.suppress(OSError):
                    os.write(self._descriptor, line.encode(errors="replace"))
            if self._closing:
                return


_ONE_LINE = dict.fromkeys(map(ord, "\n\r\t"), " ")
