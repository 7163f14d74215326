"""One heart replaces another between two beats: no lapse, no address moves (DESIGN 3, Upgrade).

The old heart starts the new one with one end of a socketpair. The new one warms up and says that
it is ready; the old one, having sent a beat, passes its state and its sockets and waits a few
milliseconds for the word `taken`. With it the old one is finished for good; without it the old
one kills the new one and goes on. `taken` is the new one's last act before it runs, so at most
one of them believes that it is the heart.
"""

from __future__ import annotations

import array
import contextlib
import os
import socket
import subprocess
from collections.abc import Iterable, Sequence

import msgspec

from haclusterd import __version__
from haclusterd.core.actions import EndCalls, Recover
from haclusterd.core.model import ClusterSpec
from haclusterd.core.state import Node
from haclusterd.heart.errors import HeartError
from haclusterd.heart.sdnotify import successors_environment
from haclusterd.replay import REPLAY_WINDOW, Window
from haclusterd.wire import WireState

FORMAT = 2
_PACKET_BYTES_MAX = 192 * 1024
_SOCKETS_MAX = 16
_TAKEN = b"taken"
_TAKEN_WITHIN_S = 0.05
_STATE_WITHIN_S = 30.0


class Ready(msgspec.Struct, frozen=True, tag=True):
    """The new heart is warm. `refusal` says why it is not, with its fix."""

    format: int
    version: str
    config_hash: int
    refusal: str = ""


PackedWindow = tuple[int, bytes]  # newest, seen: the bits are too many for an integer of msgpack


class PackedWire(msgspec.Struct, frozen=True, array_like=True):
    """`wire.WireState` in a form that msgpack can carry."""

    sealed: tuple[int, ...]
    peers: tuple[tuple[int, tuple[PackedWindow, ...]] | None, ...]


def pack_wire(state: WireState) -> PackedWire:
    """For the hand-over."""
    size = REPLAY_WINDOW // 8
    peers = tuple(
        (peer[0], tuple((w.newest, w.seen.to_bytes(size, "big")) for w in peer[1]))
        if peer
        else None
        for peer in state.peers
    )
    return PackedWire(state.sealed, peers)


def unpack_wire(packed: PackedWire) -> WireState:
    """What `pack_wire` was given."""
    peers = tuple(
        (peer[0], tuple(Window(newest, int.from_bytes(seen, "big")) for newest, seen in peer[1]))
        if peer
        else None
        for peer in packed.peers
    )
    return WireState(packed.sealed, peers)


class HandOver(msgspec.Struct, frozen=True, tag=True):
    """The old heart's whole memory. Sockets follow beside it: one per `links`, then the lock."""

    node: Node
    wire: PackedWire
    held: tuple[int, ...]
    links: tuple[int, ...]
    last_us: int
    freeswitch: tuple[int, int]
    agent_pid: int
    recovering: tuple[Recover | EndCalls, ...]


class Successor:
    """The old heart's view of the new one."""

    def __init__(self, command: Sequence[str]) -> None:
        """Start `command` with `--takeover-fd N`. Raises HeartError."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            for end in (ours, theirs):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * _PACKET_BYTES_MAX)
            descriptor = theirs.fileno()
            self._process = subprocess.Popen(
                [*command, "--takeover-fd", str(descriptor)],
                pass_fds=[descriptor],
                stdin=subprocess.DEVNULL,
                env=successors_environment(),
            )
        except OSError as error:
            ours.close()
            raise HeartError(f"the new heart cannot be started: {error}") from error
        finally:
            theirs.close()
        ours.setblocking(False)
        self._channel = ours
        self._spoke = False

    @property
    def pid(self) -> int:
        return self._process.pid

    def fileno(self) -> int:
        return self._channel.fileno()

    def await_ready(self, config_hash: int) -> str:
        """Read its first word (the channel is readable); "" or why it cannot take over."""
        try:
            packet = self._channel.recv(_PACKET_BYTES_MAX)
            ready = msgspec.msgpack.decode(packet, type=Ready)
        except (OSError, msgspec.DecodeError, UnicodeDecodeError):
            return "the new heart ended before it was ready; its own message says why"
        if ready.refusal:
            return ready.refusal
        if ready.format != FORMAT:
            return (
                f"version {ready.version} cannot take over from {__version__} while it runs; "
                "switch the services over, then restart"
            )
        if ready.config_hash != config_hash:
            return "the configuration has changed: restart to apply it, an upgrade keeps it"
        return ""

    def hand_over(self, state: HandOver, descriptors: Sequence[int]) -> bool:
        """Pass everything; True once the new heart has taken it. Waits at most 50 ms."""
        rights = array.array("i", descriptors)
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)]
        try:
            packet = msgspec.msgpack.encode(state)
        except (OverflowError, TypeError):
            return False  # a state that cannot travel: this heart keeps it
        try:
            self._channel.sendmsg([packet], ancillary)
            self._channel.settimeout(_TAKEN_WITHIN_S)
            return self._channel.recv(64) == _TAKEN
        except OSError:
            # After a stop of this process the time may be over although the word is there.
            return self._taken_now()

    def _taken_now(self) -> bool:
        self._channel.setblocking(False)
        try:
            return self._channel.recv(64) == _TAKEN
        except OSError:
            return False

    def drop(self) -> None:
        """Kill a new heart that was given nothing, without waiting for its end.

        Where FreeSWITCH's real-time threads have the CPU, even that takes longer than a lease.
        """
        with contextlib.suppress(OSError):
            self._process.kill()
        self._channel.close()

    def abandon(self) -> None:
        """Kill the new heart, and be sure that it is dead: it may have got everything."""
        with contextlib.suppress(OSError):
            self._process.kill()
        self._process.wait()
        self._spoke = self._taken_now()
        self._channel.close()

    def may_have_spoken(self) -> bool:
        """After `abandon`: it said `taken` at the last moment, and may have decided things."""
        return self._spoke


class Predecessor:
    """The new heart's view of the old one."""

    def __init__(self, descriptor: int) -> None:
        self._channel = socket.socket(fileno=descriptor)
        self._channel.settimeout(_STATE_WITHIN_S)

    def ready(self, config_hash: int) -> None:
        """Say that this process is warm."""
        self._send(Ready(FORMAT, __version__, config_hash))

    def refuse(self, reason: str) -> None:
        """Say why this process cannot take over; the old heart goes on."""
        with contextlib.suppress(HeartError):
            self._send(Ready(FORMAT, __version__, 0, reason))

    def _send(self, ready: Ready) -> None:
        try:
            self._channel.send(msgspec.msgpack.encode(ready))
        except OSError as error:
            raise HeartError(f"the old heart does not listen: {error.strerror}") from error

    def receive(self) -> tuple[HandOver, list[int]]:
        """The old heart's state and descriptors. Raises HeartError; nothing was taken then."""
        try:
            packet, descriptors, flags, _source = socket.recv_fds(
                self._channel, _PACKET_BYTES_MAX, _SOCKETS_MAX
            )
            state = msgspec.msgpack.decode(packet, type=HandOver)
        except OSError as error:
            raise HeartError(f"the old heart handed nothing over: {error}") from error
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise HeartError(f"the old heart's state is not understood: {error}") from error
        if flags & socket.MSG_CTRUNC or len(descriptors) != len(state.links) + 1:
            for descriptor in descriptors:
                os.close(descriptor)
            raise HeartError("the old heart's sockets did not arrive")
        return state, list(descriptors)

    def take(self) -> None:
        """From here on this process is the heart. Raises HeartError if nobody hears it."""
        try:
            self._channel.send(_TAKEN)
        except OSError as error:
            raise HeartError(f"the old heart is gone: {error.strerror}") from error
        self._channel.close()


def same_links(
    before: ClusterSpec, present: ClusterSpec, sockets: Iterable[tuple[int, int]]
) -> dict[int, int]:
    """Of (link, descriptor) those whose address is this node's there still; others are closed."""
    was, now = before.nodes[before.me].links, present.nodes[present.me].links
    kept = {}
    for link, descriptor in sockets:
        if was[link : link + 1] == now[link : link + 1]:
            kept[link] = descriptor
        else:
            os.close(descriptor)
    return kept


def fenced_by(spec: ClusterSpec) -> tuple[object, ...]:
    """What the fence's table depends on: another one's does not know other addresses."""
    timing = spec.timing
    addresses = [service.addresses for service in spec.services]
    return addresses, spec.nodes[spec.me].links, timing.fence_us, timing.arm_us
