"""Two nodes with a real FreeSWITCH, a client and a switch between them, in namespaces.

Addresses are moved by hand here: these tests are about FreeSWITCH and fs_conf, not about
haclusterd.
"""

from __future__ import annotations

import ctypes
import socket
import sqlite3
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from haclusterd.lab import freeswitch, netns
from haclusterd.lab.freeswitch import FreeswitchInstance
from haclusterd.lab.tone import write_tone

CLIENT = "10.77.0.3"
EAST = "10.77.0.101"
WEST = "10.77.0.102"
SIP_PORT = 5060
CALLEE_PORT = 5070
SCENARIOS = Path(freeswitch.__file__).parent / "scenarios"
_ETHERTYPE_ANY = 3
_SO_ATTACH_FILTER, _SO_TIMESTAMPNS = 26, 35
# Classic BPF on what begins with the IPv4 header: UDP, and one of its ports is SIP_PORT.
_SIP_FILTER = (
    (0x30, 0, 0, 9), (0x15, 0, 6, socket.IPPROTO_UDP), (0xB1, 0, 0, 0),
    (0x48, 0, 0, 0), (0x15, 2, 0, SIP_PORT), (0x48, 0, 0, 2), (0x15, 0, 1, SIP_PORT),
    (0x06, 0, 0, 0x40000), (0x06, 0, 0, 0),
)  # fmt: skip


@dataclass(frozen=True)
class Packet:
    """One IPv4 UDP datagram seen on the client's interface; `at_s` is the monotonic clock, by the
    kernel's stamp: FreeSWITCH's real-time threads can keep the reader waiting for a second."""

    at_s: float
    source: tuple[str, int]
    target: tuple[str, int]
    payload: bytes

    @property
    def is_sip(self) -> bool:
        return SIP_PORT in (self.source[1], self.target[1]) or self.payload[:1].isupper()


class Wire:
    """Everything the client's interface sends and receives, until `close`."""

    def __init__(self, namespace: str, *, sip_only: bool = False) -> None:
        """`sip_only`: the kernel drops all but UDP from or to SIP_PORT, however much RTP flows."""
        with netns.inside(namespace):
            self._socket = socket.socket(
                socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(_ETHERTYPE_ANY)
            )
        if sip_only:
            program = b"".join(struct.pack("=HBBI", *one) for one in _SIP_FILTER)
            self._program = ctypes.create_string_buffer(program)
            header = struct.pack("@HP", len(_SIP_FILTER), ctypes.addressof(self._program))
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, header)
        self._socket.bind(("eth0", _ETHERTYPE_ANY))
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        self._socket.settimeout(0.1)
        self.packets: list[Packet] = []
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def sip(self, first_line: str, after_s: float, source: str) -> list[Packet]:
        """SIP messages from `source` since `after_s` that begin so."""
        start = first_line.encode()
        return [
            p
            for p in list(self.packets)
            if p.at_s >= after_s and p.source[0] == source and p.payload.startswith(start)
        ]

    def media(self, after_s: float, *, source: str = "", target: str = "") -> list[Packet]:
        """RTP since `after_s` from or to an address."""
        return [
            p
            for p in list(self.packets)
            if p.at_s >= after_s
            and not p.is_sip
            and source in ("", p.source[0])
            and target in ("", p.target[0])
        ]

    def close(self) -> None:
        self._closing.set()
        self._thread.join(timeout=2)
        self._socket.close()

    def _read(self) -> None:
        while not self._closing.is_set():
            with suppress(TimeoutError):
                frame, told, _, _ = self._socket.recvmsg(2048, 64)
                packet = _udp(frame, _stamp(told))
                if packet is not None:
                    self.packets.append(packet)


def _stamp(told: Sequence[tuple[int, int, bytes]]) -> float:
    """When the packet passed, in monotonic seconds."""
    for level, kind, data in told:
        if (level, kind) == (socket.SOL_SOCKET, _SO_TIMESTAMPNS):
            seconds, ns = (int(part) for part in struct.unpack("qq", data[:16]))
            return time.monotonic() - (time.time() - seconds - ns / 1e9)
    return time.monotonic()


def _udp(frame: bytes, at_s: float) -> Packet | None:
    if len(frame) < 28 or frame[0] >> 4 != 4 or frame[9] != socket.IPPROTO_UDP:
        return None
    begin = (frame[0] & 0x0F) * 4
    source, target = socket.inet_ntoa(frame[12:16]), socket.inet_ntoa(frame[16:20])
    ports = int.from_bytes(frame[begin : begin + 2]), int.from_bytes(frame[begin + 2 : begin + 4])
    return Packet(at_s, (source, ports[0]), (target, ports[1]), frame[begin + 8 :])


@dataclass
class Rig:
    """The two nodes and the client."""

    name: str
    directory: Path
    a: FreeswitchInstance
    b: FreeswitchInstance
    wire: Wire
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def own(self, node: FreeswitchInstance, address: str) -> None:
        """Give a service address to `node`, take it from the other one."""
        for other in (self.a, self.b):
            if other is not node and address in netns.ip("addr", namespace=other.namespace):
                netns.ip("addr", "del", f"{address}/24", "dev", "eth0", namespace=other.namespace)
        netns.ip("addr", "replace", f"{address}/24", "dev", "eth0", namespace=node.namespace)
        netns.ip("neigh", "flush", "all", namespace=f"{self.name}-cl")

    def activate(self, node: FreeswitchInstance, profile: str, address: str) -> None:
        """Make `node` the owner of a profile that has no calls yet."""
        self.own(node, address)
        assert node.api(f"sofia profile {profile} recover").startswith("No sessions")

    def call(
        self, address: str, extension: str, count: int = 1, *, hold_ms: int = 20000, port: int = 0
    ) -> subprocess.Popen[bytes]:
        """SIPp with `count` calls that stream media; it says BYE after `hold_ms` of silence."""
        port = port or 5080 + len(self.processes)
        words = [f"{address}:{SIP_PORT}", "-sf", str(SCENARIOS / "uac.xml"), "-s", extension]
        rtp_port = 20000 + 100 * len(self.processes)
        return self._sipp([*words, "-r", "50"], count, port, rtp_port, hold_ms)

    def callee(self, count: int = 1) -> subprocess.Popen[bytes]:
        """The other telephone, at CLIENT:CALLEE_PORT."""
        words = ["-sf", str(SCENARIOS / "uas.xml"), "-rtp_echo"]
        return self._sipp(words, count, CALLEE_PORT, 30000, 60000)

    def options(self, address: str) -> int:
        """The status code that an OPTIONS to a service address is answered with."""
        with netns.inside(f"{self.name}-cl"):
            query = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        with query:
            query.settimeout(3)
            query.bind((CLIENT, 0))
            here, mark = f"{CLIENT}:{query.getsockname()[1]}", time.monotonic_ns()
            lines = (
                f"OPTIONS sip:{address}:{SIP_PORT} SIP/2.0",
                f"Via: SIP/2.0/UDP {here};branch=z9hG4bK{mark}",
                f"From: <sip:probe@{here}>;tag={mark}",
                f"To: <sip:{address}>",
                f"Call-ID: {mark}@{CLIENT}",
                "CSeq: 1 OPTIONS",
                f"Contact: <sip:probe@{here}>",
                "Max-Forwards: 9",
                "Content-Length: 0",
            )
            query.sendto(("\r\n".join(lines) + "\r\n\r\n").encode(), (address, SIP_PORT))
            return int(query.recv(4096).split()[1])

    def _sipp(
        self, words: Sequence[str], count: int, port: int, rtp_port: int, hold_ms: int
    ) -> subprocess.Popen[bytes]:
        log = self.directory / f"sipp-{len(self.processes)}"
        log.mkdir()
        write_tone(log)
        command = [
            "sipp",
            *words,
            "-i",
            CLIENT,
            "-mi",
            CLIENT,
            "-p",
            str(port),
            "-m",
            str(count),
            "-l",
            str(count),
        ]
        command += ["-mp", str(rtp_port), "-recv_timeout", str(hold_ms), "-nostdin"]
        command += ["-trace_err", "-error_file", str(log / "errors.log")]
        with netns.inside(f"{self.name}-cl"), open(log / "screen.log", "wb") as screen:
            process = subprocess.Popen(command, cwd=log, stdout=screen, stderr=screen)
        self.processes.append(process)
        return process


def rows(node: FreeswitchInstance, profile: str = "") -> list[tuple[str, ...]]:
    """Rows of table recovery, of one profile if it is named."""
    with closing(sqlite3.connect(node.core_db, timeout=5)) as connection:
        found = connection.execute(
            "SELECT runtime_uuid, technology, profile_name, hostname, uuid, metadata FROM recovery"
            " WHERE ?1 IN ('', profile_name)",
            (profile,),
        )
        return found.fetchall()


def insert(node: FreeswitchInstance, copied: Sequence[tuple[str, ...]]) -> None:
    with closing(sqlite3.connect(node.core_db, timeout=5)) as connection, connection:
        connection.executemany("INSERT INTO recovery VALUES (?, ?, ?, ?, ?, ?)", copied)


def channels(node: FreeswitchInstance) -> int:
    """Live sessions. Not `show channels`, which lags behind by up to 200 ms."""
    lines = node.api("status").splitlines()
    return int(next(line for line in lines if "session(s) - peak" in line).split()[0])


def eventually(condition: Callable[[], bool], what: str, timeout_s: float = 5.0) -> None:
    netns.wait_for(condition, timeout_s, what)


@contextmanager
def namespaces(name: str) -> Iterator[None]:
    """NAME-sw with a bridge, and NAME-a, -b, -cl behind it at 10.77.0.1 to .3."""
    lines = [f"netns add {name}-{what}" for what in ("sw", "a", "b", "cl")]
    try:
        netns.ip(batch=lines)
        netns.ip(batch=["link add br0 type bridge", "link set br0 up"], namespace=f"{name}-sw")
        for number, what in enumerate(("a", "b", "cl"), start=1):
            there = f"{name}-{what}"
            netns.ip(
                batch=[
                    f"link add to-{what} type veth peer name eth0 netns {there}",
                    f"link set to-{what} master br0 up",
                ],
                namespace=f"{name}-sw",
            )
            address = f"addr add 10.77.0.{number}/24 dev eth0"
            netns.ip(batch=["link set lo up", "link set eth0 up", address], namespace=there)
        yield
    finally:
        netns.remove(name)
