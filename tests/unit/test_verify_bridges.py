"""What a bridge proves, and what it does not: FreeSWITCH makes it when one leg has answered."""

from __future__ import annotations

import pytest

from haclusterd.freeswitch.esl_protocol import Event
from haclusterd.freeswitch.verify import Verification
from tests.fixtures.freeswitch.fake_recovery import record

BRIDGE = Event(
    {"Event-Name": "CHANNEL_BRIDGE", "Unique-ID": "a", "Other-Leg-Unique-ID": "b"}
)  # fmt: skip


def bridged() -> Verification:
    check = Verification([record("a", "b"), record("b", "a")])
    check.launched(["a", "b"])
    check.take_event(BRIDGE, 1.0)
    return check


def verdicts(check: Verification) -> dict[str, str]:
    return {v.uuid: v.verdict for v in check.verdicts(3000, None)}


def test_e2_a_bridge_is_no_answer() -> None:
    check = bridged()
    assert check.open
    assert check.answered == 0
    assert verdicts(check) == {"a": "lost", "b": "lost"}
    assert [one.uuid for one, _ in check.unanswered()] == ["a", "b"]


@pytest.mark.parametrize("answers", ["a", "b"])
def test_e2_who_answered_is_only_half_a_call_while_the_other_has_not(answers: str) -> None:
    check = bridged()
    check.take_cseq(answers, "99", 1.5)
    other = "b" if answers == "a" else "a"
    assert verdicts(check) == {answers: "partial", other: "lost"}
    asked = [check.open]
    check.take_cseq(other, "99", 1.6)
    assert [*asked, check.open] == [True, False]
    assert verdicts(check) == {"a": "recovered", "b": "recovered"}
