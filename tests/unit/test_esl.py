"""The ESL connection against a scripted server: logins, limits, losses, nothing ever hangs."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from haclusterd.freeswitch import esl_protocol as wire
from haclusterd.freeswitch.esl import EslConnection, EslSettings, EventItem, EventsLost
from haclusterd.freeswitch.esl_errors import EslDown, EslError, EslTimeout
from tests.fixtures.freeswitch.fake_esl import FakeEsl, frame, json_event

pytestmark = pytest.mark.timeout(20)


@pytest.fixture
async def server() -> AsyncIterator[FakeEsl]:
    async with FakeEsl() as fake:
        yield fake


def settings_for(server: FakeEsl) -> EslSettings:
    return EslSettings(
        "127.0.0.1", server.port, "ClueCon", connect_timeout_ms=200, command_timeout_ms=200,
        backoff_first_ms=5, backoff_max_ms=40,
    )  # fmt: skip


@contextlib.asynccontextmanager
async def running(connection: EslConnection) -> AsyncIterator[EslConnection]:
    await connection.start()
    try:
        yield connection
    finally:
        await connection.stop()


async def problem_of(connection: EslConnection, timeout_ms: int = 400) -> str:
    async with running(connection):
        with pytest.raises(EslDown) as down:
            await connection.wait_up(timeout_ms)
        return str(down.value)


async def test_api_bgapi_and_sendevent(server: FakeEsl) -> None:
    server.api["echo"] = lambda line: line[5:]
    connection = EslConnection(settings_for(server), events=["BACKGROUND_JOB"])
    async with running(connection):
        await connection.wait_up(1000)
        assert connection.problem == ""
        assert await connection.api("echo grüße") == "grüße"
        assert (await connection.api("nosuch")).startswith("-ERR nosuch")
        assert await connection.bgapi("echo later") == "later"
        assert await connection.sendevent("CUSTOM", {"a": "b"}, "x" * 5000) != ""
        assert (await connection.command("nosuch")) == "-ERR command not found"
        answers = await asyncio.gather(*(connection.api(f"echo {n}") for n in range(200)))
        assert answers == [str(n) for n in range(200)]
    assert server.received[1] == "event json BACKGROUND_JOB"
    with pytest.raises(EslDown):
        await connection.api("status")


async def test_wrong_password_names_the_fix_not_the_password(server: FakeEsl) -> None:
    settings = replace(settings_for(server), password="tellnoone")
    problem = await problem_of(EslConnection(settings))
    assert "esl_password_file" in problem
    assert "tellnoone" not in problem + repr(settings)


async def test_refused_and_silent_and_rejected(server: FakeEsl) -> None:
    server.greeting = None
    assert "no ESL greeting" in await problem_of(EslConnection(settings_for(server)))
    server.greeting = frame("text/rude-rejection", "Access Denied, go away.\n")
    assert "apply-inbound-acl" in await problem_of(EslConnection(settings_for(server)))
    server.greeting = b"HTTP/1.1 400 Bad Request\r\nContent-Length: many\r\n\n\n"
    assert "broken ESL frame" in await problem_of(EslConnection(settings_for(server)))
    settings = settings_for(server)
    await server.close()
    assert "nothing listens" in await problem_of(EslConnection(settings))


async def test_half_a_frame_then_eof_fails_the_pending_command(server: FakeEsl) -> None:
    server.api["half"] = lambda _: None
    downs: list[str] = []
    connection = EslConnection(settings_for(server), on_down=downs.append)
    async with running(connection):
        await connection.wait_up(1000)
        pending = asyncio.create_task(connection.api("half"))
        await asyncio.sleep(0.02)
        server.send_all(b"Content-Type: api/response\nContent-Length: 100\n\nhal")
        await asyncio.sleep(0.02)
        server.drop_all()
        with pytest.raises(EslDown):
            await pending
        await connection.wait_up(1000)
        assert (await connection.api("status")).startswith("UP")
    assert server.connections == 2
    assert downs[0].startswith("the ESL connection")


async def test_silent_command_times_out_and_the_connection_is_replaced(server: FakeEsl) -> None:
    server.api["hang"] = lambda _: None
    connection = EslConnection(settings_for(server))
    async with running(connection):
        await connection.wait_up(1000)
        with pytest.raises(EslTimeout, match="api hang"):
            await connection.api("hang", 30)
        await asyncio.sleep(0.05)
        await connection.wait_up(1000)
        assert server.connections == 2


async def test_late_answer_is_not_taken_for_the_next_one(server: FakeEsl) -> None:
    server.api["slow"] = lambda _: None
    connection = EslConnection(settings_for(server))
    async with running(connection):
        await connection.wait_up(1000)
        with pytest.raises(EslTimeout):
            await connection.api("slow", 20, drop_on_timeout=False)
        server.send_all(b"Content-Type: api/response\nContent-Length: 4\n\nlate")
        assert (await connection.api("status")).startswith("UP")
    assert server.connections == 1


async def test_events_arrive_in_order_after_a_marker(server: FakeEsl) -> None:
    seen: list[EventItem] = []

    async def sink(item: EventItem) -> None:
        seen.append(item)
        if len(seen) == 2:
            raise RuntimeError("a consumer's bug must not end the events")

    connection = EslConnection(
        settings_for(server), events=["SHUTDOWN"], filters=[("a", "b")], on_event=sink
    )
    async with running(connection):
        await connection.wait_up(1000)
        for number in range(3):
            server.send_all(json_event({"Event-Name": "SHUTDOWN", "n": str(number)}))
        await asyncio.sleep(0.05)
        server.drop_all()
        await asyncio.sleep(0.1)
    assert seen[0] == EventsLost("connected")
    assert [item.get("n") for item in seen[1:4] if not isinstance(item, EventsLost)] == [
        "0", "1", "2",
    ]  # fmt: skip
    assert seen[4] == EventsLost("connected")
    assert server.received[1:3] == ["event json SHUTDOWN", "filter a b"]


async def test_overflow_is_marked_and_memory_stays_bounded(server: FakeEsl) -> None:
    seen: list[EventItem] = []
    gate = asyncio.Event()

    async def slow(item: EventItem) -> None:
        await gate.wait()
        seen.append(item)

    settings = replace(settings_for(server), event_queue_max=10)
    connection = EslConnection(settings, events=["SHUTDOWN"], on_event=slow)
    async with running(connection):
        await connection.wait_up(1000)
        server.send_all(json_event({"Event-Name": "SHUTDOWN", "n": "x"}) * 25)
        await connection.api("status")
        gate.set()
        await asyncio.sleep(0.05)
    assert connection.events_dropped > 0
    assert EventsLost("event queue overflow") in seen
    assert len(seen) <= 13


async def test_few_events_of_megabytes_are_as_much_as_many(server: FakeEsl) -> None:
    """A caller's headers are in each event of a call, and FreeSWITCH takes 2 MB of them."""
    seen: list[EventItem] = []
    gate = asyncio.Event()

    async def slow(item: EventItem) -> None:
        await gate.wait()
        seen.append(item)

    settings = replace(settings_for(server), event_queue_bytes_max=1_000_000)
    connection = EslConnection(settings, events=["SHUTDOWN"], on_event=slow)
    async with running(connection):
        await connection.wait_up(1000)
        big = json_event({"Event-Name": "SHUTDOWN", "x": "x" * 300_000})
        server.send_all(big * 9)
        await connection.api("status")
        assert sum(i.size for i in connection._items if isinstance(i, wire.Event)) < 1_000_000
        gate.set()
        await asyncio.sleep(0.05)
        server.send_all(json_event({"Event-Name": "SHUTDOWN", "x": "x" * 1_200_000}))
        await asyncio.sleep(0.1)
    assert connection.events_dropped > 0
    assert EventsLost("event queue overflow") in seen
    assert connection._items_bytes == 0
    assert [len(i.get("x")) for i in seen if isinstance(i, wire.Event)][-1] == 1_200_000, "alone"


async def test_a_frame_of_a_callers_megabytes_goes_by_and_is_counted(server: FakeEsl) -> None:
    """2 MB of a user are in each event of a call a dozen times; other calls' events are there."""
    seen: list[EventItem] = []

    async def take(item: EventItem) -> None:
        seen.append(item)

    settings = replace(settings_for(server), command_timeout_ms=10_000)  # to pass 16 MB on
    connection = EslConnection(settings, events=["SHUTDOWN"], on_event=take)
    small = json_event({"Event-Name": "SHUTDOWN", "n": "1"})
    async with running(connection):
        await connection.wait_up(1000)
        length = wire.BODY_BYTES_MAX + 1
        server.send_all(small + b"Content-Type: text/event-json\nContent-Length: %d\n\n" % length)
        for _ in range(16):
            server.send_all(b"x" * (1 << 20))
            await asyncio.sleep(0)
        server.send_all(b"x" + small)
        async with asyncio.timeout(10):
            while len(seen) < 3:  # both events, and what was lost between them
                await asyncio.sleep(0.01)
        assert [i.get("n") for i in seen if isinstance(i, wire.Event)] == ["1", "1"]
        server.api["show channels"] = lambda _: "y" * length
        with pytest.raises(EslError, match="too large"):
            await connection.api("show channels")
        assert await connection.api("status")
        assert (connection.events_dropped, connection.logins) == (1, 1)


async def test_backoff_is_bounded_and_ends_when_the_server_comes(server: FakeEsl) -> None:
    settings = settings_for(server)
    await server.close()
    downs: list[str] = []
    connection = EslConnection(settings, on_down=downs.append)
    async with running(connection):
        await asyncio.sleep(0.2)
        assert len(downs) == 1  # the same problem is told once, not at every attempt
        await server.listen()
        await connection.wait_up(1000)


async def test_goodbye_means_reconnect(server: FakeEsl) -> None:
    connection = EslConnection(settings_for(server))
    async with running(connection):
        await connection.wait_up(1000)
        server.send_all(frame("text/disconnect-notice", "bye\n"))
        await asyncio.sleep(0.05)
        await connection.wait_up(1000)
    assert server.connections == 2


async def test_a_password_that_cannot_be_sent_is_a_problem_not_the_end(server: FakeEsl) -> None:
    """A file of zeros, as a host that lost power may leave: nobody was told, for ever."""
    problem = await problem_of(EslConnection(replace(settings_for(server), password="\0\0")))
    assert "the ESL password" in problem


async def test_a_consumer_that_fails_at_the_login_does_not_end_the_connection(
    server: FakeEsl,
) -> None:
    faults = [RuntimeError("not yet")]

    def on_up() -> None:
        if faults:
            raise faults.pop()

    connection = EslConnection(settings_for(server), on_up=on_up)
    async with running(connection):
        async with asyncio.timeout(2):
            while not connection.up or connection.logins < 2:
                await asyncio.sleep(0.01)
        assert (await connection.api("status")).startswith("UP")
    assert len([line for line in server.received if line.startswith("auth")]) == 2
