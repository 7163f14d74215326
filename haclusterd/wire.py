"""Bytes <-> beats: versioned header, AES-256-GCM, key ring, replay windows (DESIGN sections 5, 6).

The layout is in `datagram`. The key is derived per key-ring key, sender and incarnation, so that a
counter that starts again after a boot meets another key; the nonce is (link, seq). The whole
cluster id and the header are authenticated. One `seal` per link serves all peers.

Peer bytes never raise: `Wire.open` returns a beat or an `Outcome`. Nothing but a counter changes
before the MAC is verified.
"""

from __future__ import annotations

import enum
import hashlib
import struct
from dataclasses import dataclass

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from haclusterd.core.model import Beat, ClusterSpec
from haclusterd.core.numbering import Numbering, is_sound, reading, renumbered
from haclusterd.datagram import (
    BEAT_BYTES_MAX,
    DATAGRAM_BYTES_MIN,
    FLAGS_MASK,
    HEADER,
    MAGIC,
    SHAPE_BIT,
    SHAPE_MASK,
    TAG_BYTES,
    TIMES_BIT,
    TIMES_MASK,
    VERSIONS,
    as_version_1,
)
from haclusterd.replay import Incarnation, PeerWindows, Window

KEY_BYTES = 32
KIN_MAX = 3  # configurations beside one's own that are read: before, after, after at the start

_STRANGERS_MAX = 32  # addresses by link
_CONTEXT = b"haclusterd beat 1"
_NONCE = struct.Struct(">IQ")
_set = msgspec.structs.force_setattr


class Outcome(enum.StrEnum):
    """What became of a received datagram."""

    OK = "ok"
    MALFORMED = "malformed"  # no beat: too short, wrong magic, or a body that contradicts it
    FOREIGN = "foreign"  # another cluster, or not the address the sender has on this link
    UNKNOWN_KEY = "unknown key"  # sealed with a key that this node does not have
    BAD_MAC = "bad mac"  # forged, damaged, or another key under the same id
    REPLAY = "replay"  # seen before, or too old to tell
    VERSION = "version"  # another version of the wire format
    OVERSIZE = "oversize"  # more than BEAT_BYTES_MAX
    OTHER_CONFIG = "other config"  # authentic, but nodes or services are not numbered as here


@dataclass(frozen=True, slots=True)
class ClusterKey:
    """One key of the ring: 32 secret bytes, and the id (0..255) that travels in clear."""

    id: int
    secret: bytes

    def __post_init__(self) -> None:
        if not 0 <= self.id <= 255:
            raise ValueError(f"key id {self.id} is not in 0..255")
        if len(self.secret) != KEY_BYTES:
            raise ValueError(f"key {self.id} has {len(self.secret)} bytes, not {KEY_BYTES}")

    def __repr__(self) -> str:
        return f"ClusterKey(id={self.id})"


@dataclass(frozen=True, slots=True)
class KeyRing:
    """The cluster's keys, newest first: the first one seals, all of them open."""

    keys: tuple[ClusterKey, ...]

    def __post_init__(self) -> None:
        if not self.keys:
            raise ValueError("a key ring needs at least one key")
        if len({key.id for key in self.keys}) != len(self.keys):
            raise ValueError("two keys of the ring have the same id")


class Heard(msgspec.Struct):
    """Datagrams from a peer's address on one link; `outcome`: of the last unreadable one."""

    readable: int = 0
    unreadable: int = 0
    outcome: Outcome = Outcome.OK


class WireState(msgspec.Struct, frozen=True, array_like=True):
    """What an upgrade hands to the new process: current incarnations with their windows.

    `peers` by node: (incarnation, windows by link), or None where none is current. `sealed` is
    the newest seq sealed by link.
    """

    sealed: tuple[int, ...]
    peers: tuple[tuple[int, tuple[Window, ...]] | None, ...]


class Wire:
    """Seals this node's beats and opens its peers'. One per heart; no I/O, no clock."""

    def __init__(self, spec: ClusterSpec, ring: KeyRing, incarnation: int) -> None:
        self._refused = tuple(dict.fromkeys(Outcome, 0) for _ in range(spec.links))
        self.heard = tuple(tuple(Heard() for _ in spec.nodes) for _ in range(spec.links))
        self.version = VERSIONS[0]  # that is sealed
        self.overheard = (0, 0)  # revision and hash of a later set that cannot be read here
        self._kin: dict[int, Numbering] = {}
        self._spec = spec
        self._upper_flags = spec.shape << SHAPE_BIT | spec.times << TIMES_BIT
        self._nodes, self._services = len(spec.nodes), len(spec.services)
        self._me = spec.nodes[spec.me].id
        name = spec.name.encode()
        self._cluster_id = hashlib.sha256(_CONTEXT + b"\0" + name).digest()
        self._tag = self._cluster_id[:4]
        others = [(index, node) for index, node in enumerate(spec.nodes) if index != spec.me]
        self._senders = tuple({n.links[x]: i for i, n in others} for x in range(spec.links))
        self._strangers: tuple[dict[str, str], ...] = tuple({} for _ in range(spec.links))
        self._peers = tuple(PeerWindows() for _ in spec.nodes)
        self._encode = msgspec.msgpack.Encoder().encode
        self._decode = msgspec.msgpack.Decoder(Beat).decode
        self.set_keys(ring)
        self.set_incarnation(incarnation)

    def know(self, neighbour: ClusterSpec) -> None:
        """Read those, too, that count by the set before or after one's own; of nodes that are in
        that set alone, whether a later one is in force."""
        if neighbour.config_hash == self._spec.config_hash:
            return
        mine = {node.id for node in self._spec.nodes}
        for node in neighbour.nodes:
            for strangers, address in zip(self._strangers, node.links, strict=False):
                if node.id not in mine and len(strangers) < _STRANGERS_MAX:
                    strangers.setdefault(address, node.id)
        if len(self._kin) >= KIN_MAX and neighbour.config_hash not in self._kin:
            del self._kin[next(iter(self._kin))]
        self._kin[neighbour.config_hash] = reading(neighbour, self._spec)

    def set_keys(self, ring: KeyRing) -> None:
        """Use another ring from now on (key rotation). Windows stay: they are about seqs."""
        self._ring = {key.id: key for key in ring.keys}
        self._seal_key = ring.keys[0]
        for peer in self._peers:
            for known in (peer.current, *peer.candidates.values()):
                if known is not None:
                    known.ciphers.clear()
        if hasattr(self, "_incarnation"):
            self._seal_cipher = self._derive(self._seal_key, self._me, self._incarnation)

    def set_incarnation(self, incarnation: int) -> None:
        """Seal as `incarnation` (64 random bits) from now on: after a start and after a thaw."""
        self._incarnation = incarnation
        self._seal_cipher = self._derive(self._seal_key, self._me, incarnation)
        self._sealed = [-1] * self._spec.links

    def peer_current(self, node: int, incarnation: int) -> None:
        """The core has proved `incarnation` of `node` fresh: keep its windows for good.

        The one before it becomes one of the few others, its windows kept. None is refused for
        good: a late beat of an incarnation that has just ended can still prove itself, and to
        shut out what comes after it would make these two nodes deaf to each other for ever.
        """
        peer = self._peers[node]
        if peer.current_number == incarnation:
            return
        found = peer.candidates.pop(incarnation, None)
        if peer.current is not None:
            peer.remember(peer.current_number, peer.current)
        peer.current_number = incarnation
        peer.current = found or Incarnation(self._spec.links)

    def seal(self, beat: Beat) -> bytes:
        """The datagram for `beat`, the same for every peer on its link.

        ValueError if the beat is not this node's, would repeat a nonce, or does not fit: all
        three are errors of this node, never of a peer.
        """
        link, seq = beat.link, beat.seq
        if seq <= self._sealed[link]:
            raise ValueError(f"seq {seq} on link {link} was used before: the nonce would repeat")
        if beat.incarnation != self._incarnation or beat.sender != self._spec.me:
            raise ValueError(f"not a beat of node {self._spec.me} as it runs now: {beat}")
        header = HEADER.pack(
            MAGIC, self.version, self._seal_key.id, self._tag, beat.sender, link,
            beat.incarnation, seq,
        )  # fmt: skip
        flags = beat.flags
        _set(beat, "flags", flags | self._upper_flags)  # put back at once; a copy costs more
        try:
            body = self._encode(beat if self.version > 1 else as_version_1(beat))
        finally:
            _set(beat, "flags", flags)
        size = HEADER.size + len(body) + TAG_BYTES
        if size > BEAT_BYTES_MAX:
            raise ValueError(f"a beat of {size} bytes is larger than {BEAT_BYTES_MAX}")
        self._sealed[link] = seq
        nonce = _NONCE.pack(link, seq)
        return header + self._seal_cipher.encrypt(nonce, body, self._cluster_id + header)

    def open(self, datagram: bytes, link: int, source: str) -> Beat | Outcome:
        """The beat in `datagram`, or why there is none; counted either way.

        `link` is the local link, `source` the sender's address as the kernel writes it, unscoped.
        """
        result = self._open(datagram, link, source)
        if isinstance(result, Beat):
            self.heard[link][result.sender].readable += 1
            return result
        self._refused[link][result] += 1
        sender = self._senders[link].get(source)
        # A replay is neither: it does not say what whoever has that address now could say.
        if sender is not None and result is not Outcome.REPLAY:
            heard = self.heard[link][sender]
            heard.unreadable += 1
            heard.outcome = result
        return result

    @property
    def counters(self) -> tuple[dict[Outcome, int], ...]:
        """By link: what became of its datagrams. Put together here, off the hot path."""
        opened = (sum(heard.readable for heard in heards) for heards in self.heard)
        return tuple({**r, Outcome.OK: n} for r, n in zip(self._refused, opened, strict=True))

    def _open(self, datagram: bytes, link: int, source: str) -> Beat | Outcome:
        size = len(datagram)
        if size > BEAT_BYTES_MAX:
            return Outcome.OVERSIZE
        if size < DATAGRAM_BYTES_MIN:
            return Outcome.MALFORMED
        magic, version, key_id, tag, sender, its_link, number, seq = HEADER.unpack_from(datagram)
        if magic != MAGIC:
            return Outcome.MALFORMED
        if version not in VERSIONS:
            return Outcome.VERSION
        if tag != self._tag or its_link != link:
            return Outcome.FOREIGN
        node = self._senders[link].get(source)
        if node is None:
            self._overhear(datagram, self._strangers[link].get(source), key_id, number)
            return Outcome.FOREIGN
        key = self._ring.get(key_id)
        if key is None:
            return Outcome.UNKNOWN_KEY
        peer = self._peers[node]
        incarnation = peer.find(number)
        cipher = None
        if incarnation is not None:
            if incarnation.windows[link].has(seq):
                return Outcome.REPLAY
            cipher = incarnation.ciphers.get(key_id)
        cipher = cipher or self._derive(key, self._spec.nodes[node].id, number)
        try:
            body = self._decrypted(cipher, datagram)
        except InvalidTag:
            return Outcome.BAD_MAC if sender == node else Outcome.FOREIGN
        # From here on the bytes are a key holder's.
        if incarnation is None:
            incarnation = peer.add_candidate(number, self._spec.links)
        elif number != peer.current_number:
            peer.candidates.move_to_end(number)
        incarnation.ciphers[key_id] = cipher
        incarnation.windows[link].add(seq)
        try:
            beat = self._decode(body)
        except msgspec.DecodeError:
            return Outcome.MALFORMED
        if (beat.sender, beat.link, beat.incarnation, beat.seq) != (sender, link, number, seq):
            return Outcome.MALFORMED
        if version == 1 and (beat.revision != 1 or beat.staged):
            return Outcome.MALFORMED
        return self._in_my_numbers(beat, node)

    def _overhear(self, datagram: bytes, stranger: str | None, key_id: int, number: int) -> None:
        """Who came with a later set than one's own may be the only one left to tell of it."""
        key = self._ring.get(key_id)
        if stranger is None or key is None:
            return
        try:
            beat = self._decode(self._decrypted(self._derive(key, stranger, number), datagram))
        except (InvalidTag, msgspec.DecodeError):
            return
        if beat.revision > self._spec.revision:
            self.overheard = max(self.overheard, (beat.revision, beat.config_hash))

    def _decrypted(self, cipher: AESGCM, datagram: bytes) -> bytes:
        header = datagram[: HEADER.size]
        nonce = b"\0\0\0" + header[9:10] + header[18:]
        return cipher.decrypt(nonce, datagram[HEADER.size :], self._cluster_id + header)

    def _in_my_numbers(self, beat: Beat, node: int) -> Beat | Outcome:
        """The beat of `node`, by its address, as it is to be read here; nobody else has it yet.

        A neighbour in a change of the voters may count otherwise, and is read by what is known of
        its configuration. Another configuration of the same revision is read if its numbers mean
        the same, by its shape (where one of the two does not tell any: if there are as many), and
        its times are the same; of another revision it is not, because the same number may be
        another node.
        """
        flags = beat.flags
        _set(beat, "flags", flags & FLAGS_MASK)  # the core's; others are asked below
        if beat.config_hash != self._spec.config_hash:
            by = self._kin.get(beat.config_hash)
            if by is not None:
                sound = is_sound(beat, len(by.nodes), len(by.services))
                mine = renumbered(beat, by) if sound and beat.sender < len(by.nodes) else None
                return mine if mine is not None and mine.sender == node else Outcome.OTHER_CONFIG
            if beat.revision > self._spec.revision:
                self.overheard = max(self.overheard, (beat.revision, beat.config_hash))
            if beat.revision not in (self._spec.revision, 0):
                return Outcome.OTHER_CONFIG
            if self._is_another(flags):
                return Outcome.OTHER_CONFIG
        if beat.sender != node:
            return Outcome.FOREIGN
        return beat if is_sound(beat, self._nodes, self._services) else Outcome.OTHER_CONFIG

    def _is_another(self, flags: int) -> bool:
        """By its numbers or by its times, as far as both tell."""
        mine = self._upper_flags
        return any(
            (flags ^ mine) >> bit & mask and flags >> bit & mask and mine >> bit & mask
            for bit, mask in ((SHAPE_BIT, SHAPE_MASK), (TIMES_BIT, TIMES_MASK))
        )

    def _derive(self, key: ClusterKey, sender: str, incarnation: int) -> AESGCM:
        """The cipher of one boot of one node, by its id."""
        parts = (
            _CONTEXT,
            self._spec.name.encode(),
            sender.encode(),
            incarnation.to_bytes(8, "big"),
        )
        derived = HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=None, info=b"\0".join(parts))
        return AESGCM(derived.derive(key.secret))

    def export_state(self) -> WireState:
        """For the process that goes on as the same incarnation after an upgrade."""
        peers = tuple(
            None if peer.current is None else (peer.current_number, peer.current.windows)
            for peer in self._peers
        )
        return WireState(tuple(self._sealed), peers)

    def import_state(self, state: WireState) -> None:
        """Go on where another process of this incarnation stopped, or ValueError: other shape."""
        shapes = {len(windows) for _, windows in filter(None, state.peers)} | {len(state.sealed)}
        if len(state.peers) != self._nodes or shapes != {self._spec.links}:
            raise ValueError("the wire state is of another configuration")
        self._sealed = list(state.sealed)
        for node, handed in enumerate(state.peers):
            if handed is not None:
                current = Incarnation(self._spec.links)
                current.windows = handed[1]
                peer = self._peers[node]
                peer.current_number, peer.current = handed[0], current


def wire_state_in(state: WireState, by: Numbering, links: int) -> WireState:
    """What was handed over, in the numbers of the set of voters that is taken up; a NIC may have
    come or gone beside it."""
    sealed = (*state.sealed, *(-1 for _ in range(links)))[:links]
    peers = (state.peers[n] if n >= 0 else None for n in by.my_nodes)
    return WireState(sealed, tuple(p and (p[0], _fitted(p[1], links)) for p in peers))


def _fitted(windows: tuple[Window, ...], links: int) -> tuple[Window, ...]:
    return (*windows, *(Window() for _ in range(len(windows), links)))[:links]
