"""Tells of calls while and after they are recovered: sentences of history, events in FreeSWITCH.

For people a bounded number of sentences, for programs one `haclusterd::verdict` event per call on
the local event socket; the report has them all.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

from haclusterd.agent.history import History
from haclusterd.agent.reports import Account
from haclusterd.agent.switch import Switch, SwitchError
from haclusterd.core.records import CallVerdict
from haclusterd.lasting import lasting

log = logging.getLogger(__name__)

SENTENCES_MAX = 20  # per recovery and service
STEPS = 4  # sentences on the way
STEP_FROM_LEGS = 20
EVENTS_MAX = 10_000


class Crier:
    """`switch()` is the local FreeSWITCH, None while there is none."""

    def __init__(self, history: History, switch: Callable[[], Switch | None]) -> None:
        self._history = history
        self._switch = switch
        self.watchers: list[Callable[[str, int, Sequence[CallVerdict]], None]] = []
        self._said: dict[tuple[str, int], int] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def progress(self, account: Account, stage: str, legs: int, at_us: int) -> None:
        """A recovery came a step further: into its report, and every quarter into history."""
        if stage == "recovered":
            account.times[stage] = at_us  # of several parts the last one counts
            return
        if stage == "injected":
            account.injected += legs
        if stage != "verified":
            account.moment(stage, at_us)
            return
        before = _step(account.answered, account.replicated)
        account.answered = legs
        step = _step(legs, account.replicated)
        if step > before and step < STEPS and account.replicated >= STEP_FROM_LEGS:
            text = f"{legs} of {account.replicated} call legs of {account.service} have answered"
            self._history.add("A6", text, at_us, account.service, account.epoch)

    def cry(
        self, service: str, epoch: int, verdicts: Sequence[CallVerdict], late: bool = False
    ) -> None:
        """These are the verdicts; `late`: another one than was given before."""
        if not verdicts:
            return
        for watcher in self.watchers:
            watcher(service, epoch, verdicts)
        key = (service, epoch)
        for verdict in verdicts:
            if verdict.verdict == "recovered" and not late:
                continue
            said = self._said[key] = self._said.pop(key, 0) + 1
            if said <= SENTENCES_MAX:
                text = f"call {verdict.uuid} of {service}: {verdict.verdict}, {verdict.reason}"
                self._history.add("A8", text, None, service, epoch)
            elif said == SENTENCES_MAX + 1:
                text = f"more calls of {service} did not come back whole: haclusterctl report"
                self._history.add("A8", text, None, service, epoch)
        while len(self._said) > 64:
            del self._said[next(iter(self._said))]
        task = lasting(self._send(service, epoch, verdicts[:EVENTS_MAX]), "verdict events")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _send(self, service: str, epoch: int, verdicts: Sequence[CallVerdict]) -> None:
        switch = self._switch()
        if switch is None or not switch.up:
            return
        try:
            await switch.tell(service, epoch, verdicts)
        except SwitchError as error:
            log.info("verdicts are not told on the event socket: %s", error)


def _step(answered: int, of: int) -> int:
    return answered * STEPS // of if of else 0
