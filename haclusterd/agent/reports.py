"""Reports of takeovers and switchovers: the timeline, and what became of every call.

A bounded ring, kept on disk in the run directory as well as may be, so that a restart of the agent
does not lose the account of the night before.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from haclusterd.agent.clock import now_us, wall_text
from haclusterd.agent.schema import Calls, Moment, Progress, Report, Verdict
from haclusterd.core.actions import Recover
from haclusterd.core.records import CallVerdict
from haclusterd.core.view import View
from haclusterd.files import write_atomically

log = logging.getLogger(__name__)

NAME = "reports.json"
KEPT = 50
VERDICTS_KEPT = 10_000
FILE_BYTES_MAX = 32 * 1024 * 1024

# Which moment dates the fault best, best first. After a release the old owner's last beat says
# nothing: the release itself ("dead" to heart) is the fault as far as the new owner can tell.
_FAULT_SILENCE = ("last_heartbeat", "dead", "claimed", "granted")
_FAULT_RELEASE = ("dead", "claimed", "granted")


class Account:
    """One report while it is being lived. Times are this node's CLOCK_BOOTTIME in us."""

    def __init__(
        self, number: int, service: str, origin: str | None, to: str, action: Recover, silent: bool
    ) -> None:
        self._fault_events = _FAULT_SILENCE if silent else _FAULT_RELEASE
        self.silent = silent
        self.number = number
        self.service = service
        self.origin = origin
        self.to = to
        self.epoch = action.identity.epoch
        self.cause = action.cause or ("cold start" if origin is None else "unknown cause")
        self.times = {event: at_us for event, at_us in action.times.items() if at_us > 0}
        if not silent and "last_heartbeat" in self.times and "dead" in self.times:
            # After a release the old owner beats on: what counts is its last beat as the owner.
            last_us = min(self.times["last_heartbeat"], self.times["dead"])
            self.times["last_heartbeat"] = last_us
        self.replicated = 0
        self.injected = 0
        self.answered = 0
        self.unasked: list[str] = []
        self.copy = ""
        self.verdicts: list[Verdict] = []
        self.done = False
        self._counts: dict[str, int] = {}
        self._begun_us = now_us()

    def moment(self, event: str, at_us: int | None = None) -> None:
        """Note when `event` first happened."""
        self.times.setdefault(event, now_us() if at_us is None else at_us)

    @property
    def fault_us(self) -> int:
        """When the fault was, as this node can date it."""
        for event in self._fault_events:
            if event in self.times:
                return self.times[event]
        return min(self.times.values(), default=self._begun_us)

    def judge(self, verdicts: Sequence[CallVerdict]) -> None:
        """Take the verdicts of the calls."""
        self.verdicts = [
            Verdict(v.uuid, v.verdict, v.reason, v.gap_ms if v.gap_ms >= 0 else None)
            for v in verdicts[:VERDICTS_KEPT]
        ]
        self._counts = _count(verdicts)

    def report(self) -> Report:
        """As it stands now."""
        zero_us = self.fault_us
        line = sorted(self.times.items(), key=lambda item: item[1])
        up_us = self.times.get("address_up")
        counts = self._counts
        return Report(
            number=self.number,
            at=wall_text(zero_us),
            service=self.service,
            from_=self.origin,
            to=self.to,
            epoch=self.epoch,
            cause=self.cause,
            timeline=[Moment(round((at_us - zero_us) / 1000, 3), e) for e, at_us in line],
            outage_ms=None if up_us is None else round((up_us - zero_us) / 1000, 3),
            calls=Calls(
                self.replicated,
                counts.get("recovered", 0),
                counts.get("partial", 0),
                counts.get("lost", 0),
                self.verdicts,
            ),
            done=self.done,
            unasked=self.unasked,
            copy=self.copy,
            progress=None if self.done else self.progress(),
        )

    def progress(self) -> Progress:
        """How far the recovery is."""
        return Progress(self.replicated, self.injected, self.answered)


_COPY_WAS = {"none": "missing", "syncing": "not whole", "suspended": "too old"}


def sentence(report: Report) -> str:
    """A finished report in one line, for the history."""
    calls = report.calls
    text = f"{report.service} moved from {report.from_ or 'nobody'} to {report.to}"
    if report.from_ == report.to:
        text = f"{report.service} stayed on {report.to}"
    if report.outage_ms is not None:
        text += f" in {round(report.outage_ms)} ms"
    text += f": {calls.recovered} of {calls.replicated} call legs recovered"
    if calls.partial or calls.lost:
        text += f", {calls.partial} partly, {calls.lost} lost"
    if report.copy not in ("", "in-sync"):
        text += f"; the copy here was {_COPY_WAS.get(report.copy, report.copy)}"
        text += ", so more may be lost than was counted"
    if report.unasked:
        text += f"; {', '.join(report.unasked)} did not tell which calls it knows"
    return text


def last_heard(view: View | None, node: str | None, suspect_us: int) -> tuple[bool, int]:
    """Whether `node` fell silent, and when heart's view last heard it."""
    for seen in view.nodes if view is not None else ():
        if seen.id == node and view is not None:
            silent = seen.role == "dead" or seen.silent_us > suspect_us
            heard_us = view.at_us - seen.silent_us
            return silent, heard_us if heard_us > 0 else 0
    return False, 0


class Chronicle:
    """The reports of one recovery: what comes after `close` gets another one."""

    def __init__(
        self,
        account: Account,
        begin: Callable[[], Account],
        finish: Callable[[Account, Sequence[CallVerdict]], None],
    ) -> None:
        self.verdicts: list[CallVerdict] = []
        self._account = account
        self._begin = begin
        self._finish = finish
        self._reported = 0

    def account(self) -> Account:
        """The open account."""
        if self._account.done:
            self._account = self._begin()
        return self._account

    def judged(self, verdicts: Sequence[CallVerdict]) -> None:
        """These were recovered, or not, just now."""
        self.verdicts += verdicts

    def close(self, unasked: Sequence[str] = ()) -> None:
        """Finish the open account, if there is one; `unasked` may still bring more."""
        if not self._account.done:
            self._account.unasked = list(unasked)
            self._finish(self._account, self.verdicts[self._reported :])
            self._reported = len(self.verdicts)

    def drop(self, discard: Callable[[Account], None]) -> None:
        """Have the open account discarded, if there is one."""
        if not self._account.done:
            discard(self._account)


def _count(verdicts: Sequence[CallVerdict]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for verdict in verdicts:
        counts[verdict.verdict] = counts.get(verdict.verdict, 0) + 1
    return counts


class Reports:
    """The ring of finished reports and those that are under way."""

    def __init__(self, folder: Path | None) -> None:
        self._path = None if folder is None else folder / NAME
        self._finished: deque[Report] = deque(maxlen=KEPT)
        self._open: dict[int, Account] = {}
        self._number = 0
        self._load()

    def begin(
        self, service: str, origin: str | None, to: str, action: Recover, silent: bool
    ) -> Account:
        """Open an account; `finish` closes it. `silent`: the old owner fell silent."""
        self._number += 1
        account = Account(self._number, service, origin, to, action, silent)
        self._open[account.number] = account
        while len(self._open) > KEPT:
            del self._open[next(iter(self._open))]
        return account

    def finish(self, account: Account) -> Report:
        """Close the account and keep its report."""
        account.done = True
        self._open.pop(account.number, None)
        report = account.report()
        self._finished.append(report)
        return report

    def discard(self, account: Account) -> None:
        """An attempt that ended as the one before it did."""
        account.done = True
        if self._open.pop(account.number, None) is not None and account.number == self._number:
            self._number -= 1

    def under_way(self) -> dict[str, Progress]:
        """How far recoveries are, by service."""
        return {account.service: account.progress() for account in self._open.values()}

    def open_epoch(self, service: str) -> int:
        """Of the newest recovery that is under way; -1 where none is."""
        return max((a.epoch for a in self._open.values() if a.service == service), default=-1)

    def revise(self, service: str, verdict: CallVerdict) -> Report | None:
        """A later verdict of a call in the newest report that has it; that report, if any. Not in
        one from before a recovery that is under way: that has the call anew."""
        since = self.open_epoch(service)
        for at in range(len(self._finished) - 1, -1, -1):
            report = self._finished[at]
            if report.epoch < since:
                continue
            calls = report.calls
            k = next((k for k, v in enumerate(calls.verdicts) if v.uuid == verdict.uuid), -1)
            if report.service != service or k < 0:
                continue
            was = calls.verdicts[k]
            gap_ms = verdict.gap_ms if verdict.gap_ms >= 0 else was.gap_ms
            calls.verdicts[k] = Verdict(verdict.uuid, verdict.verdict, verdict.reason, gap_ms)
            counts = {"recovered": calls.recovered, "partial": calls.partial, "lost": calls.lost}
            counts[was.verdict] -= 1
            counts[verdict.verdict] += 1
            calls = msgspec.structs.replace(calls, **counts)
            self._finished[at] = msgspec.structs.replace(report, calls=calls)
            return self._finished[at]
        return None

    def all(self) -> list[Report]:
        """Finished ones and those under way, oldest first."""
        under_way = [account.report() for account in self._open.values()]
        return sorted([*self._finished, *under_way], key=lambda report: report.number)

    def find(self, which: str) -> Report:
        """`last`, a number, or a service: its newest. Raises KeyError with a sentence."""
        known = self.all()
        if not known:
            raise KeyError("nothing has moved yet, so there is no report")
        if which == "last":
            return known[-1]
        for report in reversed(known):
            if which in (str(report.number), report.service):
                return report
        raise KeyError(f"there is no report {which}; kept: {known[0].number}..{known[-1].number}")

    def encode(self) -> bytes:
        """The file's content; verdicts of old reports make way when it gets too large."""
        kept = list(self._finished)
        content = msgspec.json.encode(kept)
        while len(content) > FILE_BYTES_MAX and kept:
            kept.pop(0)
            content = msgspec.json.encode(kept)
        return content

    def save(self, content: bytes) -> None:
        """Write what `encode` gave; blocks, so call it in a thread. Failing is only logged."""
        if self._path is None:
            return
        try:
            write_atomically(self._path, content)
        except OSError as error:
            log.warning("%s: cannot keep reports: %s", self._path, error.strerror)

    def _load(self) -> None:
        if self._path is None:
            return
        try:
            with self._path.open("rb") as file:
                content = file.read(FILE_BYTES_MAX + 1)
            for report in msgspec.json.decode(content, type=list[Report])[-KEPT:]:
                self._finished.append(report)
                self._number = max(self._number, report.number)
        except FileNotFoundError:
            return
        except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
            log.warning("%s: earlier reports are not readable: %s", self._path, error)
