"""What an operator reads when the host or FreeSWITCH is not as it should be (issue 2, bad input).

Each fault by a real agent process, or by the part that meets it: a plain sentence that names the
fix has to be in the log and in the alarms of `status`, or in `doctor`; and the agent goes on.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import sqlite3
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from haclusterd.cli.checks import host_checks
from haclusterd.cli.checks_freeswitch import core_db_check
from haclusterd.config import Config
from haclusterd.core.inputs import LocalReport
from haclusterd.core.view import AlarmView
from haclusterd.heart.errors import refused
from haclusterd.heart.links import Links
from tests.fixtures.agent_parts import view
from tests.fixtures.freeswitch.fake_esl import FakeEsl
from tests.unit.test_agent_daemon import FREESWITCH, Heart
from tests.unit.test_doctor import FakeHost, config, host

__all__ = ["config", "host"]  # fixtures of the doctor's tests
pytestmark = pytest.mark.timeout(60)

_SOON_S = 12.0


@dataclass
class Site:
    """One node's surroundings: a fit FreeSWITCH, until a case spoils something."""

    folder: Path
    esl: FakeEsl
    stack: ExitStack = field(default_factory=ExitStack)

    def fit(self) -> None:
        (self.folder / "esl.password").write_text("ClueCon\n")
        (self.folder / "freeswitch.pid").write_text(str(os.getpid()))
        with sqlite3.connect(self.folder / "core.db") as db:
            db.execute(
                "CREATE TABLE recovery(runtime_uuid, technology, profile_name, hostname, uuid,"
                " metadata)"
            )
        self.esl.api["global_getvar core_uuid"] = "core-1"


async def wrong_password(site: Site) -> None:
    site.esl.password = "another"


async def absent(site: Site) -> None:
    await site.esl.close()
    (site.folder / "freeswitch.pid").unlink()


async def not_listening(site: Site) -> None:
    """The process is there, mod_event_socket is not: as in the middle of a start."""
    await site.esl.close()


async def another_programs_port(site: Site) -> None:
    site.esl.greeting = None


async def no_core_db(site: Site) -> None:
    (site.folder / "core.db").unlink()


async def locked_core_db(site: Site) -> None:
    holder = sqlite3.connect(site.folder / "core.db")
    holder.execute("BEGIN EXCLUSIVE")
    site.stack.callback(holder.close)


async def no_password_file(site: Site) -> None:
    (site.folder / "esl.password").unlink()


async def sync_port_taken(site: Site) -> None:
    thief = site.stack.enter_context(socket.socket())
    thief.bind(("127.0.0.1", 20_000 + os.getpid() % 9999))
    thief.listen()


async def certificates_end(site: Site) -> None:
    patch = site.stack.enter_context(pytest.MonkeyPatch.context())
    patch.setattr("haclusterd.certificates.CERTIFICATE_DAYS", 11)


Spoil = Callable[[Site], Awaitable[None]]
# (what is wrong, name of the alarm, what alarm and log have to say)
AGENT_CASES: list[tuple[Spoil, str, list[str]]] = [
    (wrong_password, "freeswitch", ["refused the ESL password", "esl_password_file"]),
    (no_password_file, "freeswitch", ["esl.password: No such file", "write the password"]),
    (absent, "freeswitch_down", ["nothing listens on", "start FreeSWITCH"]),
    (not_listening, "freeswitch", ["nothing listens on", "load mod_event_socket"]),
    (another_programs_port, "freeswitch", ["no ESL greeting", "another program owns the port"]),
    (no_core_db, "freeswitch", ["core.db: no such file", "correct core_db in [freeswitch]"]),
    (locked_core_db, "freeswitch", ["core.db: database is locked", "fuser -v"]),
    (sync_port_taken, "not_replicating", ["cannot listen on 127.0.0.1", "ss -ltnp"]),
    (certificates_end, "certificate", ["ca.crt ends in 9 days", "keys rotate"]),
]


def alarms_of(heart: Heart) -> dict[str, str]:
    return {a["name"]: a["text"] for a in heart.ask("status")["result"]["alarms"]}


def await_alarm(heart: Heart, name: str, words: list[str]) -> str:
    """The alarm once it says that; heart hears from the agent all the time."""
    until = time.monotonic() + _SOON_S
    while True:
        found = alarms_of(heart)
        if all(word in found.get(name, "") for word in words):
            return found[name]
        assert time.monotonic() < until, found
        heart.hear(LocalReport)


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    async with FakeEsl() as esl:
        made = Site(tmp_path, esl)
        made.fit()
        with made.stack:
            yield made


def start(site: Site) -> Heart:
    heart = Heart(site.folder, FREESWITCH.format(port=site.esl.port, mark=site.folder / "mark"))
    heart.hear(LocalReport)
    heart.show(view({}))
    return heart


@pytest.mark.parametrize(
    ("spoil", "name", "words"), AGENT_CASES, ids=[case[0].__name__ for case in AGENT_CASES]
)
async def test_the_agent_says_it_and_goes_on(
    site: Site, spoil: Spoil, name: str, words: list[str]
) -> None:
    await spoil(site)
    heart = await asyncio.to_thread(start, site)
    try:
        await asyncio.to_thread(await_alarm, heart, name, words)
        assert heart.process.poll() is None
    finally:
        said = await asyncio.to_thread(heart.end)
    lines = [line for line in said.splitlines() if all(word in line for word in words)]
    assert lines, said
    assert len(lines) <= 3, "said once, not with every attempt"


async def test_a_freeswitch_that_restarts_is_followed_through_it(site: Site) -> None:
    """Up, gone, up again: the alarm comes and goes, and nothing of the agent ends."""
    heart = await asyncio.to_thread(start, site)
    pid_file = site.folder / "freeswitch.pid"
    try:
        await asyncio.to_thread(heart.hear, LocalReport, lambda r: r.health == 100)
        await site.esl.close()
        pid_file.unlink()
        text = await asyncio.to_thread(
            await_alarm, heart, "freeswitch_down", ["does not run on this node", "ESL: "]
        )
        assert str(pid_file) in text
        pid_file.write_text(str(os.getpid()))
        site.esl.api["global_getvar core_uuid"] = "core-2"
        await site.esl.listen()
        report = await asyncio.to_thread(heart.hear, LocalReport, lambda r: r.health == 100)
        assert report.freeswitch_up
        found = await asyncio.to_thread(alarms_of, heart)
        assert not {"freeswitch_down", "freeswitch"} & set(found)
    finally:
        await asyncio.to_thread(heart.end)


def test_a_taken_heartbeat_port_is_an_alarm_with_its_fix() -> None:
    """One link is deaf, the others go on: `process` shows each fault as the alarm link_closed."""
    nodes = [["127.0.91.1", "127.0.92.1"], ["127.0.91.2", "127.0.92.2"]]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as thief:
        thief.bind(("127.0.91.1", 0))
        links = Links(thief.getsockname()[1], nodes, 0)
        assert links.reopen() == [1]
        alarm = AlarmView("link_closed", links.fault(0))
        links.close()
    assert "UDP port" in alarm.text
    assert "ss -lunp" in alarm.text
    assert "change [heartbeat] port" in alarm.text


@pytest.mark.parametrize("number", [errno.EPERM, errno.EACCES])
def test_a_missing_capability_is_named(config: Config, host: FakeHost, number: int) -> None:
    host.files["/proc/77/status"] = "CapEff:\t0000000000000000\n"
    check = next(c for c in host_checks(config, host, 77) if c.name == "capabilities")
    assert (check.state, "CAP_NET_ADMIN" in check.text) == ("failed", True)
    assert "AmbientCapabilities" in check.fix
    said = str(refused("netlink", OSError(number, "refused")))
    assert "run with CAP_NET_ADMIN and CAP_NET_RAW" in said


def test_missing_nf_tables_is_named(config: Config, host: FakeHost) -> None:
    """With a real heart: tests/lab/test_heart_process.py, test_without_nft_the_heart_serves."""
    host.nft = None
    check = next(c for c in host_checks(config, host, None) if c.name == "nf_tables")
    assert (check.state, check.fix) == ("warning", "apt install nftables")


def test_doctor_says_who_may_hold_core_db(tmp_path: Path) -> None:
    path = tmp_path / "core.db"
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE recovery(uuid)")
    holder = sqlite3.connect(path)
    holder.execute("BEGIN EXCLUSIVE")
    check = core_db_check(path)
    holder.close()
    assert check.state == "failed"
    assert "database is locked" in check.text
    assert f"fuser -v {path}" in check.fix
