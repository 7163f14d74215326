"""What an agent leaves to the next one of this node when the daemon is renewed: copies, events.

Events go on without a gap for those who follow them; copies: see `sync.handover`.
"""

from __future__ import annotations

import contextlib
import logging
import os
from pathlib import Path
from zlib import crc32

import msgspec

from haclusterd.agent.events import KEPT, Book, Event, Ring
from haclusterd.agent.history import History
from haclusterd.config import Config
from haclusterd.files import boot_id
from haclusterd.sync import handover
from haclusterd.sync.codec import Malformed
from haclusterd.sync.lane import REGISTRATIONS
from haclusterd.sync.replicator import Replicator

log = logging.getLogger(__name__)

EVENTS_NAME = "events.handover"
EVENTS_FORMAT = 1
EVENTS_BYTES_MAX = 16 * 1024 * 1024


class Ended(msgspec.Struct, frozen=True, array_like=True):
    """The events of a run that is over; behind four bytes of CRC-32."""

    format: int
    node: str
    boot: str
    run: int
    last: int
    events: list[Event]


class Renewal:
    """To be made before anything is published; `take` before anything is recovered, `leave` at
    the very end."""

    def __init__(
        self, config: Config, replicator: Replicator | None, book: Book, history: History
    ) -> None:
        self._config, self._replicator = config, replicator
        self._book, self._history = book, history
        self._take_events()

    def leave(self) -> None:
        """Write both files; blocks. What comes after this is in neither."""
        try:
            leave_events(self._config.run_dir / EVENTS_NAME, self._book)
            if self._replicator is not None:
                self._leave_copies(self._replicator)
        except OSError as error:
            path = self._config.run_dir
            log.warning("%s: the next agent starts from nothing: %s", path, error.strerror)

    def take(self) -> None:
        """Read and remove the copies; blocks. What cannot be used is a line in the log."""
        if self._replicator is not None:
            self._take_copies(self._replicator)

    def _take_events(self) -> None:
        path = self._config.run_dir / EVENTS_NAME
        try:
            ring = take_events(path, self._book.me)
        except Malformed as error:
            log.warning("%s is not used: it %s", path, error)
        else:
            if ring is not None:
                self._book.resumed(ring)

    def _place(self) -> tuple[Path, handover.Whose]:
        config = self._config
        whose = handover.Whose(config.name, config.node.id, boot_id())
        return config.run_dir / handover.NAME, whose

    def _leave_copies(self, replicator: Replicator) -> None:
        path, whose = self._place()
        calls, registrations = replicator.calls, replicator.registrations
        told = handover.write(
            path, whose, (calls.store, registrations.store), calls.change_log.logs.values()
        )
        if told.problem:
            log.warning("%s: %s", path, told.problem)
        log.info("left %d copies with %d items to the next agent", told.copies, told.items)

    def _take_copies(self, replicator: Replicator) -> None:
        path, whose = self._place()
        stores = handover.StoreOf(
            {REGISTRATIONS: replicator.registrations.store, "": replicator.calls.store}
        )
        told = handover.take(path, whose, stores, replicator.calls.store.limits)
        if told is None:
            return
        if told.problem:
            log.warning("%s is not used: it %s", path, told.problem)
            return
        replicator.calls.notify()
        me = self._config.node.id
        text = f"{me} took {told.items} items in {told.copies} copies over from the agent before"
        self._history.add("A10", text)


def leave_events(path: Path, book: Book) -> None:
    """Write the events of this run. Raises OSError."""
    own = book.own
    ended = Ended(EVENTS_FORMAT, book.me, boot_id(), own.run, own.last, own.all())
    packed = msgspec.msgpack.encode(ended)
    if len(packed) > EVENTS_BYTES_MAX:
        return
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    # Not written through to the disk: it is for the next seconds, and the next agent waits for it.
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(crc32(packed).to_bytes(4, "big") + packed)
    temporary.replace(path)


def take_events(path: Path, me: str) -> Ring | None:
    """What `leave_events` wrote; the file is gone then. Raises Malformed; None without one."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise Malformed(f"cannot be read: {error.strerror}") from None
    with os.fdopen(descriptor, "rb") as file:
        with contextlib.suppress(OSError):
            path.unlink()
        try:
            handover.check(descriptor, EVENTS_BYTES_MAX)
            content = file.read(EVENTS_BYTES_MAX + 5)
            ended = msgspec.msgpack.decode(content[4:], type=Ended)
        except OSError as error:
            raise Malformed(f"cannot be read: {error.strerror}") from None
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise Malformed(f"is not of format {EVENTS_FORMAT}: {error}") from None
    if crc32(content[4:]).to_bytes(4, "big") != content[:4]:
        raise Malformed("is damaged: its checksum does not fit")
    if (ended.format, ended.node, ended.boot) != (EVENTS_FORMAT, me, boot_id()):
        raise Malformed("is of another format, node or boot")
    return _ring(ended)


def _ring(ended: Ended) -> Ring:
    first = ended.events[0].sequence if ended.events else ended.last + 1
    ring = Ring(ended.run, max(1, first))
    for event in ended.events[:KEPT]:
        ring.add(event)
    if ring.last != ended.last:
        raise Malformed("has a hole in its events")
    return ring
