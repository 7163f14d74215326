"""Every verdict against what SIPp wrote of the same Call-ID (issue: all true when checked).

One takeover of calls whose phones fare differently. What a phone did is read from SIPp's message
logs alone, what it sent from a counter in its own kernel; `complaints` compares, twice: when the
verdicts are given, and when nothing is open any more. HACLUSTERD_CALLS sets how many calls.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from haclusterd.core.records import CallRecord, CallVerdict
from haclusterd.freeswitch import metadata
from haclusterd.freeswitch.calls import CallSource, Change
from haclusterd.freeswitch.options import RecoveryOptions
from haclusterd.freeswitch.recovery import Recovery
from haclusterd.lab import netns
from tests.freeswitch.fates import CALLEES, Phones, Testimony
from tests.freeswitch.test_esl_real import (
    CALLEE,
    CALLER,
    VIP,
    Site,
    activate,
    capture,
    channels,
    factory,
    inside,
    until,
    why_not,
)

CALLS = int(os.environ.get("HACLUSTERD_CALLS", "60"))
# Parts of a hundred calls: how the caller fares, and the callee, where there is one.
FATES: dict[tuple[str, str], int] = {
    ("speaks", "talks"): 8, ("talks", "hung_up"): 2, ("hung_up", "talks"): 2,
    ("talks", "refuses"): 1, ("refuses", "talks"): 1, ("talks", "silent"): 1,
    ("silent", "talks"): 1, ("talks", "late"): 2, ("late", "talks"): 2, ("talks", "byes"): 1,
    ("byes", "talks"): 1, ("talks", "rings"): 1, ("talks", "bye_instead"): 1,
    ("mute", ""): 4, ("hung_up", ""): 5, ("refuses", ""): 4, ("silent", ""): 4, ("gone", ""): 4,
    ("byes", ""): 5, ("late", ""): 4, ("rings", ""): 3, ("bye_instead", ""): 3,
    ("same_sdp", ""): 2, ("odd_codec", ""): 2, ("quiet", ""): 21, ("talks", ""): 15,
}  # fmt: skip
TONE, ECHO = "9197", "9196"  # the other side; phones that echo are quiet when it echoes, too
MUTE = ("mute", "same_sdp")  # they answer, and send no RTP
OPTIONS = RecoveryOptions()
SOON = timedelta(seconds=0.6)  # too close to call: either is true
VERDICTS_S = 10.0  # MS13
SETTLED_S = 40.0
SEEN_MS, MANY = 1000, 400
RTP_SURE = 25  # packets, half a second

pytestmark = [
    pytest.mark.freeswitch,
    pytest.mark.timeout(600),
    pytest.mark.skipif(bool(why_not()), reason=why_not() or "ready"),
]


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path)
    try:
        made.start()
        yield made
    finally:
        made.close()


@pytest.fixture
def phones(site: Site) -> Iterator[Phones]:
    made = Phones(site.user, site.directory, CALLER, CALLEE)
    try:
        yield made
    finally:
        made.close()


class Heard:
    """RTP packets that the phones have sent since, by port of FreeSWITCH."""

    def __init__(self, namespace: str) -> None:
        self._namespace = namespace
        rules = """table ip heard {
          set s { type inet_service; flags dynamic; size 65536; counter; }
          chain c {
            type filter hook output priority 0
            udp dport >= 16384 update @s { udp dport }
          }
        }"""
        self._nft(rules)

    def _nft(self, *words: str) -> str:
        with netns.inside(self._namespace):
            done = subprocess.run(["nft", *words], check=True, capture_output=True, text=True)
        return done.stdout

    def counts(self) -> dict[int, int]:
        told = self._nft("-j", "list", "set", "ip", "heard", "s")
        (found,) = [one["set"] for one in json.loads(told)["nftables"] if "set" in one]
        elements = [one["elem"] for one in found.get("elem", [])]
        return {one["val"]: one["counter"]["packets"] for one in elements}


def shares(calls: int) -> dict[tuple[str, str], int]:
    """How many calls of each kind, at least one."""
    total = sum(FATES.values())
    found = {kind: max(1, part * calls // total) for kind, part in FATES.items()}
    found["quiet", ""] += max(0, calls - sum(found.values()))
    return found


def call(phones: Phones) -> int:
    """All calls; the number of legs."""
    phones.callee()
    legs = 0
    for (caller, callee), count in shares(CALLS).items():
        fate = {"mute": "talks", "gone": "talks", "quiet": "talks"}.get(caller, caller)
        extension = f"41{CALLEES[callee]}" if callee else ECHO
        if caller in ("mute", "talks") and not callee:
            extension = TONE
        name = f"{caller}-{callee}"
        phones.callers(name, fate, VIP, extension, count, echo=caller not in MUTE)
        legs += count * (2 if callee else 1)
    return legs


@dataclass
class Takeover:
    """What came of it, by uuid."""

    lost: datetime
    given: datetime = datetime.min
    first: dict[str, CallVerdict] = field(default_factory=dict)
    said: dict[str, Testimony] = field(default_factory=dict)  # by Call-ID, then
    rtp: dict[int, int] = field(default_factory=dict)
    later: list[CallVerdict] = field(default_factory=list)

    @property
    def last(self) -> dict[str, CallVerdict]:
        return self.first | {verdict.uuid: verdict for verdict in self.later}


def take_over(site: Site, phones: Phones, records: dict[str, CallRecord]) -> Takeover:
    """Recover on b, and look on until nothing is open any more."""
    heard = Heard(site.user)
    lost_s, done = time.monotonic(), Takeover(datetime.now())  # as far as verdicts are concerned

    async def work() -> None:
        async def tracked(changes: list[Change]) -> None:
            recovery.tracked(changes)

        recovery = Recovery(
            factory(site.b), site.b.core_db, options=OPTIONS,
            settled=lambda service, verdict: done.later.append(verdict),
        )  # fmt: skip
        source = CallSource(site.b.core_db, {"east": "east"}, tracked, esl_factory=factory(site.b))
        await recovery.start()
        await source.start()
        try:
            await until(lambda: recovery.problem == source.problem == "")
            found = await recovery.recover(
                "east", ["east"], list(records.values()), epoch=1, outage_began=lost_s
            )
            done.given, done.first = datetime.now(), {v.uuid: v for v in found}
            done.rtp = heard.counts()
            await asyncio.sleep(SOON.total_seconds())
            done.said = phones.testimonies(done.lost)
            await until(lambda: not recovery.aftercare.orphans, SETTLED_S)
            await asyncio.sleep(2)  # for legs whose other leg was one
        finally:
            await source.stop()
            await recovery.stop()

    inside(site.b, work)
    return done


def lost_as(said: Testimony, at: datetime) -> str:
    """Of a phone that has not answered: what the reason has to say."""
    if said.asked is None:
        return "can not be reached"
    if said.refused:
        return f"refused the re-INVITE: {said.refused}"
    if said.said_bye and said.said_bye > said.asked.at:
        return "hung up before it answered"
    rang = any(status < 200 for status, _ in said.answers)
    return "provisional|no signalling" if rang else "no(t)? answer|did not tell|no signalling"


def expected(said: Testimony, other: Testimony | None, at: datetime) -> tuple[str, str]:
    """Verdict and what its reason has to say (a pattern), of one leg, at a time."""
    if not said.answered or said.answered > at:
        return "lost", lost_as(said, at)
    if other is not None and (not other.answered or other.answered > at):
        return "partial", "other leg"
    if said.said_bye and said.said_bye < at - SOON:
        return "recovered", "the phone said BYE since"
    if said.was_told_bye and said.was_told_bye < at - SOON:
        return ("recovered", "ended since") if other else ("lost", "could not go on with it")
    return "recovered", "re-INVITE answered"


def wrong(verdict: CallVerdict, said: Testimony, other: Testimony | None, at: datetime) -> str:
    """What is untrue of a verdict at a time; empty if nothing is."""
    moments = [at - SOON, at, at + SOON]
    for moment in moments:
        kind, words = expected(said, other, moment)
        if verdict.verdict == kind and re.search(words, verdict.reason):
            return ""
    if other is not None and said.answered and other.answered and said.answered < at:
        # One said BYE before the other answered: FreeSWITCH may have heard of either first.
        late = "its other leg ended before it had answered"
        if other.said_bye and other.said_bye < said.answered:
            return "" if verdict.verdict == "lost" and late in verdict.reason else late
        if said.said_bye and said.said_bye < other.answered:
            return "" if verdict.verdict == "partial" and late in verdict.reason else late
    return f"should be {expected(said, other, at)}"


def complaints(done: Takeover, legs: dict[str, CallRecord], ids: dict[str, str],
               last: dict[str, Testimony]) -> list[str]:  # fmt: skip
    found = []
    for uuid, leg in legs.items():
        partner = ids.get(leg.partner, "")
        said, verdict = done.said[ids[uuid]], done.first[uuid]
        other = done.said[partner] if partner else None
        if text := wrong(verdict, said, other, done.given) or _numbers(verdict, said, done):
            found.append(f"first {ids[uuid]}: {verdict}: {text}; SIPp: {_told(said, done.lost)}")
        verdict, said = done.last[uuid], last[ids[uuid]]
        other = last[partner] if partner else None
        changed = uuid in {one.uuid for one in done.later}
        at = datetime.max - SOON if changed or not said.answered else done.given
        if text := wrong(verdict, said, other, at):
            found.append(f"last {ids[uuid]}: {verdict}: {text}; SIPp: {_told(said, done.lost)}")
    return found


def _numbers(verdict: CallVerdict, said: Testimony, done: Takeover) -> str:
    """What is untrue of the gap and of the media."""
    if not said.answered or verdict.verdict == "lost":
        return ""
    answered_ms = (said.answered - done.lost).total_seconds() * 1000
    acked_ms = ((said.acked or said.answered) - done.lost).total_seconds() * 1000
    seen_ms = max(answered_ms, acked_ms) + SEEN_MS
    if CALLS >= MANY:  # on two cores, with the phones on them: nobody looks for seconds
        seen_ms = (done.given - done.lost).total_seconds() * 1000
    if not answered_ms - 50 <= verdict.gap_ms <= seen_ms:
        return f"gap of {verdict.gap_ms} ms, answered after {answered_ms:.0f}"
    sent = done.rtp.get(said.media_port, 0)
    if "RTP flows" in verdict.reason and not sent:
        return "no RTP was sent"
    if "no RTP" in verdict.reason and sent > RTP_SURE:
        return f"{sent} packets of RTP were sent"
    return ""


def _told(said: Testimony, since: datetime) -> str:
    def after(at: datetime | None) -> str:
        return "never" if at is None else f"{(at - since).total_seconds():.2f}"

    answers = [f"{status} at {after(at)}" for status, at in said.answers]
    return (
        f"asked {after(said.asked.at if said.asked else None)}, said {answers},"
        f" acknowledged {after(said.acked)}, BYE {after(said.said_bye)},"
        f" was told BYE {after(said.was_told_bye)}"
    )


def test_e2_ms13_every_verdict_is_what_sipp_saw(site: Site, phones: Phones) -> None:
    site.own(site.a, VIP)
    inside(site.a, lambda: activate(site.a, "east"))
    legs = call(phones)
    records = capture(site, site.a, legs, 120)
    ids = {u: metadata.variable(r.metadata, "sip_call_id") for u, r in records.items()}
    site.kill(site.a)
    died = datetime.now()
    phones.processes["gone-"].kill()
    left = [c for name in ("hung_up-", "hung_up-talks") for c in phones.call_ids(name)]
    left += [c for c in phones.call_ids("callee", "hung_up") if c in ids.values()]
    phones.hang_up(left)
    time.sleep(0.3)
    site.own(site.b, VIP)
    done = take_over(site, phones, records)
    time.sleep(1.0)
    last = phones.testimonies(died)
    found = complaints(done, records, ids, last)
    kinds = Counter((v.verdict, re.sub(r"\d+ ms", "N ms", v.reason)) for v in done.first.values())
    for (verdict, reason), count in sorted(kinds.items()):
        print(f"{count:4} {verdict:9} {reason}")
    print(
        f"{len(done.first)} verdicts of {CALLS} calls in"
        f" {(done.given - done.lost).total_seconds():.1f} s, {len(done.later)} mended later,"
        f" {len(found)} untrue"
    )
    assert found == [], "\n".join(found)
    assert set(done.first) == set(records)
    assert {v.verdict for v in done.first.values()} == {"recovered", "partial", "lost"}
    assert (done.given - done.lost).total_seconds() < VERDICTS_S or CALLS >= MANY
    up = [u for u, v in done.last.items() if _is_up(v, last[ids[u]])]
    assert channels(site.b) == len(up)


def _is_up(verdict: CallVerdict, said: Testimony) -> bool:
    return verdict.verdict == "recovered" and not said.said_bye and not said.was_told_bye
