"""What hang-ups and provisional answers prove: events as a FreeSWITCH 1.11.1 sent them (E2).

What SIPp says of the same phones is `tests/freeswitch/test_verdicts_true.py`.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from haclusterd.core.records import CallRecord, CallVerdict
from haclusterd.freeswitch import mends, metadata
from haclusterd.freeswitch.esl_protocol import Event
from haclusterd.freeswitch.verify import Verification
from tests.fixtures.freeswitch.fake_recovery import record

TONE = Path(__file__).parents[1] / "fixtures" / "freeswitch" / "recovery_metadata_tone.xml"
ANSWERED, INJECTED = "124000", "1"
BYE = {"variable_sip_term_status": "200", "variable_proto_specific_hangup_cause": "sip:200"}


def hung_up(uuid: str, cause: str = "NORMAL_CLEARING", cseq: str = INJECTED, **more: str) -> Event:
    return Event(
        {
            "Event-Name": "CHANNEL_HANGUP", "Unique-ID": uuid, "Hangup-Cause": cause,
            "variable_sip_cseq": cseq, **more,
        }
    )  # fmt: skip


def refused(uuid: str, status: str, cause: str, cseq: str = INJECTED) -> Event:
    more = {
        "variable_sip_hangup_disposition": "recv_refuse",
        "variable_sip_term_status": status,
        "variable_proto_specific_hangup_cause": f"sip:{status}",
    }
    return hung_up(uuid, cause, cseq, **more)


def of(check: Verification) -> dict[str, tuple[str, str, bool]]:
    return {v.uuid: (v.verdict, v.reason, v.ended) for v in check.verdicts(3000, None)}


def pair() -> Verification:
    check = Verification([record("a", "b"), record("b", "a")])
    check.launched(["a", "b"])
    return check


def bridged(check: Verification) -> None:
    event = {"Event-Name": "CHANNEL_BRIDGE", "Unique-ID": "a", "Other-Leg-Unique-ID": "b"}
    check.take_event(Event(event), 1.0)


@pytest.mark.parametrize("sign", [BYE, {"variable_sip_hangup_disposition": "recv_bye"}])
def test_e2_a_phone_that_answers_and_says_bye_was_recovered(sign: dict[str, str]) -> None:
    """Also before anybody has asked for its `sip_cseq`."""
    check = Verification([record("a")])
    check.take_event(hung_up("a", cseq=ANSWERED, **sign), 2.0)
    assert check.verdicts(1, 1.0) == [
        CallVerdict("a", "recovered", "recovered, the phone said BYE since", 1000, ended=True)
    ]


def test_e2_a_phone_that_says_bye_instead_of_an_answer_did_not_come_back() -> None:
    check = Verification([record("a")])
    check.take_event(hung_up("a", **BYE), 2.0)
    why = "the phone hung up before it answered the re-INVITE (NORMAL_CLEARING)"
    assert of(check) == {"a": ("lost", why, False)}


def test_s8_a_call_that_has_ended_since_is_over() -> None:
    check = Verification([record("a")])
    check.take_cseq("a", ANSWERED, 1.0)
    check.take_event(hung_up("a", cseq=ANSWERED), 2.0)
    assert of(check) == {"a": ("recovered", "recovered, ended since (NORMAL_CLEARING)", True)}


@pytest.mark.parametrize(
    ("status", "cause", "why"),
    [
        ("488", "INCOMPATIBLE_DESTINATION", "the phone refused the re-INVITE: 488"),
        ("481", "NORMAL_TEMPORARY_FAILURE", "the phone refused the re-INVITE: 481"),
        ("503", "NORMAL_TEMPORARY_FAILURE",
         "the phone can not be reached, or refused the re-INVITE: 503"),
        ("408", "RECOVERY_ON_TIMER_EXPIRE", "the phone did not answer the re-INVITE"),
        ("4\n8", "USER_BUSY", "the phone refused the re-INVITE"),
    ],
)  # fmt: skip
def test_e2_a_refusal_is_told_with_its_status(status: str, cause: str, why: str) -> None:
    check = Verification([record("a")])
    check.take_event(refused("a", status, cause), 1.0)
    assert of(check) == {"a": ("lost", f"{why} ({cause})", False)}


def test_e2_who_rings_first_and_refuses_then_has_not_answered() -> None:
    check = Verification([record("a")])
    check.take_cseq("a", ANSWERED, 1.0)
    check.take_event(refused("a", "486", "USER_BUSY", ANSWERED), 2.0)
    assert of(check)["a"][:2] == ("lost", "the phone refused the re-INVITE: 486 (USER_BUSY)")


def test_e2_who_rings_first_and_says_bye_then_has_not_answered() -> None:
    check = Verification([record("a")])
    check.take_cseq("a", ANSWERED, 1.0)
    flow = {f"variable_{mends.FLOW}": mends.UNANSWERED}
    check.take_event(hung_up("a", cseq=ANSWERED, **BYE, **flow), 2.0)
    assert of(check)["a"][0] == "lost"


def test_e2_a_provisional_answer_is_none() -> None:
    check = Verification([record("a"), record("b")])
    for uuid in ("a", "b"):
        check.take_cseq(uuid, ANSWERED, 1.0)
        check.heard(uuid, 0)
    assert check.mute() == ["a", "b"]
    check.only_rang("a")
    assert of(check) == {
        "a": ("lost", "no answer to the re-INVITE but a provisional one", False),
        "b": ("recovered", "re-INVITE answered, no RTP from the phone yet", False),
    }
    ((left, sign),) = check.unanswered()
    assert (left.uuid, *sign) == ("a", mends.FLOW, mends.UNANSWERED)


def test_e2_only_a_leg_that_sends_nothing_can_have_only_rung() -> None:
    """Nor one of which FreeSWITCH does not tell: it may have left the media to others."""
    check = Verification([record("a"), record("b"), record("c")])
    for uuid, packets in (("a", 7), ("b", -1), ("c", 0)):
        check.take_cseq(uuid, ANSWERED, 1.0)
        check.heard(uuid, packets)
    assert check.mute() == ["c"]


def test_e2_an_answer_that_freeswitch_can_not_use_saves_no_call() -> None:
    check = Verification([record("a")])
    check.take_cseq("a", ANSWERED, 1.0)
    check.take_event(hung_up("a", "INCOMPATIBLE_DESTINATION", ANSWERED), 1.1)
    why = "answered, but FreeSWITCH could not go on with it (INCOMPATIBLE_DESTINATION)"
    assert of(check) == {"a": ("lost", why, False)}


def test_e2_when_one_phone_says_bye_its_other_leg_was_recovered_too() -> None:
    check = pair()
    for uuid in ("a", "b"):
        check.take_cseq(uuid, ANSWERED, 1.0)
    bridged(check)
    check.take_event(hung_up("a", cseq=ANSWERED, **BYE), 2.0)
    check.take_event(hung_up("b", cseq=ANSWERED), 2.1)
    assert of(check) == {
        "a": ("recovered", "recovered, the phone said BYE since", True),
        "b": ("recovered", "recovered, its other leg ended since (NORMAL_CLEARING)", True),
    }


def test_e2_a_leg_that_nobody_answered_did_not_come_back_by_the_end_of_the_other() -> None:
    check = pair()
    check.take_event(hung_up("a", cseq=ANSWERED, **BYE), 2.0)
    check.take_event(hung_up("b"), 2.1)
    assert of(check) == {
        "a": ("partial", "the other leg: its other leg ended before it had answered"
              " (NORMAL_CLEARING)", True),
        "b": ("lost", "its other leg ended before it had answered (NORMAL_CLEARING)", False),
    }  # fmt: skip


def test_e2_half_a_call_is_not_called_recovered_because_freeswitch_ends_it() -> None:
    """FreeSWITCH bridges first, and learns of the refusal then."""
    check = pair()
    check.take_cseq("a", ANSWERED, 1.0)
    bridged(check)
    check.take_event(refused("b", "488", "INCOMPATIBLE_DESTINATION"), 1.1)
    assert [one.uuid for one in check.halves()] == ["a"]
    check.take_event(hung_up("a", cseq=ANSWERED), 1.2)
    why = "the other leg: the phone refused the re-INVITE: 488 (INCOMPATIBLE_DESTINATION)"
    assert of(check)["a"] == ("partial", why, True)
    assert check.halves() == []


def test_e2_a_leg_that_ends_with_the_cause_of_the_other_was_half_a_call() -> None:
    check = pair()
    check.take_cseq("a", ANSWERED, 1.0)
    check.take_event(refused("b", "488", "INCOMPATIBLE_DESTINATION"), 1.1)
    check.take_event(hung_up("a", "INCOMPATIBLE_DESTINATION", ANSWERED), 1.2)
    why = "the other leg: the phone refused the re-INVITE: 488 (INCOMPATIBLE_DESTINATION)"
    assert of(check)["a"] == ("partial", why, True)


def test_a_leg_whose_other_leg_has_ended_since_is_left_to_freeswitch() -> None:
    """It may have been transferred."""
    check = pair()
    for uuid in ("a", "b"):
        check.take_cseq(uuid, ANSWERED, 1.0)
    bridged(check)
    check.take_event(hung_up("b", cseq=ANSWERED), 1.2)
    assert check.halves() == []


def marked(**variables: str) -> str:
    text = TONE.read_text()
    for name, value in variables.items():
        text = metadata.set_variable(text, name, value)
    leg = CallRecord("east", "u", 1, "east", "core", text)
    return metadata.variable(mends.mark_unanswered(leg).metadata, mends.FLOW)


def test_a_row_is_marked_where_freeswitch_will_take_the_mark_away() -> None:
    assert marked() == mends.UNANSWERED
    assert marked(proxy_media="true") == "sendrecv"
    assert marked(bypass_media_after_bridge="true") == "sendrecv"
    leg = CallRecord("east", "u", 1, "east", "core", TONE.read_text())
    unknown = metadata.without_variable(leg.metadata, mends.FLOW)
    assert mends.FLOW not in mends.mark_unanswered(
        CallRecord("east", "u", 1, "east", "core", unknown)
    ).metadata  # fmt: skip
