"""A program: looks at one file system and says 0, 1 or 2. Run on its own, because it may hang.

look.py disk PATH WARN CRITICAL | look.py mount PATH [FILE]   (FILE: written, synced and removed)
"""

from __future__ import annotations

import os
import sys


def disk(path: str, warn: int, critical: int) -> tuple[int, str]:
    """How full it is, as df says: of what users may have; and its inodes."""
    found = os.statvfs(path)
    blocks = _percent(found.f_blocks - found.f_bfree, found.f_bavail)
    inodes = _percent(found.f_files - found.f_ffree, found.f_favail) if found.f_files else 0
    used = max(blocks, inodes)
    text = f"{path}: {blocks} % used" + (f", {inodes} % of the inodes" if inodes > blocks else "")
    if critical and used >= critical:
        return 2, f"{text}, critical from {critical}"
    if warn and used >= warn:
        return 1, f"{text}, warn from {warn}"
    return 0, text


def _percent(used: int, free: int) -> int:
    return -(-100 * used // (used + free)) if used + free else 0


def mount(path: str, file: str = "") -> tuple[int, str]:
    """Is something mounted there, does it answer, can it be written to?"""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as table:
        options = options_of(table.read(), os.path.normpath(path))
    if options is None:
        return 2, f"nothing is mounted on {path}"
    if "ro" in options:
        return 2, f"the file system on {path} is read-only"
    os.statvfs(path)
    if file:
        _write(os.path.join(path, file))
    return 0, f"{path} is mounted and answers"


def options_of(table: str, path: str) -> list[str] | None:
    """Options of the file system itself that is mounted on `path`; None where none is.

    Not those of the mount: in the daemon's unit everything is mounted read-only (ProtectSystem).
    """
    found = None
    for line in table.splitlines():
        mount, _, system = line.partition(" - ")
        if _unescaped(mount.split()[4]) == path:
            found = system.split()[-1].split(",")  # the last one is on top
    return found


def _write(name: str) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(name, flags, 0o600)
    try:
        os.write(descriptor, b"haclusterd\n")
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    os.unlink(name)


def _unescaped(text: str) -> str:
    for code, char in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        text = text.replace(code, char)
    return text


def main(words: list[str]) -> int:
    try:
        if words[0] == "disk":
            status, text = disk(words[1], int(words[2]), int(words[3]))
        else:
            status, text = mount(*words[1:])
    except OSError as error:
        status, text = 2, f"{error.filename or words[1]}: {error.strerror}"
    sys.stdout.write(text + "\n")
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
