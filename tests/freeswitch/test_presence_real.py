"""Lamps and message lights with a real FreeSWITCH on every node: across nodes, and a takeover."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager

import pytest

from haclusterd.lab.laboratory import Laboratory
from haclusterd.lab.plan import LabPlan
from haclusterd.lab.run import endure, ready_cluster
from tests.fixtures.sip_messages import Seen
from tests.fixtures.talker import Dialogue, Talker
from tests.freeswitch.obstacle import obstacle

_REASON = obstacle()
pytestmark = [
    pytest.mark.freeswitch,
    pytest.mark.skipif(bool(_REASON), reason=_REASON),
    pytest.mark.timeout(180),
]

PLAN = LabPlan(
    masters=2, slaves=1, freeswitch="real", profile_params=(("manage-presence", "true"),)
)
MESSAGES = {
    "MWI-Messages-Waiting": "yes",
    "MWI-Message-Account": "2000@lab.test",
    "MWI-Voice-Message": "2/0 (0/0)",
}
EVENTS = ("dialog", "message-summary")


@contextmanager
def phones(plan: LabPlan, watched_at: int) -> Iterator[tuple[Laboratory, Talker, Talker]]:
    """A phone that watches, at one service, and one that calls, at the other."""
    with ready_cluster(plan, None, print) as lab:
        time.sleep(2)  # a new agent gives heart a second to order a recovery
        at = [service.ip for service in lab.plan.services]
        where = lab.topology.client, lab.plan.client_ip
        watcher = Talker(*where, at[watched_at], user="2000")
        caller = Talker(*where, at[1 - watched_at], user="1000")
        assert watcher.register().startswith("SIP/2.0 200")
        for event in EVENTS:
            whose = "1000" if event == "dialog" else "2000"
            assert watcher.subscribe(whose, event).startswith("SIP/2.0 202")
        time.sleep(1.5)  # the first NOTIFYs
        try:
            yield lab, watcher, caller
        finally:
            watcher.close()
            caller.close()


def notified(phone: Talker, event: str, content: str, after_s: float) -> Seen:
    """The NOTIFY with this in it, in a dialogue of the phone."""
    return phone.wait(
        lambda s: s.first.startswith("NOTIFY") and s.header("Event") == event
        and content in s.body and s.header("Call-ID") in phone.dialogues,
        5, after_s,
    )  # fmt: skip


def light(lab: Laboratory, node: str) -> None:
    switch = lab.nodes[node].switch
    assert switch is not None
    with switch.esl() as esl:
        assert esl.sendevent("MESSAGE_WAITING", MESSAGES).startswith("+OK")


def subscriptions(lab: Laboratory, node: str) -> list[str]:
    """`full_to` of the first service's rows on a node."""
    switch = lab.nodes[node].switch
    assert switch is not None
    path = switch.core_db.with_name("sofia_reg_profile1.db")
    with closing(sqlite3.connect(path, timeout=5)) as connection:
        return [row[0] for row in connection.execute("SELECT full_to FROM sip_subscriptions")]


def test_eg8_lamps_and_lights_go_on_at_another_node() -> None:
    with phones(PLAN, watched_at=1) as (lab, watcher, caller):
        began_s = time.monotonic()
        call = caller.call("9196")
        on = notified(watcher, "dialog", "<state>confirmed</state>", began_s)
        # A SUBSCRIBE is answered from the calls of B alone: FreeSWITCH asks nobody else.
        assert watcher.subscribe("1000", "dialog").startswith("SIP/2.0 202")
        newest = list(watcher.dialogues)[-1]
        first = watcher.wait(
            lambda s: s.first.startswith("NOTIFY") and s.header("Call-ID") == newest, 5
        )
        assert "<state>confirmed</state>" not in first.body
        began_s = time.monotonic()
        assert caller.bye(call).startswith("SIP/2.0 200")
        off = notified(watcher, "dialog", "<state>terminated</state>", began_s)
        assert off.cseq > on.cseq
        began_s = time.monotonic()
        light(lab, "fs-a")
        lit = notified(watcher, "message-summary", "Voice-Message: 2/0 (0/0)", began_s)
        print(f"message light at B {1000 * (lit.at_s - began_s):.0f} ms after the event at A")
        # Nothing goes round in circles.
        time.sleep(1)
        count = len(watcher.requests("NOTIFY"))
        time.sleep(2)
        assert len(watcher.requests("NOTIFY")) == count


def _takeover(lab: Laboratory) -> float:
    endure(lab, "freeswitch", print, victims=("fs-a",))
    assert lab.holder(lab.plan.services[0].ip) == "fs-c"
    return time.monotonic()


def _subscribed(phone: Talker) -> list[Dialogue]:
    return list(phone.dialogues.values())


def test_eg8_subscriptions_live_on_after_a_takeover() -> None:
    with phones(PLAN, watched_at=0) as (lab, watcher, caller):
        time.sleep(3)  # the rows are told every second
        before = sorted(subscriptions(lab, "fs-a"))
        assert len(before) == len(EVENTS)
        began_s = _takeover(lab)
        assert sorted(subscriptions(lab, "fs-c")) == before
        call = caller.call("9196")
        lamp = notified(watcher, "dialog", "<state>confirmed</state>", began_s)
        assert lamp.header("Contact") == f"<sip:1000@{lab.plan.services[0].ip}:5060>"
        light(lab, "fs-b")
        notified(watcher, "message-summary", "Voice-Message: 2/0 (0/0)", began_s)
        # In the dialogue that the phone has: it answered 200, so FreeSWITCH kept the row.
        time.sleep(1)
        assert sorted(subscriptions(lab, "fs-c")) == before
        for dialogue, event in zip(_subscribed(watcher), EVENTS, strict=True):
            assert watcher.subscribe_again(dialogue, event).startswith("SIP/2.0 202")
        assert sorted(subscriptions(lab, "fs-c")) == before
        caller.bye(call)


def test_eg8_without_the_rows_a_phone_hears_nothing_until_it_subscribes_again() -> None:
    """What `presence = true` is for: FreeSWITCH alone, the same phone and the same takeover."""
    plan = LabPlan(
        masters=2, slaves=1, freeswitch="real", profile_params=(("manage-presence", "TRUE"),)
    )
    with phones(plan, watched_at=0) as (lab, watcher, _):
        began_s = _takeover(lab)
        assert subscriptions(lab, "fs-c") == []
        light(lab, "fs-c")
        with pytest.raises(TimeoutError):
            notified(watcher, "message-summary", "Voice-Message", began_s)
        for dialogue, event in zip(_subscribed(watcher), EVENTS, strict=True):
            assert watcher.subscribe_again(dialogue, event).startswith("SIP/2.0 202")
        light(lab, "fs-c")
        notified(watcher, "message-summary", "Voice-Message: 2/0 (0/0)", began_s)
        # FreeSWITCH adds the tag once more to a dialogue it does not know.
        assert all(to.count(";tag=") == 2 for to in subscriptions(lab, "fs-c"))
