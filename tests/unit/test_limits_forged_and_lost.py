"""Limits under callers who forge lines of the dump, and when nodes are lost halfway."""

from __future__ import annotations

import asyncio
import random
import zlib
from collections.abc import Callable

import pytest

from haclusterd.agent import limits as agent_limits
from haclusterd.agent.limits import Limits, Word, packed, unpacked
from haclusterd.freeswitch import limit_proof, limits
from haclusterd.freeswitch.limit_proof import LimitProof
from haclusterd.freeswitch.limits import KEYS_MAX, parse_dump
from haclusterd.sync.codec import PAYLOAD_BYTES_MAX
from tests.fixtures.agent_parts import view
from tests.unit import test_limits
from tests.unit.sync_cluster import until
from tests.unit.test_limits import Node, StubEsl, StubMesh, free_port, others

node = test_limits.node


async def test_b12_a_forged_line_is_not_granted_because_other_nodes_count_as_much(
    node: Node,
) -> None:
    """`limit_usage` answers with the remotes' counts as well (mod_hash.c)."""
    await node.mesh.hear("fs-a", "core-a", {"out_gw": 50}, "east")
    assert node.heard() == {"out_gw": 50}
    node.esl.own = {"in_x": 1}
    node.esl.dump = "L/in_x/1/0/0/0\nL/out_gw/50/0/0/0\n"
    await until(lambda: any(w.counts for _, w in node.mesh.told))
    assert {tuple(w.counts.items()) for _, w in node.mesh.told if w.counts} == {(("in_x", 1),)}
    node.esl.own = {"in_x": 1, "out_gw": 3}
    node.esl.dump = "L/in_x/1/0/0/0\nL/out_gw/3/0/0/0\nL/out_gw/60/0/0/0\n"
    await until(lambda: any(w.counts.get("out_gw") for _, w in node.mesh.told))
    assert node.mesh.told[-1][1].counts == {"in_x": 1, "out_gw": 3}


def test_b12_a_forged_line_lowers_no_count() -> None:
    assert parse_dump("L/a_b/7/0/0/0\nL/a_b/1/0/0/0\nL/a_b/0/0/0/0\n").counts == {"a_b": 7}


def test_b12_keys_of_a_caller_put_none_out_that_is_needed() -> None:
    forged = "".join(f"L/in_{n}/999/0/0/0\n" for n in range(2 * KEYS_MAX))
    dump = f"{forged}L/out_gw/30/0/0/0\nL/out_other/3/0/0/0\nL/out_new/1/0/0/0\n"
    usage = parse_dump(dump, {"out_gw": 30, "out_other": 2, "not_here": 5})
    assert (usage.counts["out_gw"], usage.counts["out_other"]) == (30, 3)
    assert (len(usage.counts), usage.left_out) == (KEYS_MAX, KEYS_MAX + 3)
    assert any("out_new" in parse_dump(dump).counts for _ in range(2000)), "it waits for ever"
    callers = {f"in_{n}": 1 for n in range(2 * KEYS_MAX)}
    assert "out_gw" in parse_dump(dump, {**callers, "out_gw": 30}).counts, "needed most"


def test_b12_a_dump_of_many_keys_is_read_in_part_but_for_those_that_are_needed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(limits, "READ_KEYS_MAX", 10)
    dump = "".join(f"L/in_{n}/1/0/0/0\n" for n in range(20)) + "L/out_gw/30/0/0/0\n"
    assert parse_dump(dump, {"out_gw": 1}) == (
        {f"in_{n}": 1 for n in range(10)} | {"out_gw": 30},
        10,
    )


async def test_b12_a_flood_of_keys_takes_no_confirmed_count_from_the_others(node: Node) -> None:
    node.esl.own = {"out_gw": 30}
    node.esl.dump = "L/out_gw/30/0/0/0\n"
    await until(lambda: any(w.counts == {"out_gw": 30} for _, w in node.mesh.told))
    forged = "".join(f"L/in_{n}/999/0/0/0\n" for n in range(KEYS_MAX + 50))
    node.esl.own = {"out_gw": 31}
    node.esl.dump = f"{forged}L/out_gw/31/0/0/0\n"
    await until(lambda: any(w.counts == {"out_gw": 31} for _, w in node.mesh.told))
    told = [w.counts.get("out_gw", 0) for _, w in node.mesh.told]
    assert told == sorted(told), "it was put out for a moment"


class Switch:
    """FreeSWITCH with these numbers of its own and of its remotes."""

    def __init__(self, own: int, remote: int) -> None:
        self.own, self.remote, self.asked = own, remote, 0
        self.meanwhile: Callable[[], None] = lambda: None

    async def api(self, line: str) -> str:
        self.asked += 1
        self.meanwhile()
        return str(self.own + self.remote)


async def test_b12_what_was_confirmed_holds_while_the_others_change(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """mod_hash has one answer or the one before: neither a dip nor a forged count comes of it."""
    proof, switch = LimitProof(), Switch(10, 5)

    async def granted(claimed: int) -> int:
        usage = parse_dump(f"L/a_b/{claimed}/0/0/0\n")
        return (await proof.proven(switch, usage)).counts.get("a_b", 0)  # type: ignore[arg-type]

    proof.told({"a_b": 5})
    assert await granted(10) == 10
    switch.meanwhile = lambda: proof.told({"a_b": 20})  # perhaps not taken in yet
    assert await granted(11) == 10
    switch.own = 0
    assert await granted(12) == 0, "5 or 20 of the others: none of it is sure to be its own"
    switch.meanwhile = lambda: None
    switch.own, switch.remote = 13, 20
    assert await granted(13) == 13
    monkeypatch.setattr(limit_proof, "SILENT_S", -1.0)
    switch.own, switch.remote = 14, 0
    assert await granted(14) == 14, "mod_hash does not ask any more, so it adds nothing"


async def test_b12_a_call_is_confirmed_at_once_though_the_others_have_just_changed() -> None:
    """Else nobody hears of it for a second, and the cluster lets in one too many."""
    proof, switch = LimitProof(), Switch(1, 1)
    proof.told({"a_b": 2})
    proof.told({"a_b": 1})
    usage = parse_dump("L/a_b/1/0/0/0\n")
    assert (await proof.proven(switch, usage)).counts == {"a_b": 1}  # type: ignore[arg-type]


async def test_b12_what_is_not_sure_is_asked_for_again_at_once() -> None:
    proof, switch = LimitProof(), Switch(1, 2)
    proof.told({"a_b": 2})
    switch.meanwhile = lambda: proof.told({"a_b": 3})
    usage = parse_dump("L/a_b/1/0/0/0\n")
    assert (await proof.proven(switch, usage)).counts == {}  # type: ignore[arg-type]
    switch.meanwhile, switch.remote = lambda: None, 3
    await asyncio.sleep(2 * limit_proof.TAKEN_IN_S)
    assert (await proof.proven(switch, usage)).counts == {"a_b": 1}  # type: ignore[arg-type]


async def test_b12_what_was_confirmed_is_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limit_proof, "CONFIRM_S", 0.02)
    proof, switch = LimitProof(), Switch(10, 0)
    usage = parse_dump("L/a_b/10/0/0/0\n")
    assert (await proof.proven(switch, usage)).counts == {"a_b": 10}  # type: ignore[arg-type]
    switch.own = 4  # and a forged line keeps on saying 10
    await asyncio.sleep(0.03)
    assert (await proof.proven(switch, usage)).counts == {"a_b": 4}  # type: ignore[arg-type]


async def test_b12_a_new_agent_without_a_freeswitch_takes_back_what_the_old_one_said(
    node: Node,
) -> None:
    """FreeSWITCH and agent of a node died together; heart lives, and another node has the calls."""
    mesh, esl = StubMesh(), StubEsl(up=False)
    new = Limits("fs-a", ["fs-a", "fs-c"], mesh, lambda service: "")
    await new.start(lambda **_: esl, free_port(), "secret")
    await asyncio.sleep(0.05)
    new._told.set()
    await asyncio.sleep(0.05)
    assert mesh.told == [], "heart has not said yet whose the services are"
    new.observe(view({"east": ("fs-c", 2), "west": ("fs-b", 1)}, me="fs-a"))
    new._told.set()
    await until(lambda: ("fs-c", Word("", {}, [])) in mesh.told)
    await new.stop()

    await node.mesh.hear("fs-a", "core-a", {"out_gw1": 2}, "east")
    node.limits.observe(view({"east": ("fs-c", 2), "west": ("fs-b", 1)}, me="fs-c"))
    await node.mesh.hear("fs-a", "", {})
    assert node.heard() == {"out_gw1": 2}
    node.esl.dump = "L/out_gw1/2/0/0/0\n"
    await until(lambda: node.heard() == {})


async def test_b12_a_node_that_lives_and_tells_nothing_is_not_counted_twice(node: Node) -> None:
    await node.mesh.hear("fs-a", "core-a", {"out_gw1": 2}, "east")
    await node.mesh.hear("fs-b", "core-b", {"out_gw1": 1}, "west")
    for entry in node.limits._entries.values():
        entry.heard_at -= agent_limits.SILENT_S + 1
    node.limits._forget_counted()
    assert node.heard() == {"out_gw1": 3}, "nobody else counts their calls"
    node.limits.observe(view({"east": ("fs-b", 2), "west": ("fs-b", 1)}, me="fs-c"))
    await node.mesh.hear("fs-b", "core-b", {"out_gw1": 3}, "east", "west")
    assert node.heard() == {"out_gw1": 3}, "those of A are counted at B"


async def test_b12_an_owner_that_is_lost_before_it_counted_is_not_forgotten_at_once(
    node: Node,
) -> None:
    """Its counts hold until the next owner has counted, although it had told none as its own."""
    node.limits.observe(view({"east": ("fs-a", 2), "west": ("fs-b", 1)}, me="fs-c"))
    await node.mesh.hear("fs-a", "core-a", {"out_gw1": 2})
    node.limits.observe(others(west="fs-b", east="fs-b"))
    await node.mesh.hear("fs-b", "core-b", {}, "west")
    assert node.heard() == {"out_gw1": 2}
    await node.mesh.hear("fs-b", "core-b", {"out_gw1": 2}, "east", "west")
    assert node.heard() == {"out_gw1": 2}, "counted at B now, and not twice"


async def test_b12_after_a_switchover_the_former_owners_counts_go_with_its_freeswitch(
    node: Node,
) -> None:
    await node.mesh.hear("fs-a", "core-a", {"out_gw1": 2}, "east")
    node.limits.observe(view({"east": ("fs-b", 2), "west": ("fs-b", 1)}, me="fs-c"))
    await node.mesh.hear("fs-a", "core-a", {"out_gw1": 2})
    await node.mesh.hear("fs-b", "core-b", {"out_gw1": 2}, "east", "west")
    await node.mesh.hear("fs-a", "core-a2", {})
    assert node.heard() == {"out_gw1": 2}


async def test_b12_many_long_keys_are_told_and_what_is_too_much_is_counted(node: Node) -> None:
    """All of them were kept from the others, and nothing said so."""
    chance = random.Random(7)
    signs = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.@+:*#-"
    plain = {f"in_{n:0120d}": 1 for n in range(KEYS_MAX)}
    odd = {"in_" + "".join(chance.choices(signs, k=125)): 1 for _ in range(KEYS_MAX - 1)}
    for counts in (plain, {**odd, "out_trunk": 40}):
        payload, cut = packed(Word("core-c", counts, ["east"]))
        assert len(payload) <= PAYLOAD_BYTES_MAX
        assert cut == len(counts) - len(unpacked(payload).counts)
    assert unpacked(packed(Word("core-c", plain, []))[0]).counts == plain
    assert 0 < cut < KEYS_MAX / 2
    assert unpacked(payload).counts["out_trunk"] == 40, "what most calls are in goes first"
    node.esl.own = {**odd, "out_trunk": 40}
    node.esl.dump = "".join(f"L/{key}/{n}/0/0/0\n" for key, n in node.esl.own.items())
    await until(lambda: any(w.counts for _, w in node.mesh.told))
    assert node.limits.counters()["limits_left_out"] == cut


def test_s_counts_that_unpack_to_too_much_are_refused() -> None:
    small = Word("core-a", {"a_b": 1}, ["east"])
    assert unpacked(packed(small)[0]) == unpacked(zlib.compress(packed(small)[0])) == small
    for hostile in (zlib.compress(b"\0" * (8 << 20)), zlib.compress(b"\xc1"), b"x", b"xyz", b""):
        with pytest.raises(ValueError, match="counts"):
            unpacked(hostile)


async def test_b12_own_counts_hold_when_mod_hash_has_gone(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its connection ended, as by a `reload mod_hash`: what the others count is in no answer."""
    monkeypatch.setattr(limit_proof, "TAKEN_IN_S", 0.0)
    server = node.limits.server
    assert server is not None
    await until(lambda: server._server is not None)
    await node.mesh.hear("fs-a", "core-a", {"out_gw": 50}, "east")
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    await reader.readuntil(b"\n\n")
    writer.write(b"auth secret\n\napi hash_dump limit\n\n")
    await reader.readuntil(b"L/out_gw/50")
    writer.close()
    await until(lambda: not server.clients)
    node.esl.dump = "L/out_gw/3/0/0/0\n"
    await until(lambda: any(w.counts for _, w in node.mesh.told))
    assert node.mesh.told[-1][1].counts == {"out_gw": 3}
