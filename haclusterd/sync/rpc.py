"""Small questions and answers between agents over the replication mesh: operator commands.

Everything is bounded: size (codec.PAYLOAD_BYTES_MAX), how many may be open in each direction, and
the time the asker waits.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from haclusterd.sync.codec import PAYLOAD_BYTES_MAX, Request, Response
from haclusterd.sync.session import Session

log = logging.getLogger(__name__)

ASKED_MAX = 512  # open requests of ours; of each peer one waits for events
SERVED_MAX = 16  # open requests of one peer
METHOD_CHARS_MAX = 64

Answer = Callable[[str, bytes], Awaitable[bytes]]


class RequestFailed(Exception):
    """A request got no answer, or the peer refused it; the message says why."""


class Requests:
    """Both ends of the request/response exchange."""

    def __init__(self) -> None:
        self._answers: dict[str, Answer] = {}
        self._brief: set[str] = set()
        self._asked: dict[int, tuple[Session, asyncio.Future[bytes]]] = {}
        self._serving: dict[Session, set[asyncio.Task[None]]] = {}
        self._number = 0

    def register(self, method: str, answer: Answer, *, brief: bool = False) -> None:
        """`await answer(peer, payload)` serves `method`; its ValueError is told to the asker.

        `brief`: it waits for nothing, and so takes no place among SERVED_MAX.
        """
        self._answers[method] = answer
        if brief:
            self._brief.add(method)

    async def ask(
        self, session: Session | None, method: str, payload: bytes, timeout_ms: int
    ) -> bytes:
        """Send a request and wait. Raises RequestFailed."""
        if session is None:
            raise RequestFailed("not connected to that node")
        if len(payload) > PAYLOAD_BYTES_MAX or len(method) > METHOD_CHARS_MAX:
            raise RequestFailed(f"request of {len(payload)} bytes, {PAYLOAD_BYTES_MAX} allowed")
        if len(self._asked) >= ASKED_MAX:
            raise RequestFailed(f"{ASKED_MAX} requests are already open")
        self._number += 1
        number = self._number
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._asked[number] = (session, answer)
        try:
            session.send(Request(number, method, payload))
            async with asyncio.timeout(timeout_ms / 1000):
                return await answer
        except TimeoutError:
            raise RequestFailed(f"no answer from {session.peer} in {timeout_ms} ms") from None
        finally:
            self._asked.pop(number, None)

    def responded(self, session: Session, response: Response) -> None:
        """An answer came (one that nobody waits for any more is dropped)."""
        asked = self._asked.get(response.number)
        if asked is None or asked[0] is not session or asked[1].done():
            return
        if response.ok:
            asked[1].set_result(response.payload)
        else:
            reason = response.payload[:1000].decode(errors="replace")
            asked[1].set_exception(RequestFailed(f"{session.peer}: {reason}"))

    def asked(self, session: Session, request: Request) -> None:
        """A peer asks: serve it in a task of its own, or refuse."""
        answer = self._answers.get(request.method)
        tasks = self._serving.setdefault(session, set())
        if answer is None:
            _refuse(session, request, f"unknown method {request.method[:METHOD_CHARS_MAX]!r}")
        elif len(tasks) >= SERVED_MAX and request.method not in self._brief:
            _refuse(session, request, f"busy: {SERVED_MAX} requests are open")
        else:
            task = asyncio.get_running_loop().create_task(_serve(session, request, answer))
            tasks.add(task)
            task.add_done_callback(tasks.discard)

    def lost(self, session: Session) -> None:
        """The connection ended: nobody answers, and nobody waits for our answers."""
        for task in self._serving.pop(session, set()):
            task.cancel()
        for asked_session, answer in self._asked.values():
            if asked_session is session and not answer.done():
                answer.set_exception(RequestFailed(f"connection with {session.peer} was lost"))


def _refuse(session: Session, request: Request, reason: str) -> None:
    session.send(Response(request.number, False, reason.encode()))


async def _serve(session: Session, request: Request, answer: Answer) -> None:
    try:
        payload = await answer(session.peer, request.payload)
    except (ValueError, RequestFailed) as error:
        _refuse(session, request, str(error))
        return
    except asyncio.CancelledError:
        raise
    except Exception:
        log.exception("request %s of %s", request.method, session.peer)
        _refuse(session, request, f"{request.method} failed, see the log of the node")
        return
    if len(payload) > PAYLOAD_BYTES_MAX:
        _refuse(session, request, f"the answer has {len(payload)} bytes, too large to send")
    else:
        session.send(Response(request.number, True, payload))
