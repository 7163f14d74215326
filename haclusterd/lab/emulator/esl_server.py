"""The event socket: connections, login, commands, and the answers of mod_event_socket.

Commands of one connection run one after the other, as there: a long `api` blocks its own
connection and nobody else's.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import uuid
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from haclusterd.lab.emulator import apis
from haclusterd.lab.emulator.channel import Pairs
from haclusterd.lab.emulator.esl_filter import Subscription
from haclusterd.lab.emulator.events import Event, Source

if TYPE_CHECKING:
    from haclusterd.lab.emulator.switch import Switch

_LINE_MAX: Final = 1 << 20
_HEADERS_MAX: Final = 2000
_BODY_MAX: Final = 16 << 20
_QUEUE_MAX: Final = 64 << 20  # bytes not yet taken by the client; beyond it the client is dropped
_JOBS_MAX: Final = 1000
_JOB: Final = Source("mod_event_socket.c", "api_exec", 1588)
_SENT: Final = Source("mod_event_socket.c", "parse_command", 2284)
_LEVELS: Final = {
    name: number
    for number, name in enumerate(
        ("console", "alert", "crit", "err", "warning", "notice", "info", "debug")
    )
}
_DIGITS: Final = tuple("01234567")
_GOODBYE: Final = "Disconnected, goodbye.\nSee you at ClueCon! http://www.cluecon.com/\n"


class EslServer:
    def __init__(self, switch: Switch) -> None:
        self._switch = switch
        self._server: asyncio.Server | None = None
        self._sessions: set[EslSession] = set()

    async def start(self) -> None:
        """
        :raises OSError: the port is taken or the address is not ours.
        """
        esl = self._switch.config.esl
        self._server = await asyncio.start_server(
            self._connected, esl.host, esl.port, limit=_LINE_MAX
        )

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
        for session in list(self._sessions):
            session.close()
        await asyncio.sleep(0)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        session = EslSession(self._switch, reader, writer)
        self._sessions.add(session)
        try:
            await session.run()
        except (OSError, asyncio.IncompleteReadError, ValueError):
            pass  # the peer left or talked nonsense: only its own connection ends
        finally:
            self._sessions.discard(session)
            session.close()


class EslSession:
    """One client."""

    def __init__(
        self, switch: Switch, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._switch = switch
        self._reader = reader
        self._writer = writer
        self._authenticated = False
        self._running = True
        self._subscription = Subscription()
        self._pending: list[bytes] = []
        self._lag_s = switch.config.esl_event_lag_ms / 1000
        self._jobs: set[asyncio.Task[None]] = set()
        switch.bus.listeners.append(self)

    def wants(self, name: str, subclass: str) -> bool:
        return self._authenticated and self._subscription.wants(name, subclass)

    def deliver(self, event: Event) -> None:
        """Queue an event; the listener looks every 20 ms, as the real one (FREESWITCH.md 2.4)."""
        if not self._subscription.passes(event):
            return
        if not self._pending:
            asyncio.get_running_loop().call_later(self._lag_s, self._flush)
        self._pending.append(event.frame(self._subscription.style))

    def _flush(self) -> None:
        frames, self._pending = self._pending, []
        transport = self._writer.transport
        if transport.is_closing():
            return
        if transport.get_write_buffer_size() > _QUEUE_MAX:
            self._switch.log(
                "[CRIT] mod_event_socket: Killing listener because of too many lost events"
            )
            transport.abort()
            return
        self._writer.write(b"".join(frames))

    def close(self) -> None:
        if self in self._switch.bus.listeners:
            self._switch.bus.listeners.remove(self)
        with contextlib.suppress(OSError):
            self._writer.close()

    async def run(self) -> None:
        self._writer.write(b"Content-Type: auth/request\n\n")
        while self._running:
            command, headers, body = await self._read_command()
            if command:
                reply = await self._execute(command, headers, body)
                self._writer.write(reply)
                await self._writer.drain()
        self._writer.write(
            f"Content-Type: text/disconnect-notice\nContent-Length: {len(_GOODBYE)}\n\n"
            f"{_GOODBYE}".encode()
        )
        await self._writer.drain()

    async def _read_command(self) -> tuple[str, Pairs, str]:
        command = ""
        headers: Pairs = []
        while True:
            line = await self._reader.readline()
            if not line.endswith(b"\n"):
                raise ConnectionResetError("closed by the client")
            text = line.decode("utf-8", "surrogateescape").rstrip("\r\n")
            if not text:
                if command:
                    break
                continue
            if not command:
                command = text.strip()
            elif len(headers) < _HEADERS_MAX:
                name, _, value = text.partition(":")
                headers.append((name.strip(), value.strip()))
        length = next((v for k, v in headers if k.lower() == "content-length"), "")
        if not (length.isascii() and length.isdigit()):
            return command, headers, ""
        if len(length) > 9 or int(length) > _BODY_MAX:
            raise ValueError("body too long")
        body = await self._reader.readexactly(int(length))
        return command, headers, body.decode("utf-8", "surrogateescape")

    async def _execute(self, command: str, headers: Pairs, body: str) -> bytes:
        name, space, argument = command.partition(" ")
        name = name.lower()
        if name in ("exit", "..."):
            self._running = False
            return _reply("+OK bye")
        if not self._authenticated:
            return self._log_in(name, argument.strip())
        if name == "api" and space:
            return await self._api(argument)
        if name == "bgapi" and space:
            return self._bgapi(argument, headers)
        if name == "sendevent":
            return self._sendevent(argument.strip(), headers, body)
        answer = _ANSWERS.get(name)
        if answer is None or (name == "filter" and not space):
            return _reply("-ERR command not found")
        return _reply(answer(self._subscription, argument.strip()))

    def _log_in(self, name: str, argument: str) -> bytes:
        if name != "auth":
            return _reply("-ERR command not found")
        expected = self._switch.config.esl.password
        given = argument.encode("utf-8", "surrogateescape")
        if hmac.compare_digest(given, expected.encode()):
            self._authenticated = True
            return _reply("+OK accepted")
        self._running = False
        return _reply("-ERR invalid")

    async def _api(self, argument: str) -> bytes:
        name, _, rest = argument.partition(" ")
        text = await apis.execute(self._switch, name, rest.strip()) or "-ERR no reply\n"
        content = text.encode("utf-8", "surrogateescape")
        return f"Content-Type: api/response\nContent-Length: {len(content)}\n\n".encode() + content

    def _bgapi(self, argument: str, headers: Pairs) -> bytes:
        name, _, rest = argument.partition(" ")
        if len(self._jobs) >= _JOBS_MAX:
            return _reply("-ERR command not found")
        job = next((v for k, v in headers if k.lower() == "job-uuid" and v), str(uuid.uuid4()))
        task = asyncio.get_running_loop().create_task(self._job(job, name, rest.strip()))
        self._jobs.add(task)
        task.add_done_callback(self._jobs.discard)
        head = f"Content-Type: command/reply\nReply-Text: +OK Job-UUID: {job}\nJob-UUID: {job}\n\n"
        return head.encode("utf-8", "surrogateescape")

    async def _job(self, job: str, name: str, argument: str) -> None:
        text = await apis.execute(self._switch, name, argument)
        headers = [("Job-UUID", job), ("Job-Command", name)]
        if argument:
            headers.append(("Job-Command-Arg", argument))
        self._switch.bus.fire("BACKGROUND_JOB", _JOB, lambda: headers, text)

    def _sendevent(self, name: str, headers: Pairs, body: str) -> bytes:
        event_uuid = str(uuid.uuid4())
        kept = [(k, v) for k, v in headers if k.lower() not in ("content-length", "event-subclass")]
        fields = [("Event-UUID", event_uuid), *kept]
        subclass = next((v for k, v in headers if k.lower() == "event-subclass"), "")
        if name.upper() == "CUSTOM" and subclass:
            self._switch.bus.fire_custom(subclass, _SENT, fields, body)
        else:
            self._switch.bus.fire(name.upper() or "CUSTOM", _SENT, lambda: fields, body)
        return _reply(f"+OK {event_uuid}")


def _reply(text: str) -> bytes:
    return f"Content-Type: command/reply\nReply-Text: {text}\n\n".encode("utf-8", "surrogateescape")


def _log(_subscription: Subscription, argument: str) -> str:
    level = argument.lower()
    number = int(level) if level in _DIGITS else _LEVELS.get(level or "debug")
    return "-ERR invalid log level" if number is None else f"+OK log level {argument} [{number}]"


_ANSWERS: Final[dict[str, Callable[[Subscription, str], str]]] = {
    "event": Subscription.add,
    "nixevent": Subscription.nix,
    "noevents": lambda subscription, _: subscription.clear(),
    "filter": Subscription.filter,
    "log": _log,
    "nolog": lambda _subscription, _: "-ERR not loging",
    "linger": lambda _subscription, _: "-ERR not controlling a session",
    "nolinger": lambda _subscription, _: "-ERR not controlling a session",
    "divert_events": lambda _subscription, _: "-ERR not controlling a session.",
    "sendmsg": lambda _subscription, uuid_: f"-ERR invalid session id [{uuid_}]",
}
