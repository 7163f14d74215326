"""The agent as heart sees it: a child process on a socketpair, started again when it ends.

Nothing here waits for it. Messages it does not take wait in a bounded queue; of cluster views and
promises only the newest. What it was told to write, and may not have written when it ended, is told
to its successor again; a recovery, too, until somebody reports its end. An agent that says nothing
for long counts as down, and later is killed: a frozen agent protects nobody.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec

from haclusterd.core.actions import (
    Decided,
    EndCalls,
    InForce,
    Persist,
    Published,
    Recover,
    ToAgent,
)
from haclusterd.core.inputs import FromAgent, RecoveryEnded

PACKET_BYTES_MAX = 64 * 1024
_QUEUE_MAX = 1000
_PACKETS_PER_TURN = 64
_SOCKET_BUFFER_BYTES = 1 << 20
_BACKOFF_US = (200_000, 500_000, 1_000_000, 2_000_000, 5_000_000)
_SETTLED_US = 10_000_000  # an agent that lived this long starts the backoff anew
SILENT_US = 3_000_000
_HUNG_US = 15_000_000
_MUTE_DOUBLINGS_MAX = 3  # an agent that never says a word has two minutes at last
_HUNG_RECOVERING_US = 5_000_000  # calls wait for it; a new agent takes a second

_decoder: msgspec.msgpack.Decoder[FromAgent] = msgspec.msgpack.Decoder(FromAgent)
_encode = msgspec.msgpack.Encoder().encode


@dataclass
class AgentCounters:
    """What happened on the socketpair; only ever counts up."""

    starts: int = 0
    malformed: int = 0
    dropped: int = 0
    oversized: int = 0


class AgentLink:
    """Starts `command` (plus `--heart-fd N`) and speaks with it. Times in us of BOOTTIME.

    `down` and `up` below are what the core is told: `up` is True from the agent's first message
    until it ends or falls silent.
    """

    def __init__(self, command: Sequence[str], say: Callable[[str], None]) -> None:
        self._command = list(command)
        self._say = say
        self.counters = AgentCounters()
        self.up = False
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self.pidfd = -1
        self._queue: deque[bytes] = deque()
        self._view: bytes | None = None
        self._persist: bytes | None = None
        self._written: dict[type, bytes] = {}  # the newest that an agent was to write
        self._recovering: dict[int, Recover | EndCalls] = {}
        self._started_us = 0
        self._heard_us = 0
        self._stood_us = 0
        self._next_start_us = 0
        self._failures = 0
        self._mute = 0  # agents in a row that were killed before their first word

    @property
    def pid(self) -> int:
        """The agent's process, 0 while there is none."""
        return self._process.pid if self._process else 0

    def fileno(self) -> int:
        """The socket's descriptor, -1 while there is no agent."""
        return self._socket.fileno() if self._socket else -1

    def due_us(self) -> int:
        """When `look_after` has something to do."""
        if self._process is None:
            return self._next_start_us
        return self._heard_us + (SILENT_US if self.up else self._patience_us())

    def _patience_us(self) -> int:
        """How long the agent may say nothing. One that is still starting has nothing to say."""
        waited_for = any(isinstance(told, Recover) for told in self._recovering.values())
        spoke = self._heard_us > self._started_us
        if not spoke:  # on a machine without time for it, another one would not be faster
            return _HUNG_US << min(self._mute, _MUTE_DOUBLINGS_MAX)
        return _HUNG_RECOVERING_US if waited_for else _HUNG_US

    def look_after(self, now_us: int, stood_us: int = 0) -> bool:
        """Start the agent if it is time, or judge its silence. True: it was started just now.

        `stood_us`: for how long heart itself has stood still, ever. Where the whole host did, the
        agent had no time to say anything, and to kill it would lose the copies that it holds.
        """
        more_us, self._stood_us = stood_us - self._stood_us, stood_us
        self._heard_us = min(now_us, self._heard_us + more_us)
        self._started_us = min(now_us, self._started_us + more_us)
        if self._process is None:
            if now_us < self._next_start_us:
                return False
            return self._start(now_us)
        silent_us = now_us - self._heard_us
        if self.up and silent_us >= SILENT_US:
            self.up = False
            self._say(f"the agent (pid {self.pid}) has said nothing for {silent_us // 10**6} s")
        if silent_us >= self._patience_us():
            self._say(f"the agent (pid {self.pid}) is hung and is killed")
            self._mute += self._heard_us == self._started_us
            self._heard_us = now_us  # its pidfd tells when it is gone
            self._process.kill()
        return False

    def _start(self, now_us: int) -> bool:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            for end in (ours, theirs):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SOCKET_BUFFER_BYTES)
            ours.setblocking(False)
            descriptor = theirs.fileno()
            command = [*self._command, "--heart-fd", str(descriptor)]
            self._process = subprocess.Popen(
                command, pass_fds=[descriptor], stdin=subprocess.DEVNULL, start_new_session=True
            )
            self.pidfd = os.pidfd_open(self._process.pid)
        except OSError as error:
            ours.close()
            self._give_up()
            self._say(f"the agent cannot be started: {error}")
            self._put_off(now_us)
            return False
        finally:
            theirs.close()
        self._socket = ours
        self.counters.starts += 1
        self._started_us = self._heard_us = now_us
        self._queue.clear()
        self._persist = self._written.get(Persist)
        if InForce in self._written:
            self._queue.append(self._written[InForce])
        for message in self._recovering.values():
            self._queue.append(_encode(message))
        return True

    def _give_up(self) -> None:
        """It was started, but its end would never be seen: another one later."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()

    def _put_off(self, now_us: int) -> None:
        if now_us - self._started_us > _SETTLED_US:
            self._failures = 0
        wait_us = _BACKOFF_US[min(self._failures, len(_BACKOFF_US) - 1)]
        self._failures += 1
        self._next_start_us = now_us + wait_us

    def ended(self, now_us: int) -> str:
        """Its pidfd fired: clean up and plan the next start; how it ended, as a sentence."""
        process, self._process = self._process, None
        if process is None:
            return ""
        # The pidfd said that it is over, so this does not wait.
        status = process.wait()
        how = signal.Signals(-status).name if status < 0 else f"status {status}"
        self._close()
        self._put_off(now_us)
        self.up = False
        wait_ms = (self._next_start_us - now_us) // 1000
        return (
            f"the agent (pid {process.pid}) ended with {how}; it is started again in {wait_ms} ms"
        )

    def _close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        if self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1

    def send(self, message: ToAgent) -> None:
        """Hand a message over now, or as soon as the agent reads."""
        packet = _encode(message)
        if len(packet) > PACKET_BYTES_MAX:
            self.counters.oversized += 1
            return
        if isinstance(message, (Persist, InForce)):
            self._written[type(message)] = packet
        if isinstance(message, Published):
            self._view = packet
        elif isinstance(message, Persist):
            self._persist = packet
        else:
            if isinstance(message, (Recover, EndCalls)):
                self._recovering[message.service] = message
            if len(self._queue) >= _QUEUE_MAX:
                self.counters.dropped += 1
                if isinstance(message, Decided):
                    return
                self._make_room()
            self._queue.append(packet)
        self.flush()

    def _make_room(self) -> None:
        """The oldest goes, but for what is told only once: whose calls to recover, or to end; and
        what is to be written."""
        kept = {_encode(message) for message in self._recovering.values()}
        kept.update(self._written.values())
        oldest = next((n for n, packet in enumerate(self._queue) if packet not in kept), 0)
        del self._queue[oldest]

    @property
    def waiting(self) -> int:
        """Messages that the agent has not taken yet."""
        return len(self._queue)

    def flush(self) -> None:
        """Send what waits: promises first, then messages in order, then the newest view."""
        if self._socket is None:
            return
        try:
            if self._persist is not None:
                self._socket.send(self._persist)
                self._persist = None
            while self._queue:
                self._socket.send(self._queue[0])
                self._queue.popleft()
            if self._view is not None:
                self._socket.send(self._view)
                self._view = None
        except OSError:
            return  # full: the next turn tries again; broken: the pidfd will tell

    def receive(self, now_us: int) -> list[FromAgent]:
        """Messages waiting, at most a turn's worth. Malformed ones only count."""
        found: list[FromAgent] = []
        for _turn in range(_PACKETS_PER_TURN):
            if self._socket is None:
                break
            try:
                packet = self._socket.recv(PACKET_BYTES_MAX)
            except BlockingIOError:
                break
            except OSError:
                packet = b""
            if not packet:
                self._socket.close()
                self._socket = None
                if self._process is not None:
                    self._process.kill()  # without its socket it is of no use
                break
            try:
                message = _decoder.decode(packet)
            except (msgspec.DecodeError, UnicodeDecodeError):
                self.counters.malformed += 1
                continue
            self._heard_us, self._mute = now_us, 0
            self.up = True
            if isinstance(message, RecoveryEnded):
                self._settle(message)
            found.append(message)
        return found

    def _settle(self, message: RecoveryEnded) -> None:
        told = self._recovering.get(message.service)
        if isinstance(told, Recover) and told.identity == message.identity:
            del self._recovering[message.service]

    def recovering(self) -> tuple[Recover | EndCalls, ...]:
        """What a new agent has to be told, for a successor of this heart."""
        return tuple(self._recovering.values())

    def take_up(self, messages: Sequence[Recover | EndCalls]) -> None:
        """Tell the first agent these (`recovering` of the predecessor)."""
        for message in messages:
            self._recovering[message.service] = message

    def stop(self, timeout_s: float) -> None:
        """End the agent: SIGTERM, then SIGKILL after `timeout_s`. Waits; only for the very end."""
        process, self._process = self._process, None
        self._close()
        if process is None:
            return
        with contextlib.suppress(OSError):
            process.terminate()
        try:
            process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
