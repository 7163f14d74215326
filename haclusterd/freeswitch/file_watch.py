"""Waiting until a file is written, by inotify: one thread waits, others may wake it.

Only the kernel's news belongs here. They say when to look and never what changed, and they may be
missing altogether (no inotify instances left, a writer on another host or behind FUSE), so whoever
waits looks now and then anyway, and judges by what is found whether the watch can be trusted.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import socket
from collections.abc import Iterable
from pathlib import Path

# sys/inotify.h; the standard library has no inotify
_IN_MODIFY, _IN_ATTRIB = 0x2, 0x4
_IN_DELETE_SELF, _IN_MOVE_SELF = 0x400, 0x800
_MASK = _IN_MODIFY | _IN_ATTRIB | _IN_DELETE_SELF | _IN_MOVE_SELF  # unlink of an open file: ATTRIB
_DRAIN_BYTES = 64 * 1024
_WAKES_MAX = 4096


class FileWatch:
    """`wait` is for one thread, `wake` for all. Without inotify only `wake` ends a wait early."""

    def __init__(self) -> None:
        # Sockets, not an eventfd: sending on a closed one is an error, never somebody else's file.
        self._ours, self._theirs = socket.socketpair()
        self._ours.setblocking(False)
        self._theirs.setblocking(False)
        self._inotify = -1
        self._poll = select.poll()
        self._poll.register(self._ours, select.POLLIN)

    @property
    def watching(self) -> bool:
        """Whether the kernel was asked to tell of writes."""
        return self._inotify >= 0

    def watch(self, paths: Iterable[Path]) -> bool:
        """Watch these files, as they are now, in place of all former ones; False: not possible.

        Names that do not exist are left out, but at least one has to exist.
        """
        self.unwatch()
        try:
            libc = ctypes.CDLL(None, use_errno=True)
            descriptor = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
            if descriptor < 0:
                return False
            added = [libc.inotify_add_watch(descriptor, os.fsencode(p), _MASK) for p in paths]
        except (OSError, AttributeError):  # no libc with inotify
            return False
        if all(number < 0 for number in added):
            os.close(descriptor)
            return False
        self._inotify = descriptor
        self._poll.register(descriptor, select.POLLIN)
        return True

    def unwatch(self) -> None:
        """Watch nothing any more."""
        if self._inotify >= 0:
            self._poll.unregister(self._inotify)
            os.close(self._inotify)
            self._inotify = -1

    def wait(self, timeout_s: float) -> bool:
        """At most `timeout_s`; True if a watched file was written, or somebody called `wake`."""
        if not self._poll.poll(timeout_s * 1000):
            return False
        with contextlib.suppress(BlockingIOError):
            self._ours.recv(_WAKES_MAX)
        if self._inotify >= 0:
            with contextlib.suppress(BlockingIOError):
                os.read(self._inotify, _DRAIN_BYTES)
        return True

    def wake(self) -> None:
        """End the present or the next `wait`, from any thread."""
        with contextlib.suppress(OSError):  # full: it wakes anyway; closed: nobody waits
            self._theirs.send(b"\0")

    def close(self) -> None:
        """For the waiting thread, at its end."""
        self.unwatch()
        self._ours.close()
        self._theirs.close()
