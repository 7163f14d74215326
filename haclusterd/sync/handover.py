"""The copies of one agent for the next one: all agents of a cluster may be renewed at once.

Without it a node would hold nothing until the others tell it, and when all start anew nobody
tells: an owner lost in these seconds would take its calls with it. The file is written once the
connections are closed, so that all that was ever acknowledged is in it, and is read and removed
by the next agent of the same boot. It is no database: what cannot be read is left out and said.

Format 1: frames as in `codec`, msgpack arrays tagged by their first element, the last one with a
checksum of all before it. A format is never edited: a change means a new FORMAT.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, TypeAlias
from zlib import crc32

import msgspec

from haclusterd.core.replication import (
    CHUNK_BYTES,
    CHUNK_ITEMS,
    Item,
    ItemSet,
    Limits,
    SequencedLog,
    StreamId,
)
from haclusterd.core.standby import ServiceCopies, StreamCopy
from haclusterd.sync.codec import FrameReader, Malformed
from haclusterd.sync.outgoing import now_ms
from haclusterd.sync.store import SERVICES_MAX, StandbyStore

FORMAT = 1
NAME = "copies.handover"
FILE_BYTES_MAX = 256 * 1024 * 1024
AGE_MS_MAX = 60_000  # older ones are removed: others know better by then
FRESH_MS = 5_000  # younger ones count as in sync until their origin had time to connect
_READ_BYTES = 1024 * 1024


class Begin(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """Whose copies these are. A file of another boot has clock values that mean nothing."""

    format: int
    cluster: str
    node: str
    boot: str
    written_ms: int


class Copy(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """A copy of a stream, whose `count` items follow; `stream` None: found on other standbys."""

    service: str
    stream: StreamId | None
    epoch: int
    settled: bool
    frozen: bool
    complete: bool
    position: int
    head: int
    lag_ms: int
    count: int


class Items(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """Some items of the copy named last."""

    items: list[Item]


class End(msgspec.Struct, frozen=True, array_like=True, tag=4):
    """The file is whole. `checksum`: CRC-32 of all bytes before this frame."""

    copies: int
    items: int
    checksum: int


Part: TypeAlias = Begin | Copy | Items | End
_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[Part] = msgspec.msgpack.Decoder(Part)


class Whose(msgspec.Struct, frozen=True):
    """This agent, as it has to be in the file."""

    cluster: str
    node: str
    boot: str


class Told(msgspec.Struct, frozen=True):
    """What was written or read. `problem` is why not all of it, with empty for none."""

    copies: int = 0
    items: int = 0
    bytes: int = 0
    problem: str = ""


class _TooMuch(Exception):
    """The file is as large as it may become."""


class _Writer:
    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.bytes = self.copies = self.items = self._checksum = 0

    def put(self, part: Part) -> None:
        body = _encoder.encode(part)
        framed = len(body).to_bytes(4, "big") + body
        if self.bytes + len(framed) > FILE_BYTES_MAX and not isinstance(part, End):
            raise _TooMuch
        self._file.write(framed)
        self._checksum = crc32(framed, self._checksum)
        self.bytes += len(framed)

    def copy(self, head: Copy, items: ItemSet) -> None:
        self.put(head)
        self.copies += 1
        part: list[Item] = []
        size = 0
        for item in items.items.values():
            part.append(item)
            size += len(item.blob)
            if size >= CHUNK_BYTES or len(part) >= CHUNK_ITEMS:
                self._part(part)
                part, size = [], 0
        self._part(part)

    def end(self) -> None:
        self.put(End(self.copies, self.items, self._checksum))

    def _part(self, items: list[Item]) -> None:
        if items:
            self.put(Items(items))
            self.items += len(items)


def write(
    path: Path, whose: Whose, stores: Iterable[StandbyStore], own: Iterable[SequencedLog] = ()
) -> Told:
    """Write all copies, and `own` logs as what they are to the next agent; blocks.

    Raises OSError, and leaves no half of a file.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        problem = ""
        with os.fdopen(descriptor, "wb") as file:
            out = _Writer(file)
            out.put(Begin(FORMAT, whose.cluster, whose.node, whose.boot, now_ms()))
            try:
                for head, items in _parts(stores, own):
                    out.copy(head, items)
            except _TooMuch:
                problem = f"more than {FILE_BYTES_MAX >> 20} MiB: the rest is left out"
            out.end()
        temporary.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    return Told(out.copies, out.items, path.stat().st_size, problem)


def _parts(
    stores: Iterable[StandbyStore], own: Iterable[SequencedLog]
) -> Iterator[tuple[Copy, ItemSet]]:
    """In the given order, of a service the newest stream first."""
    for log in own:
        service, at, items = log.stream.service, log.head, log.items
        yield (
            Copy(service, log.stream, log.epoch, log.settled, True, True, at, at, 0,
                 len(items.items)),
            items,
        )  # fmt: skip
    for store in stores:
        for service, copies in store.services.items():
            for copy in sorted(copies.copies.values(), key=lambda c: c.key, reverse=True):
                copy.salvage()
                yield _head(service, copy), copy.items
            if copies.fetched.items:
                count = len(copies.fetched.items)
                head = Copy(service, None, 0, False, True, False, 0, 0, 0, count)
                yield head, copies.fetched


def _head(service: str, copy: StreamCopy) -> Copy:
    return Copy(
        service, copy.stream, copy.epoch, copy.settled, copy.frozen, copy.complete,
        copy.position, copy.head, copy.lag_ms, len(copy.items.items),
    )  # fmt: skip


def take(path: Path, whose: Whose, by_service: StoreOf, limits: Limits) -> Told | None:
    """Fill the stores with what the agent before this one wrote, and remove it; blocks.

    None without a file. Nothing is taken of a file that is not whole, not ours or too old.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    except OSError as error:
        return Told(problem=f"cannot be read: {error.strerror}")
    with os.fdopen(descriptor, "rb") as file:
        with contextlib.suppress(OSError):
            path.unlink()
        try:
            check(descriptor, FILE_BYTES_MAX)
            return _fill(_Reader(file, whose, limits), by_service)
        except OSError as error:
            return Told(problem=f"cannot be read: {error.strerror}")
        except Malformed as error:
            return Told(problem=str(error))


class StoreOf(msgspec.Struct, frozen=True):
    """Which store a stream's service belongs to, by the prefix of its name; "" is the rest."""

    stores: dict[str, StandbyStore]

    def find(self, service: str) -> StandbyStore:
        """The store for it."""
        named = (s for prefix, s in self.stores.items() if prefix and service.startswith(prefix))
        return next(named, self.stores[""])


def check(descriptor: int, bytes_max: int) -> None:
    """Is it a file of ours that nobody else could have written? Raises Malformed."""
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode):
        raise Malformed("is no file")
    if found.st_uid != os.geteuid() or found.st_mode & 0o077:
        raise Malformed("belongs to somebody else, or others may read or write it")
    if found.st_size > bytes_max + 1024:
        raise Malformed(f"has {found.st_size} bytes, more than this daemon writes")


class _Reader:
    """Reads the whole file before anything of it is used."""

    def __init__(self, file: BinaryIO, whose: Whose, limits: Limits) -> None:
        self._whose, self._limits = whose, limits
        self.age_ms = 0
        self.copies: list[tuple[Copy, list[Item]]] = []
        self.items = self.bytes = self._checksum = 0
        self._begun = self._ended = False
        frames = FrameReader()
        while block := file.read(_READ_BYTES):
            self.bytes += len(block)
            for body in frames.feed(block):
                self._part(body)
        if not self._ended:
            raise Malformed("is cut: it has no end")

    def _part(self, body: bytes) -> None:
        try:
            part = _decoder.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise Malformed(f"is not of format {FORMAT}: {error}") from None
        if self._ended or isinstance(part, Begin) == self._begun:
            raise Malformed("has parts in a wrong order")
        if isinstance(part, End):
            if part != End(len(self.copies), self.items, self._checksum):
                raise Malformed("is damaged: its checksum does not fit")
            self._ended = True
            return
        self._checksum = crc32(len(body).to_bytes(4, "big") + body, self._checksum)
        if isinstance(part, Begin):
            self._begin(part)
        elif isinstance(part, Copy):
            self.copies.append((part, []))
        elif not self.copies:
            raise Malformed("has items of no copy")
        else:
            self.copies[-1][1].extend(part.items)
            self.items += len(part.items)
            if len(self.copies[-1][1]) > 2 * self._limits.records + 30_000:
                raise Malformed("has more items in one copy than may be")

    def _begin(self, begin: Begin) -> None:
        self._begun = True
        if begin.format != FORMAT:
            raise Malformed(f"is of format {begin.format}, this is {FORMAT}")
        if (begin.cluster, begin.node, begin.boot) != msgspec.structs.astuple(self._whose):
            raise Malformed("is of another node, cluster or boot")
        self.age_ms = now_ms() - begin.written_ms
        if not 0 <= self.age_ms <= AGE_MS_MAX:
            raise Malformed(f"is {self.age_ms / 1000:.0f} s old")


def _fill(read: _Reader, by_service: StoreOf) -> Told:
    at_ms = now_ms()
    for head, items in read.copies:
        store = by_service.find(head.service)
        if head.service not in store.services and len(store.services) >= SERVICES_MAX:
            raise Malformed(f"has more than {SERVICES_MAX} services")
        copies = store.services.setdefault(head.service, ServiceCopies(store.limits))
        into = copies.fetched
        if head.stream is not None and len(items) == head.count:  # else it had no room
            copy = StreamCopy(head.stream, head.epoch, store.limits)
            copy.settled, copy.frozen = head.settled, head.frozen
            copy.position, copy.head, copy.lag_ms = head.position, head.head, head.lag_ms
            copy.reached = head.head  # what half of a snapshot brought is not handed over apart
            if head.complete:
                fresh = read.age_ms <= FRESH_MS
                copy.caught_up_ms = at_ms if fresh else at_ms - read.age_ms - head.lag_ms
            copies.copies[head.stream] = copy
            into = copy.items
        for item in items:
            into.merge(item, at_ms)
    return Told(len(read.copies), read.items, read.bytes)
