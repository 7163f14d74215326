"""What an ESL backend has to do, asked of each of them with a scripted server.

The first line of a test's docstring is its row in docs/esl-backends.md. What a library fails is in
tests/fixtures/freeswitch/esl_backends.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from haclusterd.freeswitch.esl import EventsLost
from haclusterd.freeswitch.esl_errors import EslDown, EslTimeout
from haclusterd.freeswitch.esl_protocol import EslArgumentError
from tests.fixtures.freeswitch import esl_backends
from tests.fixtures.freeswitch.esl_client import Client, numbered, running
from tests.fixtures.freeswitch.fake_esl import FakeEsl, frame

pytestmark = pytest.mark.timeout(30)


FLOOD, FLOOD_S = 60_000, 15.0  # 0.3 to 4 s where each event costs the same, more than 20 s if not


@pytest.fixture(params=esl_backends.BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    name = str(request.param)
    case = request.function.__name__.removeprefix("test_")
    esl_backends.mark(request, name, case)
    return name


@pytest.fixture
async def server() -> AsyncIterator[FakeEsl]:
    async with FakeEsl() as fake:
        fake.api["echo"] = lambda line: line[5:]
        fake.api["mute"] = lambda _: None
        yield fake


# -- commands --


async def test_answers_of_api_commands(backend: str, server: FakeEsl) -> None:
    """An API command's whole output, UTF-8 and errors included."""
    server.api["long"] = "x" * 300_000
    async with running(Client(backend, server)) as client:
        assert await client.esl.api("echo grüße") == "grüße"
        assert await client.esl.api("nosuch") == "-ERR nosuch Command not found!\n"
        assert len(await client.esl.api("long")) == 300_000
        assert await client.esl.command("nosuch") == "-ERR command not found"


async def test_many_commands_at_once(backend: str, server: FakeEsl) -> None:
    """200 commands in flight, from two connections: each gets its own answer."""
    async with running(Client(backend, server)) as one, running(Client(backend, server)) as two:
        asked = [(client, str(n)) for n in range(100) for client in (one, two)]
        found = await asyncio.gather(*(client.esl.api(f"echo {n}") for client, n in asked))
        assert found == [n for _, n in asked]


async def test_commands_amid_events(backend: str, server: FakeEsl) -> None:
    """Events between a command and its answer: neither is lost or mixed up."""
    storm = numbered(server, 20)

    def answer(line: str) -> str:
        server.send_all(storm)
        return line[6:]

    server.api["storm"] = answer
    async with running(Client(backend, server)) as client:
        storm = numbered(server, 20)
        for n in range(10):
            assert await client.esl.api(f"storm {n}") == str(n)
        await client.until(lambda: len(client.events) == 200)
        assert client.numbers == [str(n) for n in range(20)] * 10


async def test_result_of_a_background_job(backend: str, server: FakeEsl) -> None:
    """The result of `bgapi`, several lines of it."""
    server.api["lines"] = "+OK one\ntwo: 2\n\nEvent-Name: SHUTDOWN\n"
    async with running(Client(backend, server)) as client:
        assert await client.esl.bgapi("lines", 500) == "+OK one\ntwo: 2\n\nEvent-Name: SHUTDOWN\n"


async def test_event_with_a_body_is_sent_whole(backend: str, server: FakeEsl) -> None:
    """An event of ours with a body of 1 MB and blank lines in it."""
    body = "a: b\n\napi hupall\n\n" + "x" * 1_000_000
    async with running(Client(backend, server)) as client:
        await client.esl.sendevent("CUSTOM", {"a": "b"}, body)
        assert await client.esl.api("echo next") == "next"
    sent = next(text for text in server.received if text.startswith("sendevent"))
    assert sent.endswith("\n\n" + body)
    assert not [text for text in server.received if "hupall" in text and text is not sent]


async def test_line_breaks_in_arguments_are_refused(backend: str, server: FakeEsl) -> None:
    """A line break or NUL in an argument never reaches FreeSWITCH."""
    async with running(Client(backend, server)) as client:
        for evil in ("echo a\n\napi hupall", "echo a\rb", "echo \0"):
            with pytest.raises(EslArgumentError):
                await client.esl.api(evil)
        with pytest.raises(EslArgumentError):
            await client.esl.sendevent("CUSTOM", {"a": "b\nEvent-Name: x"})
    assert not [text for text in server.received if "echo" in text or "sendevent" in text]


async def test_argument_that_is_not_utf8_arrives(backend: str, server: FakeEsl) -> None:
    """A value of FreeSWITCH's that is not UTF-8 can be sent back to it."""
    async with running(Client(backend, server)) as client:
        assert await client.esl.api("echo \udcff") == "\udcff"


# -- events --


async def test_events_come_in_order_after_a_marker(backend: str, server: FakeEsl) -> None:
    """Events in order, behind the mark that some may be missing."""
    async with running(Client(backend, server)) as client:
        server.send_all(numbered(server, 300))
        await client.until(lambda: len(client.events) == 300)
        assert client.seen[0] == EventsLost("connected")
        assert client.numbers == [str(n) for n in range(300)]


async def test_queue_of_events_is_bounded(backend: str, server: FakeEsl) -> None:
    """A consumer that is late: the queue stays bounded and the loss is counted and marked."""
    async with running(Client(backend, server, event_queue_max=50)) as client:
        await client.until(lambda: len(client.seen) == 1)
        client.gate.clear()
        server.send_all(numbered(server, 2000))
        await client.esl.api("echo", 3000)
        await client.until(lambda: client.esl.events_dropped > 1850)
        client.gate.set()
        await client.until(lambda: "1999" in client.numbers)
        assert EventsLost("event queue overflow") in [
            replace(item, dropped=0) for item in client.seen if isinstance(item, EventsLost)
        ]
        assert len(client.events) <= 150
        assert len(client.events) + client.esl.events_dropped >= 2000


async def test_line_break_in_a_value_forges_no_header(backend: str, server: FakeEsl) -> None:
    """CR, LF and `%0A` in a value stay in the value."""
    values = {"a": "x\nEvent-Name: CHANNEL_HANGUP", "b": "y\r\nn: 9", "c": "%0AEvent-Name: Z"}
    async with running(Client(backend, server)) as client:
        server.send_all(server.styled({"Event-Name": "SHUTDOWN", **values, "n": "1"}))
        await client.until(lambda: bool(client.events))
        event = client.events[0]
        assert {name: event.get(name) for name in values} == values
        assert (event.name, event.get("n")) == ("SHUTDOWN", "1")


async def test_body_of_an_event_is_not_read_as_headers(backend: str, server: FakeEsl) -> None:
    """The body of an event stays a body."""
    body = "Event-Name: CHANNEL_HANGUP\nn: 9\n\nmore"
    async with running(Client(backend, server)) as client:
        server.send_all(server.styled({"Event-Name": "SHUTDOWN", "n": "1"}, body))
        await client.until(lambda: bool(client.events))
        event = client.events[0]
        assert (event.name, event.get("n"), event.body) == ("SHUTDOWN", "1", body)


async def test_unicode_line_separators_are_text(backend: str, server: FakeEsl) -> None:
    """U+2028 and U+0085 in a value split nothing."""
    async with running(Client(backend, server)) as client:
        value = "a\u2028Event-Name: X\u0085Event-Name: Y"
        server.send_all(server.styled({"Event-Name": "SHUTDOWN", "v": value, "n": "1"}))
        await client.until(lambda: bool(client.events))
        assert (client.events[0].name, client.events[0].get("v")) == ("SHUTDOWN", value)


async def test_repeated_header_is_a_list(backend: str, server: FakeEsl) -> None:
    """A variable with several values."""
    async with running(Client(backend, server)) as client:
        server.send_all(server.styled({"Event-Name": "SHUTDOWN", "v": ["a", "b,c"], "n": "1"}))
        await client.until(lambda: bool(client.events))
        assert client.events[0].headers["v"] == ["a", "b,c"]


async def test_empty_and_percent_values(backend: str, server: FakeEsl) -> None:
    """Values with `%25`, `+`, quotes, backslashes and leading colons."""
    values = {"a": "100%", "b": "a+b%41", "c": '"\\', "d": ": x: y"}
    async with running(Client(backend, server)) as client:
        server.send_all(server.styled({"Event-Name": "SHUTDOWN", **values, "n": "1"}))
        await client.until(lambda: bool(client.events))
        assert {name: client.events[0].get(name) for name in values} == values


async def test_header_of_a_megabyte(backend: str, server: FakeEsl) -> None:
    """A value of 1 MB."""
    async with running(Client(backend, server)) as client:
        server.send_all(server.styled({"Event-Name": "SHUTDOWN", "v": "x" * 1_000_000, "n": "1"}))
        await client.until(lambda: bool(client.events), 10)
        assert len(client.events[0].get("v")) == 1_000_000
        assert await client.esl.api("echo on", 3000) == "on"
    assert server.connections == 1


async def test_bytes_that_are_not_utf8_do_not_end_the_connection(
    backend: str, server: FakeEsl
) -> None:
    """Bytes that are not UTF-8 in a value."""
    async with running(Client(backend, server)) as client:
        content = server.styled({"Event-Name": "SHUTDOWN", "v": "?", "n": "1"})
        server.send_all(content.replace(b"%3F", b"\xff").replace(b'"?"', b'"\xff"'))
        if server.style == "plain":  # the frame is shorter now
            server.send_all(b"\n\n")
        server.send_all(server.styled({"Event-Name": "SHUTDOWN", "n": "2"}))
        await client.until(lambda: "2" in client.numbers)
        assert client.events[0].get("v") == "\udcff"
    assert server.connections == 1


async def test_stray_blank_line_is_skipped(backend: str, server: FakeEsl) -> None:
    """A blank line between two frames."""
    async with running(Client(backend, server)) as client:
        server.send_all(b"\n" + numbered(server, 1) + b"\n" + numbered(server, 1))
        await client.until(lambda: len(client.events) == 2)
    assert server.connections == 1


async def test_byte_by_byte(backend: str, server: FakeEsl) -> None:
    """An event in pieces of one byte."""
    async with running(Client(backend, server)) as client:
        for at in numbered(server, 1):
            server.send_all(bytes([at]))
            await asyncio.sleep(0)
        await client.until(lambda: client.numbers == ["0"])


# -- endings --


async def test_eof_within_an_event_is_an_end(backend: str, server: FakeEsl) -> None:
    """FreeSWITCH ends in the middle of an event: the half is dropped, the agent connects anew."""
    async with running(Client(backend, server)) as client:
        server.send_all(numbered(server, 2)[:-5])
        await client.until(lambda: client.numbers == ["0"])
        server.drop_all()
        await client.until(lambda: client.seen.count(EventsLost("connected")) == 2)
        assert client.numbers == ["0"]
        assert await client.esl.api("echo again") == "again"


async def test_everything_before_an_eof_is_delivered(backend: str, server: FakeEsl) -> None:
    """A burst of 5,000 events, then an EOF at once: nothing that was sent is lost."""
    async with running(Client(backend, server)) as client:
        for writer in server.writers:
            writer.write(numbered(server, 5000))
            await writer.drain()
            writer.close()
        server.writers.clear()
        await client.until(lambda: client.seen.count(EventsLost("connected")) == 2, 10)
        assert client.numbers == [str(n) for n in range(5000)]


async def test_a_flood_before_an_answer_costs_time_by_its_length(
    backend: str, server: FakeEsl
) -> None:
    """60,000 events before an answer: 1,000 times as long as 60, not a million times."""
    async with running(Client(backend, server)) as client:
        server.send_all(numbered(server, FLOOD))
        began = asyncio.get_running_loop().time()
        assert await client.esl.api("echo on", 25_000) == "on"
        assert asyncio.get_running_loop().time() - began < FLOOD_S
        assert client.esl.up


async def test_pending_command_fails_at_eof(backend: str, server: FakeEsl) -> None:
    """An EOF in the middle of an answer fails the command within its time, then all works."""
    async with running(Client(backend, server)) as client:
        pending = asyncio.create_task(client.esl.api("mute", 5000))
        await client.until(lambda: "api mute" in server.received)
        server.send_all(b"Content-Type: api/response\nContent-Length: 100\n\nhal")
        await asyncio.sleep(0.05)
        server.drop_all()
        with pytest.raises(EslDown):
            await asyncio.wait_for(pending, 2)
        await client.esl.wait_up(2000)
        assert await client.esl.api("echo again") == "again"


async def test_silent_command_has_its_time(backend: str, server: FakeEsl) -> None:
    """A command without an answer ends after its time, and the connection is replaced."""
    async with running(Client(backend, server)) as client:
        with pytest.raises(EslTimeout, match="api mute"):
            await client.esl.api("mute", 100)
        await client.esl.wait_up(2000)
        assert await client.esl.api("echo again") == "again"
    assert server.connections == 2


async def test_late_answer_belongs_to_its_command(backend: str, server: FakeEsl) -> None:
    """A late answer is not taken for that of the next command."""
    async with running(Client(backend, server)) as client:
        with pytest.raises(EslTimeout):
            await client.esl.api("mute", 50, drop_on_timeout=False)
        server.send_all(b"Content-Type: api/response\nContent-Length: 4\n\nlate")
        assert await client.esl.api("echo next") == "next"
    assert server.connections == 1


async def test_goodbye_means_reconnect(backend: str, server: FakeEsl) -> None:
    """FreeSWITCH's goodbye ends the connection; the next one is made."""
    async with running(Client(backend, server)) as client:
        server.send_all(frame("text/disconnect-notice", "bye\n"))
        await client.until(lambda: server.connections == 2)
        await client.esl.wait_up(2000)


async def test_stop_leaves_nothing_behind(backend: str, server: FakeEsl) -> None:
    """`stop` fails what waits at once, and no thread stays."""
    client = Client(backend, server)
    async with running(client):
        pending = asyncio.create_task(client.esl.api("mute", 5000))
        await client.until(lambda: "api mute" in server.received)
    with pytest.raises(EslDown):
        await asyncio.wait_for(pending, 1)
    await client.until(lambda: backend not in [t.name for t in threading.enumerate()])


# -- logins --


async def test_wrong_password_is_named_and_not_shown(backend: str, server: FakeEsl) -> None:
    """A wrong password is called that, with the fix."""
    async with running(Client(backend, server, password="tellnoone"), up=False) as client:
        problem = await client.problem()
        assert "esl_password_file" in problem
        assert "refused the ESL password" in problem
        assert "tellnoone" not in problem + repr(client.settings)


async def test_nothing_listens_is_named(backend: str, server: FakeEsl) -> None:
    """A port on which nothing listens is called that."""
    await server.close()
    async with running(Client(backend, server), up=False) as client:
        assert "nothing listens" in await client.problem()


async def test_rejection_by_the_access_list_says_so(backend: str, server: FakeEsl) -> None:
    """FreeSWITCH's access list refuses us: its words are passed on."""
    server.greeting = frame("text/rude-rejection", "Access Denied, go away.\n")
    async with running(Client(backend, server), up=False) as client:
        problem = await client.problem()
        assert "apply-inbound-acl" in problem
        assert "go away" in problem


async def test_silent_server_has_its_time(backend: str, server: FakeEsl) -> None:
    """A frozen FreeSWITCH accepts and says nothing: that is told, and its end is waited for."""
    server.greeting, greeting = None, server.greeting
    async with running(Client(backend, server, connect_timeout_ms=200), up=False) as client:
        assert "no ESL greeting" in await client.problem()
        server.greeting = greeting
        server.drop_all()
        await client.esl.wait_up(2000)
    server.drop_all()
    await client.until(lambda: backend not in [t.name for t in threading.enumerate()])


async def test_ipv6(backend: str) -> None:
    """An address of IPv6."""
    with contextlib.closing(socket.socket(socket.AF_INET6)) as probe:
        try:
            probe.bind(("::1", 0))
        except OSError:
            pytest.skip("no IPv6 on this host")
    server = FakeEsl()
    await server.listen("::1")
    try:
        async with running(Client(backend, server, host="::1")) as client:
            assert (await client.esl.api("status")).startswith("UP")
    finally:
        await server.close()
