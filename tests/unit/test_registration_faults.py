"""Tables of registrations where something comes in between: other bytes, another owner, no file."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from haclusterd.freeswitch import registration_keeper
from haclusterd.freeswitch.esl import EventsLost
from haclusterd.freeswitch.registration_db import RegistrationDbError, hand_over, write
from haclusterd.freeswitch.registrations import Row
from tests.unit.sync_cluster import until
from tests.unit.test_registration_keeper import Node, record, row

pytestmark = pytest.mark.timeout(30)
LATIN_1 = "X'" + '"Jürgen" <sip:1000@10.77.0.21:5090>'.encode("latin-1").hex() + "'"


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    one = Node(tmp_path)
    await one.keeper.start()
    yield one
    await one.keeper.stop()


def put_in_latin_1(node: Node, column: str, value: str = LATIN_1) -> None:
    """A phone's row whose text is not UTF-8, as mod_sofia takes it."""
    node.insert(row("1000"))
    node.sql("east", f"UPDATE sip_registrations SET {column} = CAST({value} AS TEXT)")


async def test_eg8_a_phone_in_another_character_set_keeps_no_other_from_its_place(
    node: Node,
) -> None:
    """Its row was left by mod_sofia when the service moved on, and has to go."""
    put_in_latin_1(node, "contact")
    node.keeper.take(record("2000"))
    await until(lambda: node.users("east") == ["2000"])
    await until(lambda: node.keeper.problem == "")


async def test_eg8_a_user_in_another_character_set_is_no_error(
    node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    await node.own("east")
    put_in_latin_1(node, "sip_user", "X'" + "Jürgen".encode("latin-1").hex() + "'")
    node.insert(row("2000"))
    await node.fire("register", "J\udcfcrgen")
    await node.fire("register", "2000")
    await until(lambda: node.told_users() == ["2000"])
    assert "Traceback" not in caplog.text
    assert node.keeper.counters["refused"] == 1


class Writing:
    """`hand_over` as the keeper calls it, stopped on its way or refused."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.real = hand_over
        self.entered, self.let_go = threading.Event(), threading.Event()
        self.refuse = False
        self.sizes: list[int] = []
        monkeypatch.setattr(registration_keeper, "hand_over", self.hand_over)

    def hand_over(self, *arguments: Any) -> Any:
        self.sizes.append(len(arguments[2]))
        self.entered.set()
        if self.refuse:
            raise RegistrationDbError("the disk is full")
        self.let_go.wait(5)
        return self.real(*arguments)


async def test_a_service_that_is_lost_and_won_again_while_its_rows_are_written_is_followed(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    writing = Writing(monkeypatch)
    node.keeper.take(record("1000"))
    await until(lambda: node.users("east") == ["1000"])
    node.keeper.own("east")
    await until(writing.entered.is_set)
    node.keeper.disown("east")
    ready = node.keeper.own("east", [record("2000")])
    writing.let_go.set()
    await asyncio.wait_for(ready.wait(), 5)
    assert node.users("east") == ["1000", "2000"]
    node.keeper.follow("east")
    await until(lambda: node.told_users() == ["1000", "2000"])


async def test_rows_that_cannot_be_written_are_kept_once(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They were added once more with each try, for as long as the disk was full."""
    monkeypatch.setattr(registration_keeper, "RETRY_MAX_S", 0.01)
    monkeypatch.setattr(registration_keeper, "RETRY_S", 0.01)
    writing = Writing(monkeypatch)
    writing.let_go.set()
    writing.refuse = True
    ready = node.keeper.own("east", [record("1000"), record("2000")])
    await until(lambda: len(writing.sizes) > 3)
    writing.refuse = False
    await asyncio.wait_for(ready.wait(), 5)
    assert set(writing.sizes) == {2}
    assert node.users("east") == ["1000", "2000"]


async def test_eg8_who_left_goes_as_soon_as_the_table_can_be_written_again(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A phone that unregistered in the takeover, told after its row was put in."""
    monkeypatch.setattr(registration_keeper, "RETRY_S", 0.01)
    held = record("1000")
    for one in (held, record("1001")):
        node.keeper.take(one)
    await node.own("east")
    assert node.users("east") == ["1000", "1001"]
    refused: list[str] = []

    def locked(path: Path, gone: Sequence[Row], added: Sequence[Row]) -> None:
        if gone and len(refused) < 2:
            refused.extend(row.sip_user for row in gone)
            raise RegistrationDbError("database is locked")
        write(path, gone, added)

    monkeypatch.setattr(registration_keeper, "write", locked)
    await node.fire("unregister", "1000", contact=held.contact, call_id=held.call_id)
    await until(lambda: node.users("east") == ["1001"])
    assert refused == ["1000", "1000"]
    await until(lambda: node.keeper.problem == "")


async def test_eg8_rows_that_could_not_be_taken_back_are_the_next_owners_matter(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    held, tried = record("1000"), asyncio.Event()
    loop = asyncio.get_running_loop()
    node.keeper.take(held)
    await node.own("east")

    def locked(path: Path, gone: Sequence[Row], added: Sequence[Row]) -> None:
        loop.call_soon_threadsafe(node.keeper.disown, "east")
        loop.call_soon_threadsafe(tried.set)
        raise RegistrationDbError("database is locked")

    monkeypatch.setattr(registration_keeper, "write", locked)
    await node.fire("unregister", "1000", contact=held.contact, call_id=held.call_id)
    await asyncio.wait_for(tried.wait(), 5)
    await asyncio.sleep(0.05)
    assert node.keeper._withdrawn == {}


async def test_eg8_a_profile_that_does_not_run_is_a_problem_until_it_does(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registration_keeper, "PROFILE_S", 0.02)
    del node.esl.running["west"]
    await node.send(EventsLost("connected"))
    await until(lambda: "west" not in node.keeper.plan.addresses)
    node.keeper.own("west")

    def problem() -> str:
        node.keeper._news.set()  # it looks for profiles every EXPIRE_S
        return node.keeper.problem

    await until(lambda: "SIP profile west does not run" in problem())
    assert "sofia profile west start" in node.keeper.problem
    node.keeper.disown("west")
    assert node.keeper.problem == "", "it is another node's"
    ready = node.keeper.own("west")
    await until(lambda: problem() != "")
    node.esl.running["west"] = 2
    await node.send(EventsLost("its profile_start"))
    await asyncio.wait_for(ready.wait(), 5)
    await until(lambda: node.keeper.problem == "")


async def test_eg8_a_profile_that_is_just_starting_is_no_problem(node: Node) -> None:
    del node.esl.running["west"]
    await node.send(EventsLost("connected"))
    await until(lambda: "west" not in node.keeper.plan.addresses)
    node.keeper.own("west")
    await until(lambda: "west" in node.keeper._missing)
    assert node.keeper.problem == ""


async def test_a_profile_that_does_not_run_has_nothing_read_at_each_change(node: Node) -> None:
    """All tables were read at every REGISTER as long as one profile was down."""
    del node.esl.running["west"]
    await node.own("east")
    await node.send(EventsLost("connected"))
    await until(lambda: node.keeper._introduced)
    asked = node.esl.introductions
    for n in range(5):
        node.insert(row(str(1000 + n)))
        await node.fire("register", str(1000 + n))
        await until(lambda n=n: len(node.told) == n + 1)  # type: ignore[misc]
    assert node.esl.introductions == asked


async def test_a_lasting_problem_does_not_multiply_the_passes(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registration_keeper, "RETRY_S", 0.2)
    node.keeper._pause_s = 0.2
    node.keeper._problems["west"] = "it lasts"
    passes = []
    work = node.keeper._work

    async def counted() -> None:
        passes.append(1)
        await work()

    monkeypatch.setattr(node.keeper, "_work", counted)
    for n in range(20):
        node.keeper._news.set()
        await until(lambda n=n: len(passes) > n)  # type: ignore[misc]
        node.keeper._pause_s = 0.2
        node.keeper._problems["west"] = "it lasts"
    await asyncio.sleep(0.3)
    assert len(passes) <= 22
