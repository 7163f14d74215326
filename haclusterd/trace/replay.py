"""Runs a recording through the production core again: it has to ask for the same actions.

No clock and no daemon is needed: the recording has every input and its time. A difference means
that the core of this version decides otherwise than the one that was recorded, or that a state
was changed from outside `step`.
"""

from __future__ import annotations

import copy
import zlib
from collections.abc import Iterator, Sequence

import msgspec

from haclusterd.core.actions import Action, Decided
from haclusterd.core.inputs import Input
from haclusterd.core.node import step
from haclusterd.core.state import Node
from haclusterd.trace.file import Segment, Trace
from haclusterd.trace.recorder import BROKE

DECIDED_MAX = 10_000

_encode = msgspec.msgpack.Encoder().encode


class Played(msgspec.Struct):
    """One step, played again. `node` is the state after it; `failure` what the core raised."""

    at_us: int
    event: Input
    actions: Sequence[Action]
    node: Node
    failure: str = ""


class Difference(msgspec.Struct, frozen=True):
    """The first step that went otherwise; steps count from 0 at the start of the recording."""

    step: int
    at_us: int
    input: str
    what: str
    asked: tuple[str, ...]  # what this core asks for in that step


class Outcome(msgspec.Struct, frozen=True):
    """What a replay found. `decided` are the last sentences before any difference."""

    steps: int
    began_us: int
    ended_us: int
    decided: tuple[Decided, ...]
    difference: Difference | None
    ended: str = ""  # the exception that ended the recorded heart, if the core raised it again


def play(segment: Segment) -> Iterator[Played]:
    """Each step of one segment; its state is played on a copy and stays as recorded."""
    node = copy.deepcopy(segment.node)
    at_us = segment.began_us
    for one in segment.steps:
        at_us += one.after_us
        try:
            _node, actions = step(node, one.event, at_us)
        except Exception as error:  # noqa: BLE001
            # A recorded fault of the core, or a file that only looks like a recording: either
            # way what is wanted is the step and the reason.
            yield Played(at_us, one.event, (), node, f"{type(error).__name__}: {error}")
            return
        yield Played(at_us, one.event, actions, node)


def replay(trace: Trace) -> Outcome:
    """Play everything; stop at the first difference."""
    decided: list[Decided] = []
    number, difference, ended = 0, None, ""
    ended_us = trace.began_us
    for n, segment in enumerate(trace.segments):
        node = segment.node
        running = segment.hash
        for one, played in zip(segment.steps, play(segment), strict=False):
            if played.actions:
                running = zlib.crc32(_encode(played.actions), running)
            difference = _compare(number, one.hash, running, played)
            if difference is not None:
                break
            ended, ended_us, node = played.failure, played.at_us, played.node
            decided += [a for a in played.actions if isinstance(a, Decided)]
            number += 1
        if difference is None and not ended:
            difference = _compare_state(trace, n, node, number, ended_us)
        if difference is not None or ended:
            break
    return Outcome(
        number, trace.began_us, ended_us, tuple(decided[-DECIDED_MAX:]), difference, ended
    )


def _compare(number: int, recorded: int, running: int, played: Played) -> Difference | None:
    if played.failure:
        if recorded == BROKE:
            return None
        what = f"this core raises {played.failure}, the recorded one did not"
    elif recorded == BROKE:
        what = "the recorded core raised an exception here, this one does not"
    elif recorded != running:
        what = "this core asks for other actions than the recorded one"
    else:
        return None
    asked = tuple(_shown(action) for action in played.actions)
    return Difference(number, played.at_us, _shown(played.event), what, asked)


def _compare_state(trace: Trace, n: int, node: Node, number: int, at_us: int) -> Difference | None:
    """At each checkpoint the played state has to be the recorded one, down to the last field."""
    if n + 1 >= len(trace.segments):
        return None
    recorded = trace.segments[n + 1].node
    if node == recorded:
        return None
    fields = [f for f in Node.__struct_fields__ if getattr(node, f) != getattr(recorded, f)]
    what = f"the state differs from the checkpoint in {', '.join(fields)}"
    return Difference(number, at_us, "none: a checkpoint", what, ())


def _shown(value: Input | Action) -> str:
    text = repr(value)
    return text if len(text) <= 400 else text[:397] + "..."
