"""Two hosts and a cable for the heart's tests: namespaces made, entered and removed here."""

from __future__ import annotations

import ctypes
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

_CLONE_NEWNET = 0x40000000

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")


def run(*command: str) -> str:
    """Run a command, raise with its stderr if it fails, return its stdout."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout


@contextmanager
def inside(namespace: str) -> Iterator[None]:
    """This thread in `namespace`; sockets opened here stay there."""
    libc = ctypes.CDLL(None, use_errno=True)
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    target = os.open(f"/run/netns/{namespace}", os.O_RDONLY)
    try:
        if libc.setns(target, _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"setns {namespace}")
        try:
            yield
        finally:
            libc.setns(home, _CLONE_NEWNET)
    finally:
        os.close(home)
        os.close(target)


@contextmanager
def two_hosts(tag: str) -> Iterator[tuple[str, str]]:
    """Namespaces (left, right), NIC `eth0` in each, joined; 10.9.0.1 and .2, fd00:9::1 and ::2."""
    left, right = f"{tag}l", f"{tag}r"
    try:
        for name in (left, right):
            if Path(f"/run/netns/{name}").exists():
                run("ip", "netns", "del", name)
            run("ip", "netns", "add", name)
            run("ip", "-n", name, "link", "set", "lo", "up")
        run(
            *("ip", "-n", left, "link", "add", "eth0", "type", "veth"),
            *("peer", "name", "eth0", "netns", right),
        )
        for number, name in enumerate((left, right), 1):
            run("ip", "-n", name, "addr", "add", f"10.9.0.{number}/24", "dev", "eth0")
            v6 = f"fd00:9::{number}/64"
            run("ip", "-n", name, "addr", "add", v6, "dev", "eth0", "nodad")
            run("ip", "-n", name, "link", "set", "eth0", "up")
        # Both neighbour caches filled: the first question after `link up` is often lost.
        for target in ("10.9.0.2", "fd00:9::2"):
            run("ip", "netns", "exec", left, "ping", "-qc1", "-i0.2", "-w5", target)
        yield left, right
    finally:
        for name in (left, right):
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


def sender(address: str) -> socket.socket:
    made = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)
    made.bind((address, 0))
    return made


class Ear:
    """A UDP socket in the right host: does what `left` sends arrive?"""

    def __init__(self, address: str) -> None:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self.socket = socket.socket(family, socket.SOCK_DGRAM)
        self.socket.bind((address, 4000))
        self.socket.setblocking(False)
        self.address = address

    def hears(self, source: socket.socket) -> bool:
        source.sendto(b"x", (self.address, 4000))
        ready, _, _ = select.select([self.socket], [], [], 0.03)
        if ready:
            self.socket.recv(10)
        return bool(ready)


def hear_once_resolved(ear: Ear, source: socket.socket) -> bool:
    return any(ear.hears(source) for _try in range(20))


def mac_of(namespace: str, nic: str = "eth0") -> bytes:
    path = f"/sys/class/net/{nic}/address"
    return bytes.fromhex(run("ip", "netns", "exec", namespace, "cat", path).replace(":", ""))


def python_in(namespace: str, source: str) -> subprocess.Popen[bytes]:
    root = str(Path(__file__).parents[2])
    command = ["ip", "netns", "exec", namespace, sys.executable, "-c", source]
    return subprocess.Popen(command, stdout=subprocess.PIPE, cwd=root)


def last_output_ms(
    namespace: str, holder: subprocess.Popen[bytes], mac: bytes, v4: str, v6: str
) -> dict[str, float]:
    """SIGSTOP the holder; per kind, ms until the last frame of the service on the wire."""
    with inside(namespace):
        wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        wire.bind(("eth0", 3))
        wire.settimeout(0.02)
    last: dict[str, float] = {}
    began, stopped = time.monotonic(), 0.0
    try:
        while not stopped or time.monotonic() < stopped + 0.3:
            if not stopped and time.monotonic() > began + 0.05:
                os.kill(holder.pid, signal.SIGSTOP)
                stopped = time.monotonic()
            try:
                frame = wire.recv(2000)
            except TimeoutError:
                continue
            kind = int.from_bytes(frame[12:14], "big")
            if frame[6:12] != mac:
                continue
            if kind == 0x0800 and socket.inet_ntoa(frame[26:30]) == v4:
                last["ipv4"] = time.monotonic()
            elif kind == 0x86DD and frame[22:38] == socket.inet_pton(socket.AF_INET6, v6):
                last["na" if frame[20] == 58 and frame[54] == 136 else "ipv6"] = time.monotonic()
            elif kind == 0x0806 and socket.inet_ntoa(frame[28:32]) == v4:
                last["arp"] = time.monotonic()
    finally:
        os.kill(holder.pid, signal.SIGCONT)
        wire.close()
    return {kind: (at - stopped) * 1000 for kind, at in last.items()}
