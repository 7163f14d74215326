"""Tells each `[[hook]]` its news: one queue and one attempt at a time for each, both bounded.

A hook that hangs or fails holds up nothing but itself; what it misses is counted and raises an
alarm.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import sys
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from haclusterd.agent import child, courier
from haclusterd.config.model import Hook
from haclusterd.lasting import unending

log = logging.getLogger(__name__)

QUEUE_MAX = 100
BACKOFF_FIRST_S = 1.0
BACKOFF_MAX_S = 60.0
OUTCOMES = ("sent", "retried", "failed", "dropped")
COURIER = (sys.executable, "-m", "haclusterd.agent.courier")

Message = dict[str, Any]


class Deliveries:
    """All hooks of this node. `changed()` is called when one begins or ceases to fail."""

    def __init__(
        self,
        hooks: Sequence[Hook],
        changed: Callable[[], None],
        backoff_first_s: float = BACKOFF_FIRST_S,
    ) -> None:
        self._lines = [_Line(hook, changed, backoff_first_s) for hook in hooks]
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        self._tasks = [unending(line.work, f"hook {line.hook.name}") for line in self._lines]

    async def stop(self) -> None:
        """End what is under way; what waits is lost, and said."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for line in self._lines:
            if line.waiting:
                log.warning("hook %s: %d events were not told", line.hook.name, len(line.waiting))

    def give(self, message: Message, mine: bool) -> None:
        """One event. `mine`: this node is the one that tells it; else only `every_node` hooks."""
        for line in self._lines:
            hook = line.hook
            if (mine or hook.every_node) and (not hook.events or message["event"] in hook.events):
                line.put(message)

    @property
    def problems(self) -> dict[str, str]:
        """Why a hook did not take the last event, by name."""
        return {line.hook.name: line.problem for line in self._lines if line.problem}

    @property
    def counts(self) -> dict[tuple[str, str], int]:
        """By hook and outcome."""
        return {(line.hook.name, k): n for line in self._lines for k, n in line.counts.items()}


class _Line:
    """The queue of one hook."""

    def __init__(self, hook: Hook, changed: Callable[[], None], backoff_first_s: float) -> None:
        self.hook = hook
        self.problem = ""
        self.waiting: deque[Message] = deque()
        self.counts = dict.fromkeys(OUTCOMES, 0)
        self._changed = changed
        self._backoff_first_s = backoff_first_s
        self._news = asyncio.Event()

    def put(self, message: Message) -> None:
        """The oldest makes way: what is now counts more than what was."""
        while len(self.waiting) >= QUEUE_MAX:
            self.waiting.popleft()
            self.counts["dropped"] += 1
        self.waiting.append(message)
        self._news.set()

    async def work(self) -> None:
        while True:
            while not self.waiting:
                self._news.clear()
                await self._news.wait()
            await self._tell(self.waiting.popleft())

    async def _tell(self, message: Message) -> None:
        pause_s = self._backoff_first_s
        for attempt in itertools.count():
            ended = await deliver(self.hook, message)
            if ended.status == 0:
                self.counts["sent"] += 1
                self._mended()
                return
            last = attempt >= self.hook.retries or ended.status == courier.NEVER
            if last:
                self.counts["failed"] += 1
                self._failed(message, ended.said)
                return
            self.counts["retried"] += 1
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, BACKOFF_MAX_S)

    def _failed(self, message: Message, reason: str) -> None:
        log.error("hook %s was not told of %s: %s", self.hook.name, message["event"], reason)
        if self.problem != reason:
            self.problem = reason
            self._changed()

    def _mended(self) -> None:
        if self.problem:
            self.problem = ""
            self._changed()


async def deliver(hook: Hook, message: Message) -> child.Ended:
    """One attempt."""
    timeout_s = hook.timeout_ms / 1000
    if hook.exec:
        environment = {
            f"HACLUSTERD_{key.upper()}": str(message.get(key) or "")
            for key in ("event", "text", "service", "node")
        }
        given = json.dumps(message).encode() + b"\n"
        return await child.run(hook.exec, given, timeout_s, environment)
    job = _webhook(hook, message) if hook.webhook else _email(hook, message)
    return await child.run(COURIER, json.dumps(job).encode(), timeout_s, {})


def _webhook(hook: Hook, message: Message) -> dict[str, Any]:
    return {
        "kind": "webhook", "url": hook.webhook, "message": message,
        "secret_file": str(hook.secret_file or ""), "ca_file": _text(hook.ca_file),
        "timeout_s": hook.timeout_ms / 1000,
    }  # fmt: skip


def _email(hook: Hook, message: Message) -> dict[str, Any]:
    return {
        "kind": "email", "host": hook.smtp_host, "port": hook.smtp_port, "tls": hook.smtp_tls,
        "user": hook.smtp_user, "password_file": str(hook.smtp_password_file or ""),
        "sender": hook.sender, "to": list(hook.email), "ca_file": _text(hook.ca_file),
        "message": message, "timeout_s": hook.timeout_ms / 1000,
    }  # fmt: skip


def _text(path: object) -> str | None:
    return None if path is None else str(path)
