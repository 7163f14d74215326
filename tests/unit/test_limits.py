"""Limits in the whole cluster: what mod_hash says and hears, and whose counts hold when."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest

from haclusterd.agent.limits import HOLD_S, Limits, Word, unpacked
from haclusterd.core.records import CallRecord
from haclusterd.freeswitch.limit_server import LimitServer
from haclusterd.freeswitch.limits import (
    KEYS_MAX,
    answer,
    checked,
    count_again,
    keys_of,
    parse_dump,
)
from haclusterd.freeswitch.mends import Mends, mend
from haclusterd.sync.codec import PAYLOAD_BYTES_MAX
from haclusterd.sync.rpc import RequestFailed
from tests.fixtures.agent_parts import view
from tests.unit.sync_cluster import until

APPLICATION = '<application app_name="limit" app_data="{}"></application>'


def call(uuid: str = "u-1", variables: str = "", applications: str = "") -> CallRecord:
    xml = (
        f"<cdr core-uuid='c'>\n<variables>\n<recovery_profile_name>east</recovery_profile_name>\n"
        f"{variables}\n</variables>\n<callflow>{applications}</callflow>\n</cdr>"
    )
    return CallRecord("east", uuid, 1, "east", "core-a", xml)


def test_what_mod_hash_dumps_is_read_and_what_could_break_something_is_left_out() -> None:
    dump = (
        "L/outbound_gw1/2/0/0/0\nL/realm1_u1/1/3/60/1795359583\nL/idle_x/0/1/60/17\nD/a_b/value\n"
        "L/a_b/c/1/0/0/0\nL/a b/1/0/0/0\nL/a_';--/1/0/0/0\nL/x_y/-1/0/0/0\nL/a_b/9999999999/0/0/0\n"
        f"L/{'k' * 129}/1/0/0/0\nL/short/1\n\n"
    )
    assert parse_dump(dump) == ({"outbound_gw1": 2, "realm1_u1": 1}, 7)
    for sign in "\x0b\x0c\x1c\x85\u2028\r":
        forged = f"L/in_x{sign}L/cluster_line/999/0/0/0{sign}/1/0/0/0\n"
        assert parse_dump(forged) == ({}, 1)
    many = "".join(f"L/realm_{n}/1/0/0/0\n" for n in range(KEYS_MAX + 5))
    assert (len(parse_dump(many).counts), parse_dump(many).left_out) == (KEYS_MAX, 5)


def test_what_mod_hash_is_told_is_never_empty_and_of_known_form() -> None:
    assert answer({}).startswith("#"), "mod_hash keeps the old counts when the body is empty"
    assert answer({"a_b": 3}).splitlines()[1:] == ["L/a_b/3/0/0/0"]
    assert checked({"a_b": 3, "a/b": 1, "x_y": 0, "z\n_": 1, "q_q": 1 << 40}) == {"a_b": 3}
    assert len(checked({f"realm_{n}": 1 for n in range(KEYS_MAX + 5)})) == KEYS_MAX


def test_a_recovered_call_is_counted_again_under_all_its_limits() -> None:
    variables = (
        "<limit_usage>1</limit_usage>\n<limit_usage_outbound_gw1>1</limit_usage_outbound_gw1>\n"
        "<limit_usage_realm1_u1>2</limit_usage_realm1_u1>\n<limit_usage_a%0Ab>1</limit_usage_a%0Ab>"
    )
    assert keys_of(call(variables=variables)) == ["outbound_gw1", "realm1_u1"]
    assert keys_of(call("u 1; x", variables)) == []
    assert keys_of(call("1-2@10.0.0.1", variables)) == ["outbound_gw1", "realm1_u1"]
    assert count_again("u-1", "outbound_gw1") == "uuid_limit u-1 hash outbound gw1"
    assert count_again("u-1", "a_b_c") == "uuid_limit u-1 hash a b_c", "mod_hash joins them again"


@pytest.mark.parametrize(
    ("data", "mended"),
    [
        ("hash outbound gw1 100", "hash outbound gw1"),
        ("hash outbound gw1 5/60 busy XML public", "hash outbound gw1"),
        ("hash outbound gw1", "hash outbound gw1"),
        ("db outbound gw1 100", "db outbound gw1 100"),
    ],
)
def test_a_call_that_is_recovered_is_not_refused_by_its_own_limit(data: str, mended: str) -> None:
    record = call(applications=APPLICATION.format(data))
    assert APPLICATION.format(mended) in mend(record, Mends()).metadata
    off = Mends(limits=False, cseq=False)
    assert mend(record, off).metadata == record.metadata


def test_a_recovered_call_gives_its_place_back_at_its_end() -> None:
    """FreeSWITCH arranges for that only where limit_backend is not set yet (measured)."""
    record = call(variables="<limit_backend>hash</limit_backend>\n<a>b</a>")
    mended = mend(record, Mends()).metadata
    assert "limit_backend" not in mended
    assert "<a>b</a>" in mended


class Client:
    """mod_hash."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def ask(self, command: str) -> str:
        self.writer.write(f"{command}\n\n".encode())
        return await self.read()

    async def read(self) -> str:
        head = (await self.reader.readuntil(b"\n\n")).decode()
        length = head.partition("Content-Length: ")[2].partition("\n")[0]
        body = await self.reader.readexactly(int(length)) if length else b""
        return body.decode() or head


async def connect(port: int) -> Client:
    client = Client(*await asyncio.open_connection("127.0.0.1", port))
    assert "auth/request" in await client.read()
    return client


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def test_the_server_answers_mod_hash_and_nobody_else() -> None:
    server = LimitServer(free_port(), "secret", lambda: answer({"a_b": 3}).encode())
    assert await server.start()
    client = await connect(server.port)
    assert "+OK accepted" in await client.ask("auth secret")
    assert (await client.ask("api hash_dump limit")).splitlines()[-1] == "L/a_b/3/0/0/0"
    assert "-ERR" in await client.ask("api status")
    stranger = await connect(server.port)
    assert "-ERR invalid" in await stranger.ask("auth guess")
    assert await stranger.reader.read() == b""
    flood = await connect(server.port)
    flood.writer.write(b"x" * 100_000)
    assert await flood.reader.read() == b""
    crowd = [await connect(server.port) for _ in range(7)]
    _, late = await asyncio.open_connection("127.0.0.1", server.port)
    await until(lambda: len(server.clients) == 8)
    assert (await client.ask("api hash_dump limit")).startswith("#"), "the others do not matter"
    other = LimitServer(server.port, "secret", lambda: b"")
    assert not await other.start()
    assert "limits_port" in other.problem
    for one in (client, *crowd):
        one.writer.close()
    late.close()
    await server.stop()


@dataclass
class StubMesh:
    told: list[tuple[str, Word]] = field(default_factory=list)
    records: list[CallRecord] = field(default_factory=list)
    answer: Any = None

    async def request(self, node: str, method: str, payload: bytes, timeout_ms: int) -> bytes:
        if len(payload) > PAYLOAD_BYTES_MAX:
            raise RequestFailed("request too large")
        self.told.append((node, unpacked(payload)))
        return b""

    def register(self, method: str, answer: Any) -> None:
        self.answer = answer

    def own_records(self, service: str) -> list[CallRecord]:
        return self.records

    async def hear(self, node: str, core: str, counts: dict[str, int], *services: str) -> None:
        word = Word(core, counts, list(services))
        await self.answer(node, msgspec.msgpack.encode(word))


@dataclass
class StubEsl:
    dump: str = ""
    core: str = "core-c"
    commands: list[str] = field(default_factory=list)
    up: bool = True
    problem: str = ""
    forged: str = ""  # a key that is in the dump and nowhere else
    remote: dict[str, int] = field(default_factory=dict)  # what it was told of the others
    own: dict[str, int] | None = None  # what it counts, where the dump says something else

    async def start(self) -> None: ...
    async def stop(self) -> None: ...
    async def wait_up(self, timeout_ms: int) -> None: ...

    async def sendevent(self, name: str, headers: Mapping[str, str], body: str = "") -> str:
        raise NotImplementedError

    async def api(
        self, line: str, timeout_ms: int | None = None, *, drop_on_timeout: bool = True
    ) -> str:
        self.commands.append(line)
        if line.startswith("limit_usage hash "):
            key = "_".join(line.split()[2:])
            own = parse_dump(self.dump).counts if self.own is None else self.own
            counted = 0 if key == self.forged else own.get(key, 0)
            return str(counted + self.remote.get(key, 0))
        return {"hash_dump limit": self.dump, "global_getvar core_uuid": self.core}.get(line, "+OK")


@dataclass
class Node:
    mesh: StubMesh
    esl: StubEsl
    limits: Limits

    def heard(self) -> dict[str, int]:
        """mod_hash asks."""
        lines = [
            line.split("/") for line in self.limits.dump().decode().splitlines() if line[0] == "L"
        ]
        self.esl.remote = {parts[1]: int(parts[2]) for parts in lines}
        return self.esl.remote


@pytest.fixture
async def node() -> AsyncIterator[Node]:
    mesh, esl = StubMesh(), StubEsl()
    limits = Limits("fs-c", ["fs-a", "fs-b", "fs-c"], mesh, lambda service: "")
    await limits.start(lambda **_: esl, free_port(), "secret")
    limits.observe(view({"east": ("fs-a", 1), "west": ("fs-b", 1)}, me="fs-c"))
    yield Node(mesh, esl, limits)
    await limits.stop()


def others(**owners: str) -> Any:
    """Heart's view at C, A being lost."""
    word = view({name: (node, 2) for name, node in owners.items()}, me="fs-c")
    lost = [msgspec.structs.replace(n, role="dead") if n.id == "fs-a" else n for n in word.nodes]
    return msgspec.structs.replace(word, nodes=tuple(lost))


async def test_the_others_counts_are_added_and_the_own_ones_told(node: Node) -> None:
    await node.mesh.hear("fs-a", "core-a", {"out_gw1": 2, "evil/key": 1}, "east")
    await node.mesh.hear("fs-b", "core-b", {"out_gw1": 1, "out_gw2": 1}, "west")
    assert node.heard() == {"out_gw1": 3, "out_gw2": 1}
    assert node.limits.counters()["limits_refused"] == 1
    await node.mesh.hear("fs-b", "core-b", {}, "west")
    assert node.heard() == {"out_gw1": 2}
    node.esl.dump = "L/out_gw1/4/0/0/0\n"
    await until(lambda: any(w.counts == {"out_gw1": 4} for _, w in node.mesh.told))
    assert {n for n, w in node.mesh.told if w.counts} == {"fs-a", "fs-b"}
    assert node.heard() == {"out_gw1": 2}, "never its own"
    with pytest.raises(ValueError, match="no counts"):
        await node.mesh.answer("fs-a", b"\xc1")
    with pytest.raises(ValueError, match="size"):
        await node.mesh.hear("fs-a", "x" * 65, {})


async def test_a_count_that_freeswitch_does_not_stand_by_is_told_to_nobody(node: Node) -> None:
    """A caller whose number has line breaks in it writes lines of the dump."""
    node.esl.forged = "cluster_line"
    node.esl.dump = "L/in_x/1/0/0/0\nL/cluster_line/999/0/0/0\nL/y_y/1/0/0/0\n"
    await until(lambda: any(w.counts for _, w in node.mesh.told))
    assert {tuple(w.counts) for _, w in node.mesh.told if w.counts} == {("in_x", "y_y")}
    asked = len([c for c in node.esl.commands if c.startswith("limit_usage")])
    await asyncio.sleep(0.4)
    assert asked == 3, "each once"
    assert len([c for c in node.esl.commands if c.startswith("limit_usage")]) == asked
    assert node.limits.counters()["limits_left_out"] == 1
    node.esl.dump = node.esl.dump.replace("in_x/1", "in_x/2")
    await until(lambda: any(w.counts.get("in_x") == 2 for _, w in node.mesh.told))
    await asyncio.sleep(0.7)
    node.esl.forged = ""  # as late as a call can be: it is asked for again
    await until(lambda: any(w.counts.get("cluster_line") == 999 for _, w in node.mesh.told))


async def test_a_lost_master_counts_until_its_calls_are_counted_again(node: Node) -> None:
    await node.mesh.hear("fs-a", "core-a", {"out_gw1": 2}, "east")
    variable = "<limit_usage_out_gw1>1</limit_usage_out_gw1>"
    node.mesh.records = [call("u-1", variable), call("u-2", variable)]
    node.limits.recover("east")  # heart's view says later that it is owned
    node.limits.observe(others(west="fs-b", east="fs-c"))
    assert node.heard() == {"out_gw1": 2}
    node.esl.dump = "L/out_gw1/2/0/0/0\n"
    await until(lambda: node.heard() == {})
    assert [c for c in node.esl.commands if c.startswith("uuid_limit")] == [
        "uuid_limit u-1 hash out gw1", "uuid_limit u-2 hash out gw1"
    ]  # fmt: skip
    await until(lambda: any(w.services == ["east"] and w.counts for _, w in node.mesh.told))


async def test_on_another_slave_too_and_not_for_ever(node: Node) -> None:
    await node.mesh.hear("fs-a", "core-a", {"out_gw1": 2}, "east")
    node.limits.observe(others(west="fs-b", east="fs-b"))
    await node.mesh.hear("fs-b", "core-b", {}, "west")
    assert node.heard() == {"out_gw1": 2}
    await node.mesh.hear("fs-b", "core-b", {"out_gw1": 2}, "east", "west")
    assert node.heard() == {"out_gw1": 2}, "counted at B now, and not twice"
    await node.mesh.hear("fs-b", "core-b2", {}, "west")
    assert node.heard() == {"out_gw1": 2}, "B's FreeSWITCH is another one, its calls are not up yet"
    for entry in node.limits._entries.values():
        entry.lost_at -= HOLD_S if entry.lost_at else 0
    assert node.heard() == {}


async def test_a_freeswitch_that_died_here_counts_until_its_calls_are_up_again(node: Node) -> None:
    node.limits.observe(view({"east": ("fs-c", 1), "west": ("fs-b", 1)}, me="fs-c"))
    node.esl.dump = "L/out_gw1/2/0/0/0\n"
    await until(lambda: any(w.services == ["east"] and w.counts for _, w in node.mesh.told))
    node.esl.dump, node.esl.core = "", "core-c2"
    await until(lambda: node.heard() == {"out_gw1": 2})
    node.esl.dump = "L/out_gw1/2/0/0/0\n"
    await until(lambda: node.heard() == {})


async def test_a_freeswitch_that_died_on_a_living_node_is_not_counted_for_ever(node: Node) -> None:
    """Its services and calls are another node's: counted there, and not here as well."""
    node.limits.observe(view({"east": ("fs-c", 1), "west": ("fs-b", 1)}, me="fs-c"))
    node.esl.dump = "L/out_gw1/2/0/0/0\n"
    await until(lambda: any(w.services == ["east"] and w.counts for _, w in node.mesh.told))
    node.esl.up = False
    node.limits.observe(view({"east": ("fs-b", 2), "west": ("fs-b", 1)}, me="fs-c"))
    await until(lambda: node.mesh.told[-1][1] == Word("", {}, []))


async def test_what_such_a_node_counted_goes_when_it_is_counted_anew(node: Node) -> None:
    await node.mesh.hear("fs-a", "core-a", {"out_gw1": 2}, "east")
    await node.mesh.hear("fs-a", "", {})
    assert node.heard() == {"out_gw1": 2}
    await node.mesh.hear("fs-b", "core-b", {"out_gw1": 2}, "east", "west")
    assert node.heard() == {"out_gw1": 2}
