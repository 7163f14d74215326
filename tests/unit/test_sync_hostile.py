"""Hostile and foolish input to the replication mesh: counters change, nothing else (S11)."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from haclusterd.core.replication import Offer, StreamId
from haclusterd.sync.codec import VERSION, Hello, Want, frame
from haclusterd.sync.replicator import Replicator
from haclusterd.sync.transport import Identity, SyncError, tls_context
from tests.unit.sync_cluster import Authority, Cluster, call, until


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    made = Cluster(tmp_path)
    yield made
    for node in list(made.running):
        await made.kill(node)


def blocking(work: Callable[[], None]) -> Awaitable[None]:
    return asyncio.get_running_loop().run_in_executor(None, work)


def dial(cluster: Cluster, identity: Identity, node: str = "b") -> ssl.SSLSocket:
    address = (cluster.config(node).links[node][0], cluster.port)
    plain = socket.create_connection(address, timeout=3)
    return tls_context(identity, server=False).wrap_socket(plain, server_hostname=node)


def drain(connection: socket.socket) -> None:
    """Read until the other side has closed."""
    connection.settimeout(3)
    try:
        while connection.recv(65536):
            pass
    except (ConnectionError, ssl.SSLError):
        pass


@pytest.fixture
async def pair(cluster: Cluster) -> AsyncIterator[tuple[Cluster, Replicator, Replicator]]:
    """b and c replicate; whoever attacks b in the name of a must not disturb them."""
    b, c = await cluster.start("b"), await cluster.start("c")
    b.own("west", 1, settled=True)
    await until(lambda: "c" in b.mesh.sessions)
    session = b.mesh.sessions["c"]
    yield cluster, b, c
    b.append([call(1, service="west")])
    assert await b.wait_acked("west", 3000)
    assert b.mesh.sessions["c"] is session


async def test_plain_garbage(pair: tuple[Cluster, Replicator, Replicator]) -> None:
    cluster, b, _ = pair

    def attack() -> None:
        address = (cluster.config("b").links["b"][0], cluster.port)
        for garbage in (b"GET / HTTP/1.0\r\n\r\n", os.urandom(5000), b""):
            with socket.create_connection(address, timeout=3) as connection:
                connection.sendall(garbage)
                connection.shutdown(socket.SHUT_WR)
                drain(connection)

    await blocking(attack)
    await until(lambda: b.mesh.counters["handshake"] == 3)


async def test_certificate_of_a_foreign_authority(
    pair: tuple[Cluster, Replicator, Replicator],
) -> None:
    cluster, b, _ = pair
    foreign = Authority(cluster.folder, "foreign").identity("a")
    mixed = Identity(
        cluster.authority.folder / "ca.crt", foreign.certificate_file, foreign.key_file
    )
    await blocking(lambda: drain(dial(cluster, mixed)))
    await until(lambda: b.mesh.counters["handshake"] == 1)


@pytest.mark.parametrize("node", ["stranger", "b"])
async def test_certificate_of_no_other_configured_node(
    pair: tuple[Cluster, Replicator, Replicator],
    node: str,
) -> None:
    cluster, b, _ = pair
    await blocking(lambda: drain(dial(cluster, cluster.authority.identity(node))))
    await until(lambda: b.mesh.counters["certificate"] == 1)


def speeches() -> Iterator[tuple[str, list[bytes]]]:
    hello = frame(Hello(VERSION, "voice1", "a"))
    yield "malformed", [frame(Want(1, "west", []))]  # before the hello
    yield "malformed", [b"\xff\xff\xff\xff" + b"x" * 1000]  # oversize
    yield "malformed", [b"\x00\x00\x00\x00"]
    yield "malformed", [hello, b"\x00\x00\x00\x05" + b"\xc1abcd"]
    yield "malformed", [hello, hello]
    yield "malformed", [hello, frame(Want(1, "west", [1, 2, 3]))]
    yield "malformed", [hello, b"\x00\x00\x00\x03\x92\x2a\x01"]  # an unknown tag
    yield "cluster", [frame(Hello(VERSION, "other", "a"))]
    yield "version", [frame(Hello(VERSION + 1, "voice1", "a"))]
    yield "certificate", [frame(Hello(VERSION, "voice1", "c"))]


@pytest.mark.parametrize(("counter", "frames"), list(speeches()))
async def test_authenticated_nonsense(
    pair: tuple[Cluster, Replicator, Replicator],
    counter: str,
    frames: list[bytes],
) -> None:
    cluster, b, _ = pair

    def attack() -> None:
        with dial(cluster, cluster.authority.identity("a")) as connection:
            connection.sendall(b"".join(frames))
            drain(connection)

    await blocking(attack)
    await until(lambda: b.mesh.counters[counter] == 1)
    assert set(b.store.services) == set()


async def test_node_cannot_speak_for_another(
    pair: tuple[Cluster, Replicator, Replicator],
) -> None:
    cluster, b, _ = pair

    def attack() -> None:
        with dial(cluster, cluster.authority.identity("a")) as connection:
            connection.sendall(
                frame(Hello(VERSION, "voice1", "a"))
                + frame(Offer(StreamId("east", "c", 1, 9), 9, 5))
            )
            drain(connection)

    await blocking(attack)
    await until(lambda: b.mesh.counters["malformed"] == 1)
    assert b.store.services == {}


async def test_silent_handshakes_are_bounded(
    pair: tuple[Cluster, Replicator, Replicator],
) -> None:
    cluster, b, _ = pair
    address = (cluster.config("b").links["b"][0], cluster.port)
    silent = [socket.create_connection(address) for _ in range(20)]
    await until(lambda: b.mesh.counters["crowded"] >= 16)
    await until(lambda: b.mesh.counters["handshake"] >= 4)  # cut after the handshake timeout
    for connection in silent:
        connection.close()


async def test_port_taken_and_missing_keys_say_what_to_do(cluster: Cluster) -> None:
    config = cluster.config("a")
    with socket.socket() as taken:
        taken.bind((config.links["a"][0], config.port))
        taken.listen()
        with pytest.raises(SyncError, match="change `port`"):
            await cluster.start("a")
    config.identity.key_file.unlink()
    with pytest.raises(SyncError, match="keys create"):
        Replicator(config, 1)
    config.identity.key_file.write_bytes(b"no key")
    with pytest.raises(SyncError, match="do not fit"):
        Replicator(config, 1)
