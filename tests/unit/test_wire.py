"""wire: what is opened, what is refused and why, and that refusing changes nothing but counters."""

from __future__ import annotations

import msgspec
import pytest

from haclusterd.core.model import (
    EPOCH_MAX,
    NOBODY,
    Beat,
    ClusterSpec,
    Echo,
    Flag,
    Identity,
    NodeSpec,
    Release,
    ServiceEntry,
    ServiceSpec,
    Timing,
)
from haclusterd.datagram import BEAT_BYTES_MAX, beat_bytes_bound
from haclusterd.replay import CANDIDATES_MAX, REPLAY_WINDOW, Window
from haclusterd.wire import ClusterKey, KeyRing, Outcome, Wire

KEY_1 = ClusterKey(1, bytes(range(32)))
KEY_2 = ClusterKey(2, bytes(range(1, 33)))
TIMING = Timing(25_000, 100_000, 40_000, 150_000, 10_000, 60_000, 15_000, 5_000_000)
ALICE, BOB, CAROL = 0, 1, 2
BOOT = 0xFEDC_BA98_7654_3210


def spec(me: int, *, name: str = "voice1", services: int = 2, nodes: int = 3) -> ClusterSpec:
    return ClusterSpec(
        name=name,
        me=me,
        nodes=tuple(
            NodeSpec(f"fs-{n}", (f"10.1.0.{n + 1}", f"fd00:2::{n + 1}")) for n in range(nodes)
        ),
        services=tuple(ServiceSpec(f"s{n}", ()) for n in range(services)),
        timing=TIMING,
    )


def address(node: int, link: int = 0) -> str:
    return spec(0).nodes[node].links[link]


def beat(seq: int = 1, *, link: int = 0, sender: int = ALICE, incarnation: int = BOOT) -> Beat:
    owner = Identity(7, ALICE, 2**63 + 5)
    return Beat(
        sender=sender,
        link=link,
        incarnation=incarnation,
        seq=seq,
        number=seq,
        reply=False,
        config_hash=1,
        rank_hash=2,
        flags=9,
        health=100,
        load=1,
        calls=20,
        echoes=(None, Echo(5, 6, 7), None),
        services=(ServiceEntry(owner, 4, 3, True, 20), ServiceEntry(NOBODY, 0, 0, False, 0)),
        releases=(Release(1, owner, -1),),
    )


def wire(me: int, *keys: ClusterKey, incarnation: int = BOOT, name: str = "voice1") -> Wire:
    return Wire(spec(me, name=name), KeyRing(keys or (KEY_1,)), incarnation)


@pytest.fixture
def alice() -> Wire:
    return wire(ALICE)


@pytest.fixture
def bob() -> Wire:
    return wire(BOB, incarnation=99)


@pytest.mark.parametrize("link", [0, 1])
def test_one_ciphertext_serves_all_peers(alice: Wire, bob: Wire, link: int) -> None:
    datagram = alice.seal(beat(link=link))
    for peer in (bob, wire(CAROL, incarnation=3)):
        assert peer.open(datagram, link, address(ALICE, link)) == beat(link=link)
        assert sum(link[Outcome.OK] for link in peer.counters) == 1


def test_replayed_once(alice: Wire, bob: Wire) -> None:
    datagram = alice.seal(beat())
    bob.open(datagram, 0, address(ALICE))
    assert bob.open(datagram, 0, address(ALICE)) is Outcome.REPLAY
    assert bob.counters[0][Outcome.REPLAY] == 1


def test_what_a_peers_address_sent_is_told_apart_from_strangers_and_replays() -> None:
    bob = wire(BOB, incarnation=99)
    alice = wire(ALICE, incarnation=BOOT)
    datagram = alice.seal(beat())
    for source in (address(ALICE), address(ALICE), address(CAROL), "192.0.2.1"):
        bob.open(datagram, 0, source)
    bob.open(datagram[:-1] + b"x", 0, address(CAROL))
    heard = bob.heard[0]
    assert (heard[ALICE].readable, heard[ALICE].unreadable) == (1, 0)
    assert (heard[CAROL].readable, heard[CAROL].unreadable) == (0, 2)
    assert heard[CAROL].outcome is Outcome.FOREIGN
    assert bob.heard[1] == bob.heard[1].__class__(type(heard[0])() for _ in range(3))
    assert bob.counters[0][Outcome.REPLAY] == 1
    assert bob.counters[0][Outcome.FOREIGN] == 3
    assert not any(bob.counters[1].values())


def test_reordered_within_the_window_and_too_old(alice: Wire, bob: Wire) -> None:
    datagrams = {seq: alice.seal(beat(seq)) for seq in (1, 2, 3, REPLAY_WINDOW + 2)}
    for seq in (REPLAY_WINDOW + 2, 3):
        assert isinstance(bob.open(datagrams[seq], 0, address(ALICE)), Beat)
    assert bob.open(datagrams[3], 0, address(ALICE)) is Outcome.REPLAY
    assert bob.open(datagrams[2], 0, address(ALICE)) is Outcome.REPLAY


def test_links_have_windows_of_their_own(alice: Wire, bob: Wire) -> None:
    for link in (0, 1):
        datagram = alice.seal(beat(link=link))
        assert isinstance(bob.open(datagram, link, address(ALICE, link)), Beat)


@pytest.mark.parametrize(
    ("position", "value", "outcome"),
    [
        (0, b"X", Outcome.MALFORMED),
        (2, b"\x02", Outcome.BAD_MAC),  # opened, too; authenticated with the rest
        (2, b"\x03", Outcome.VERSION),
        (3, b"\x09", Outcome.UNKNOWN_KEY),
        (4, b"\0\0\0\0", Outcome.FOREIGN),
        (8, b"\x02", Outcome.FOREIGN),
        (8, b"\xff", Outcome.FOREIGN),
        (9, b"\x01", Outcome.FOREIGN),
        (10, b"\0", Outcome.BAD_MAC),
        (25, b"\x77", Outcome.BAD_MAC),
        (26, b"\0\0", Outcome.BAD_MAC),
    ],
)
def test_changed_bytes(
    alice: Wire, bob: Wire, position: int, value: bytes, outcome: Outcome
) -> None:
    datagram = alice.seal(beat())
    forged = datagram[:position] + value + datagram[position + len(value) :]
    assert forged != datagram
    assert bob.open(forged, 0, address(ALICE)) is outcome
    assert sum(link[outcome] for link in bob.counters) == 1
    # Nothing was learnt from it: the real one is still welcome.
    assert bob.open(datagram, 0, address(ALICE)) == beat()


def test_from_the_wrong_place(alice: Wire, bob: Wire) -> None:
    datagram = alice.seal(beat())
    assert bob.open(datagram, 0, address(CAROL)) is Outcome.FOREIGN
    assert bob.open(datagram, 0, "192.0.2.1") is Outcome.FOREIGN
    assert bob.open(datagram, 1, address(ALICE, 1)) is Outcome.FOREIGN


def test_ones_own_beat_reflected(alice: Wire) -> None:
    assert alice.open(alice.seal(beat()), 0, address(ALICE)) is Outcome.FOREIGN


def test_another_cluster_with_the_same_key(bob: Wire) -> None:
    other = wire(ALICE, name="voice2")
    datagram = other.seal(beat())
    assert bob.open(datagram, 0, address(ALICE)) is Outcome.FOREIGN
    # Even with our tag in clear: the cluster id is authenticated and in the derived key.
    ours = wire(ALICE).seal(beat())
    forged = datagram[:4] + ours[4:8] + datagram[8:]
    assert bob.open(forged, 0, address(ALICE)) is Outcome.BAD_MAC


def test_another_key_under_the_same_id(bob: Wire) -> None:
    thief = wire(ALICE, ClusterKey(1, b"x" * 32))
    assert bob.open(thief.seal(beat()), 0, address(ALICE)) is Outcome.BAD_MAC


@pytest.mark.parametrize("size", [0, 1, 26, 42])
def test_too_short(bob: Wire, size: int) -> None:
    assert bob.open(b"H" * size, 0, address(ALICE)) is Outcome.MALFORMED


def test_too_long(alice: Wire, bob: Wire) -> None:
    datagram = alice.seal(beat()).ljust(BEAT_BYTES_MAX + 1, b"\0")
    assert bob.open(datagram, 0, address(ALICE)) is Outcome.OVERSIZE


@pytest.mark.parametrize(
    "other",
    [
        msgspec.structs.replace(beat(), echoes=()),
        msgspec.structs.replace(beat(), services=beat().services[:1]),
        msgspec.structs.replace(beat(), releases=beat().releases * 3),
        msgspec.structs.replace(beat(), releases=(Release(2, NOBODY, -1),)),
        msgspec.structs.replace(beat(), releases=(Release(-1, NOBODY, -1),)),
        msgspec.structs.replace(beat(), releases=(Release(0, NOBODY, 3),)),
        msgspec.structs.replace(beat(), releases=(Release(0, Identity(1, 3, 1), 0),)),
        msgspec.structs.replace(
            beat(), services=(ServiceEntry(Identity(1, 3, 1), 0, 0, True, 0),) * 2
        ),
    ],
)
def test_authentic_but_numbered_otherwise(alice: Wire, bob: Wire, other: Beat) -> None:
    """A node with another configuration: counted, and no index of it reaches the core."""
    assert bob.open(alice.seal(other), 0, address(ALICE)) is Outcome.OTHER_CONFIG


def sealed_as(alice: Wire, body: bytes) -> bytes:
    """What a key holder sends whose beat is `body`, under the header of `beat()`."""
    header = alice.seal(beat())[:26]
    nonce = b"\0\0\0" + header[9:10] + header[18:]
    return header + alice._seal_cipher.encrypt(nonce, body, alice._cluster_id + header)


def test_authentic_but_no_beat(alice: Wire, bob: Wire) -> None:
    assert bob.open(sealed_as(alice, b"\xc1"), 0, address(ALICE)) is Outcome.MALFORMED


def test_authentic_but_not_what_its_header_says(alice: Wire, bob: Wire) -> None:
    another = msgspec.msgpack.encode(beat(seq=2))
    assert bob.open(sealed_as(alice, another), 0, address(ALICE)) is Outcome.MALFORMED


def test_a_beat_without_releases(alice: Wire, bob: Wire) -> None:
    plain = msgspec.structs.replace(beat(), releases=())
    assert bob.open(alice.seal(plain), 0, address(ALICE)) == plain


def test_a_beat_that_does_not_fit_is_not_sealed(alice: Wire) -> None:
    wide = msgspec.structs.replace(beat(), services=beat().services * 50)
    with pytest.raises(ValueError, match=f"larger than {BEAT_BYTES_MAX}"):
        alice.seal(wide)
    assert alice.seal(beat()), "its number was not used up"


def test_rotation_without_a_gap(bob: Wire) -> None:
    """Add the new key everywhere, put it first everywhere, drop the old one everywhere."""
    alice = wire(ALICE, KEY_1)
    seq = 0
    for bobs, alices in (
        ((KEY_1, KEY_2), (KEY_1,)),
        ((KEY_1, KEY_2), (KEY_2, KEY_1)),
        ((KEY_2,), (KEY_2, KEY_1)),
        ((KEY_2,), (KEY_2,)),
    ):
        bob.set_keys(KeyRing(bobs))
        alice.set_keys(KeyRing(alices))
        seq += 1
        datagram = alice.seal(beat(seq))
        assert bob.open(datagram, 0, address(ALICE)) == beat(seq)
        assert bob.open(datagram, 0, address(ALICE)) is Outcome.REPLAY
    alice.set_keys(KeyRing((KEY_1,)))
    assert bob.open(alice.seal(beat(seq + 1)), 0, address(ALICE)) is Outcome.UNKNOWN_KEY


def test_old_incarnations_cannot_evict_the_current_window(alice: Wire, bob: Wire) -> None:
    recorded = [wire(ALICE, incarnation=n).seal(beat(incarnation=n)) for n in range(50)]
    datagram = alice.seal(beat())
    bob.open(datagram, 0, address(ALICE))
    bob.peer_current(ALICE, BOOT)
    for old in recorded:
        assert isinstance(bob.open(old, 0, address(ALICE)), Beat)
    assert bob.open(datagram, 0, address(ALICE)) is Outcome.REPLAY
    assert len(bob._peers[ALICE].candidates) == CANDIDATES_MAX


def test_a_former_incarnation_keeps_its_windows_and_shuts_nobody_out(
    alice: Wire, bob: Wire
) -> None:
    """A late beat of the former life may prove itself after one of the new life was heard."""
    old = alice.seal(beat())
    assert isinstance(bob.open(old, 0, address(ALICE)), Beat)
    reborn = wire(ALICE, incarnation=4)
    assert isinstance(bob.open(reborn.seal(beat(1, incarnation=4)), 0, address(ALICE)), Beat)
    bob.peer_current(ALICE, BOOT)  # proved late
    assert isinstance(bob.open(reborn.seal(beat(2, incarnation=4)), 0, address(ALICE)), Beat)
    bob.peer_current(ALICE, 4)
    assert bob.open(old, 0, address(ALICE)) is Outcome.REPLAY
    for number in range(100, 200):
        bob.peer_current(ALICE, number)
    assert len(bob._peers[ALICE].candidates) == CANDIDATES_MAX


def test_an_incarnation_proved_twice_keeps_its_windows(alice: Wire, bob: Wire) -> None:
    datagram = alice.seal(beat())
    bob.open(datagram, 0, address(ALICE))
    for _ in range(2):
        bob.peer_current(ALICE, BOOT)
        assert bob.open(datagram, 0, address(ALICE)) is Outcome.REPLAY


def test_forged_incarnations_leave_nothing_behind(alice: Wire, bob: Wire) -> None:
    datagram = alice.seal(beat())
    for number in range(20):
        forged = datagram[:10] + number.to_bytes(8, "big") + datagram[18:]
        assert bob.open(forged, 0, address(ALICE)) is Outcome.BAD_MAC
    assert not bob._peers[ALICE].candidates


def test_a_nonce_is_never_used_twice(alice: Wire) -> None:
    first = alice.seal(beat(5))
    for seq in (5, 4):
        with pytest.raises(ValueError, match="nonce"):
            alice.seal(beat(seq))
    alice.seal(beat(5, link=1))
    alice.set_incarnation(BOOT + 1)
    again = alice.seal(beat(5, incarnation=BOOT + 1))
    assert first[26:] != again[26:]
    with pytest.raises(ValueError, match="not a beat"):
        alice.seal(beat(6))
    with pytest.raises(ValueError, match="not a beat"):
        alice.seal(beat(7, sender=BOB, incarnation=BOOT + 1))


def test_an_upgrade_goes_on_with_the_windows(alice: Wire, bob: Wire) -> None:
    seen = alice.seal(beat(1))
    bob.open(seen, 0, address(ALICE))
    bob.peer_current(ALICE, BOOT)
    bob.seal(beat(8, sender=BOB, incarnation=99))
    handed = msgspec.msgpack.decode(
        msgspec.msgpack.encode(bob.export_state()), type=type(bob.export_state())
    )
    heir = wire(BOB, incarnation=99)
    heir.import_state(handed)
    assert heir.open(seen, 0, address(ALICE)) is Outcome.REPLAY
    assert isinstance(heir.open(alice.seal(beat(2)), 0, address(ALICE)), Beat)
    with pytest.raises(ValueError, match="nonce"):
        heir.seal(beat(8, sender=BOB, incarnation=99))
    with pytest.raises(ValueError, match="another configuration"):
        Wire(spec(BOB, nodes=4), KeyRing((KEY_1,)), 99).import_state(handed)


def test_window_survives_any_leap() -> None:
    window = Window()
    for seq in (0, 3, 2**64 - 1):
        assert not window.has(seq)
        window.add(seq)
        assert window.has(seq)
    assert window.has(5)
    assert window.seen < 1 << REPLAY_WINDOW


def test_the_bound_holds_for_the_widest_beat() -> None:
    nodes, services = 5, 6
    wide, long = 2**64 - 1, 2**32 - 1
    owner = Identity(EPOCH_MAX, 4, wide)
    widest = Beat(
        4, 1, wide, wide, wide, True, long, long, sum(Flag), 100, 10, long,
        (Echo(long, wide, long),) * nodes,
        (ServiceEntry(owner, wide, 6, True, long, EPOCH_MAX),) * services,
        (Release(5, owner, 4),) * services,
        long, long, long,
    )  # fmt: skip
    shaped = msgspec.structs.replace(spec(4, nodes=nodes, services=services), shape=long)
    sender = Wire(shaped, KeyRing((KEY_1,)), wide)
    sender.version = 2
    assert len(sender.seal(widest)) == beat_bytes_bound(nodes, services)


def test_keys_that_are_none() -> None:
    with pytest.raises(ValueError, match="31 bytes"):
        ClusterKey(1, b"x" * 31)
    with pytest.raises(ValueError, match=r"0\.\.255"):
        ClusterKey(256, b"x" * 32)
    with pytest.raises(ValueError, match="at least one"):
        KeyRing(())
    with pytest.raises(ValueError, match="same id"):
        KeyRing((KEY_1, KEY_1))
    assert "secret" not in repr(KEY_1)
    assert KEY_1.secret.hex() not in repr(KeyRing((KEY_1,)))
