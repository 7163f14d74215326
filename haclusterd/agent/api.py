"""The Unix socket API: one JSON request per line, one JSON response per line.

`{"method": "status", "params": {}}` is answered `{"ok": true, "result": ...}` or
`{"ok": false, "error": {"code", "message"}}`. After `events` the connection carries one event per
line (`events.Event`) until the client goes away. Clients, sizes and times are bounded.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec

from haclusterd.agent.commands import Commands
from haclusterd.agent.encoding import encoded
from haclusterd.agent.events import TooManyReaders, start_of
from haclusterd.agent.operators import OperatorError
from haclusterd.agent.parameters import checked
from haclusterd.agent.schema import (
    REFUSED,
    REQUEST_BYTES_MAX,
    RESPONSE_BYTES_MAX,
    USAGE,
    Fault,
    Request,
    Response,
)

log = logging.getLogger(__name__)

CLIENTS_MAX = 64
IDLE_S = 60.0
WRITE_S = 10.0
SOCKET_MODE = 0o660
PATH_BYTES_MAX = 107  # of sun_path

_decoder = msgspec.json.Decoder(Request)


class ApiError(Exception):
    """The socket cannot be opened; the message names it and the fix."""


class Api:
    """Serves `commands` on the socket at `path`."""

    def __init__(self, path: Path, commands: Commands) -> None:
        self._path = path
        self._commands = commands
        self._server: asyncio.Server | None = None
        self._clients: set[asyncio.Task[None]] = set()
        self._inode = 0
        self.refused = 0

    async def start(self) -> None:
        """Open the socket. Raises ApiError."""
        listener = open_listener(self._path)
        self._inode = self._path.stat().st_ino
        try:
            self._server = await asyncio.start_unix_server(
                self._serve, sock=listener, limit=REQUEST_BYTES_MAX
            )
        except OSError as error:
            listener.close()
            raise ApiError(f"{self._path}: {error.strerror}") from None

    async def stop(self) -> None:
        """Close the socket and all clients."""
        if self._server is not None:
            with contextlib.suppress(OSError):
                # First, and only our own: an agent that follows may have put its socket there.
                if self._path.stat().st_ino == self._inode:
                    self._path.unlink()
            self._server.close()
        for client in list(self._clients):
            client.cancel()
        await asyncio.gather(*self._clients, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is None or len(self._clients) >= CLIENTS_MAX:
            self.refused += 1
            fault = Fault(REFUSED, f"{CLIENTS_MAX} clients are connected: end one of them")
            writer.write(encoded(Response(False, None, fault)) + b"\n")
            writer.close()
            return
        self._clients.add(task)
        try:
            async for line in _lines(reader):
                await self._answer(line, reader, writer)
        except (TimeoutError, OSError, asyncio.LimitOverrunError, ValueError) as error:
            log.debug("API client ended: %s", error)
        finally:
            self._clients.discard(task)
            writer.close()

    async def _answer(
        self, line: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        try:
            request = _decoder.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            await _write(writer, Response(False, None, Fault(USAGE, f"not a request: {error}")))
            return
        if request.method == "events":
            await self._events(request, reader, writer)
            return
        try:
            result = await self._commands.run(request.method, request.params)
        except OperatorError as error:
            await _write(writer, Response(False, None, Fault(error.code, str(error))))
            return
        except Exception:
            # One command's bug must not end the API.
            log.exception("command %s", request.method[:64])
            text = f"{request.method[:64]} failed inside haclusterd; see its log (journalctl)"
            await _write(writer, Response(False, None, Fault(REFUSED, text)))
            return
        await _write(writer, Response(True, result))

    async def _events(
        self, request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Events as they come, until the client sends anything or goes away."""
        try:
            wanted = checked("events", request.params)
            follower = self._commands.events.read(start_of(wanted["after"]), wanted["own"])
        except (TooManyReaders, OperatorError) as error:
            code = error.code if isinstance(error, OperatorError) else REFUSED
            await _write(writer, Response(False, None, Fault(code, str(error))))
            return
        gone = asyncio.ensure_future(reader.read(1))
        try:
            await _write(writer, Response(True, "events follow"))
            while not gone.done():
                news = asyncio.ensure_future(follower.next())
                await asyncio.wait({news, gone}, return_when=asyncio.FIRST_COMPLETED)
                if not news.done():
                    news.cancel()
                    break
                for event in news.result():
                    await _write(writer, Response(True, event))
        finally:
            gone.cancel()
            follower.close()
        raise ConnectionAbortedError("the client stopped following")


async def _lines(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    while True:
        async with asyncio.timeout(IDLE_S):
            line = await reader.readline()
        if not line:
            return
        yield line


async def _write(writer: asyncio.StreamWriter, response: Response) -> None:
    content = encoded(response)
    if len(content) > RESPONSE_BYTES_MAX:
        fault = Fault(REFUSED, f"the answer has {len(content)} bytes: ask for less (limit)")
        content = encoded(Response(False, None, fault))
    writer.write(content + b"\n")
    async with asyncio.timeout(WRITE_S):
        await writer.drain()


def open_listener(path: Path) -> socket.socket:
    """A listening socket at `path`, mode 0660; a left-over of a dead daemon is replaced.

    Raises ApiError, also where another daemon is alive behind it.
    """
    if len(os.fsencode(path)) > PATH_BYTES_MAX:
        raise ApiError(
            f"{path}: a socket's path has at most {PATH_BYTES_MAX} bytes: use a shorter "
            "api.socket or --run-dir"
        )
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.setblocking(False)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if _alive(path):
            raise ApiError(
                f"{path}: another daemon answers there: stop it, or use another --run-dir"
            )
        temporary.unlink(missing_ok=True)
        short = temporary if len(os.fsencode(temporary)) <= PATH_BYTES_MAX else path
        if short is path:
            path.unlink(missing_ok=True)
        listener.bind(str(short))
        short.chmod(SOCKET_MODE)
        listener.listen(CLIENTS_MAX)
        if short is not path:
            temporary.replace(path)
    except OSError as error:
        listener.close()
        raise ApiError(
            f"{path}: {error.strerror}: create its folder, or correct api.socket"
        ) from None
    except ApiError:
        listener.close()
        raise
    return listener


def _alive(path: Path) -> bool:
    probe = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    probe.settimeout(0.2)
    try:
        probe.connect(str(path))
    except OSError:
        return False
    finally:
        probe.close()
    return True
