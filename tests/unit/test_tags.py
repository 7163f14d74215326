"""A call whose row was written before the ACK: completed over ESL, at risk, never injected bare."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from haclusterd.core.records import CallRecord, CallVerdict, Tombstone
from haclusterd.freeswitch import mends, metadata, risks, tags
from haclusterd.freeswitch.calls import CallSource
from haclusterd.freeswitch.esl import EslConnection, EslSettings
from tests.fixtures.freeswitch.fake_esl import FakeEsl
from tests.unit.test_calls import TONE, Switch, Told, until

pytestmark = pytest.mark.timeout(30)
WHOLE = metadata.variable(TONE, "sip_full_to")
BARE = metadata.set_variable(TONE, "sip_full_to", WHOLE.partition(";tag=")[0])
ASKED = "uuid_getvar u sip_full_to"


def record(text: str = BARE, **handles: str) -> CallRecord:
    for name, value in handles.items():
        text = metadata.set_variable(text, name, value)
    return CallRecord("east", "u", 1, "pa", "core-a", text)


def test_e1_a_row_without_a_tag_is_known() -> None:
    assert not metadata.untagged(TONE)
    assert metadata.untagged(BARE)
    assert metadata.untagged(record(TONE, sip_full_from="<sip:a;tag=x@h>").metadata)
    assert not metadata.untagged(record(sip_handle_full_to=WHOLE).metadata)
    assert not metadata.untagged("<cdr ><variables></variables></cdr>"), "nothing is said of it"


def test_e1_such_a_call_is_at_risk_and_lost_with_the_reason() -> None:
    """FreeSWITCH would drop it with a log line, or have the phone refuse it."""
    assert risks.of_record(record()) == [risks.UNTAGGED]
    mended, refused = mends.mend_all([record()], mends.Mends())
    assert mended == []
    assert CallVerdict("u", "lost", refused["u"]).reason == risks.UNTAGGED


async def esl_of(server: FakeEsl) -> EslConnection:
    esl = EslConnection(EslSettings("127.0.0.1", server.port, "ClueCon"))
    await esl.start()
    await esl.wait_up(2000)
    return esl


async def test_e1_freeswitch_says_the_tag_before_it_is_written() -> None:
    other, gone = record(TONE), Tombstone("east", "v", 2)
    async with FakeEsl() as server:
        server.api[ASKED] = WHOLE
        esl = await esl_of(server)
        found = await tags.complete(esl, [gone, record(), other])
        await esl.stop()
    first, second, third = found
    assert (first, third) == (gone, other)
    assert isinstance(second, CallRecord)
    assert metadata.variable(second.metadata, "sip_full_to") == WHOLE
    assert metadata.variable(second.metadata, "sip_to_tag") == WHOLE.partition(";tag=")[2]
    assert second.version == 1


@pytest.mark.parametrize(
    "answer",
    ["-ERR No such channel!", "_undef_", "", WHOLE.partition(";tag=")[0], "<sip:a@h>;tag=", None,
     "<sip:a@h>;tag=x\x01y"],
)  # fmt: skip
async def test_what_freeswitch_does_not_say_stays_as_it_was(
    answer: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tags, "ANSWER_MS", 50)
    async with FakeEsl() as server:
        server.api[ASKED] = lambda line: answer
        esl = await esl_of(server)
        assert await tags.complete(esl, [record()]) == [record()]
        assert esl.up, "a slow answer costs no connection"
        await esl.stop()
    assert await tags.complete(esl, [record()]) == [record()]
    assert await tags.complete(None, [record()]) == [record()]


async def test_e1_what_the_standbys_get_first_is_whole(tmp_path: Path) -> None:
    switch, told = Switch(tmp_path / "core.db"), Told()
    async with FakeEsl() as server:
        server.api["global_getvar core_uuid"] = "core-1"
        server.api["uuid_getvar early sip_full_to"] = WHOLE
        settings = EslSettings("127.0.0.1", server.port, "ClueCon")
        source = CallSource(
            switch.path, {"pa": "east"}, told.take, poll_ms=2,
            esl_factory=lambda **options: EslConnection(settings, **options),
        )  # fmt: skip
        await source.start()
        await until(lambda: source.core_uuid != "")
        await asyncio.sleep(0.05)
        switch.answer("early", text=BARE)
        await until(lambda: len(told.records) == 1)
        await source.stop()
    switch.db.close()
    assert not metadata.untagged(told.records[0].metadata)
