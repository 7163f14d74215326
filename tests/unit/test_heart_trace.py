"""Heart's part of the flight recorder: the loop records, pieces go out without delay to beats."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from haclusterd.agent.heart_link import PACKET_BYTES_MAX
from haclusterd.core import node as core_node
from haclusterd.core.actions import Decided, ToAgent, TracePart
from haclusterd.core.inputs import CarrierChanged, Tick, TraceRequested
from haclusterd.core.node import step
from haclusterd.core.state import start
from haclusterd.heart import agent_link, trace_out
from haclusterd.heart.agent_link import AgentLink
from haclusterd.heart.main import _live, _Opening
from haclusterd.heart.trace_out import PAUSE_US, PIECES_PER_TURN, TraceOut
from haclusterd.trace.file import pack, unpack
from haclusterd.trace.recorder import Recorder
from haclusterd.trace.replay import replay
from tests.fixtures.recorded import HEADER
from tests.unit.core_bench import spec_of
from tests.unit.test_heart_loop import World


class Agent:
    """Takes what it is sent at once, unless `waiting` says otherwise."""

    def __init__(self) -> None:
        self.parts: list[TracePart] = []
        self.waiting = 0

    def send(self, message: ToAgent) -> None:
        assert isinstance(message, TracePart)
        assert len(agent_link._encode(message)) <= min(
            PACKET_BYTES_MAX, agent_link.PACKET_BYTES_MAX
        )
        self.parts.append(message)


def full(steps: int) -> Recorder:
    node = start(spec_of(), 1_000, 7)
    recorder = Recorder(node, 1_000, segment_us=1_000_000)
    for k in range(steps):
        at_us = 2_000 + 1_000 * k
        event: Any = CarrierChanged(0, bool(k % 2)) if k % 3 else Tick()
        recorder.note(event, at_us, step(node, event, at_us)[1])
    return recorder


def test_the_loop_records_what_it_does() -> None:
    world = World()
    for _turn in range(20):
        world.clock.us += 25_000
        world.loop.feed(Tick(), world.clock.us)
    trace = unpack(pack(HEADER, world.loop.recorder.body(world.clock.us)), "x")
    assert trace.steps >= 20
    assert replay(trace).difference is None


def test_a_fault_of_the_core_is_recorded_before_it_ends_the_heart(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World()
    world.loop.feed(Tick(), world.clock.us)

    def broken(*words: Any) -> None:
        raise ZeroDivisionError("a fault of this program")

    with monkeypatch.context() as patch:
        patch.setitem(core_node._TAKE, CarrierChanged, broken)
        with pytest.raises(ZeroDivisionError):
            world.loop.feed(CarrierChanged(0, False), world.clock.us + 10)
        trace = unpack(pack(HEADER, world.loop.recorder.last_words()), "x")
        assert replay(trace).ended == "ZeroDivisionError: a fault of this program"
    assert trace.segments[-1].steps[-1].event == CarrierChanged(0, False)
    difference = replay(trace).difference
    assert difference is not None, "the mended core goes on where the broken one ended"


def test_pieces_are_small_few_a_turn_and_whole() -> None:
    agent, recorder = Agent(), full(15_000)
    out = TraceOut(agent, recorder)
    out.begin(TraceRequested(7, True), 20_000_000)
    now_us, turns = 20_000_000, 0
    while out.due_us() < 1 << 60:
        before = len(agent.parts)
        now_us = max(now_us, out.due_us())
        out.advance(now_us)
        assert len(agent.parts) - before <= PIECES_PER_TURN
        turns += 1
    assert turns > 3, "it was enough to need several turns"
    assert now_us == 20_000_000 + (turns - 1) * PAUSE_US
    assert [p.last for p in agent.parts] == [False] * (len(agent.parts) - 1) + [True]
    assert {p.request for p in agent.parts} == {7}
    trace = unpack(pack(HEADER, [p.data for p in agent.parts]), "x")
    assert trace.steps == 15_000
    assert replay(trace).difference is None


def test_the_present_state_is_one_piece() -> None:
    agent = Agent()
    out = TraceOut(agent, full(3))
    out.begin(TraceRequested(1, False), 9_000)
    out.advance(9_000)
    (part,) = agent.parts
    assert part.last
    assert unpack(pack(HEADER, [part.data]), "x").steps == 0


def test_an_agent_that_does_not_read_gets_no_more_and_blocks_nobody() -> None:
    agent = Agent()
    out = TraceOut(agent, full(15_000))
    out.begin(TraceRequested(1, True), 0)
    out.advance(0)
    sent = len(agent.parts)
    agent.waiting = 1
    out.advance(out.due_us())
    assert len(agent.parts) == sent
    out.begin(TraceRequested(2, True), 1_000_000)
    assert (
        agent.parts.pop().refusal
        == "heart is handing out a recording already: ask again in a second"
    )
    out.advance(trace_out.PATIENCE_US + 1)
    assert out.due_us() > 1 << 60
    agent.waiting = 0
    out.begin(TraceRequested(3, False), 9_000_000)
    out.advance(9_000_000)
    assert agent.parts[-1].request == 3


def test_a_new_agent_does_not_get_the_rest_of_what_the_last_one_asked_for() -> None:
    agent = Agent()
    out = TraceOut(agent, full(15_000))
    out.begin(TraceRequested(1, True), 0)
    out.advance(0)
    out.drop()
    agent.parts.clear()
    out.begin(TraceRequested(1, False), 1_000)
    out.advance(1_000)
    (part,) = agent.parts
    assert part.last


def test_a_stopped_recorder_says_why() -> None:
    agent, recorder = Agent(), full(1)
    recorder.fault = "recording has stopped: Received: too large"
    TraceOut(agent, recorder).begin(TraceRequested(4, True), 0)
    assert agent.parts == [TracePart(4, b"", True, recorder.fault)]


def test_what_waits_for_the_agent_is_counted() -> None:
    link = AgentLink([sys.executable, "-c", ""], lambda text: None)
    assert link.waiting == 0
    link.send(Decided(1, "T101", "n0 claims s0"))
    assert link.waiting == 1


def test_the_last_words_of_a_heart_are_kept(tmp_path: Path) -> None:
    lines: list[str] = []

    class Said:
        def say(self, text: str, level: int) -> None:
            lines.append(text)

    class Config:
        state_dir = tmp_path / "state"

    opening: Any = _Opening.__new__(_Opening)
    opening._spec, opening._config, opening._journal = spec_of(), Config(), Said()
    opening.keep_last_words(full(5))
    (saved,) = (tmp_path / "state" / "traces").iterdir()
    assert saved.name.endswith("-fault.trace")
    assert lines == [f"the recording of this fault is in {saved}"]
    assert unpack(saved.read_bytes(), "x").steps == 5
    Config.state_dir = saved / "below-a-file"
    opening.keep_last_words(full(5))
    assert "was not saved" in lines[-1]


def test_a_heart_that_dies_fences_first_and_records_last() -> None:
    done: list[str] = []

    class Broken:
        class loop:
            recorder = full(1)

        def run(self) -> int:
            raise ZeroDivisionError("a fault of this program")

    class Opening:
        def abandon(self) -> None:
            done.append("fence closed, addresses gone")

        def keep_last_words(self, recorder: Recorder) -> None:
            done.append(f"{len(recorder.last_words())} pieces kept")

    class Said:
        def say(self, text: str, level: int) -> None:
            if text.startswith("ZeroDivisionError"):
                done.append(text)

    parts: tuple[Any, ...] = (Broken(), Opening(), Said())
    with pytest.raises(ZeroDivisionError):
        _live(*parts)
    assert done == [
        "ZeroDivisionError: a fault of this program",
        "fence closed, addresses gone",
        "4 pieces kept",
    ]
