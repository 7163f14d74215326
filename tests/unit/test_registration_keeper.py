"""Registrations between mod_sofia's tables and the lane: told once, put back, never echoed."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from haclusterd.core.records import Registration, Tombstone
from haclusterd.freeswitch.esl import EventItem, EventSink, EventsLost
from haclusterd.freeswitch.esl_protocol import Event
from haclusterd.freeswitch.registration_db import database_of
from haclusterd.freeswitch.registration_keeper import RegistrationKeeper
from haclusterd.freeswitch.registration_source import Told
from haclusterd.freeswitch.registrations import BY_US, COLUMNS, Row, key_of
from tests.unit.sync_cluster import until
from tests.unit.test_registrations import record as made
from tests.unit.test_registrations import row as raw_row

FOREVER = 4_000_000_000


class StubEsl:
    """Answers three commands; the test fires the events."""

    def __init__(self, on_event: EventSink) -> None:
        self.up, self.problem = True, ""
        self.core_uuid = "core-1"
        self.conf = "<configuration/>"
        self.running = {"east": 1, "west": 2}
        self.introductions = 0
        self.sink = on_event

    async def start(self) -> None:
        await self.sink(EventsLost("connected"))

    async def stop(self) -> None: ...
    async def wait_up(self, timeout_ms: int) -> None: ...

    async def api(
        self, line: str, timeout_ms: int | None = None, *, drop_on_timeout: bool = True
    ) -> str:
        one = (
            "<profile><name>{}</name><type>profile</type>"
            "<data>sip:mod_sofia@10.77.0.10{}:5060</data><state>RUNNING (0)</state></profile>"
        )
        profiles = "".join(one.format(name, n) for name, n in self.running.items())
        self.introductions += line == "switchname"
        return {
            "sofia xmlstatus": f"<profiles>{profiles}</profiles>",
            "switchname": "fs-a",
            "global_getvar core_uuid": self.core_uuid,
            "xml_locate configuration configuration name sofia.conf": self.conf,
        }[line]

    async def sendevent(self, name: str, headers: Mapping[str, str], body: str = "") -> str:
        raise NotImplementedError


class Node:
    """A keeper over two empty tables; what it tells is in `told`."""

    def __init__(self, folder: Path) -> None:
        self.core_db = folder / "core.db"
        self.esl: StubEsl
        self.told: dict[str, Registration] = {}
        self.buried: list[str] = []
        self.wholes = 0
        for profile in ("east", "west"):
            self.create(profile)
        self.keeper = RegistrationKeeper(
            self.core_db, self._esl, ("east", "west"), lambda p: f"registrations:{p}", self._report
        )

    def _esl(self, **wanted: Any) -> StubEsl:
        self.esl = StubEsl(wanted["on_event"])
        return self.esl

    async def _report(self, profile: str, told: Told) -> None:
        self.wholes += told.users is None
        for change in told.changes:
            if isinstance(change, Tombstone):
                self.buried.append(change.uuid)
                self.told.pop(change.uuid, None)
            else:
                self.told[change.uuid] = change

    def sql(self, profile: str, statement: str, *values: object) -> list[tuple[Any, ...]]:
        path = database_of(self.core_db, profile)
        with closing(sqlite3.connect(path, timeout=5)) as connection, connection:
            return connection.execute(statement, values).fetchall()

    def create(self, profile: str) -> None:
        extra = "ping_status, ping_count, ping_time, ping_expires"
        self.sql(profile, f"CREATE TABLE sip_registrations ({', '.join(COLUMNS)}, {extra})")

    def insert(self, row: Row) -> None:
        marks = ", ".join("?" * len(COLUMNS))
        columns = ", ".join(COLUMNS)
        self.sql(row.profile_name, f"INSERT INTO sip_registrations({columns}) VALUES ({marks})",
                 *row)  # fmt: skip

    def users(self, profile: str) -> list[str]:
        found = self.sql(profile, "SELECT sip_user FROM sip_registrations ORDER BY 1")
        return [row[0] for row in found]

    async def fire(self, subclass: str, user: str, profile: str = "east", **more: str) -> None:
        names = ("user", "host") if subclass == "expire" else ("from-user", "from-host")
        headers = {"Event-Name": "CUSTOM", "Event-Subclass": f"sofia::{subclass}",
                   "profile-name": profile, names[0]: user, names[1]: "lab.test",
                   **{name.replace("_", "-"): text for name, text in more.items()}}  # fmt: skip
        await self.send(Event(headers))

    async def send(self, item: EventItem) -> None:
        await self.esl.sink(item)

    async def own(self, profile: str) -> None:
        ready = self.keeper.own(profile)
        await asyncio.wait_for(ready.wait(), 5)
        self.keeper.follow(profile)
        wholes = self.wholes
        await until(lambda: self.wholes > wholes)

    def told_users(self) -> list[str]:
        return sorted(record.user for record in self.told.values())


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    one = Node(tmp_path)
    await one.keeper.start()
    yield one
    await one.keeper.stop()


def row(user: str, profile: str = "east", **other: Any) -> Row:
    contact = f'"" <sip:{user}@10.77.0.21:5090>'
    return raw_row(user, contact, profile_name=profile, **other)


def record(user: str, profile: str = "east", **other: Any) -> Registration:
    contact = f'"" <sip:{user}@10.77.0.21:5090>'
    return made(user, contact=contact, profile_name=profile, **other)


async def steady(true: Callable[[], bool]) -> None:
    """It is so, and stays so for a while."""
    for _ in range(10):
        assert true()
        await asyncio.sleep(0.01)


async def test_an_owned_profile_is_told_whole_and_then_change_by_change(node: Node) -> None:
    node.insert(row("1000"))
    await node.own("east")
    assert node.told_users() == ["1000"]
    node.insert(row("1001"))
    await node.fire("register", "1001")
    await until(lambda: node.told_users() == ["1000", "1001"])
    version = next(r.version for r in node.told.values() if r.user == "1001")
    node.sql(
        "east", "UPDATE sip_registrations SET expires = ? WHERE sip_user = '1001'", FOREVER + 9
    )
    await node.fire("register", "1001")
    await until(lambda: any(r.expires_s == FOREVER + 9 for r in node.told.values()))
    assert next(r.version for r in node.told.values() if r.user == "1001") > version
    node.sql("east", "DELETE FROM sip_registrations WHERE sip_user = '1000'")
    await node.fire("unregister", "1000")
    await until(lambda: node.told_users() == ["1001"])
    await node.fire("register", "nobody", "elsewhere")
    await node.fire("register", "1001", "west")
    await steady(lambda: node.told_users() == ["1001"])


async def test_what_expires_is_told_though_its_row_goes_later(node: Node) -> None:
    ends_s = int(time.time()) + 3
    node.insert(row("1000", expires=ends_s))
    node.insert(row("1001"))
    await node.own("east")
    assert node.told_users() == ["1000", "1001"]
    await asyncio.sleep(max(0.0, ends_s - time.time()))
    await node.fire("expire", "1000")
    await until(lambda: node.told_users() == ["1001"])
    # Flushed by hand: the event comes while the row is there and not yet out of time.
    await node.fire("expire", "1001")
    await asyncio.sleep(0.1)
    assert node.told_users() == ["1001"]
    node.sql("east", "DELETE FROM sip_registrations WHERE sip_user = '1001'")
    await until(lambda: node.told_users() == [])


async def test_hostile_rows_are_counted_once_and_not_told(node: Node) -> None:
    evil = raw_row("1000", "<sip:1000@10.77.0.21>\r\nX: 1", profile_name="east")
    node.insert(evil)
    node.insert(row("1001"))
    await node.own("east")
    for _ in range(3):
        await node.fire("register", "1000")
    await asyncio.sleep(0.05)
    assert node.told_users() == ["1001"]
    assert node.keeper.counters["refused"] == 1


async def test_eg8_rows_of_others_are_put_in_and_never_come_back_as_own(node: Node) -> None:
    node.insert(row("2000", "west"))
    await node.own("west")
    node.keeper.take(record("1000"))
    await until(lambda: node.users("west") == ["1000", "2000"])
    (found,) = node.sql("west", "SELECT orig_hostname, contact FROM sip_registrations"
                        " WHERE sip_user = '1000'")  # fmt: skip
    assert found[0] == BY_US
    assert "fs_path=sip%3A10.77.0.101%3A5060" in found[1]
    await node.fire("register", "1000", "west")
    await node.fire("expire", "1000", "west")
    node.keeper.source.look("west")
    await steady(lambda: node.told_users() == ["2000"])
    # Without multiple-registrations a REGISTER here deletes every row of the user: back it comes.
    node.sql("west", "DELETE FROM sip_registrations WHERE sip_user = '1000'")
    await node.fire("register", "1000", "west")
    await until(lambda: node.users("west") == ["1000", "2000"])
    node.keeper.drop(record("1000").uuid)
    await until(lambda: node.users("west") == ["2000"])


async def test_eg8_records_that_break_the_rules_do_not_reach_the_table(node: Node) -> None:
    good = record("1000")
    evil = '"" <sip:1000@x>\'); DROP TABLE sip_registrations; --'
    key = key_of("east", "1000", "lab.test", "reg-1000", evil)
    bad = Registration(good.service, key, 1, "east", "1000", "lab.test", evil, "reg-1000", FOREVER)
    node.keeper.take(bad)
    node.keeper.take(record("1001"))
    await until(lambda: node.users("east") == ["1001"])
    assert node.keeper.counters["refused_here"] == 1


async def test_eg8_a_takeover_adds_what_is_missing_and_doubles_nothing(node: Node) -> None:
    for user in ("1000", "1001", "1002"):
        node.keeper.take(record(user))
    await until(lambda: node.users("east") == ["1000", "1001", "1002"])
    # One is lost, one phone was faster: it is registered here with another call-id.
    node.sql("east", "DELETE FROM sip_registrations WHERE sip_user IN ('1000', '1001')")
    node.insert(row("1001", call_id="new"))
    await node.own("east")
    assert node.users("east") == ["1000", "1001", "1002"]
    assert node.told_users() == ["1000", "1001", "1002"]
    assert node.keeper.counters["handed_over"] == 1


async def test_the_table_of_a_service_of_others_is_what_they_say(node: Node) -> None:
    node.insert(row("9999"))  # of an earlier life as its owner
    node.keeper.take(record("1000"))
    await node.send(EventsLost("connected"))
    await until(lambda: node.users("east") == ["1000"])
    assert node.told == {}


async def test_a_freeswitch_that_lost_its_tables_gets_its_own_registrations_back(
    node: Node,
) -> None:
    node.insert(row("1000"))
    node.insert(row("1001"))
    await node.own("east")
    node.esl.up = False
    node.sql("east", "DELETE FROM sip_registrations")
    node.esl.core_uuid, node.esl.up = "core-2", True
    await node.send(EventsLost("connected"))
    await until(lambda: node.users("east") == ["1000", "1001"])
    await asyncio.sleep(0.05)
    assert node.told_users() == ["1000", "1001"]
    assert node.buried == []


async def test_after_losing_the_service_nothing_more_is_told_of_it(node: Node) -> None:
    node.insert(row("1000"))
    await node.own("east")
    node.keeper.disown("east")
    await until(lambda: node.users("east") == [])
    await node.fire("unregister", "1000")
    await steady(lambda: node.told_users() == ["1000"] and node.buried == [])


async def test_a_missing_table_is_a_problem_with_its_fix_until_it_is_there(node: Node) -> None:
    database_of(node.core_db, "east").unlink()
    node.keeper.take(record("1000"))
    await until(lambda: "dbname or odbc-dsn" in node.keeper.problem)
    node.create("east")
    await until(lambda: node.keeper.problem == "" and node.users("east") == ["1000"])


async def test_a_takeover_that_cannot_write_yet_loses_no_registration(node: Node) -> None:
    node.keeper.take(record("1000"))
    await until(lambda: node.users("east") == ["1000"])
    path = database_of(node.core_db, "east")
    away = path.rename(path.with_suffix(".away"))
    ready = node.keeper.own("east")
    await until(lambda: node.keeper.problem != "")
    node.keeper.take(record("2000", "west"))
    await until(lambda: node.users("west") == ["2000"])  # the other profile goes on
    node.create("east")
    await asyncio.wait_for(ready.wait(), 10)
    assert "1000" in node.users("east")
    away.unlink()


async def test_the_check_of_a_whole_table_does_not_hold_the_event_loop(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """5,000 rows are read and compared in 0.2 s of CPU: elsewhere, or calls would wait for it."""
    plan, threads = node.keeper.plan, set()
    verify = plan.verify

    def noted(*arguments: Any) -> Any:
        threads.add(threading.get_ident())
        return verify(*arguments)

    monkeypatch.setattr(plan, "verify", noted)
    node.keeper._verify |= {"west"}
    node.keeper._news.set()
    await until(lambda: bool(threads))
    assert threads & {threading.get_ident()} == set()
