"""Kills at random moments while calls come and go: `python -m tests.lab.churn --rounds 200`.

Each round kills the FreeSWITCH of the first service's owner at a random moment of a wave of calls,
and asks the wire and every core.db afterwards: every call that a standby had acknowledged is
recovered, once; none that had ended comes back; nothing of the other master is touched. With
`--freeswitch PREFIX` on a real one. Exit 0 only without a complaint; `--seed` repeats the choices.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import sqlite3
import sys
import threading
import time
from dataclasses import dataclass, field

from haclusterd.agent.risks import UNACKNOWLEDGED
from haclusterd.freeswitch.risks import UNTAGGED
from haclusterd.lab.calls import has_media
from haclusterd.lab.demo import is_slave
from haclusterd.lab.ending import living_twice
from haclusterd.lab.faults import Injector, strike
from haclusterd.lab.laboratory import Laboratory, Observation
from haclusterd.lab.netns import LabError
from haclusterd.lab.plan import LabPlan
from haclusterd.lab.run import bring_calls, ready_cluster
from haclusterd.lab.sip_watch import Call, Message
from haclusterd.lab.traffic import Callers

WAVE = 12  # calls of one round
STEADY = 4  # calls of the other master, for all rounds
LATEST_S = 1.5  # of the kill, from the beginning of the wave
MOVED_S = 10.0
BACK_S = 60.0
LOOKED_ON_S = 0.8
# A hang-up is a tombstone at the standbys after FreeSWITCH's own row delay (0.25 s), the time in
# which a shutdown could explain it (0.3 s), and the way there.
ENDED_FOR_SURE_S = 1.0
LIMIT = 5000
NOT_YET = {UNACKNOWLEDGED, UNTAGGED}
LOG_CHARS, LOG_LINES = 3000, 30


@dataclass
class Count:
    """What all rounds came to."""

    rounds: int = 0
    acknowledged: int = 0
    recovered: int = 0
    hung_up: int = 0
    disturbed: int = 0  # rounds in which the other service moved by itself: the machine was busy
    complaints: list[str] = field(default_factory=list)


class Wave:
    """Calls that come and go around one kill."""

    def __init__(self, lab: Laboratory, number: int, chance: random.Random) -> None:
        service = lab.plan.services[0]
        self.callers = Callers(
            lab.plan, service, lab.topology.client, lab.directory, WAVE, str(number)
        )
        ids = self.callers.call_ids
        leaving = chance.sample(ids, WAVE // 3)
        moments = sorted(chance.uniform(0.1, LATEST_S + 0.5) for _ in leaving)
        self._plan = list(zip(moments, leaving, strict=True))
        self._thread = threading.Thread(target=self._leave, daemon=True)
        self._thread.start()

    def _leave(self) -> None:
        began = time.monotonic()
        for at_s, call_id in self._plan:
            time.sleep(max(0.0, began + at_s - time.monotonic()))
            self.callers.hang_up([call_id])

    def end(self) -> None:
        """All calls away, so that the next round begins with none of them."""
        self._thread.join()
        self.callers.hang_up(self.callers.call_ids)
        time.sleep(0.3)
        self.callers.stop()


def acknowledged(lab: Laboratory, owner: str, service: str) -> list[str]:
    """uuids of calls that a standby has, as the owner says, with all that it takes."""
    calls = lab.nodes[owner].api("calls", limit=LIMIT)["calls"]
    return [
        c["uuid"]
        for c in calls
        if c["service"] == service and c["here"] == "own" and not NOT_YET & set(c["why"])
    ]


def call_ids(lab: Laboratory, node: str, uuids: list[str]) -> dict[str, str]:
    """Call-ID by uuid, of those that are still up."""
    switch = lab.nodes[node].switch
    assert switch is not None
    with switch.esl() as esl:
        found = {uuid: esl.api(f"uuid_getvar {uuid} sip_call_id") for uuid in uuids}
    return {uuid: call_id for uuid, call_id in found.items() if not call_id.startswith("-")}


def core_uuid(lab: Laboratory, node: str) -> str:
    """Of the FreeSWITCH process that runs there now."""
    switch = lab.nodes[node].switch
    assert switch is not None
    with switch.esl() as esl:
        return esl.api("global_getvar core_uuid").strip()


def rows(lab: Laboratory, node: str) -> list[tuple[str, str]]:
    """(profile, runtime uuid) of every row in the core.db of a node."""
    switch = lab.nodes[node].switch
    assert switch is not None
    with contextlib.closing(sqlite3.connect(switch.core_db, timeout=5)) as db:
        found = db.execute("SELECT profile_name, runtime_uuid FROM recovery").fetchall()
    return [(str(profile), str(runtime)) for profile, runtime in found]


def play(lab: Laboratory, number: int, chance: random.Random, count: Count) -> None:
    """One round."""
    first, other = lab.plan.services[:2]
    owner, neighbour = lab.holder(first.ip), lab.holder(other.ip)
    before, epoch = rows(lab, neighbour), epoch_of(lab, neighbour, other.name)
    dead = core_uuid(lab, owner)
    victim = Injector(lab.topology, lab.nodes[owner], "freeswitch", first.name)
    wave = Wave(lab, number, chance)
    time.sleep(chance.uniform(0.15, LATEST_S))
    known = call_ids(lab, owner, acknowledged(lab, owner, first.name))
    (injection,) = strike([victim])
    injection.complete()
    lab.wait(lambda: lab.holder(first.ip) not in ("", owner), MOVED_S, "the takeover")
    heir = lab.holder(first.ip)
    lab.wait(lambda: _reported(lab, heir, first.name, owner), MOVED_S, "the report")
    time.sleep(LOOKED_ON_S)
    seen = lab.observe()
    found = _judge(seen, known, set(wave.callers.call_ids), injection.at_ns, count)
    if found:
        verdicts = lab.nodes[heir].api("report", which="last")["calls"]["verdicts"]
        print([v for v in verdicts if v["verdict"] != "recovered" or "ended" in v["reason"]])
        print(known)
        print([d["text"] for d in lab.nodes[heir].api("history", count=12)])
        print(_logs(lab, heir))
    found += living_twice(lab)
    if epoch_of(lab, heir, other.name) == epoch:
        found += _of_others(lab, heir, neighbour, before)
        found += [
            f"call {c} of {other.name} was touched"
            for c in _touched(seen, other.ip, injection.at_ns)
        ]
    else:
        count.disturbed += 1
        print(f"round {number}: {other.name} moved, too", flush=True)
    if any(runtime == dead for _, runtime in rows(lab, heir)):
        found.append(f"{heir} still has rows of the dead process (M12)")
    wave.end()
    count.rounds += 1
    count.complaints += [f"round {number}: {text}" for text in found]
    for text in found:
        print(f"round {number}: {text}", flush=True)
    lab.wait(lambda: is_slave(lab, owner), BACK_S, f"{owner} to be a slave again")
    if old := rows(lab, owner):
        count.complaints.append(f"round {number}: {owner} came back with {len(old)} rows (M12)")
        print(count.complaints[-1])


def epoch_of(lab: Laboratory, node: str, service: str) -> int:
    """As this node sees it."""
    found = lab.nodes[node].api("status")["services"]
    return next(int(s["epoch"]) for s in found if s["name"] == service)


def _of_others(
    lab: Laboratory, heir: str, neighbour: str, before: list[tuple[str, str]]
) -> list[str]:
    """What is wrong with rows of the other master; if it is the heir itself, with those it had."""
    found = []
    now = rows(lab, neighbour)
    if heir == neighbour:
        return [f"{heir} has lost rows of its own"] if set(before) - set(now) else []
    if sorted(now) != sorted(before):
        found.append(f"rows of {neighbour} changed")
    mine = {lab.plan.services[0].profile}
    if odd := [p for p, _ in rows(lab, heir) if p.partition("#")[0] not in mine]:
        found.append(f"{heir} has rows of {odd[0]}")
    return found


def _logs(lab: Laboratory, node: str) -> str:
    switch = lab.nodes[node].switch
    said = switch.log_end(LOG_CHARS) if switch is not None else ""
    return f"FreeSWITCH: {said}\nhaclusterd: {lab.nodes[node].log_end(LOG_LINES)}"


def _reported(lab: Laboratory, heir: str, service: str, origin: str) -> bool:
    try:
        report = lab.nodes[heir].api("report", which="last")
    except LabError:
        return False
    return bool(report["done"] and report["service"] == service and report["from"] == origin)


def _judge(
    seen: Observation, known: dict[str, str], mine: set[str], fault_ns: int, count: Count
) -> list[str]:
    """Complaints about calls: `known` were acknowledged, `mine` are this round's."""
    found = []
    acked = set(known.values())
    for call_id, call in seen.calls.items():
        gone = any(m.what == "BYE" for m in call.messages)
        byes = [m.at_ns for m in call.messages if m.what == "200 BYE"]
        again = [
            m for m in call.messages
            if m.what == "INVITE" and m.sent_by_service and m.at_ns > fault_ns
        ]  # fmt: skip
        if byes and byes[0] < fault_ns:
            if fault_ns - byes[0] > ENDED_FOR_SURE_S * 1e9:
                count.hung_up += call_id in mine
                if again:
                    found.append(f"call {call_id} had ended and was recovered: {_told(call)}")
            continue
        if call_id not in acked:
            continue
        count.acknowledged += 1
        if _twice(call.messages, fault_ns):
            found.append(f"call {call_id} was recovered more than once")
        if gone or (again and has_media(call, seen.streams, seen.at_ns)):
            count.recovered += 1
        else:
            found.append(f"call {call_id} was acknowledged and is not up: {_told(call)}")
    return found


def _told(call: Call) -> str:
    """The messages of a call with their times, for people."""
    first_ns = call.messages[0].at_ns
    return ", ".join(
        f"{'<' if m.sent_by_service else '>'}{m.what} {(m.at_ns - first_ns) / 1e9:.2f}"
        for m in call.messages
    )


def _twice(messages: list[Message], fault_ns: int) -> bool:
    """A re-INVITE after an answered one; repeats of one that is not answered yet do not count."""
    answered = False
    for m in messages:
        if m.at_ns <= fault_ns:
            continue
        if m.what == "INVITE" and m.sent_by_service and answered:
            return True
        answered = answered or (m.what == "ACK" and m.sent_by_service)
    return False


def _touched(seen: Observation, ip: str, fault_ns: int) -> list[str]:
    return [
        call_id
        for call_id, call in seen.calls.items()
        if call.service_ip == ip
        and any(m.at_ns > fault_ns and m.what in ("INVITE", "BYE") for m in call.messages)
    ]


def run(rounds: int, prefix: str | None, seed: int) -> Count:
    """All rounds on one cluster of two masters and a slave."""
    chance, count = random.Random(seed), Count()
    kind = "real" if prefix else "emulator"
    plan = LabPlan(masters=2, slaves=1, freeswitch=kind, nice=-11 if prefix else 0)
    with ready_cluster(plan, prefix, print) as lab:
        bring_calls(lab, {plan.services[1].name: STEADY}, print)
        for number in range(2, rounds + 2):
            play(lab, number, chance, count)
            if number % 10 == 1 or number == rounds + 1:
                print(_line(count), flush=True)
    return count


def _line(count: Count) -> str:
    return (
        f"{count.rounds} rounds: {count.recovered} of {count.acknowledged} acknowledged calls"
        f" recovered, {count.hung_up} ended ones stayed so, {len(count.complaints)} complaints"
        f"{f', {count.disturbed} disturbed' if count.disturbed else ''}"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--freeswitch", default=os.environ.get("FREESWITCH_PREFIX"))
    parser.add_argument("--emulator", action="store_true", help="even where a FreeSWITCH is known")
    given = parser.parse_args()
    count = run(given.rounds, None if given.emulator else given.freeswitch, given.seed)
    print(_line(count))
    return 1 if count.complaints else 0


if __name__ == "__main__":
    sys.exit(main())
