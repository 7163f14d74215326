"""wire: F35, a beat of another file is read only where its numbers stand for the same here."""

from __future__ import annotations

import msgspec
import pytest

from haclusterd.core.model import (
    AddressSpec,
    Beat,
    ClusterSpec,
    Flag,
    Identity,
    NodeSpec,
    ServiceEntry,
    ServiceSpec,
)
from haclusterd.datagram import FLAGS_MASK, SHAPE_BIT
from haclusterd.wire import Outcome, Wire
from tests.unit.test_wire_versions import BOOT, RING, TIMING

EAST = ServiceSpec("east", (AddressSpec("203.0.113.10", 24, "eth0"),))
WEST = ServiceSpec("west", (AddressSpec("203.0.113.20", 24, "eth0"),))
FLAGS = Flag.FREESWITCH_UP | Flag.AGENT_UP | Flag.READS_2
MINE, OTHER = 0x8000_0001, 0x0000_0002  # shapes


def spec(
    me: str,
    shape: int,
    *,
    config_hash: int = 1,
    ids: str = "abc",
    services: tuple[ServiceSpec, ...] = (EAST, WEST),
    revision: int = 1,
) -> ClusterSpec:
    nodes = tuple(NodeSpec(i, (f"10.1.0.{ord(i)}",)) for i in ids)
    return ClusterSpec(
        "voice1", ids.index(me), nodes, services, TIMING, config_hash=config_hash,
        revision=revision, shape=shape,
    )  # fmt: skip


def beat(of: ClusterSpec, seq: int = 1, flags: int = FLAGS) -> Beat:
    entry = ServiceEntry(Identity(7, of.me, 5), 3, 3, True, 2, 6)
    return Beat(
        of.me, 0, BOOT, seq, 1, False, of.config_hash, 2, flags, 100, 0, 0,
        (None,) * len(of.nodes), (entry,) * len(of.services), (), of.revision,
    )  # fmt: skip


def heard(mine: ClusterSpec, theirs: ClusterSpec, version: int = 2) -> Beat | Outcome:
    """What becomes here of a beat that they seal."""
    sender = Wire(theirs, RING, BOOT)
    sender.version = version
    source = theirs.nodes[theirs.me].links[0]
    return Wire(mine, RING, 1).open(sender.seal(beat(theirs)), 0, source)


@pytest.mark.parametrize("version", [1, 2])
def test_f35_another_file_is_read_by_its_shape_and_by_nothing_else(version: int) -> None:
    mine = spec("a", MINE)
    other = spec("c", OTHER, config_hash=2)
    assert heard(mine, other, version) is Outcome.OTHER_CONFIG
    assert heard(mine, spec("c", MINE, config_hash=2), version) == beat(
        spec("c", MINE, config_hash=2)
    )


@pytest.mark.parametrize(
    ("me", "theirs"), [(0, OTHER), (MINE, 0), (0, 0)], ids=["here", "there", "neither"]
)
@pytest.mark.parametrize("version", [1, 2])
def test_f35_without_two_shapes_as_many_nodes_and_services_will_do(
    me: int, theirs: int, version: int
) -> None:
    """One of the two is of a version of before there were shapes."""
    assert isinstance(heard(spec("a", me), spec("c", theirs, config_hash=2), version), Beat)
    fewer = spec("c", theirs, config_hash=2, services=(EAST,))
    assert heard(spec("a", me), fewer, version) is Outcome.OTHER_CONFIG


@pytest.mark.parametrize("version", [1, 2])
def test_f38_another_file_is_read_if_it_has_the_same_times(version: int) -> None:
    """Where one of the two does not tell its times, it is of an older version."""
    mine = msgspec.structs.replace(spec("a", MINE), times=0x8001)
    for by, read in ((0x8001, True), (0x8002, False), (1, False), (0, True)):
        theirs = msgspec.structs.replace(spec("c", MINE, config_hash=2), times=by)
        assert isinstance(heard(mine, theirs, version), Beat) is read
        assert isinstance(heard(theirs, mine, version), Beat) is (by == 0 or by == 0x8001)
    same = msgspec.structs.replace(spec("c", MINE), times=0x8002)
    assert isinstance(heard(mine, same, version), Beat), "one configuration"


def test_f35_as_many_of_one_shape_is_still_asked() -> None:
    """Of a key holder, or by chance: 32 bits can be equal."""
    fewer = spec("c", MINE, config_hash=2, services=(EAST,))
    assert heard(spec("a", MINE), fewer) is Outcome.OTHER_CONFIG
    turned = spec("c", MINE, config_hash=2, ids="cab")
    assert heard(spec("a", MINE), turned) is Outcome.FOREIGN


def test_f35_who_does_not_know_whether_its_set_is_in_force_is_read_by_its_shape_too() -> None:
    """It says revision 0, whichever its file has: by the counts it was taken for one's own."""
    mine = spec("a", MINE, ids="abd", revision=3)
    theirs = spec("b", OTHER, config_hash=2)
    sender = Wire(theirs, RING, BOOT)
    sender.version = 2
    said = msgspec.structs.replace(beat(theirs), revision=0)
    assert Wire(mine, RING, 1).open(sender.seal(said), 0, "10.1.0.98") is Outcome.OTHER_CONFIG


def test_f35_one_configuration_needs_no_shape() -> None:
    assert isinstance(heard(spec("a", MINE), spec("c", OTHER)), Beat)


def test_f35_a_neighbour_in_a_change_of_voters_is_read_by_its_own_numbers() -> None:
    mine = spec("a", MINE)
    theirs = spec("c", OTHER, config_hash=2, ids="ac", services=(WEST, EAST), revision=2)
    wire = Wire(mine, RING, 1)
    wire.know(theirs)
    sender = Wire(theirs, RING, BOOT)
    sender.version = 2
    said = wire.open(sender.seal(beat(theirs)), 0, "10.1.0.99")
    assert isinstance(said, Beat)
    assert (said.sender, said.flags) == (2, FLAGS)


@pytest.mark.parametrize("version", [1, 2])
def test_f35_the_core_neither_gives_nor_gets_a_shape(version: int) -> None:
    theirs = spec("c", MINE)
    sender = Wire(theirs, RING, BOOT)
    sender.version = version
    given = beat(theirs)
    datagram = sender.seal(given)
    assert given == beat(theirs), "put back"
    got = Wire(spec("a", MINE), RING, 1).open(datagram, 0, "10.1.0.99")
    assert isinstance(got, Beat)
    assert got.flags == FLAGS


def test_f35_a_beat_that_cannot_be_sealed_is_as_it_was() -> None:
    theirs = spec("c", MINE)
    wide = msgspec.structs.replace(beat(theirs), calls=2**64)
    with pytest.raises(OverflowError):
        Wire(theirs, RING, BOOT).seal(wide)
    assert wide.flags == FLAGS


def test_f35_an_older_version_sees_the_flags_that_it_knows() -> None:
    """It takes them bit by bit; all that it does not know is above them."""
    theirs = spec("c", MINE)
    sender = Wire(theirs, RING, BOOT)
    datagram = sender.seal(beat(theirs))
    older = Wire(spec("a", 0), RING, 1)
    seen = msgspec.msgpack.decode(
        older._decrypted(sender._seal_cipher, datagram), type=tuple[object, ...]
    )
    assert seen[8] == FLAGS | MINE << SHAPE_BIT
    assert sum(Flag) <= FLAGS_MASK < 1 << SHAPE_BIT


@pytest.mark.parametrize(
    "flags", [-1, -(2**63), 2**64 - 1, 1 << 48 | FLAGS, OTHER << SHAPE_BIT | 1 << 63]
)
def test_f35_hostile_flags_are_some_flags(flags: int) -> None:
    """A key holder's: the core gets 16 bits whatever they are; of another file by the shape."""
    theirs, other = spec("c", 0), spec("c", 0, config_hash=2)
    mine = Wire(spec("a", MINE), RING, 1)
    sender = Wire(theirs, RING, BOOT)
    got = mine.open(sender.seal(beat(theirs, 1, flags)), 0, "10.1.0.99")
    assert isinstance(got, Beat)
    assert got.flags == flags & FLAGS_MASK
    got = mine.open(sender.seal(beat(other, 2, flags)), 0, "10.1.0.99")
    told = flags >> SHAPE_BIT & 0xFFFFFFFF
    assert isinstance(got, Beat) == (told == 0)
    assert isinstance(got, Beat) or got is Outcome.OTHER_CONFIG


@pytest.mark.parametrize("flags", [0.5, "9", None, [9]])
def test_f35_flags_that_are_no_integer(flags: object) -> None:
    theirs = spec("c", MINE)
    sender = Wire(theirs, RING, BOOT)
    header = sender.seal(beat(theirs))[:26]
    fields = list(msgspec.structs.astuple(beat(theirs)))
    fields[8] = flags
    nonce = b"\0\0\0" + header[9:10] + header[18:]
    body = msgspec.msgpack.encode(fields)
    forged = header + sender._seal_cipher.encrypt(nonce, body, sender._cluster_id + header)
    assert Wire(spec("a", MINE), RING, 1).open(forged, 0, "10.1.0.99") is Outcome.MALFORMED
