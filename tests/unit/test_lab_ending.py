"""What is left of calls when they are over: asked of every FreeSWITCH, and said by name."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from haclusterd.lab import ending
from haclusterd.lab.esl_blocking import EslRefused


@dataclass
class FakeSwitch:
    """Channels by uuid with their Call-IDs; what is killed is gone unless it is `stubborn`."""

    calls: dict[str, str]
    pid: int | None = 1
    answers: bool = True
    stubborn: bool = False
    killed: list[str] = field(default_factory=list)

    @contextmanager
    def esl(self) -> Iterator[FakeSwitch]:
        if not self.answers:
            raise EslRefused("starting")
        yield self

    def api(self, command: str) -> str:
        name, _, rest = command.partition(" ")
        if name == "show":
            rows = [{"uuid": uuid} for uuid in self.calls]
            return json.dumps({"row_count": len(rows), "rows": rows} if rows else {"row_count": 0})
        if name == "uuid_getvar":
            return self.calls[rest.split()[0]]
        assert name == "uuid_kill"
        self.killed.append(rest)
        if not self.stubborn:
            del self.calls[rest]
        return "+OK"


class FakeCallers:
    def __init__(self, ids: list[str], content: bool = True) -> None:
        self.call_ids, self.hung_up, self.content = ids, list[str](), content
        self.service = SimpleNamespace(ip="10.9.0.101")

    def hang_up(self, ids: list[str]) -> None:
        self.hung_up += ids

    def wait(self, _timeout_s: float) -> bool:
        return self.content


def lab(callers: FakeCallers | None = None, /, **switches: FakeSwitch | None) -> Any:
    nodes = {name: SimpleNamespace(id=name, switch=switch) for name, switch in switches.items()}
    return SimpleNamespace(
        nodes=nodes, callers={"east1.1": callers} if callers else {}, holder=lambda _ip: "a"
    )


def test_every_second_call_is_ended_by_the_freeswitch_that_has_it() -> None:
    callers = FakeCallers(["1@lab", "2@lab", "3@lab", "4@lab"])
    a = FakeSwitch({f"u{n}": f"{n}@lab" for n in (1, 2, 3, 4)})
    assert ending.end_calls(lab(callers, a=a, b=FakeSwitch({}))) == ({"2@lab", "4@lab"}, [])
    assert a.killed == ["u2", "u4"]
    assert callers.hung_up == ["1@lab", "3@lab"]


def test_a_call_that_its_freeswitch_does_not_know_still_counts_as_told_to_it() -> None:
    """Its caller ends it, so that nothing is left; the judge sees a BYE from the wrong side."""
    callers = FakeCallers(["1@lab", "2@lab"])
    assert ending.end_calls(lab(callers, a=FakeSwitch({"u1": "1@lab"}))) == ({"2@lab"}, [])
    assert callers.hung_up == ["1@lab", "2@lab"]


def test_what_sipp_itself_says_of_its_calls_counts() -> None:
    callers = FakeCallers(["1@lab"], content=False)
    assert ending.end_calls(lab(callers, a=FakeSwitch({})))[1] == [
        "SIPp does not say that all calls of east1.1 succeeded"
    ]


def test_a_channel_on_two_nodes_is_named() -> None:
    a, b = FakeSwitch({"u1": "1@lab", "u2": "2@lab"}), FakeSwitch({"u2": "2@lab"})
    assert ending.living_twice(lab(a=a, b=b, c=None)) == ["channel u2 is up on 2 nodes"]
    assert ending.living_twice(lab(a=a, b=FakeSwitch({"u3": "3@lab"}))) == []


def test_what_is_left_is_named_and_a_dead_freeswitch_has_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ending, "_EMPTY_S", 0.1)
    dead, starting = FakeSwitch({"u8": ""}, pid=None), FakeSwitch({"u9": ""}, answers=False)
    nodes = {"b": dead, "c": starting, "witness": None}
    assert ending.still_there(lab(a=FakeSwitch({}), **nodes)) == []
    assert ending.still_there(lab(a=FakeSwitch({"u1": "1@lab"}), **nodes)) == [
        "1 channels are left on a: u1"
    ]
