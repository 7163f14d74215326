"""Where saved recordings lie: one folder per node, of each kind the newest few.

Files are for root only (mode 0600): they name every address of the cluster, though no key and no
caller.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import stat
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from io import FileIO
from pathlib import Path
from typing import BinaryIO

import msgspec

from haclusterd import __version__
from haclusterd.core.model import ClusterSpec
from haclusterd.files import write_atomically
from haclusterd.trace.file import (
    FILE_BYTES_MAX,
    HEADER_BYTES_MAX,
    MAGIC,
    Header,
    TraceError,
    pack,
    read_header,
)

NAME = "traces"
ASKED, OWNER, FAULT = "asked", "owner", "fault"
KEPT = {ASKED: 10, OWNER: 5, FAULT: 3}
SILENT_S = 60.0  # of a pipe: who writes to it may be asked for a password first
_LIST = "see `haclusterctl trace list`"
_FILE = re.compile(r"\d{8}T\d{9}Z-(asked|owner|fault)\.trace")


class Saved(msgspec.Struct, frozen=True):
    """A file of the folder. `reason` is why it was saved: asked, owner (a change), fault.

    `wrong` is why it cannot be read, with the fix: only `name` and `path` are known then.
    """

    name: str
    path: str
    bytes: int
    reason: str
    saved: str
    node: str
    version: str
    wrong: str = ""


def content_of(spec: ClusterSpec, pieces: Sequence[bytes | bytearray], reason: str) -> bytes:
    """A file's content for a recording of this node, as of now."""
    now, now_us = datetime.now(UTC), time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1000
    saved = now.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    saved_us = now_us - now.microsecond % 1000  # what the text leaves out
    node = spec.nodes[spec.me].id
    hashed = f"{spec.config_hash:08x}"
    header = Header(__version__, spec.name, node, hashed, saved, reason, saved_us)
    return pack(header, pieces)


def save(folder: Path, content: bytes, reason: str) -> Saved:
    """Write `content_of` into the folder, and let the oldest of its kind go. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    now = datetime.now(UTC)
    path = folder / f"{now:%Y%m%dT%H%M%S}{now.microsecond // 1000:03}Z-{reason}.trace"
    write_atomically(path, content)
    for old in _files(folder, reason)[: -KEPT[reason]]:
        with contextlib.suppress(OSError):
            old.unlink()
    return _described(path)


def listed(folder: Path) -> list[Saved]:
    """What lies there under the name of a recording, oldest first."""
    found = []
    for path in _files(folder, ""):
        try:
            found.append(_described(path))
        except TraceError as error:
            found.append(Saved(path.name, str(path), 0, "", "", "", "", str(error)))
        except FileNotFoundError:
            continue  # `save` has let it go meanwhile
        except OSError as error:
            wrong = f"{path}: {error.strerror}: make it readable, or move it away"
            found.append(Saved(path.name, str(path), 0, "", "", "", "", wrong))
    return found


def read(path: Path) -> bytes:
    """A recording's bytes, for `file.unpack`; from a pipe that somebody writes to, too, as of
    `<(ssh NODE cat FILE)`. Raises TraceError."""
    try:
        with FileIO(path, "rb", opener=_at_once) as file:
            return _whole(file, path)
    except OSError as error:
        raise TraceError(f"{path}: {error.strerror}: {_LIST}") from None


def read_named(folder: Path, name: str) -> bytes:
    """One of `listed` by its name. Raises TraceError."""
    if not _FILE.fullmatch(name):
        raise TraceError(f"{name[:64]!r} names no recording: {_LIST}")
    try:
        with _regular(folder / name) as file:
            return file.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        raise TraceError(f"{folder / name}: {error.strerror}: {_LIST}") from None


def _at_once(path: str, flags: int) -> int:
    """A pipe opens although nobody writes to it yet."""
    return os.open(path, flags | os.O_NONBLOCK)


def _whole(file: FileIO, path: Path) -> bytes:
    """All of it, or a byte more than a recording has. Raises OSError, TraceError."""
    readable = select.poll()
    readable.register(file, select.POLLIN)
    content = bytearray()
    while len(content) <= FILE_BYTES_MAX:
        if not readable.poll(SILENT_S * 1000):
            raise TraceError(
                f"{path}: nothing came out of it for {SILENT_S:g} s: name a file, or a pipe "
                "that a recording is written to"
            )
        piece = file.read(FILE_BYTES_MAX + 1 - len(content))
        if piece is None:
            continue  # another reader was faster
        if not piece:
            break
        content += piece
    return bytes(content)


def _files(folder: Path, reason: str) -> list[Path]:
    """By age, oldest first: the name begins with the time."""
    try:
        names = [path for path in folder.iterdir() if _FILE.fullmatch(path.name)]
    except OSError:
        return []
    return sorted(path for path in names if path.name.endswith(f"{reason}.trace"))


def _regular(path: Path) -> BinaryIO:
    """Opened to be read: nothing that lets one wait, as a pipe does. Raises OSError, TraceError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise TraceError(f"{path}: is no regular file: move it away")
    return os.fdopen(descriptor, "rb")


def _described(path: Path) -> Saved:
    with _regular(path) as file:
        start = file.read(len(MAGIC) + HEADER_BYTES_MAX + 64)
        size = file.seek(0, 2)
    header, _ = read_header(start, str(path))
    return Saved(
        path.name, str(path), size, header.reason, header.saved, header.node, header.version
    )
