"""A recording as a file: two lines to read with `head`, then the compressed steps.

    haclusterd-trace 1
    {"version": ..., "cluster": ..., "node": ..., "config_hash": ..., "saved": ..., "reason": ...}
    zlib of msgpack: [[began_us, hash, node, [[after_us, input, hash], ...]], ...]

Whatever the bytes are, reading ends with a `Trace` or a `TraceError` that says what to do.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import msgspec

from haclusterd.core.inputs import Input
from haclusterd.core.state import Node

MAGIC = b"haclusterd-trace "
FORMAT = 1
HEADER_BYTES_MAX = 4096
BODY_BYTES_MAX = 24 << 20  # three times what a ring holds
FILE_BYTES_MAX = BODY_BYTES_MAX
_LEVEL = 3  # 8 : 1 within 6 ms for each MB; more effort gains little


class TraceError(Exception):
    """Not a readable recording; the message names the file, what is wrong, and what to do."""


class Header(msgspec.Struct, frozen=True):
    """Where a recording comes from. `saved` is wall clock text, `reason` a word for people.

    `saved_us` is the same moment by the clock of the steps, CLOCK_BOOTTIME in us: a recording takes
    heart and agent some ms to hand over after its last step. Recordings of before it have None.
    """

    version: str
    cluster: str
    node: str
    config_hash: str
    saved: str
    reason: str
    saved_us: int | None = None


class Step(msgspec.Struct, frozen=True, array_like=True):
    """An input, `after_us` after the one before, and the running hash of all actions since."""

    after_us: int
    event: Input
    hash: int


class Segment(msgspec.Struct, array_like=True):
    """The state when the segment began, the hash until then, and the steps that followed."""

    began_us: int
    hash: int
    node: Node
    steps: list[Step]


class Trace(msgspec.Struct):
    """A whole recording, oldest segment first; there is at least one."""

    header: Header
    segments: list[Segment]

    @property
    def began_us(self) -> int:
        return self.segments[0].began_us

    @property
    def ended_us(self) -> int:
        last = self.segments[-1]
        return last.began_us + sum(step.after_us for step in last.steps)

    @property
    def steps(self) -> int:
        return sum(len(segment.steps) for segment in self.segments)


_body = msgspec.msgpack.Decoder(list[Segment])
_header = msgspec.json.Decoder(Header)


def pack(header: Header, pieces: Sequence[bytes | bytearray]) -> bytes:
    """The file's content for `Recorder.body`. Takes some 6 ms for each MB."""
    packer = zlib.compressobj(_LEVEL)
    parts = [packer.compress(piece) for piece in pieces]
    head = MAGIC + b"%d\n" % FORMAT + msgspec.json.encode(header) + b"\n"
    return b"".join([head, *parts, packer.flush()])


def read_header(content: bytes, name: str) -> tuple[Header, int]:
    """The header and where the compressed part begins. Raises TraceError."""
    line, newline, rest = content[: HEADER_BYTES_MAX + 64].partition(b"\n")
    number = line.removeprefix(MAGIC)
    if not newline or not line.startswith(MAGIC) or not number.isdigit() or len(number) > 6:
        raise TraceError(
            f"{name}: is no recording of haclusterd: name a file that `haclusterctl trace save` "
            "or haclusterd itself has written"
        )
    if int(number) != FORMAT:
        raise TraceError(
            f"{name}: has format {int(number)}, this haclusterctl reads format {FORMAT}: use the "
            "haclusterctl of the version that wrote it (second line of the file)"
        )
    text, newline, _ = rest.partition(b"\n")
    try:
        header = _header.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise TraceError(f"{name}: its second line is damaged ({error}): {_AGAIN}") from None
    if not newline:
        raise TraceError(f"{name}: ends within its second line: {_AGAIN}")
    return header, len(line) + len(text) + 2


_AGAIN = "copy it again from the node that saved it"


def unpack(content: bytes, name: str) -> Trace:
    """What `pack` was given; `name` is for the messages. Raises TraceError."""
    if len(content) > FILE_BYTES_MAX:
        raise TraceError(f"{name}: has more than {FILE_BYTES_MAX >> 20} MiB: no recording has")
    header, at = read_header(content, name)
    body = _inflate(content[at:], name)
    try:
        segments = _body.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise TraceError(
            f"{name}: its steps are not understood ({error}). It was written by version "
            f"{header.version}: use that version's haclusterctl, or {_AGAIN}"
        ) from None
    if not segments:
        raise TraceError(f"{name}: holds no steps: the recorder of {header.node} had stopped")
    for number, segment in enumerate(segments):
        wrong = _incoherent(segment.node)
        if wrong:
            raise TraceError(f"{name}: state {number} is damaged ({wrong}): {_AGAIN}")
    return Trace(header, segments)


def _inflate(packed: bytes, name: str) -> bytes:
    unpacker = zlib.decompressobj()
    try:
        body = unpacker.decompress(packed, BODY_BYTES_MAX)
    except zlib.error as error:
        raise TraceError(f"{name}: is damaged ({error}): {_AGAIN}") from None
    if unpacker.unconsumed_tail:
        raise TraceError(f"{name}: unpacks to more than {BODY_BYTES_MAX >> 20} MiB: not by us")
    if not unpacker.eof:
        raise TraceError(f"{name}: is truncated after {len(packed)} bytes of steps: {_AGAIN}")
    return body


def _incoherent(node: Node) -> str:
    """What in a state contradicts itself, empty if nothing does."""
    spec = node.spec
    nodes, services = len(spec.nodes), len(spec.services)
    if not 0 <= spec.me < nodes:
        return f"it is of node {spec.me} of {nodes}"
    if len(node.peers) != nodes or any(len(p.links) != spec.links for p in node.peers):
        return "its peers are not the configured nodes"
    if len(node.services) != services:
        return "its services are not the configured ones"
    if node.successors and len(node.successors) != services:
        return "its ranking is not of the configured services"
    if any(len(s.voter_sent_us) != nodes for s in node.services):
        return "its votes are not of the configured nodes"
    return ""
