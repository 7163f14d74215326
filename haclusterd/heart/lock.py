"""One haclusterd per node: its lock file, and what tells of another one that has another file."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
from collections.abc import Collection

from haclusterd.config import Config
from haclusterd.heart.errors import HeartError

_TRIES = 10


class NodeLock:
    """`RUN_DIR/NODE.pid`, locked until this process ends or `release`; it also holds the pid."""

    def __init__(self, config: Config, descriptor: int = -1) -> None:
        """`descriptor`: the lock as a predecessor handed it over.

        Raises HeartError if another heart of this node runs here.
        """
        self._path = config.run_dir / f"{config.node.id}.pid"
        self.descriptor = descriptor
        if descriptor >= 0:
            return
        for _try in range(_TRIES):
            self.descriptor = self._open(config.node.id)
            if self._is_the_file():
                self.write_pid()
                return
            os.close(self.descriptor)  # whoever had it removed it between our open and our lock
        raise HeartError(
            f"lock file {self._path} changes all the time", "see who starts haclusterd"
        )

    def _open(self, node: str) -> int:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise HeartError(
                f"lock file {self._path}: {os.strerror(error.errno or 0)}",
                "give --run-dir (default /run/haclusterd) a directory that this user may write to",
            ) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = os.read(descriptor, 20).decode(errors="replace").strip() or "unknown"
            os.close(descriptor)
            raise HeartError(
                f"a haclusterd for node {node} runs already (pid {holder}, lock {self._path})",
                "stop it first, or give this one another --run-dir and network namespace",
            ) from None
        return descriptor

    def _is_the_file(self) -> bool:
        try:
            return os.path.samestat(os.fstat(self.descriptor), self._path.stat())
        except FileNotFoundError:
            return False

    def write_pid(self) -> None:
        """Put this process's pid in, after a predecessor's; on a full disk there is none.

        It is for people: what counts is the lock.
        """
        with contextlib.suppress(OSError):
            os.ftruncate(self.descriptor, 0)
            os.pwrite(self.descriptor, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        """Remove the file, while it is locked still."""
        if self.descriptor >= 0:
            with contextlib.suppress(OSError):
                self._path.unlink()
            os.close(self.descriptor)
            self.descriptor = -1


def refuse_on_the_wrong_host(config: Config, local: Collection[str]) -> None:
    """Refuse to start where another node lives, on whose addresses and rows this one would act.

    `local` are the host's addresses. A host that has none of any node's is one whose NICs are not
    up yet: its links come when they are.
    """
    if any(address in local for address in config.node.links):
        return
    for node in config.nodes:
        if any(address in local for address in node.links):
            raise HeartError(
                f"none of the links of node {config.node.id} is on this host, those of node "
                f"{node.id} are",
                f"start it with --node {node.id}, or without --node",
            )


def refuse_beside_another(config: Config) -> None:
    """Refuse to start where all heartbeat ports of this node are in use already.

    Another haclusterd with another --run-dir does that: its addresses and its fence must not be
    taken for left-overs. One busy port alone is borne: that link comes back when it is free.
    """
    busy = 0
    for address in config.node.links:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            try:
                probe.bind((address, config.heartbeat_port))
            except OSError as error:
                busy += error.errno == errno.EADDRINUSE
    if busy and busy == len(config.node.links):
        raise HeartError(
            f"port {config.heartbeat_port} of node {config.node.id} is in use on every link: "
            "another haclusterd, or another program, runs here",
            "stop it first (`ss -lunp`), or choose another port in [heartbeat]",
        )
