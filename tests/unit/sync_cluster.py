"""Agents of a small cluster on loopback, with certificates, for the tests of `haclusterd.sync`."""

from __future__ import annotations

import asyncio
import datetime
import itertools
import os
import time
from collections.abc import Callable, Collection
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from haclusterd.core.records import CallRecord
from haclusterd.core.replication import Limits
from haclusterd.sync import collect
from haclusterd.sync.codec import Message, Request, Want
from haclusterd.sync.replicator import Replicator
from haclusterd.sync.session import SyncTiming
from haclusterd.sync.transport import Identity, MeshConfig

NODES = ["a", "b", "c"]
TIMING = SyncTiming(
    beat_ms=40, dead_ms=200, connect_ms=200, backoff_ms_min=10, backoff_ms_max=100, lag_ms_max=400
)
_ports = itertools.count(20_000 + os.getpid() * 499 % 20_000)  # neighbours far apart


class Authority:
    """A CA and what it signs, in a directory."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder = folder / name
        self.folder.mkdir()
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self.valid = datetime.timedelta(days=2)
        builder = self._builder(self.name, self.key).add_extension(
            x509.BasicConstraints(ca=True, path_length=None), critical=True
        )
        self.certificate = builder.sign(self.key, hashes.SHA256())
        self._write("ca.crt", self.certificate.public_bytes(serialization.Encoding.PEM))

    def identity(self, node: str) -> Identity:
        """Key and certificate of a node, made when first asked for."""
        if not (self.folder / f"{node}.crt").exists():
            key = ec.generate_private_key(ec.SECP256R1())
            subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, node)])
            signed = self._builder(subject, key).sign(self.key, hashes.SHA256())
            self._write(f"{node}.crt", signed.public_bytes(serialization.Encoding.PEM))
            self._write(
                f"{node}.key",
                key.private_bytes(
                    serialization.Encoding.PEM,
                    serialization.PrivateFormat.PKCS8,
                    serialization.NoEncryption(),
                ),
            )
        return Identity(
            self.folder / "ca.crt", self.folder / f"{node}.crt", self.folder / f"{node}.key"
        )

    def _builder(
        self, subject: x509.Name, key: ec.EllipticCurvePrivateKey
    ) -> x509.CertificateBuilder:
        now = datetime.datetime.now(datetime.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self.name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + self.valid)
        )

    def _write(self, name: str, content: bytes) -> None:
        (self.folder / name).write_bytes(content)


class Cluster:
    """Replicators of some nodes in this process, each on its own loopback addresses."""

    def __init__(self, folder: Path) -> None:
        self.authority = Authority(folder, "ca")
        self.port = next(_ports)
        self.running: dict[str, Replicator] = {}
        self.incarnations = itertools.count(1)
        self.folder = folder

    def config(self, node: str) -> MeshConfig:
        links = {
            n: [f"127.71.{self.port % 250}.{k}", f"127.72.{self.port % 250}.{k}"]
            for k, n in enumerate(NODES, 1)
        }
        return MeshConfig("voice1", node, links, self.port, self.authority.identity(node), TIMING)

    async def start(
        self,
        node: str,
        incarnation: int | None = None,
        limits: Limits | None = None,
        config: MeshConfig | None = None,
    ) -> Replicator:
        one = Replicator(
            config or self.config(node), incarnation or next(self.incarnations), limits
        )
        await one.start()
        self.running[node] = one
        return one

    async def kill(self, node: str) -> None:
        await self.running.pop(node).stop()


def call(number: int, version: int = 1, service: str = "east", size: int = 600) -> CallRecord:
    return CallRecord(
        service,
        f"uuid-{number}",
        version,
        service,
        "core-a",
        f"<v{version}>" + "<variable>x</variable>" * (size // 22),
    )


async def until(true: Callable[[], object], within_s: float = 5) -> None:
    """Poll; a condition that never comes true fails with its source."""
    deadline = time.monotonic() + within_s
    while not true():
        assert time.monotonic() < deadline, "did not happen in time"
        await asyncio.sleep(0.005)


def held(one: Replicator, service: str = "east") -> dict[str, int]:
    return {r.uuid: r.version for r in one.store.records(service)}


def asks(message: Message) -> bool:
    """Whether it asks a node what it knows of a service, in the new words or the old."""
    new = isinstance(message, Request) and message.method == collect.METHOD
    return new or isinstance(message, Want)


async def collected(
    node: Replicator, timeout_ms: int = 20, without: Collection[str] = ()
) -> list[CallRecord]:
    """What a takeover of service east would inject, after asking the others."""
    await node.fetch("east", timeout_ms, without)
    return await node.unrecovered("east")
