"""Runs one program with something on its standard input, for a bounded time."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import tempfile
from collections.abc import Mapping, Sequence
from typing import NamedTuple

COMPLAINT_BYTES = 400


class Ended(NamedTuple):
    """`status` is the exit status, None where it did not end by itself; `said` is why not 0."""

    status: int | None
    said: str


async def run(
    words: Sequence[str], given: bytes, timeout_s: float, environment: Mapping[str, str]
) -> Ended:
    """Never raises but when cancelled; whatever happens, the program and its children are gone."""
    with tempfile.TemporaryFile() as complaint:
        try:
            process = await asyncio.create_subprocess_exec(
                *words,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=complaint,
                start_new_session=True,
                env={**os.environ, **environment},
            )
        except (OSError, ValueError) as error:
            return Ended(None, f"{words[0]}: {getattr(error, 'strerror', None) or error}")
        try:
            await asyncio.wait_for(_feed(process, given), timeout_s)
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


async def _feed(process: asyncio.subprocess.Process, given: bytes) -> None:
    if process.stdin is not None:
        # A program that does not read its input may still do its work.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            process.stdin.write(given)
            await process.stdin.drain()
        process.stdin.close()
    await process.wait()
