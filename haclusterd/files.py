"""Files that must be whole after a crash, and which boot of the kernel wrote them."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def boot_id() -> str:
    """The kernel's id of this boot, empty where /proc does not say."""
    try:
        return _BOOT_ID.read_text(encoding="ascii").strip()
    except OSError:
        return ""


def write_atomically(path: Path, content: bytes, mode: int = 0o600) -> None:
    """Replace `path` so that a crash leaves the old or the new content; the new one is on the disk
    when this returns. Raises OSError."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(descriptor, mode)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    _sync_folder(path.parent)


def write_new(path: Path, content: bytes, mode: int = 0o600) -> None:
    """Write `path`, which must not be there, and leave nothing of it where that fails. Raises
    FileExistsError, whatever is there (a link to nothing, too), and other OSError."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:  # Ctrl-C, too: the next try would find it there
        with contextlib.suppress(OSError):
            path.unlink()
        raise
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """The new name, too, is on the disk then, and not with the next commit of the file system."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        return  # may be written to, but not read
    try:
        with contextlib.suppress(OSError):  # file systems that know no such thing
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
