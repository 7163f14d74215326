"""wire: versions 1 and 2 beside each other, and beats of a neighbour in a change of the voters."""

from __future__ import annotations

import msgspec
import pytest

from haclusterd.core.actions import EndCalls, Recover
from haclusterd.core.model import (
    NOBODY_NODE,
    AddressSpec,
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
from haclusterd.core.numbering import UNHEARD_OF, numbering, renumbered
from haclusterd.wire import KIN_MAX, ClusterKey, KeyRing, Outcome, Wire, wire_state_in

TIMING = Timing(25_000, 100_000, 40_000, 150_000, 10_000, 60_000, 15_000, 5_000_000)
RING = KeyRing((ClusterKey(1, bytes(range(32))),))
BOOT = 0xFEDC_BA98_7654_3210


def spec(me: str, ids: str, revision: int) -> ClusterSpec:
    nodes = tuple(NodeSpec(i, (f"10.1.0.{ord(i)}",)) for i in ids)
    services = (ServiceSpec("east", ()), ServiceSpec("west", ()))
    hashed = sum(ord(i) * 7**n for n, i in enumerate(ids)) * 100 + revision
    return ClusterSpec(
        "voice1", ids.index(me), nodes, services, TIMING, config_hash=hashed, revision=revision
    )


def beat(of: ClusterSpec, seq: int = 1, owner: str = "c") -> Beat:
    ids = [n.id for n in of.nodes]
    identity = Identity(7, ids.index(owner), 5)
    return Beat(
        of.me, 0, BOOT, seq, 1, False, of.config_hash, 2, 128, 100, 0, 0,
        tuple(Echo(n + 1, n, 0) for n in range(len(ids))),
        (ServiceEntry(identity, 3, 0, True, 2, 6), ServiceEntry(identity, 3, 0, True, 2, 6)),
        (Release(1, identity, of.me),),
        of.revision, of.revision + 1, 99,
    )  # fmt: skip


def test_version_1_is_sealed_until_told_otherwise_and_says_nothing_new() -> None:
    mine, theirs = spec("a", "abc", 1), spec("b", "abc", 1)
    alice, bob = Wire(mine, RING, BOOT), Wire(theirs, RING, 1)
    datagram = alice.seal(beat(mine))
    opened = bob.open(datagram, 0, "10.1.0.97")
    assert datagram[2] == 1
    assert isinstance(opened, Beat)
    assert (opened.revision, opened.staged, opened.staged_hash) == (1, 0, 0)
    alice.version = 2
    datagram = alice.seal(beat(mine, 2))
    assert datagram[2] == 2
    assert bob.open(datagram, 0, "10.1.0.97") == beat(mine, 2)


def test_version_1_is_byte_for_byte_what_it_was() -> None:
    """The array of 15 fields that nodes of before this version seal and open."""
    mine = spec("a", "abc", 1)
    alice, bob = Wire(mine, RING, BOOT), Wire(spec("b", "abc", 1), RING, 1)
    first = msgspec.structs.astuple(beat(mine))[:15]
    assert len(msgspec.msgpack.encode(first)) + 26 + 16 == len(alice.seal(beat(mine)))
    opened = bob.open(alice.seal(beat(mine, 2)), 0, "10.1.0.97")
    assert isinstance(opened, Beat)
    assert msgspec.structs.astuple(opened)[:15] == msgspec.structs.astuple(beat(mine, 2))[:15]


def test_version_1_that_claims_a_later_set_is_malformed(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = spec("a", "abc", 1)
    alice, bob = Wire(mine, RING, BOOT), Wire(spec("b", "abc", 1), RING, 1)
    monkeypatch.setattr("haclusterd.wire.as_version_1", lambda beat: beat)
    assert bob.open(alice.seal(beat(mine)), 0, "10.1.0.97") is Outcome.MALFORMED


def speaking(of: ClusterSpec) -> Wire:
    wire = Wire(of, RING, BOOT)
    wire.version = 2
    return wire


def test_a_neighbours_numbers_become_ones_own_by_name() -> None:
    """In set 2 node b is gone, so c is number 1 there and 2 here."""
    before, after = spec("a", "abc", 1), spec("c", "ac", 2)
    alice = Wire(before, RING, 1)
    alice.know(after)
    said = alice.open(speaking(after).seal(beat(after)), 0, "10.1.0.99")
    assert isinstance(said, Beat)
    assert said.sender == 2
    assert said.services[0].promise == Identity(7, 2, 5)
    assert said.releases == (Release(1, Identity(7, 2, 5), 2),)
    assert said.echoes == (Echo(1, 0, 0), None, Echo(2, 1, 0))
    assert said.config_hash == after.config_hash


def test_version_1_of_a_neighbour_that_counts_otherwise_is_read_too() -> None:
    """Node c has just started with set 1 and seals version 1 for seconds; it is number 1 by now."""
    before, after = spec("c", "abc", 1), spec("a", "ac", 2)
    alice = Wire(after, RING, 1)
    datagram = Wire(before, RING, BOOT).seal(beat(before))
    assert alice.open(datagram, 0, "10.1.0.99") is Outcome.OTHER_CONFIG, "set 1 is not known"
    alice = Wire(after, RING, 1)
    alice.know(before)
    said = alice.open(datagram, 0, "10.1.0.99")
    assert isinstance(said, Beat)
    assert (said.sender, said.services[0].promise) == (1, Identity(7, 1, 5))


def test_an_identity_of_a_removed_node_keeps_its_epoch_and_is_not_nobody() -> None:
    before, after = spec("a", "abc", 1), spec("c", "ac", 2)
    carol = Wire(after, RING, 1)
    carol.know(before)
    said = carol.open(speaking(before).seal(beat(before, owner="b")), 0, "10.1.0.97")
    assert isinstance(said, Beat)
    assert said.services[0].promise == Identity(7, NOBODY_NODE, 5)
    assert said.releases[0].identity == Identity(7, NOBODY_NODE, 5)


def test_an_unknown_set_is_not_read_but_overheard() -> None:
    """The same number may be another node there: nothing of it may be taken for one's own."""
    before, later = spec("a", "abc", 1), spec("c", "cad", 3)
    alice = Wire(before, RING, 1)
    datagram = speaking(later).seal(beat(later))
    assert alice.open(datagram, 0, "10.1.0.99") is Outcome.OTHER_CONFIG
    assert alice.overheard == (3, later.config_hash)
    forged = datagram[:30] + bytes([datagram[30] ^ 1]) + datagram[31:]
    other = Wire(before, RING, 1)
    assert other.open(forged, 0, "10.1.0.99") in (Outcome.FOREIGN, Outcome.BAD_MAC)
    assert other.overheard == (0, 0)


def test_a_later_set_is_overheard_also_from_who_came_with_the_one_between() -> None:
    """Node a has agreed to set 2, which adds c; c and b have gone on to set 3, and b is dead."""
    before, between, later = spec("a", "ab", 1), spec("a", "abc", 2), spec("c", "ac", 3)
    datagram = speaking(later).seal(beat(later))
    alice = Wire(before, RING, 1)
    assert alice.open(datagram, 0, "10.1.0.99") is Outcome.FOREIGN
    assert alice.overheard == (0, 0), "nothing is known of c"
    alice.know(between)
    forged = datagram[:-1] + bytes([datagram[-1] ^ 1])
    unknown = Wire(later, KeyRing((ClusterKey(9, bytes(32)),)), BOOT)
    unknown.version = 2
    for other in (forged, unknown.seal(beat(later)), speaking(before).seal(beat(before, 1, "a"))):
        assert alice.open(other, 0, "10.1.0.99") is Outcome.FOREIGN
    assert alice.overheard == (0, 0)
    assert alice.open(datagram, 0, "10.1.0.99") is Outcome.FOREIGN
    assert alice.overheard == (3, later.config_hash)


@pytest.mark.parametrize("other", ["times", "addresses"])
def test_f39_what_a_neighbour_says_of_a_service_counts_if_it_is_the_same_one(other: str) -> None:
    """Of one with other times a lease may last for longer than this node waits."""
    before, after = spec("c", "abc", 1), spec("a", "abcd", 2)
    theirs = before
    if other == "times":
        timing = msgspec.structs.replace(before.timing, lease_us=before.timing.lease_us + 1)
        theirs = msgspec.structs.replace(before, timing=timing)
    else:
        moved = ServiceSpec("east", (AddressSpec("203.0.113.77", 24, "eth0"),))
        theirs = msgspec.structs.replace(before, services=(moved, before.services[1]))
    said = beat(theirs)
    for known, heard in ((before, said.services[0]), (theirs, UNHEARD_OF)):
        alice = Wire(after, RING, 1)
        alice.know(known)
        read = alice.open(speaking(before).seal(said), 0, "10.1.0.99")
        assert isinstance(read, Beat)
        assert (read.sender, read.revision) == (2, 1)
        assert read.services[0] == heard


def test_of_who_was_removed_nothing_is_overheard() -> None:
    before, after = spec("b", "abc", 2), spec("a", "ac", 3)
    alice = Wire(after, RING, 1)
    alice.know(before)
    assert alice.open(speaking(before).seal(beat(before)), 0, "10.1.0.98") is Outcome.FOREIGN
    assert alice.overheard == (0, 0)


def test_addresses_of_strangers_are_bounded() -> None:
    alice = Wire(spec("a", "ab", 1), RING, 1)
    for n in range(60):
        alice.know(spec("a", "ab" + chr(ord("c") + n), 2 + n))
    assert max(map(len, alice._strangers)) == 32


def test_another_file_of_the_same_revision_is_read_if_it_counts_alike() -> None:
    mine = spec("a", "abc", 1)
    theirs = msgspec.structs.replace(spec("c", "abc", 1), config_hash=123)
    alice = Wire(mine, RING, 1)
    assert isinstance(alice.open(speaking(theirs).seal(beat(theirs)), 0, "10.1.0.99"), Beat)
    turned = msgspec.structs.replace(spec("c", "cab", 1), config_hash=124)
    assert alice.open(speaking(turned).seal(beat(turned, 2)), 0, "10.1.0.99") is Outcome.FOREIGN


def test_windows_go_along_by_name_when_a_set_is_taken_up() -> None:
    before, after = spec("a", "abc", 1), spec("a", "acd", 2)
    carol = spec("c", "abc", 1)
    alice = Wire(before, RING, 1)
    alice.peer_current(2, BOOT)
    datagram = speaking(carol).seal(beat(carol))
    assert isinstance(alice.open(datagram, 0, "10.1.0.99"), Beat)
    new = Wire(after, RING, 1)
    new.know(before)
    new.import_state(wire_state_in(alice.export_state(), numbering(before, after), after.links))
    assert new.open(datagram, 0, "10.1.0.99") is Outcome.REPLAY


def test_a_word_of_a_node_that_is_none_here_is_not_read() -> None:
    before, after = spec("a", "abc", 1), spec("d", "abcd", 2)
    assert renumbered(beat(after), numbering(after, before)) is None
    alice = Wire(before, RING, 1)
    alice.know(after)
    impostor = msgspec.structs.replace(after, nodes=(*after.nodes[:3], NodeSpec("c", ("x",))))
    datagram = speaking(impostor).seal(beat(impostor))
    assert alice.open(datagram, 0, "10.1.0.99") is Outcome.OTHER_CONFIG


def test_few_neighbours_are_known_and_oneself_is_none() -> None:
    alice = Wire(spec("a", "abc", 1), RING, 1)
    alice.know(spec("b", "abc", 1))
    assert alice._kin == {}
    for revision in range(2, 9):
        alice.know(spec("b", "abcd", revision))
    assert len(alice._kin) == KIN_MAX
    later = spec("b", "abcd", 8)
    assert isinstance(alice.open(speaking(later).seal(beat(later)), 0, "10.1.0.98"), Beat)


def test_what_an_agent_was_told_in_the_numbers_of_the_next_set() -> None:
    by = numbering(spec("c", "abc", 1), spec("c", "bc", 2))
    told = by.order(Recover(1, Identity(7, 2, 5), 0, "a is silent", {"dead": 3}))
    assert told == Recover(1, Identity(7, 1, 5), -1, "a is silent", {"dead": 3})
    assert by.order(EndCalls(0, Identity(8, 1, 6))) == EndCalls(0, Identity(8, 0, 6))
