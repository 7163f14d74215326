"""The reader of core.db where the file is there and cannot be had: locked, forbidden."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from haclusterd.freeswitch import changelog
from haclusterd.freeswitch.calls import Change
from haclusterd.freeswitch.esl import EslFactory
from haclusterd.freeswitch.positions import Positions
from tests.unit.test_calls import Switch, Told, following, until

pytestmark = pytest.mark.timeout(30)


@pytest.fixture
def switch(tmp_path: Path) -> Iterator[Switch]:
    made = Switch(tmp_path / "core.db")
    yield made
    made.db.close()


@pytest.fixture
def told() -> Told:
    return Told()


async def test_a_full_read_that_is_locked_out_half_way_begins_again(
    switch: Switch, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What changed behind a closed fence is told by nothing but this read."""
    async with following(switch, told) as source:
        source.set_fenced("east", True)
        uuids = [f"call-{number}" for number in range(3 * changelog.METADATA_READ_ROWS)]
        for uuid in uuids:
            switch.answer(uuid)
        await asyncio.sleep(0.2)
        assert told.changes == []
        take = told.take

        async def lock_out(changes: list[Change]) -> None:
            if not told.changes:
                switch.db.execute("BEGIN EXCLUSIVE")
            await take(changes)

        monkeypatch.setattr(source, "_on_change", lock_out)
        source.set_fenced("east", False)
        await until(lambda: bool(told.changes))
        await asyncio.sleep(0.3)  # longer than the reader waits for a lock
        switch.db.execute("COMMIT")
        await until(lambda: {r.uuid for r in told.records} == set(uuids))


async def test_a_folder_that_may_not_be_read_is_a_problem_with_its_fix(
    switch: Switch, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The daemon is not root: a core.db that only FreeSWITCH may reach ended the reader unheard."""
    forbidden = [PermissionError(errno.EACCES, "Permission denied")]

    def is_file(path: Path) -> bool:
        if forbidden:
            raise forbidden[0]
        return os.path.isfile(path)

    monkeypatch.setattr(Path, "is_file", is_file)
    switch.answer("a")
    async with following(switch, told) as source:
        await until(lambda: "Permission denied" in source.problem)
        assert "let haclusterd read and write" in source.problem
        forbidden.clear()
        await until(lambda: len(told.changes) == 1)
        await until(lambda: source.problem == "")


def test_many_positions_are_one_transaction(switch: Switch) -> None:
    """Each commit is a moment in which FreeSWITCH's own writer has to wait."""
    uuids = [f"call-{number}" for number in range(50)]
    for uuid in uuids:
        switch.answer(uuid)
    with contextlib.closing(changelog.open_core_db(switch.path)) as connection:
        changelog.install(connection, switch.path)

    def commits() -> int:
        return int.from_bytes(switch.path.read_bytes()[24:28], "big")  # the file change counter

    before = commits()
    Positions(switch.path, cast(EslFactory, lambda **_: None), lambda: "core-1")._touch(uuids)
    assert commits() == before + 1
    logged = switch.db.execute("SELECT count(*) FROM ha_log WHERE uuid LIKE 'call-%'").fetchone()
    assert logged == (50,)


async def test_a_consumer_that_cannot_reset_does_not_end_the_capture(
    switch: Switch, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken() -> None:
        raise RuntimeError("not now")

    async with following(switch, told) as source:
        monkeypatch.setattr(source, "_on_reset", broken)
        switch.core_uuid = "core-2"
        switch.answer("a")
        with contextlib.suppress(RuntimeError):
            await source.follow("core-2")
        await until(lambda: [r.uuid for r in told.records] == ["a"])


@pytest.mark.parametrize("error", [KeyError("a"), TimeoutError()])
async def test_a_fault_of_ours_is_a_problem_and_does_not_end_the_capture(
    switch: Switch, told: Told, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture, error: Exception,
) -> None:  # fmt: skip
    """The thread ended, `problem` stayed empty, and no call had a copy anywhere from then on."""
    faults = [error] * 3

    def records(rows: Any) -> list[Change]:
        if faults:
            raise faults.pop()
        return whole(rows)

    async with following(switch, told) as source:
        whole = source._records
        monkeypatch.setattr(source, "_records", records)
        switch.answer("a")
        await until(lambda: repr(error) in source.problem)
        await until(lambda: [r.uuid for r in told.records] == ["a"])
        await until(lambda: source.problem == "")
    assert caplog.text.count("Traceback") == 1, "said once"
