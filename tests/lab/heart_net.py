"""Two hosts and a cable for the heart's tests: namespaces made, entered and removed here."""

from __future__ import annotations

import ctypes
import os
import subprocess
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
