"""Calls and registrations are two lanes over one connection, and neither knows of the other."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from haclusterd.core.records import Registration, Tombstone
from haclusterd.sync.codec import Malformed, item_of, record_of, registration_of
from haclusterd.sync.lane import REGISTRATIONS
from tests.unit.sync_cluster import Cluster, call, held, until

EAST = REGISTRATIONS + "east"


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    made = Cluster(tmp_path)
    yield made
    for node in list(made.running):
        await made.kill(node)


def phone(number: int, version: int = 1, agent: str = "") -> Registration:
    contact = f'"" <sip:{number}@10.77.0.21:5090>'
    return Registration(
        EAST, f"key-{number}", version, "east", str(number), "lab.test", contact, f"c-{number}",
        1 << 31, user_agent=agent,
    )  # fmt: skip


async def test_eg8_registrations_reach_every_node_beside_the_calls(cluster: Cluster) -> None:
    a, b, c = [await cluster.start(node) for node in "abc"]
    a.own("east", 1, settled=True)
    a.registrations.own(EAST, 1, settled=False)
    heard: list[tuple[str, list[str] | None]] = []
    c.registrations.on_items = lambda service, uuids: heard.append((service, uuids))
    a.append([call(1)])
    a.registrations.change_log.append([phone(n) for n in range(3)])
    stores = [one.registrations.store for one in (b, c)]
    await until(lambda: all(len(store.items(EAST)) == 3 for store in stores))
    await until(lambda: len(held(b)) == len(held(c)) == 1)
    assert (EAST, ["key-0", "key-1", "key-2"]) in heard
    a.registrations.change_log.append([phone(0, 2), Tombstone(EAST, "key-1", 2, "gone")])
    await until(lambda: all(store.items(EAST)["key-1"].dead for store in stores))
    assert registration_of(stores[0].items(EAST)["key-0"]) == phone(0, 2)
    await until(lambda: a.at_risk() == [])
    assert b.store.services.keys() == {"east"}, "no registration is taken for a call"
    assert b.registrations.store.services.keys() == {EAST}
    a.registrations.change_log.settle(EAST)
    await until(lambda: (EAST, None) in heard[-1:])
    services = {row.service for row in b.status().incoming}
    assert services == {"east", EAST}


async def test_ms17_registrations_changed_in_an_outage_are_there_after_it(
    cluster: Cluster,
) -> None:
    a, b = await cluster.start("a"), await cluster.start("b")
    a.registrations.own(EAST, 1, settled=True)
    log = a.registrations.change_log
    log.append([phone(n) for n in range(100)])
    await until(lambda: len(b.registrations.store.items(EAST)) == 100)
    await cluster.kill("b")
    log.append([phone(n, 2) for n in range(50)])
    log.append([Tombstone(EAST, f"key-{n}", 2) for n in range(50, 60)])
    back = await cluster.start("b")

    def digests() -> set[int]:
        copies = back.registrations.store.services.get(EAST)
        newest = None if copies is None else copies.newest()
        own = log.items(EAST)
        assert own is not None
        return {own.digest(), -1 if newest is None else newest.items.digest()}

    await until(lambda: len(digests()) == 1)
    live = [i for i in back.registrations.store.items(EAST).values() if not i.dead]
    assert (len(live), sum(i.version == 2 for i in live)) == (90, 50)


async def test_a_new_owner_asks_the_others_for_registrations_too(cluster: Cluster) -> None:
    a, b = await cluster.start("a"), await cluster.start("b")
    a.registrations.own(EAST, 1, settled=True)
    a.registrations.change_log.append([phone(1)])
    await until(lambda: len(b.registrations.store.items(EAST)) == 1)
    await cluster.kill("a")
    c = await cluster.start("c")
    await until(lambda: "b" in c.mesh.sessions)
    await c.fetch(EAST, 500)
    assert list(c.registrations.store.items(EAST)) == ["key-1"]
    assert c.store.services.keys() == set()


def test_an_oversize_or_strange_registration_is_no_item() -> None:
    with pytest.raises(Malformed):
        item_of(phone(1, agent="x" * 9000), 1, 1)
    item = item_of(phone(1, agent="x" * 600), 1, 1)
    assert registration_of(item) == phone(1, agent="x" * 600)
    for blob in (b"", b"\x00", b"\x01abc", b"\x00\x93", b"\x00" + b"x" * 9000):
        with pytest.raises(Malformed):
            registration_of(msgspec.structs.replace(item, blob=blob))
    with pytest.raises(Malformed):
        record_of(msgspec.structs.replace(item, blob=b"\x01abc"))
