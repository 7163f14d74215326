"""The old heart's part of an upgrade: it ends, whatever becomes of the new one."""

from __future__ import annotations

import select
import subprocess
import sys
from types import SimpleNamespace
from typing import Any, cast

import pytest

from haclusterd.core.actions import Answered
from haclusterd.heart import upgrade_run
from haclusterd.heart.errors import HeartError
from haclusterd.heart.loop import Loop
from haclusterd.heart.parts import Parts
from haclusterd.heart.upgrade import Successor
from haclusterd.heart.upgrade_run import Upgrade
from tests.unit.test_heart_loop import SPEC

_HANGS = "import time; time.sleep(600)"
_SAYS_READY = """
import socket, sys, time
import msgspec
from haclusterd import __version__
from haclusterd.heart.upgrade import FORMAT, Ready
s = socket.socket(fileno=int(sys.argv[-1]))
s.send(msgspec.msgpack.encode(Ready(FORMAT, __version__, 0)))
time.sleep(600)
"""
_TAKES = _SAYS_READY.replace("time.sleep(600)", "s.send(b'taken'); time.sleep(600)")
_REFUSES = _SAYS_READY.replace("Ready(FORMAT, __version__, 0)", "Ready(FORMAT, '', 0, 'no key')")


class Rest:
    """What an upgrade needs of the loop and of the other parts."""

    def __init__(self) -> None:
        self.node = self
        self.spec = SPEC
        self.next_beat_us = self.last_us = 1_000_000
        self.journal = self.agent = self
        self.watched: dict[int, Any] = {}
        self.said: list[str] = []
        self.answers: list[Answered] = []

    def watch(self, descriptor: int, handler: Any) -> None:
        self.watched[descriptor] = handler

    def unwatch(self, descriptor: int) -> None:
        self.watched.pop(descriptor, None)

    def say(self, text: str, level: int = 6) -> None:
        self.said.append(text)

    def send(self, message: Answered) -> None:
        self.answers.append(message)


def upgrade_to(program: str) -> tuple[Upgrade, Rest]:
    rest = Rest()
    command = [sys.executable, "-c", program]
    return Upgrade(cast(Loop, rest), cast(Parts, rest), command, -1), rest


def test_a_new_heart_that_is_never_ready_is_given_up_and_another_may_come() -> None:
    upgrade, rest = upgrade_to(_HANGS)
    upgrade.begin(7)
    first = upgrade.successor_pid
    rest.last_us += upgrade_run.READY_WITHIN_US
    upgrade.advance()
    assert upgrade.successor_pid == first
    rest.last_us += 1
    upgrade.advance()
    assert (upgrade.successor_pid, rest.watched) == (0, {})
    assert (rest.answers[0].request, rest.answers[0].ok) == (7, False)
    assert "is not ready" in rest.answers[0].text
    upgrade.begin(8)
    assert upgrade.successor_pid not in (0, first)
    upgrade.give_up("the test ends")


@pytest.mark.parametrize("program", [_HANGS, _SAYS_READY])
def test_a_stop_ends_an_upgrade_that_is_under_way(program: str) -> None:
    """Else the new heart would take over in mid-stop, and nothing would ever end it."""
    upgrade, rest = upgrade_to(program)
    upgrade.begin(7)
    if program is _SAYS_READY:
        (descriptor,) = rest.watched
        assert select.select([descriptor], [], [], 20)[0]
        rest.watched[descriptor]()
    upgrade.give_up("this node is being stopped")
    rest.next_beat_us = rest.last_us + SPEC.timing.heartbeat_us  # a beat has just gone out
    upgrade.advance()
    assert not upgrade.handed_over
    assert upgrade.successor_pid == 0
    assert not rest.answers[-1].ok
    upgrade.give_up("again")
    assert rest.answers[-1].text == "this node is being stopped", "said once"


def test_s3_a_heart_that_cannot_know_what_the_new_one_promised_starts_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The old heart was stopped after its last look for the word, and the new one has lived since:
    with the memory of before it would grant what the new one has won."""
    upgrade, rest = upgrade_to(_TAKES)
    upgrade.begin(7)
    (descriptor,) = rest.watched
    assert select.select([descriptor], [], [], 20)[0]
    rest.watched[descriptor]()

    def stopped(successor: Successor, state: object, descriptors: object) -> bool:
        assert select.select([descriptor], [], [], 20)[0], "the word has come meanwhile"
        return False

    monkeypatch.setattr(Successor, "hand_over", stopped)
    monkeypatch.setattr(upgrade_run, "HandOver", lambda **words: None)
    monkeypatch.setattr(upgrade_run, "pack_wire", lambda state: None)
    part = SimpleNamespace(export_state=tuple, held=(), identity=(), pid=0, recovering=tuple)
    parts = SimpleNamespace(links=(), wire=part, addresses=part, freeswitch=part, agent=part)
    upgrade._parts = cast(Parts, parts)
    rest.next_beat_us = rest.last_us + SPEC.timing.heartbeat_us
    with pytest.raises(HeartError, match="starts anew"):
        upgrade.advance()
    assert not upgrade.handed_over


def test_heart_does_not_wait_for_the_end_of_a_new_heart_that_refuses(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On a machine without CPU for it, a process that was killed goes on existing for a while."""
    upgrade, rest = upgrade_to(_REFUSES)
    upgrade.begin(7)
    (descriptor,) = rest.watched
    assert select.select([descriptor], [], [], 20)[0]
    waited: list[object] = []
    with monkeypatch.context() as busy:
        busy.setattr(subprocess.Popen, "wait", lambda *words: waited.append(words))
        rest.watched[descriptor]()
    assert waited == []
    assert (upgrade.successor_pid, rest.watched) == (0, {})
    assert rest.answers[-1].text == "no key"
