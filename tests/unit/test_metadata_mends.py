"""Facts and mends of real recovery rows, and documents that must be refused."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from haclusterd.core.records import CallRecord
from haclusterd.freeswitch import mends, metadata
from haclusterd.freeswitch.calls import build_record
from haclusterd.freeswitch.changelog import RecoveryRow
from haclusterd.freeswitch.streams import bridged_groups, spread

CAPTURES = Path(__file__).parents[1] / "fixtures" / "freeswitch"
TONE = (CAPTURES / "recovery_metadata_tone.xml").read_text()
OUTBOUND = "546a9523-e8aa-42e1-abec-b70790f97449"
INBOUND = "7cef15bd-1061-4f65-8307-efdb792283fc"


def bridged() -> dict[str, CallRecord]:
    rows = json.loads((CAPTURES / "recovery_rows_bridge.json").read_text())
    return {r[4]: build_record("east", 7, RecoveryRow(r[4], r[0], r[2], r[5])) for r in rows}


def test_facts_of_captured_rows() -> None:
    assert metadata.facts(TONE) == ("inbound", "", "1", 1795359583311)
    legs = bridged()
    out, inbound = legs[OUTBOUND], legs[INBOUND]
    assert (out.direction, out.partner, out.sip_cseq) == ("outbound", INBOUND, "123126308")
    assert (inbound.direction, inbound.partner, inbound.sip_cseq) == ("inbound", OUTBOUND, "1")
    assert out.profile == "pa"
    assert inbound.answered_ms == 1795360201678


def test_variables_are_decoded_and_set() -> None:
    assert metadata.variable(TONE, "sip_from_uri") == "u1@10.77.0.21:5060"
    assert metadata.variable(TONE, "nosuch") == ""
    # not a variable, though an element of this name exists outside of <variables>
    assert metadata.variable(TONE, "answered_time") == ""
    changed = metadata.set_variable(TONE, "ha_test", 'no <b>&"%\n')
    assert metadata.variable(changed, "ha_test") == 'no <b>&"%\n'
    assert changed.count("<ha_test>") == 1
    metadata.check(changed)
    assert metadata.set_variable(changed, "ha_test", "yes").count("<ha_test>") == 1
    for name in ("a b", "", "a><b", "1a", "x" * 200):
        with pytest.raises(metadata.MetadataError):
            metadata.set_variable(TONE, name, "1")


@pytest.mark.parametrize(
    "bad",
    [
        "",
        "<cdr></cdr>",
        "<html/>",
        TONE.replace("</variables>", ""),
        '<!DOCTYPE cdr [<!ENTITY a "b">]>' + TONE,
        TONE.replace("<variables>", "<![CDATA[x]]><variables>"),
        TONE + "<cdr",
        TONE.replace("<caps>", "\0<caps>"),
        "<cdr " + "x" * metadata.METADATA_BYTES_MAX + "</cdr>",
    ],
)
def test_odd_documents_are_refused(bad: str) -> None:
    with pytest.raises(metadata.MetadataError):
        metadata.facts(bad)


def with_name(name: str) -> str:
    """The row of a call with such a variable, as FreeSWITCH writes it."""
    return TONE.replace("  </variables>", f"    <{name}>1</{name}>\n  </variables>")


_COUNTED = "limit_usage_in_a"
_HOOK = "<api_hangup_hook>system%20id</api_hangup_hook"


@pytest.mark.parametrize(
    "name",
    [
        f"{_COUNTED}>{_HOOK}",
        f"{_COUNTED}>1</{_COUNTED}>{_HOOK}><{_COUNTED}",
        f"{_COUNTED}/>{_HOOK}><b/",
        f"{_COUNTED}>1</{_COUNTED}></variables><callflow>",
        f"{_COUNTED}></variables><callflow></callflow><variables><b></b",
        f"{_COUNTED}>x",
        f"{_COUNTED}<x",
        f"{_COUNTED}><?x?",
        f"{_COUNTED}><b><b>{_HOOK}></b>",
        "/variables",
        "?x",
    ],
)
def test_s_a_caller_in_the_name_of_a_variable_is_no_markup(name: str) -> None:
    for text in (with_name(name), with_name(name) + " "):
        with pytest.raises(metadata.MetadataError):
            metadata.check(text)
        with pytest.raises(metadata.MetadataError):
            metadata.facts(text)


@pytest.mark.parametrize(
    "name", ["limit_usage_in_gw/1", "limit_usage_in_a b", "a\nb=c", "9", "a&b"]
)
def test_a_name_that_no_parser_takes_is_left_out_and_the_others_stay(name: str) -> None:
    text = with_name(name)
    metadata.check(text)
    kept = metadata.readable(text)
    taken = name == "a&b"
    assert (f"<{name}>" in kept) == taken
    assert kept == text if taken else kept == metadata.readable(kept)
    assert metadata.variable(kept, "sip_from_uri") == "u1@10.77.0.21:5060"
    assert metadata.facts(kept) == metadata.facts(TONE)
    assert kept.count("<") == TONE.count("<") + 2 * taken
    record = build_record("east", 7, RecoveryRow("u", "c", "east", text))
    assert f"<{name}>1" not in mends.mend(record, mends.Mends()).metadata or taken


CLOCK_S = 1790000000.0
CLOCK_CSEQ = (1790000000 + 2_208_988_800) >> 1 & 0x7FFFFFF


def cseq_of(record: CallRecord) -> int:
    return int(metadata.variable(record.metadata, "sip_invite_cseq") or 0)


def test_cseq_of_an_outbound_leg_is_above_our_own_count() -> None:
    legs = bridged()
    mended = mends.raise_cseq(legs[OUTBOUND], 0, CLOCK_S)
    assert cseq_of(mended) == 123126408
    assert mended.sip_cseq == "123126308"  # what the proof compares with


def test_cseq_is_raised_for_inbound_legs_that_were_recovered_before() -> None:
    leg = bridged()[INBOUND]
    xml = metadata.set_variable(leg.metadata, "dlg_req_swap_direction", "true")
    leg = msgspec.structs.replace(leg, metadata=xml, sip_cseq="123127248")
    mended = mends.raise_cseq(leg, 0, CLOCK_S)
    assert cseq_of(mended) == 123127348
    # and again, at the next takeover, from the then newer count
    third = mends.raise_cseq(msgspec.structs.replace(mended, sip_cseq="123127349"), 0, CLOCK_S)
    assert cseq_of(third) == 123127449


@pytest.mark.parametrize("which", [INBOUND, OUTBOUND])
def test_each_attempt_has_a_higher_cseq_though_row_and_clock_are_the_same(which: str) -> None:
    """The last owner may have died in the same two seconds, its rows told to nobody."""
    leg, behind = bridged()[which], bridged()[INBOUND]
    attempts = [0, 1, 2, 1 << 12, (1 << 12) + 1, 2 << 12, 3 << 12, 200 << 12]
    found = [cseq_of(mends.raise_cseq(leg, attempt, CLOCK_S)) for attempt in attempts]
    assert found == sorted(set(found))
    assert found[0] == (CLOCK_CSEQ if which == INBOUND else 123126308) + mends.CSEQ_RAISE
    late = cseq_of(mends.raise_cseq(behind, 2 << 12, CLOCK_S - 100))
    assert late > cseq_of(mends.raise_cseq(behind, 1 << 12, CLOCK_S)), "a clock 100 s behind"


@pytest.mark.parametrize("cseq", ["", "x", "-5", "99999999999", str(2**31 - 5)])
def test_unusable_cseq_is_left_alone(cseq: str) -> None:
    leg = msgspec.structs.replace(bridged()[OUTBOUND], sip_cseq=cseq)
    assert mends.raise_cseq(leg, 0, CLOCK_S) is leg


def test_profile_name_is_mended_and_switches_work() -> None:
    leg = msgspec.structs.replace(bridged()[OUTBOUND], profile="east")
    mended = mends.name_profile(leg)
    assert metadata.variable(mended.metadata, "recovery_profile_name") == "east"
    assert mends.name_profile(mended) is mended
    unmarked = metadata.without_variable(leg.metadata, mends.FLOW)
    leg = msgspec.structs.replace(leg, metadata=unmarked)
    assert mends.mend(leg, mends.Mends(cseq=False, profile=False)) is leg
    broken = msgspec.structs.replace(leg, uuid="b", metadata="<oops/>")
    good, refused = mends.mend_all([leg, broken], mends.Mends())
    assert [record.uuid for record in good] == [OUTBOUND]
    assert "not one <cdr>" in refused["b"]


def record(uuid: str, partner: str = "") -> CallRecord:
    return CallRecord("s", uuid, 1, "p", "r", "", partner)


def test_bridged_legs_share_a_stream_and_load_is_even() -> None:
    single = [record(f"s{n}") for n in range(10)]
    pairs = [leg for n in range(5) for leg in (record(f"a{n}", f"b{n}"), record(f"b{n}", f"a{n}"))]
    parts = spread([*single, *pairs], 4)
    assert [len(part) for part in parts] == [6, 5, 5, 4] or max(map(len, parts)) <= 6
    assert sorted(r.uuid for part in parts for r in part) == sorted(
        r.uuid for r in [*single, *pairs]
    )
    for part in parts:
        uuids = [r.uuid for r in part]
        assert all(r.partner in uuids for r in part if r.partner)
        bridged_at = [at for at, r in enumerate(part) if r.partner]
        assert bridged_at == list(range(len(bridged_at)))  # bridged ones first


def test_few_calls_use_one_stream_and_odd_partners_do_no_harm() -> None:
    odd = [record("a", "gone"), record("b", "b"), record("c", "d"), record("d")]
    assert [[r.uuid for r in group] for group in bridged_groups(odd)] == [["a"], ["b"], ["c", "d"]]
    assert len(spread(odd, 4)) == 1
    assert spread([], 4) == []
