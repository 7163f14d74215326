"""Logging of the agent: one line per event to stderr, as the journal wants it, never blocking.

A full pipe must not hold the event loop up, and a repeated fault must not fill the journal: lines
wait in a bounded queue for a thread of their own, and each message text has a rate limit.
"""

from __future__ import annotations

import logging
import logging.handlers
import queue
import sys
import time

from haclusterd.core.text import printable

QUEUE_MAX = 2000
REPEATS_MAX = 10  # of one message text
REPEATS_WINDOW_S = 10.0
TEXTS_MAX = 512

_PRIORITY = {logging.CRITICAL: 2, logging.ERROR: 3, logging.WARNING: 4, logging.INFO: 6}


class RateLimit(logging.Filter):
    """At most REPEATS_MAX records of one message template per window; the next says how many."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: dict[object, tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        now = time.monotonic()
        key = (record.name, record.msg)
        since, count = self._seen.get(key, (now, 0))
        if now - since > REPEATS_WINDOW_S:
            if count > REPEATS_MAX:
                left_out = count - REPEATS_MAX
                record.msg = f"{record.getMessage()} ({left_out} more like this were left out)"
                record.args = ()
            since, count = now, 0
        if key not in self._seen and len(self._seen) >= TEXTS_MAX:
            self._seen.clear()
        self._seen[key] = (since, count + 1)
        return count < REPEATS_MAX


class JournalFormat(logging.Formatter):
    """`<priority>text` under systemd (it strips the mark), time and level elsewhere."""

    def __init__(self, journal: bool) -> None:
        super().__init__("%(asctime)s %(levelname).1s %(name)s: %(message)s")
        self._journal = journal

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        if not self._journal:
            return "\n".join(printable(line) for line in text.split("\n"))
        line = f"{record.name}: {record.getMessage()}".replace("\n", " | ")
        return f"<{_PRIORITY.get(record.levelno, 7)}>{printable(line)}"


class _Queue(logging.handlers.QueueHandler):
    """Drops what does not fit, instead of waiting."""

    def enqueue(self, record: logging.LogRecord) -> None:
        try:
            self.queue.put_nowait(record)
        except queue.Full:
            return


def start(level: int, journal: bool) -> logging.handlers.QueueListener:
    """Log to stderr; stop the listener at the end so that the last lines get out."""
    waiting: queue.Queue[logging.LogRecord] = queue.Queue(QUEUE_MAX)
    out = logging.StreamHandler(sys.stderr)
    out.setFormatter(JournalFormat(journal))
    into = _Queue(waiting)
    into.addFilter(RateLimit())
    root = logging.getLogger()
    root.handlers[:] = [into]
    root.setLevel(level)
    listener = logging.handlers.QueueListener(waiting, out)
    listener.start()
    return listener
