"""Call capture from a core.db that a pretended FreeSWITCH writes."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from haclusterd.core.records import CallRecord, Tombstone
from haclusterd.freeswitch import changelog, injection, metadata
from haclusterd.freeswitch.calls import CallSource, Change, build_record
from haclusterd.freeswitch.esl import EslConnection, EslSettings
from tests.fixtures.freeswitch.fake_esl import FakeEsl, json_event

pytestmark = pytest.mark.timeout(30)
TONE = (Path(__file__).parents[1] / "fixtures/freeswitch/recovery_metadata_tone.xml").read_text()
SCHEMA = """CREATE TABLE recovery (runtime_uuid VARCHAR(255), technology VARCHAR(255),
 profile_name VARCHAR(255), hostname VARCHAR(255), uuid VARCHAR(255), metadata text)"""


class Switch:
    """Writes table `recovery` as FreeSWITCH does."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.core_uuid = "core-1"
        self.db = sqlite3.connect(path, isolation_level=None)
        self.db.execute(SCHEMA)

    def answer(self, uuid: str, profile: str = "pa", text: str = TONE) -> None:
        self.db.execute(
            "INSERT INTO recovery VALUES (?,'sofia',?,'h',?,?)",
            (self.core_uuid, profile, uuid, text),
        )

    def update(self, uuid: str, cseq: str) -> None:
        text = TONE.replace("<sip_cseq>1<", f"<sip_cseq>{cseq}<")
        self.db.execute("UPDATE recovery SET metadata=? WHERE uuid=?", (text, uuid))

    def hang_up(self, uuid: str) -> None:
        self.db.execute("DELETE FROM recovery WHERE uuid=?", (uuid,))


class Told:
    def __init__(self) -> None:
        self.changes: list[Change] = []
        self.fail = 0

    async def take(self, changes: list[Change]) -> None:
        if self.fail:
            self.fail -= 1
            raise RuntimeError("the store is full")
        self.changes += changes

    @property
    def records(self) -> list[CallRecord]:
        return [change for change in self.changes if isinstance(change, CallRecord)]

    @property
    def ended(self) -> list[str]:
        return [change.uuid for change in self.changes if isinstance(change, Tombstone)]


def test_of_a_row_of_megabytes_no_more_is_read_than_is_needed_to_refuse_it(tmp_path: Path) -> None:
    """FreeSWITCH takes 2 MB of headers over TCP, and any number of such calls (measured)."""
    switch = Switch(tmp_path / "core.db")
    switch.answer("small")
    switch.answer("big", text=TONE.replace("<variables>", f"<variables>\n<a>{'x' * 1_900_000}</a>"))
    rows = changelog.rows_by_uuid(switch.db, ["small", "big"], switch.core_uuid)
    assert rows["small"].metadata == TONE
    assert len(rows["big"].metadata) == metadata.METADATA_BYTES_MAX + 1
    with pytest.raises(metadata.MetadataError, match="more than 262144 characters"):
        build_record("east", 1, rows["big"])


@pytest.fixture
def switch(tmp_path: Path) -> Iterator[Switch]:
    made = Switch(tmp_path / "core.db")
    yield made
    made.db.close()


@pytest.fixture
def told() -> Told:
    return Told()


@contextlib.asynccontextmanager
async def following(
    switch: Switch, told: Told, hold_ms: int = 30, path: Path | None = None
) -> AsyncIterator[CallSource]:
    source = CallSource(
        path or switch.path, {"pa": "east"}, told.take, poll_ms=2, tombstone_hold_ms=hold_ms
    )
    await source.follow(switch.core_uuid)
    await source.start()
    try:
        yield source
    finally:
        await source.stop()


async def until(condition: Callable[[], bool], timeout_s: float = 5.0) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "timed out"
        await asyncio.sleep(0.005)


async def test_present_new_changed_and_ended_calls(switch: Switch, told: Told) -> None:
    switch.answer("old")
    async with following(switch, told) as source:
        await until(lambda: len(told.changes) == 1)
        switch.answer("new")
        await until(lambda: len(told.changes) == 2)
        switch.update("new", "77")
        await until(lambda: len(told.changes) == 3)
        assert told.records[2].sip_cseq == "77"
        assert {r.uuid for r in await source.snapshot()} == {"old", "new"}
        switch.hang_up("new")
        await until(lambda: told.ended == ["new"])
        versions = [change.version for change in told.changes if change.uuid == "new"]
        assert versions == sorted(set(versions))
        record = told.records[0]
        assert (record.service, record.profile, record.runtime_uuid) == ("east", "pa", "core-1")
        assert source.calls == 1


async def test_foreign_rows_and_unknown_profiles_are_nobodys(switch: Switch, told: Told) -> None:
    switch.answer("stranger", "internal")
    switch.core_uuid = "core-0"
    switch.answer("stale")
    switch.core_uuid = "core-1"
    async with following(switch, told):
        switch.answer("mine")
        await until(lambda: len(told.changes) == 1)
        assert injection.clear_stale(switch.path, "core-1") == 1
        switch.hang_up("stranger")
        await asyncio.sleep(0.15)
        assert [change.uuid for change in told.changes] == ["mine"]
        # recover leaves the row it came from behind for a moment, then deletes it
        switch.core_uuid = "core-0"
        switch.answer("mine")
        assert injection.clear_stale(switch.path, "core-1") == 1
        await asyncio.sleep(0.15)
        assert [change.uuid for change in told.changes] == ["mine"]


async def test_versions_outlive_the_agent_the_file_and_other_nodes(
    switch: Switch, told: Told, tmp_path: Path
) -> None:
    switch.answer("a")
    async with following(switch, told):
        await until(lambda: len(told.changes) == 1)
    first = told.records[0].version
    assert abs(first / 1e6 - time.time()) < 60
    switch.update("a", "2")
    async with following(switch, told):
        await until(lambda: len(told.changes) == 2)
        assert told.records[1].version > first
        foreign = told.records[1].version + 10**9
        row = injection.StreamRow("pa#0", CallRecord("east", "b", foreign, "pa", "core-9", TONE))
        injection.inject(switch.path, "core-1", "east", 3, ["pa"], [row])
        switch.update("a", "3")
        await until(lambda: len(told.changes) == 3)
        assert told.records[2].version > foreign


async def test_fenced_deletions_are_not_ends(switch: Switch, told: Told) -> None:
    switch.answer("a")
    switch.answer("b")
    async with following(switch, told, hold_ms=60) as source:
        await until(lambda: len(told.changes) == 2)
        switch.hang_up("a")
        await asyncio.sleep(0.02)
        source.set_fenced("east", True)  # the deletion came just before the fence closed
        switch.hang_up("b")
        switch.answer("c")
        await asyncio.sleep(0.25)
        assert len(told.changes) == 2
        assert await source.snapshot() == []
        source.set_fenced("east", False)  # reclaimed: now it counts
        await until(lambda: sorted(told.ended) == ["a", "b"])
        assert told.records[-1].uuid == "c"


async def test_a_replaced_owner_never_ends_calls(switch: Switch, told: Told) -> None:
    switch.answer("a")
    async with following(switch, told) as source:
        await until(lambda: len(told.changes) == 1)
        source.set_fenced("east", True)
        switch.hang_up("a")
        source.forget("east")
        source.set_fenced("east", False)
        await asyncio.sleep(0.2)
        assert told.ended == []


async def test_a_failing_consumer_is_told_everything_again(switch: Switch, told: Told) -> None:
    told.fail = 2
    switch.answer("a")
    async with following(switch, told):
        await until(lambda: len(told.changes) >= 1)
        told.fail = 1
        switch.hang_up("a")
        await until(lambda: told.ended == ["a"])


async def test_missing_then_wrong_then_right_core_db(
    switch: Switch, told: Told, tmp_path: Path
) -> None:
    path = tmp_path / "late.db"
    async with following(switch, told, path=path) as source:
        await until(lambda: "no such file" in source.problem)
        assert not path.exists()
        path.write_text("this is no database" * 100)
        await until(lambda: "not a database" in source.problem, 8)
        path.unlink()
        late = Switch(path)
        late.answer("a")
        await until(lambda: len(told.changes) == 1, 8)
        await until(lambda: source.problem == "")
        late.db.close()


async def test_a_locked_core_db_is_waited_for(switch: Switch, told: Told) -> None:
    async with following(switch, told) as source:
        switch.answer("a")
        await until(lambda: len(told.changes) == 1)
        switch.db.execute("BEGIN EXCLUSIVE")
        await asyncio.sleep(0.4)
        switch.db.execute("COMMIT")
        switch.answer("b")
        await until(lambda: len(told.changes) == 2)
        assert source.problem == ""


async def test_lost_triggers_and_a_recreated_table_are_noticed(switch: Switch, told: Told) -> None:
    async with following(switch, told):
        switch.answer("a")
        await until(lambda: len(told.changes) == 1)
        switch.db.execute("DROP TABLE recovery")
        switch.db.execute(SCHEMA)
        switch.answer("b")
        await until(lambda: [r.uuid for r in told.records] == ["a", "b"])
        switch.answer("c")
        await until(lambda: "c" in [r.uuid for r in told.records])


async def test_a_burst_beyond_the_log_is_read_in_full(
    switch: Switch, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with following(switch, told):
        switch.answer("first")
        await until(lambda: len(told.changes) == 1)
        switch.db.execute("BEGIN")
        for number in range(changelog.LOG_ROWS_MAX + 50):
            switch.update("first", str(number + 2))
        switch.answer("last")
        switch.db.execute("COMMIT")
        await until(lambda: "last" in [r.uuid for r in told.records], 15)
        rows = switch.db.execute("SELECT count(*) FROM ha_log").fetchone()[0]
        assert rows <= changelog.LOG_ROWS_MAX + 1


def test_triggers_never_fail_freeswitchs_statement(switch: Switch) -> None:
    connection = changelog.open_core_db(switch.path)
    changelog.install(connection, switch.path)
    changelog.install(connection, switch.path)
    switch.db.execute(
        "INSERT INTO recovery(uuid) VALUES (NULL)"
    )  # odd rows must pass as they do without triggers
    switch.db.execute("UPDATE recovery SET uuid = 5, metadata = x'00ff'")
    switch.db.execute("DELETE FROM recovery")
    entries, gap = changelog.entries_after(connection, 0)
    assert ([entry.op for entry in entries], gap) == (["UPDATE", "DELETE"], True)
    connection.close()


def test_an_unknown_schema_is_a_plain_error(tmp_path: Path) -> None:
    path = tmp_path / "core.db"
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE recovery(uuid)")
    connection = changelog.open_core_db(path)
    with pytest.raises(changelog.CoreDbError, match=r"lacks runtime_uuid.*not supported"):
        changelog.install(connection, path)
    connection.close()


async def test_shutdown_and_restart_of_freeswitch(switch: Switch, told: Told) -> None:
    async with FakeEsl() as server:
        server.api["global_getvar core_uuid"] = lambda _: switch.core_uuid
        settings = EslSettings("127.0.0.1", server.port, "ClueCon", backoff_first_ms=5)
        resets: list[int] = []

        async def reset() -> None:
            resets.append(1)

        source = CallSource(
            switch.path, {"pa": "east"}, told.take, on_reset=reset, poll_ms=2,
            tombstone_hold_ms=60,
            esl_factory=lambda **options: EslConnection(settings, **options),
        )  # fmt: skip
        switch.answer("a")
        switch.answer("a2")
        await source.start()
        await until(lambda: len(told.changes) == 2)
        switch.hang_up("a")  # the row goes first, the event comes later
        await asyncio.sleep(0.02)
        server.send_all(json_event({"Event-Name": "SHUTDOWN", "Core-UUID": "core-1"}))
        await asyncio.sleep(0.05)
        switch.hang_up("a2")  # and one after the event
        await asyncio.sleep(0.15)
        assert told.ended == []
        switch.core_uuid = "core-2"
        server.drop_all()
        await until(lambda: source.core_uuid == "core-2")
        assert resets == [1]
        switch.answer("b")
        await until(lambda: [r.uuid for r in told.records] == ["a", "a2", "b"])
        switch.hang_up("b")
        await until(lambda: told.ended == ["b"])
        await source.stop()


async def test_tombstones_wait_while_esl_is_down(switch: Switch, told: Told) -> None:
    async with FakeEsl() as server:
        server.api["global_getvar core_uuid"] = "core-1"
        settings = EslSettings(
            "127.0.0.1", server.port, "ClueCon", backoff_first_ms=5, backoff_max_ms=20
        )
        source = CallSource(
            switch.path, {"pa": "east"}, told.take, poll_ms=2, tombstone_hold_ms=20,
            esl_factory=lambda **options: EslConnection(settings, **options),
        )  # fmt: skip
        switch.answer("a")
        await source.start()
        await until(lambda: len(told.changes) == 1)
        await server.close()
        await asyncio.sleep(0.05)
        switch.hang_up("a")
        await asyncio.sleep(0.2)
        assert told.ended == []
        await server.listen()
        await until(lambda: told.ended == ["a"])
        await source.stop()


async def test_s8_an_inherited_call_may_end_before_its_row(switch: Switch, told: Told) -> None:
    async with following(switch, told) as source:
        await until(lambda: source.core_uuid != "")
        source.ended("east", "inherited", 77)
        source.set_fenced("west", True)
        source.ended("west", "fenced", 78)
        await until(lambda: bool(told.ended))
        assert told.changes == [Tombstone("east", "inherited", 77)]
        source.expect_shutdown()
        source.ended("east", "stopping", 79)
        await asyncio.sleep(0.2)
    assert told.ended == ["inherited"]
