"""DNS names: which addresses, who writes, and a real BIND that takes or refuses them."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import json
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from haclusterd.agent import child, dns, schema, status
from haclusterd.agent.dns import Names, Record
from haclusterd.config.model import Dns
from tests.fixtures.agent_parts import view

NAME = "sip.voice.test"
SPEC = Dns(
    name=NAME, zone="voice.test", server_host="127.0.0.1", server_port=53, key_name="ha.",
    key_file=Path("dns.key"), algorithm="hmac-sha256", ttl_s=30, hold_ms=2000, services=(),
)  # fmt: skip
BOTH = {"east": ("fs-a", 7), "west": ("fs-b", 3)}
_ABSENT = "" if shutil.which("named") else "no BIND: apt-get install bind9 (scripts/prepare web)"


def seen(owners: dict[str, tuple[str, int]]) -> schema.Status:
    return status.status(view(owners), schema.Sync("in-sync", 0), {})


def with_ipv6(found: schema.Status) -> schema.Status:
    """The first service has an IPv6 address, too."""
    first, *others = found.services
    addresses = [*first.addresses, "2001:db8::a/64 dev eth0"]
    first = msgspec.structs.replace(first, addresses=addresses)
    return msgspec.structs.replace(found, services=[first, *others])


def wanted(record: Record) -> tuple[str, ...] | None:
    return record._wanted


def test_the_addresses_of_services_that_are_served() -> None:
    record = Record(SPEC, lambda: None)
    record.look(seen(BOTH), True, 0.0)
    assert wanted(record) == ("203.0.113.10", "203.0.113.11")
    only = Record(dataclasses.replace(SPEC, services=("west",)), lambda: None)
    only.look(seen(BOTH), True, 0.0)
    assert wanted(only) == ("203.0.113.11",)


def test_a_takeover_changes_nothing_and_a_longer_loss_does() -> None:
    record = Record(SPEC, lambda: None)
    record.look(seen(BOTH), True, 0.0)
    lost = seen({"west": ("fs-b", 3)})
    record.look(lost, True, 1.0)
    record.look(lost, True, 2.9)
    assert wanted(record) == ("203.0.113.10", "203.0.113.11")
    record.look(lost, True, 3.1)
    assert wanted(record) == ("203.0.113.11",)
    record.look(seen(BOTH), True, 3.2)
    assert wanted(record) == ("203.0.113.10", "203.0.113.11"), "back at once"


def test_a_name_never_becomes_empty() -> None:
    record = Record(SPEC, lambda: None)
    record.look(seen(BOTH), True, 0.0)
    for at in (1.0, 60.0):
        record.look(seen({}), True, at)
    assert wanted(record) == ("203.0.113.10", "203.0.113.11")


def test_only_the_first_node_writes() -> None:
    record = Record(SPEC, lambda: None)
    record.look(seen(BOTH), False, 0.0)
    assert wanted(record) is None


def test_a_loss_counts_from_now_where_this_node_did_not_look_before() -> None:
    """It wrote while the service was gone, then another node did; now it is gone once more."""
    record = Record(SPEC, lambda: None)
    lost = seen({"west": ("fs-b", 3)})
    record.look(lost, True, 0.0)
    record.look(lost, False, 1.0)
    record.look(seen(BOTH), False, 60.0)
    record.look(lost, True, 100.0)
    assert wanted(record) == ("203.0.113.10", "203.0.113.11")


async def test_a_refusal_is_tried_again_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    jobs: list[dict[str, Any]] = []

    async def run(words: object, given: bytes, timeout_s: float, env: object) -> child.Ended:
        jobs.append(json.loads(given))
        return child.Ended(65, "refused") if len(jobs) < 3 else child.Ended(0, "")

    monkeypatch.setattr(child, "run", run)
    changes: list[str] = []
    record = Record(SPEC, lambda: changes.append(record.problem), backoff_first_s=0.01)
    work = asyncio.create_task(record.work())
    record.look(seen(BOTH), True, 0.0)
    while record.updates < 1:
        await asyncio.sleep(0.01)
    assert (record.failures, changes) == (2, ["refused", ""])
    assert jobs[0]["addresses"] == {"A": ["203.0.113.10", "203.0.113.11"], "AAAA": []}
    record.look(seen(BOTH), True, 1.0)
    await asyncio.sleep(0.05)
    assert len(jobs) == 3, "what is there is not written again"
    record.look(seen(BOTH), False, 2.0)
    record.look(seen(BOTH), True, 3.0)
    await asyncio.sleep(0.05)
    assert len(jobs) == 4, "who becomes the writer writes what it sees"
    monkeypatch.setattr(dns, "AGAIN_S", 0.02)
    record.look(seen({"west": ("fs-b", 3)}), True, 4.0)
    record.look(seen({"west": ("fs-b", 3)}), True, 9.0)
    await asyncio.sleep(0.3)
    assert len(jobs) > 6, "now and then again, whatever was there"
    work.cancel()


# -- a real server --


class Bind:
    """named on loopback with one zone, and a key for it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self.secret = base64.b64encode(b"0123456789abcdef" * 2).decode()
        (folder / "zone").write_text(
            f"$TTL 60\n@ SOA ns.{SPEC.zone}. ops.{SPEC.zone}. 1 60 60 60 60\n NS ns.{SPEC.zone}.\n"
            "ns A 127.0.0.1\nsip TXT keep\nsip A 192.0.2.99\n"
        )
        (folder / "named.conf").write_text(
            f'options {{ directory "{folder}"; listen-on port {self.port} {{ 127.0.0.1; }};'
            f' listen-on-v6 {{ none; }}; pid-file "{folder}/pid"; recursion no;'
            f' session-keyfile "{folder}/session.key"; }};\n'
            f'key "ha." {{ algorithm hmac-sha256; secret "{self.secret}"; }};\ncontrols {{ }};\n'
            f'zone "{SPEC.zone}" {{ type primary; file "zone"; allow-update {{ key "ha."; }}; }};\n'
        )
        log = (folder / "log").open("w")
        self.process = subprocess.Popen(
            ["named", "-f", "-g", "-c", str(folder / "named.conf"), "-n", "1"],
            stdout=log, stderr=log, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        log.close()
        until = time.monotonic() + 20
        while self.answers("ns", "A") != ["127.0.0.1"]:
            assert time.monotonic() < until, (folder / "log").read_text()[-2000:]
            time.sleep(0.1)

    def answers(self, name: str, kind: str) -> list[str]:
        import dns.exception
        import dns.message
        import dns.query

        query = dns.message.make_query(f"{name}.{SPEC.zone}.", kind)
        try:
            answer = dns.query.tcp(query, "127.0.0.1", timeout=2, port=self.port)
        except (OSError, dns.exception.DNSException):
            return []
        return sorted(str(item) for rrset in answer.answer for item in rrset)

    def spec(self, **changed: Any) -> Dns:
        key = self.folder / "dns.key"
        key.write_text(f"{self.secret}\n")
        values: dict[str, Any] = {"server_port": self.port, "key_file": key}
        return dataclasses.replace(SPEC, **(values | changed))


@pytest.fixture(scope="module")
def bind(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bind]:
    if _ABSENT:
        pytest.skip(_ABSENT)
    made = Bind(tmp_path_factory.mktemp("bind"))
    yield made
    made.process.terminate()
    made.process.wait(10)


async def until(names: Names, done: str = "updates") -> Record:
    for _ in range(1000):
        if getattr(names.records[0], done):
            break
        await asyncio.sleep(0.02)
    await names.stop()
    return names.records[0]


@pytest.mark.timeout(60)
async def test_bind_holds_the_addresses_in_service(bind: Bind) -> None:
    """B8: dynamic DNS updates of the list of available addresses."""
    names = Names([bind.spec()], lambda: None)
    names.start()
    names.look(seen(BOTH), True, 0.0)
    record = await until(names)
    assert (record.problem, record.failures) == ("", 0)
    assert bind.answers("sip", "A") == ["203.0.113.10", "203.0.113.11"], "and not 192.0.2.99"
    assert bind.answers("sip", "TXT") == ['"keep"'], "what is not ours stays"
    names = Names([bind.spec()], lambda: None)
    names.start()
    names.look(with_ipv6(seen(BOTH)), True, 0.0)
    await until(names)
    assert bind.answers("sip", "AAAA") == ["2001:db8::a"]
    names = Names([bind.spec(hold_ms=0)], lambda: None)
    names.start()
    names.look(seen({"west": ("fs-b", 3)}), True, 0.0)
    await until(names)
    assert bind.answers("sip", "A") == ["203.0.113.11"]
    assert bind.answers("sip", "AAAA") == [], "its service is not served"


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("changed", "secret", "said"),
    [
        ({}, "d3Jvbmcgc2VjcmV0", "refuses the TSIG key"),
        ({"key_name": "other."}, "", "refuses the TSIG key"),
        ({"zone": "other.test", "name": "sip.other.test"}, "", "refuses the update"),
        ({}, "not base64!", "is not base64"),
        ({"server_port": 9}, "", "Connection refused"),
    ],
)
async def test_bind_says_no_and_so_do_we(
    bind: Bind, changed: dict[str, Any], secret: str, said: str
) -> None:
    before = bind.answers("sip", "A")
    spec = bind.spec(**changed)
    if secret:
        spec.key_file.write_text(secret)
    names = Names([spec], lambda: None)
    names.start()
    names.look(seen(BOTH), True, 0.0)
    record = await until(names, "failures")
    assert said in record.problem
    assert bind.answers("sip", "A") == before
