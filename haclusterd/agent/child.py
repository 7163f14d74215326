"""Runs one program with something on its standard input, for a bounded time.

It gets nothing of what the daemon may do: not its capabilities, which a unit hands on to whatever
is started, and not its line to systemd.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import shutil
import signal
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, NamedTuple

COMPLAINT_BYTES = 400
_OURS = ("NOTIFY_SOCKET", "WATCHDOG_", "LISTEN_", "JOURNAL_STREAM", "MAINPID", "MANAGERPID")


class Ended(NamedTuple):
    """`status` is the exit status, None where it did not end by itself; `said` is why not 0."""

    status: int | None
    said: str


async def run(
    words: Sequence[str], given: bytes, timeout_s: float, environment: Mapping[str, str]
) -> Ended:
    """Never raises but when cancelled; whatever happens, the program and its children are gone."""
    try:
        complaint = complaints()
    except OSError as error:
        return Ended(None, f"{words[0]}: {error.strerror}")
    with complaint:
        try:
            process = await asyncio.create_subprocess_exec(
                *powerless(),
                *words,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=complaint,
                start_new_session=True,
                env={**environment_for_others(), **environment},
            )
        except (OSError, ValueError) as error:
            return Ended(None, f"{words[0]}: {getattr(error, 'strerror', None) or error}")
        try:
            async with asyncio.timeout(timeout_s):  # not wait_for: it may lose a cancellation
                await _feed(process, given)
        except TimeoutError:
            return Ended(None, f"did not end within {timeout_s:g} s")
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)  # also what it left behind
            await process.wait()
        complaint.seek(0)
        said = complaint.read(COMPLAINT_BYTES).decode(errors="replace").strip()
        status = process.returncode
    reason = said or "it said nothing"
    return Ended(status, "" if status == 0 else f"status {status}: {reason}")


def complaints() -> IO[bytes]:
    """Where a program says what is wrong. On a full disk it is run all the same. Raises OSError."""
    try:
        return tempfile.TemporaryFile()
    except OSError:
        return Path(os.devnull).open("w+b")


@functools.cache
def powerless() -> tuple[str, ...]:
    """What drops the ambient capabilities; with them gone, no plain program has any."""
    setpriv = shutil.which("setpriv")  # of util-linux, which is everywhere
    return () if setpriv is None else (setpriv, "--ambient-caps=-all", "--")


def environment_for_others() -> dict[str, str]:
    """Ours, without what names the daemon's line to systemd."""
    return {key: value for key, value in os.environ.items() if not key.startswith(_OURS)}


async def _feed(process: asyncio.subprocess.Process, given: bytes) -> None:
    if process.stdin is not None:
        # A program that does not read its input may still do its work.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            process.stdin.write(given)
            await process.stdin.drain()
        process.stdin.close()
    await process.wait()
