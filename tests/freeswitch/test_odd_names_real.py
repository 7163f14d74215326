"""Calls that are named by what a stranger wrote, with a real FreeSWITCH."""

from __future__ import annotations

import time

import pytest

from haclusterd.core.records import CallRecord
from haclusterd.freeswitch.calls import CallSource
from haclusterd.freeswitch.options import RecoveryOptions
from haclusterd.lab.freeswitch import FreeswitchInstance
from tests.fixtures import talker
from tests.fixtures.talker import Talker
from tests.freeswitch.moving import recovered, varied
from tests.freeswitch.rig import CLIENT, EAST, Rig, channels
from tests.freeswitch.test_esl_real import Collector, factory, inside, until

pytestmark = [pytest.mark.freeswitch, pytest.mark.timeout(120)]

GOOD = ["1-2@10.0.0.1", 'a"b', "-u", "a`b", "<a>b", "{a}[b]?/(c)"]
BAD = ["o'brien", "a\\sb", "quote'"]  # no command would find them: said so while they are up
BY_CALL_ID = ("inbound-use-callid-as-uuid", "true")


def known(node: FreeswitchInstance) -> tuple[dict[str, CallRecord], int, str]:
    """What a slave would hold, how many calls were refused, and what is said of them."""

    async def work() -> tuple[dict[str, CallRecord], int, str]:
        held = Collector()
        source = CallSource(node.core_db, {"east": "east"}, held.take, esl_factory=factory(node))
        await source.start()
        try:
            await until(lambda: len(held.records) + source.refused == len(GOOD + BAD), 15)
            return held.records, source.refused, source.unprotected
        finally:
            await source.stop()

    return inside(node, work)


def test_e2_calls_that_are_named_by_their_call_id_are_recovered_under_it(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    for node in (rig.a, rig.b):
        varied(node, BY_CALL_ID)
    rig.activate(rig.a, "east", EAST)
    made = Talker.dialogue
    names = iter([*GOOD, *BAD])

    def named(phone: Talker, uri: str) -> talker.Dialogue:
        dialogue = made(phone, uri)
        dialogue.call_id = next(names)
        return dialogue

    monkeypatch.setattr(Talker, "dialogue", named)
    phone = Talker(f"{rig.name}-cl", CLIENT, EAST)
    for _ in GOOD + BAD:
        phone.call("9196")
    time.sleep(0.6)
    records, refused, said = known(rig.a)
    assert sorted(records) == sorted(GOOD)
    assert refused == len(BAD)
    assert "cannot stand in a command" in said
    rig.a.kill()
    rig.own(rig.b, EAST)
    verdicts = recovered(rig.b, records, RecoveryOptions(), 2 << 12)
    assert {uuid: v.verdict for uuid, v in verdicts.items()} == dict.fromkeys(GOOD, "recovered")
    assert channels(rig.b) == len(GOOD)
    phone.close()
