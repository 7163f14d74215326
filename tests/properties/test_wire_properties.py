"""wire under arbitrary bytes and beats: round trip, garbage, truncation, bit flips, reordering."""

from __future__ import annotations

import hypothesis.strategies as st
from hypothesis import given, settings

from haclusterd.core.model import (
    Beat,
    ClusterSpec,
    Echo,
    Identity,
    NodeSpec,
    Release,
    ServiceEntry,
    ServiceSpec,
    Timing,
)
from haclusterd.datagram import BEAT_BYTES_MAX, beat_bytes_bound
from haclusterd.replay import REPLAY_WINDOW, Window
from haclusterd.wire import ClusterKey, KeyRing, Outcome, Wire

NODES, SERVICES = 3, 2
RING = KeyRing((ClusterKey(1, bytes(range(32))),))
SOURCE = "10.1.0.1"


def spec(me: int) -> ClusterSpec:
    return ClusterSpec(
        name="voice1",
        me=me,
        nodes=tuple(NodeSpec(f"fs-{n}", (f"10.1.0.{n + 1}",)) for n in range(NODES)),
        services=tuple(ServiceSpec(f"s{n}", ()) for n in range(SERVICES)),
        timing=Timing(25_000, 100_000, 40_000, 150_000, 10_000, 60_000, 15_000, 5_000_000),
    )


flags, u32, u64 = (st.integers(0, 2**bits - 1) for bits in (6, 32, 64))
node = st.integers(-1, NODES - 1)
identity = st.builds(Identity, u32, node, u64)
entry = st.builds(ServiceEntry, identity, u64, st.integers(0, 6), st.booleans(), u32)
beats = st.builds(
    Beat,
    sender=st.just(0),
    link=st.just(0),
    incarnation=u64,
    seq=u64,
    number=u64,
    reply=st.booleans(),
    config_hash=u32,
    rank_hash=u32,
    flags=flags,
    health=st.integers(0, 100),
    load=st.integers(0, 10),
    calls=u32,
    echoes=st.tuples(*[st.none() | st.builds(Echo, u32, u64, u32)] * NODES),
    services=st.tuples(*[entry] * SERVICES),
    releases=st.lists(
        st.builds(Release, st.integers(0, SERVICES - 1), identity, node), max_size=SERVICES
    ).map(tuple),
)


def sealed(beat: Beat) -> bytes:
    return Wire(spec(0), RING, beat.incarnation).seal(beat)


def opener() -> Wire:
    return Wire(spec(1), RING, 5)


@given(beats)
def test_round_trip_within_the_bound(beat: Beat) -> None:
    datagram = sealed(beat)
    assert len(datagram) <= beat_bytes_bound(NODES, SERVICES) <= BEAT_BYTES_MAX
    assert opener().open(datagram, 0, SOURCE) == beat


@given(st.binary(max_size=BEAT_BYTES_MAX + 50))
def test_garbage_is_an_outcome(data: bytes) -> None:
    wire = opener()
    outcome = wire.open(data, 0, SOURCE)
    assert isinstance(outcome, Outcome)
    assert outcome is not Outcome.OK
    assert sum(wire.counters[0].values()) == wire.counters[0][outcome] == 1


@given(beats, st.data())
def test_every_truncation_is_refused(beat: Beat, data: st.DataObject) -> None:
    datagram = sealed(beat)
    cut = data.draw(st.integers(0, len(datagram) - 1))
    outcome = opener().open(datagram[:cut], 0, SOURCE)
    assert outcome in (Outcome.MALFORMED, Outcome.BAD_MAC)


@given(beats, st.data())
@settings(max_examples=300)
def test_every_bit_flip_is_refused_and_forgotten(beat: Beat, data: st.DataObject) -> None:
    datagram = sealed(beat)
    bit = data.draw(st.integers(0, len(datagram) * 8 - 1))
    flipped = bytearray(datagram)
    flipped[bit // 8] ^= 1 << bit % 8
    wire = opener()
    assert isinstance(wire.open(bytes(flipped), 0, SOURCE), Outcome)
    assert wire.open(datagram, 0, SOURCE) == beat


@given(beats, st.binary(max_size=300))
def test_authentic_garbage_is_an_outcome(beat: Beat, body: bytes) -> None:
    """A key holder's broken body: sealed with the right key, yet no beat."""
    sender = Wire(spec(0), RING, beat.incarnation)
    header = sealed(beat)[:26]
    cipher = sender._seal_cipher
    nonce = b"\0\0\0" + header[9:10] + header[18:]
    datagram = header + cipher.encrypt(nonce, body, sender._cluster_id + header)
    assert isinstance(opener().open(datagram, 0, SOURCE), Outcome)


@given(st.lists(st.integers(0, 3 * REPLAY_WINDOW), max_size=60))
def test_window_agrees_with_a_set(seqs: list[int]) -> None:
    """Against the plain definition: seen before, or so far back that it cannot be told."""
    window, seen = Window(), set[int]()
    for seq in seqs:
        newest = max(seen, default=-1)
        expected = seq in seen or seq <= newest - REPLAY_WINDOW
        assert window.has(seq) is expected
        if not expected:
            window.add(seq)
            seen.add(seq)
