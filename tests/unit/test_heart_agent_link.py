"""The agent as heart's child: started, restarted with a pause, never waited for."""

from __future__ import annotations

import os
import select
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from haclusterd.config.presets import PRESETS, to_timing
from haclusterd.core.actions import (
    Answered,
    Decided,
    EndCalls,
    InForce,
    Persist,
    Published,
    Recover,
    ToAgent,
)
from haclusterd.core.inputs import LocalReport, RecoveryEnded, Restored
from haclusterd.core.model import (
    NOBODY,
    NOBODY_NODE,
    AddressSpec,
    ClusterSpec,
    Identity,
    NodeSpec,
    ServiceSpec,
)
from haclusterd.heart.agent_link import SILENT_US, AgentLink
from haclusterd.heart.freeswitch_process import FreeswitchProcess
from haclusterd.heart.journal import LINES_MAX, Journal
from haclusterd.heart.pidfd import start_time_ticks
from haclusterd.heart.promised import read_promises

# Echoes every packet it gets, so that the test sees what the agent saw.
_ECHO = """
import socket, sys
s = socket.socket(fileno=int(sys.argv[-1]))
while packet := s.recv(65536):
    s.send(packet)
"""
ME = Identity(3, 0, 9)
RECOVER = Recover(0, ME, 1, "n1 died", {})
REPORT = LocalReport(True, 0, 100, 0, 0, False, ())


@pytest.fixture
def link() -> Iterator[AgentLink]:
    made = AgentLink([sys.executable, "-c", _ECHO], lambda text: None)
    yield made
    made.stop(2.0)


def packets(link: AgentLink, count: int) -> list[ToAgent]:
    """What the agent got, in its order."""
    found: list[ToAgent] = []
    assert link._socket is not None
    while len(found) < count:
        assert select.select([link], [], [], 10)[0], found
        found.append(msgspec.msgpack.decode(link._socket.recv(65536), type=ToAgent))
    return found


def test_messages_before_the_start_arrive_after_it(link: AgentLink) -> None:
    link.send(Persist((NOBODY,)))
    link.send(Persist((ME,)))
    link.send(Published(b"old"))
    link.send(Published(b"new"))
    link.send(RECOVER)
    assert link.look_after(0)
    link.flush()
    assert packets(link, 3) == [Persist((ME,)), RECOVER, Published(b"new")]


def test_a_recovery_is_told_to_the_next_agent_until_it_ended(link: AgentLink) -> None:
    link.send(RECOVER)
    for _life in range(2):
        assert link.look_after(10**9 * _life)
        link.flush()
        assert packets(link, 1) == [RECOVER]
        os.kill(link.pid, 9)
        assert select.select([link.pidfd], [], [], 10)[0]
        assert "SIGKILL" in link.ended(10**9 * _life)
    link._settle(RecoveryEnded(0, Identity(2, 0, 1), True))
    assert link.recovering() == (RECOVER,), "the end of another recovery"
    link._settle(RecoveryEnded(0, ME, True))
    assert link.recovering() == ()


def test_what_an_agent_may_not_have_written_is_told_to_the_next_one(link: AgentLink) -> None:
    assert link.look_after(0)
    for message in (Persist((NOBODY,)), Persist((ME,)), InForce(2), InForce(3)):
        link.send(message)
    packets(link, 4)
    os.kill(link.pid, 9)
    assert select.select([link.pidfd], [], [], 10)[0]
    link.ended(0)
    assert link.look_after(10**9)
    link.flush()
    assert packets(link, 2) == [Persist((ME,)), InForce(3)]


def test_restarts_pause_longer_and_longer(link: AgentLink) -> None:
    link._command = ["false"]
    now, pauses = 0, []
    for _life in range(6):
        assert link.look_after(now)
        assert select.select([link.pidfd], [], [], 10)[0]
        assert "status 1" in link.ended(now)
        pauses.append(link.due_us() - now)
        assert not link.look_after(link.due_us() - 1)
        now = link.due_us()
    assert pauses == [200_000, 500_000, 1_000_000, 2_000_000, 5_000_000, 5_000_000]


def test_a_missing_program_is_a_sentence() -> None:
    said: list[str] = []
    link = AgentLink(["/nonexistent/agent"], said.append)
    assert not link.look_after(0)
    assert "cannot be started" in said[0]
    assert link.due_us() == 200_000


def test_garbage_only_counts_and_silence_is_down_then_death(link: AgentLink) -> None:
    assert link.look_after(0)
    assert link._socket is not None
    link._socket.send(b"\xc1garbage")
    link._socket.send(msgspec.msgpack.encode(REPORT))
    found: list[object] = []
    while not found:
        assert select.select([link], [], [], 10)[0]
        found += link.receive(1000)
    assert found == [REPORT]
    assert link.counters.malformed == 1
    states = [link.up]
    assert not link.look_after(1000 + SILENT_US)
    states.append(link.up)
    assert states == [True, False]
    link.look_after(20_000_000)
    assert select.select([link.pidfd], [], [], 10)[0]


def test_calls_do_not_wait_long_for_an_agent_that_froze(link: AgentLink) -> None:
    assert link.look_after(0)
    link.send(RECOVER)
    assert not link.look_after(6_000_000), "one that is starting is not frozen"
    assert link.pid
    assert select.select([link], [], [], 10)[0]
    link.receive(6_000_000)  # what it echoes is no word of an agent
    assert link._socket is not None
    link._socket.send(msgspec.msgpack.encode(REPORT))
    while not link.up:
        assert select.select([link], [], [], 10)[0]
        link.receive(6_000_000)
    assert not link.look_after(6_000_000 + SILENT_US)
    assert link.due_us() == 11_000_000
    assert not select.select([link.pidfd], [], [], 0)[0]
    link.look_after(11_000_000)
    assert select.select([link.pidfd], [], [], 10)[0]


def test_one_that_starts_too_slowly_is_given_longer_each_time(link: AgentLink) -> None:
    """Where the machine has no time for it, killing it for its silence would go on for ever."""
    now_us, patience = 0, []
    for _ in range(5):
        assert link.look_after(now_us)
        patience.append((link.due_us() - now_us) // 10**6)
        assert not link.look_after(link.due_us() - 1)
        assert not select.select([link.pidfd], [], [], 0)[0]
        now_us = link.due_us()
        link.look_after(now_us)
        assert select.select([link.pidfd], [], [], 10)[0]
        link.ended(now_us)
        now_us = link.due_us()
    assert patience == [15, 30, 60, 120, 120]
    assert link.look_after(now_us)
    assert link._socket is not None
    link._socket.send(msgspec.msgpack.encode(REPORT))
    while not link.up:
        assert select.select([link], [], [], 10)[0]
        link.receive(now_us)
    os.kill(link.pid, 9)
    assert select.select([link.pidfd], [], [], 10)[0]
    link.ended(now_us + 1)
    now_us = link.due_us()
    assert link.look_after(now_us)
    assert link.due_us() - now_us == 15_000_000, "it had spoken"


def test_silence_while_heart_itself_stood_still_is_nobodys(link: AgentLink) -> None:
    """After a host's pause of 16 s heart looks first: the agent had no time to say anything."""
    assert link.look_after(0)
    assert link._socket is not None
    link._socket.send(msgspec.msgpack.encode(REPORT))
    while not link.up:
        assert select.select([link], [], [], 10)[0]
        link.receive(1_000_000)
    stood_us = 16_000_000
    assert not link.look_after(1_500_000 + stood_us, stood_us)
    states = [link.up]
    assert not select.select([link.pidfd], [], [], 0.2)[0], "not killed"
    for second in range(2, 17):  # from here on it is the agent that stands still
        link.look_after(second * 1_000_000 + stood_us, stood_us)
    states.append(link.up)
    assert states == [True, False]
    assert select.select([link.pidfd], [], [], 10)[0]


def test_an_agent_without_a_pidfd_is_ended_and_started_again(
    link: AgentLink, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without one its end would never be seen: no agent any more, until heart is restarted."""
    with monkeypatch.context() as full:
        full.setattr(os, "pidfd_open", lambda pid: os.open("/nonexistent", os.O_RDONLY))
        assert not link.look_after(0)
    assert link.pid == 0
    assert not link.look_after(link.due_us() - 1)
    assert link.look_after(link.due_us())


def test_an_agent_that_does_not_read_costs_bounded_memory() -> None:
    link = AgentLink([sys.executable, "-c", "import time; time.sleep(60)"], lambda text: None)
    assert link.look_after(0)
    before = time.perf_counter()
    for number in range(20_000):
        link.send(Decided(number, "T1", "x" * 200))
    link.send(EndCalls(0, ME))
    assert time.perf_counter() - before < 5
    assert len(link._queue) <= 1000
    assert link.counters.dropped > 0
    link.stop(1.0)


def test_a_full_queue_never_drops_whose_calls_to_recover() -> None:
    link = AgentLink([sys.executable, "-c", "import time; time.sleep(60)"], lambda text: None)
    recover = Recover(0, ME, 1, "node lost", {})
    link.send(recover)
    for number in range(3000):
        link.send(Answered(number, True, ""))
    assert len(link._queue) <= 1000
    assert msgspec.msgpack.encode(recover) in link._queue
    assert msgspec.msgpack.encode(Answered(2999, True, "")) in link._queue
    assert msgspec.msgpack.encode(Answered(0, True, "")) not in link._queue


def test_reports_are_mended_once_freeswitch_has_ended(tmp_path: Path) -> None:
    freeswitch = FreeswitchProcess()
    child = os.posix_spawn("/bin/sleep", ["sleep", "60"], {})
    report = msgspec.structs.replace(REPORT, pid=child, pid_start=start_time_ticks(child))
    assert freeswitch.follow(report) == (report, True)
    assert freeswitch.follow(report) == (report, False)
    assert freeswitch.kill() == ""
    assert select.select([freeswitch.fileno()], [], [], 10)[0]
    assert not freeswitch.follow(report)[0].freeswitch_up, "ended, and not yet collected"
    assert freeswitch.ended()
    os.waitpid(child, 0)
    late, another = freeswitch.follow(report)
    assert not late.freeswitch_up
    assert not another
    assert "no FreeSWITCH" in freeswitch.kill()


def test_a_reader_that_stalls_does_not_stall_the_journal() -> None:
    read, write = os.pipe()
    journal = Journal(write, levels=True)
    before = time.perf_counter()
    for _line in range(5 * LINES_MAX):
        journal.say("x" * 200 + "\nforged <0> line\x1b[2J\u202e")
    assert time.perf_counter() - before < 2
    first = os.read(read, 1 << 16).decode().splitlines()[0]
    assert first.startswith("<6>xxx")
    assert r"xx forged <0> line\x1b[2J\u202e" in first, "one sentence is one line"
    os.close(read)
    journal.close(0.5)
    os.close(write)


def test_promises_are_read_by_name(tmp_path: Path) -> None:
    nodes = (NodeSpec("a", ("10.0.0.1",)), NodeSpec("b", ("10.0.0.2",)))
    services = tuple(
        ServiceSpec(name, (AddressSpec(ip, 24, "eth0"),))
        for name, ip in (("east", "10.1.0.1"), ("west", "10.1.0.2"))
    )
    spec = ClusterSpec("c", 0, nodes, services, to_timing(PRESETS["lan"]))
    assert read_promises([tmp_path], spec) == (None, "")
    path = tmp_path / "state.json"
    kept = [
        {"service": "west", "epoch": 4, "node": "b", "nonce": 7},
        {"service": "gone", "epoch": 9, "node": "a", "nonce": 1},
        {"service": "east", "epoch": 5, "node": "stranger", "nonce": 1},
    ]
    path.write_bytes(msgspec.json.encode({"format": 1, "cluster": "c", "promises": kept}))
    assert read_promises([tmp_path / "none", tmp_path], spec) == (
        # Who is no voter any more is not nobody: the epoch is still one that was promised.
        Restored((Identity(5, NOBODY_NODE, 1), Identity(4, 1, 7)), (0, 0)),
        "",
    )
    path.write_bytes(b"{")
    promises, complaint = read_promises([tmp_path], spec)
    assert promises is None
    assert str(path) in complaint
