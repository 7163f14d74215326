"""A row that our own code fails on costs its call, and no other: at its owner and at the next."""

from __future__ import annotations

import logging
from pathlib import Path

import msgspec
import pytest

from haclusterd.core.records import CallRecord
from haclusterd.freeswitch import calls, changelog, injection, mends, metadata, synthesis, tags
from haclusterd.freeswitch.changelog import RecoveryRow
from haclusterd.freeswitch.options import RecoveryOptions
from haclusterd.freeswitch.positions import Positions, _Heard
from tests.fixtures.freeswitch import fake_recovery
from tests.fixtures.freeswitch.fake_esl import FakeEsl
from tests.unit import test_calls, test_esl_source
from tests.unit.test_calls import TONE, Told, following, until
from tests.unit.test_tags import BARE, esl_of

pytestmark = pytest.mark.timeout(30)
# Python refuses to read a decimal number of more digits than 4,300, and raises no MetadataError.
HUGE = TONE.replace('app_name="answer"', f'app_name="&#{"9" * 5000};"', 1)


def fail_on(uuid: str, real: object, module: object, name: str, patch: pytest.MonkeyPatch) -> None:
    def failing(*given: object) -> object:
        if any(getattr(one, "uuid", "") == uuid or uuid == one for one in given):
            raise IndexError("a fault of ours")
        return real(*given)  # type: ignore[operator]

    patch.setattr(module, name, failing)


@pytest.fixture
def switch(tmp_path: Path) -> test_calls.Switch:
    return test_calls.Switch(tmp_path / "core.db")


def test_s_a_number_that_python_does_not_read_is_no_fault() -> None:
    assert HUGE != TONE
    record = calls.build_record("east", 1, RecoveryRow("u", "core-a", "pa", HUGE))
    heard = _Heard([(metadata.profile_index(HUGE), "playback")] * 2)
    told = Positions(Path("/x"), lambda **_: None, lambda: "")  # type: ignore[arg-type]
    told._heard["u"] = heard
    placed = told.placed(record)
    mended, refused = mends.mend_all([placed], mends.Mends(announcements=True))
    assert ([one.uuid for one in mended], refused) == (["u"], {})
    bridged = msgspec.structs.replace(
        record, partner="v", metadata=HUGE.replace("<extension", "<app_log", 1)
    )
    mends.limits_to_apply(bridged, mends.Mends())


async def test_e1_a_row_that_we_fail_on_is_refused_and_its_neighbours_are_told(
    switch: test_calls.Switch, told: Told, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    fail_on("bad", metadata.check_uuid, metadata, "check_uuid", monkeypatch)
    for uuid in ("bad", "good"):
        switch.answer(uuid)
    async with following(switch, told) as source:
        await until(lambda: [one.uuid for one in told.records] == ["good"])
        switch.answer("later")
        switch.update("bad", "9")
        await until(lambda: [one.uuid for one in told.records] == ["good", "later"])
        assert [one.uuid for one in await source.snapshot()] == ["good", "later"]
        assert source.refused == 1
        assert "1 calls cannot be recovered elsewhere: haclusterd failed on it (IndexError" in (
            source.unprotected
        )
        assert source.problem == ""
    said = [one for one in caplog.records if one.levelno >= logging.ERROR and "bad" in one.message]
    assert len(said) == 1, "with its traceback, once"


@pytest.fixture
def told() -> Told:
    return Told()


async def test_e1_a_tag_that_we_fail_on_keeps_no_other_call_from_being_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bad, good = (CallRecord("east", uuid, 1, "pa", "core-a", BARE) for uuid in ("bad", "good"))
    whole = metadata.variable(TONE, "sip_full_to")
    async with FakeEsl() as server:
        server.api["uuid_getvar"] = whole
        esl = await esl_of(server)
        fail_on(whole + "x", metadata.set_variable, metadata, "set_variable", monkeypatch)
        server.api["uuid_getvar bad"] = whole + "x"
        found = await tags.complete(esl, [bad, good])
        await esl.stop()
    assert found[0] is bad
    assert isinstance(found[1], CallRecord)
    assert not metadata.untagged(found[1].metadata)


async def test_e1_a_dump_that_we_fail_on_is_refused_and_its_neighbours_are_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = synthesis.record

    def failing(service: str, version: int, dump: dict[str, str]) -> CallRecord:
        if dump["Unique-ID"] == "bad":
            raise IndexError("a fault of ours")
        return real(service, version, dump)

    monkeypatch.setattr(synthesis, "record", failing)
    told, switch = test_esl_source.Told(), test_esl_source.Switch()
    async with switch, test_esl_source.following(switch, told) as source:
        switch.answer("bad")
        switch.answer("good")
        await until(lambda: told.live == ["good"] and source.refused == 1)
        assert "haclusterd failed on it (IndexError" in source.unprotected


async def test_e1_a_dump_with_half_a_letter_keeps_no_other_from_being_told() -> None:
    """JSON can spell what UTF-8 cannot."""
    told, switch = test_esl_source.Told(), test_esl_source.Switch()
    async with switch, test_esl_source.following(switch, told):
        switch.answer("bad", variable_x="\ud800")
        switch.answer("good")
        await until(lambda: "good" in told.live)


def test_e1_a_record_that_we_fail_on_is_lost_alone(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    records = fake_recovery.calls(3)
    fail_on("call-1", mends.mend, mends, "mend", monkeypatch)
    mended, refused = mends.mend_all(records, mends.Mends())
    assert [one.uuid for one in mended] == ["call-0", "call-2"]
    assert refused == {
        "call-1": "haclusterd failed on it (IndexError: a fault of ours); see its log"
    }
    assert any(one.exc_info for one in caplog.records)


async def test_e1_limits_that_we_fail_on_take_no_verdict_from_other_calls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = fake_recovery.Switch(tmp_path / "core.db")
    await fake.listen()
    fail_on("call-1", mends.limits_to_apply, mends, "limits_to_apply", monkeypatch)
    async with fake_recovery.recovering(fake, RecoveryOptions(4, 250)) as recovering:
        verdicts = await recovering.recover("east", ["pa"], fake_recovery.calls(3))
    await fake.close()
    assert [one.verdict for one in verdicts] == ["recovered"] * 3


@pytest.mark.parametrize("version", [2**63 - 1, 2**64 - 1])
def test_e1_a_version_of_no_clock_keeps_no_call_from_being_injected_or_followed(
    switch: test_calls.Switch, version: int
) -> None:
    """SQLite takes no larger number, and has no next one for FreeSWITCH's own rows after that."""
    changelog.install(switch.db, switch.path)
    rows = [
        injection.StreamRow("pa", CallRecord("east", f"u{n}", v, "pa", "core-9", TONE))
        for n, v in enumerate((1, version))
    ]
    injection.inject(switch.path, "core-1", "east", 3, ["pa"], rows)
    switch.answer("next")
    assert changelog.last_seq(switch.db) > changelog.SEQ_INHERITED_MAX
