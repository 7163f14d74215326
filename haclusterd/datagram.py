"""The layout of a datagram: header, versions of the body, and how large it can become.

Integers are big-endian; a version is never edited, a change is a new one:

    0   2  magic "HC"
    2   1  version, 1 or 2
    3   1  key id
    4   4  cluster tag: first bytes of SHA-256(context, cluster name)
    8   1  sender, its index in the configuration
    9   1  link index
    10  8  incarnation of the sender, random for every boot and thaw
    18  8  seq of the beat: the counter of the nonce
    26  n  AES-256-GCM of the beat as a msgpack array, then its 16 byte tag

Version 2 appends to the array: the revision of the set of voters by which the sender counts, the
revision it has staged, and the hash of that configuration. Both versions are opened; which one is
sealed the core says (`core.dialect`). Of version 1 the set of voters is the first one.

Flags are 16 bits of the core's, and above them two hashes that only the wire knows, 0 from a
version of before there were such: 32 bits of *shape*, what the numbers in the beat stand for
(`ClusterSpec.shape`), and 16 of the *times* that leases rest on (`ClusterSpec.times`). Whoever does
not know a flag ignores it, so both versions carry them.
"""

from __future__ import annotations

import struct

import msgspec

from haclusterd.core.model import EPOCH_MAX, Beat, Echo, Identity, Release, ServiceEntry

BEAT_BYTES_MAX = 1200  # passes every network in one piece
MAGIC = b"HC"
VERSIONS = (1, 2)  # that are opened
HEADER = struct.Struct(">2sBB4sBBQQ")
TAG_BYTES = 16
DATAGRAM_BYTES_MIN = HEADER.size + TAG_BYTES + 1
SHAPE_BIT = 16  # the first one of the shape
FLAGS_MASK = (1 << SHAPE_BIT) - 1
SHAPE_MASK = 0xFFFFFFFF
TIMES_BIT = 48
TIMES_MASK = 0xFFFF
_VERSION_1_FIELDS = 15


def as_version_1(beat: Beat) -> tuple[object, ...]:
    """The fields of `beat` that version 1 has."""
    return msgspec.structs.astuple(beat)[:_VERSION_1_FIELDS]


def beat_bytes_bound(nodes: int, services: int) -> int:
    """The size in bytes that no beat of such a cluster exceeds: every number at its widest."""
    wide, long = 2**64 - 1, 2**32 - 1
    identity = Identity(EPOCH_MAX, nodes, wide)
    beat = Beat(
        sender=nodes,
        link=0,
        incarnation=wide,
        seq=wide,
        number=wide,
        reply=True,
        config_hash=long,
        rank_hash=long,
        flags=wide,
        health=100,
        load=10,
        calls=long,
        echoes=(Echo(long, wide, long),) * nodes,
        services=(ServiceEntry(identity, wide, 6, True, long, EPOCH_MAX),) * services,
        releases=tuple(Release(service, identity, nodes) for service in range(services)),
        revision=long,
        staged=long,
        staged_hash=long,
    )
    return HEADER.size + len(msgspec.msgpack.encode(beat)) + TAG_BYTES
