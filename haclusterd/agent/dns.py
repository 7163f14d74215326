"""Keeps the addresses in service in DNS names (`[[dns]]`, RFC 2136, TSIG).

One node writes: the first living one of the majority, so a new one writes at once what it sees.
Writing again what is there already does no harm, so it is done now and then without a reason.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Sequence

from haclusterd.agent import child
from haclusterd.agent.hooks import COURIER
from haclusterd.agent.schema import Status
from haclusterd.config.model import Dns
from haclusterd.lasting import unending

log = logging.getLogger(__name__)

ATTEMPT_S = 10.0
BACKOFF_FIRST_S = 1.0
BACKOFF_MAX_S = 60.0
AGAIN_S = 300.0

Addresses = tuple[str, ...]


class Record:
    """One name: what it should hold, and writing it."""

    def __init__(
        self, spec: Dns, changed: Callable[[], None], backoff_first_s: float = BACKOFF_FIRST_S
    ) -> None:
        self.spec = spec
        self.problem = ""
        self.updates = self.failures = 0
        self._changed = changed
        self._backoff_first_s = backoff_first_s
        self._gone: dict[str, float] = {}  # since when a service is not served
        self._wanted: Addresses | None = None  # None: not ours to write
        self._written: Addresses | None = None
        self._news = asyncio.Event()

    def look(self, status: Status, ours: bool, now: float) -> None:
        """Take what the cluster looks like. `ours`: this node writes."""
        wanted = self._in_service(status, now) if ours else None
        if not ours:
            self._gone.clear()  # nobody looks meanwhile
        if wanted is None:
            self._written = None
        if wanted != self._wanted:
            self._wanted = wanted
            self._news.set()

    def _in_service(self, status: Status, now: float) -> Addresses | None:
        found: list[str] = []
        for service in status.services:
            if self.spec.services and service.name not in self.spec.services:
                continue
            if service.closed:
                continue
            if service.state == "owned":
                self._gone.pop(service.name, None)
            elif now - self._gone.setdefault(service.name, now) >= self.spec.hold_ms / 1000:
                continue
            found += [address.partition("/")[0] for address in service.addresses]
        # An empty name helps nobody, and resolvers remember that it was: what was there stays.
        return tuple(sorted(found)) or self._wanted

    async def work(self) -> None:
        """Write whenever something is to be written."""
        pause_s = self._backoff_first_s
        while True:
            self._news.clear()
            wanted = self._wanted
            if wanted is None:
                await self._news.wait()
                continue
            if wanted != self._written:
                if not await self._write(wanted):
                    await self._wait(pause_s)
                    pause_s = min(2 * pause_s, BACKOFF_MAX_S)
                    continue
                pause_s = self._backoff_first_s
            if not await self._wait(AGAIN_S):
                self._written = None

    async def _wait(self, seconds: float) -> bool:
        """Whether there are news within that time."""
        try:
            async with asyncio.timeout(seconds):
                await self._news.wait()
        except TimeoutError:
            return False
        return True

    async def _write(self, addresses: Addresses) -> bool:
        spec = self.spec
        job = {
            "kind": "dns", "name": spec.name.rstrip(".") + ".", "zone": spec.zone,
            "host": spec.server_host, "port": spec.server_port, "key_name": spec.key_name,
            "key_file": str(spec.key_file), "algorithm": spec.algorithm, "ttl_s": spec.ttl_s,
            "timeout_s": ATTEMPT_S / 2,
            "addresses": {"A": [a for a in addresses if ":" not in a],
                          "AAAA": [a for a in addresses if ":" in a]},
        }  # fmt: skip
        ended = await child.run(COURIER, json.dumps(job).encode(), ATTEMPT_S, {})
        if ended.status != 0:
            self.failures += 1
            self._say(ended.said)
            return False
        self.updates += 1
        self._written = addresses
        log.info("%s now holds %s", spec.name, ", ".join(addresses))
        self._say("")
        return True

    def _say(self, problem: str) -> None:
        if problem and problem != self.problem:
            log.error("%s was not updated: %s", self.spec.name, problem)
        if problem != self.problem:
            self.problem = problem
            self._changed()


class Names:
    """All `[[dns]]` of this node."""

    def __init__(self, specs: Sequence[Dns], changed: Callable[[], None]) -> None:
        self.records = [Record(spec, changed) for spec in specs]
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        self._tasks = [unending(one.work, f"dns {one.spec.name}") for one in self.records]

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def look(self, status: Status, ours: bool, now: float) -> None:
        for record in self.records:
            record.look(status, ours, now)
