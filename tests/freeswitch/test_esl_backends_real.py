"""ESL backends and hostile values against a real FreeSWITCH."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest

from haclusterd.freeswitch import capabilities
from haclusterd.freeswitch.esl import EslConnection, EslSettings, EventItem, EventsLost
from haclusterd.freeswitch.esl_errors import EslDown
from haclusterd.freeswitch.esl_protocol import Event
from tests.fixtures.freeswitch import esl_backends
from tests.freeswitch import test_esl_real
from tests.freeswitch.test_esl_real import (
    SCENARIOS,
    VIP,
    Site,
    activate,
    capture,
    inside,
    take_over,
    why_not,
)

pytestmark = [
    pytest.mark.freeswitch,
    pytest.mark.timeout(180),
    pytest.mark.skipif(bool(why_not()), reason=why_not() or "ready"),
]
site = test_esl_real.site
T = TypeVar("T")
SUBCLASS = "haclusterd::abuse"
EVIL_HEADERS = (
    "      X-A: a%0AEvent-Name: SHUTDOWN%0A%0Aapi hupall%0A\n"
    "      X-B: </variables><variables>'); DROP TABLE recovery; --\n"
    "      X-C: ${api(hupall)} ${system(touch /tmp/never)}\n"
    f"      X-D: {'d' * 3000}\n"
)


class Listener:
    """A connection of the backend, and what it told."""

    def __init__(self, site: Site, backend: str) -> None:
        self.seen: list[EventItem] = []
        settings = EslSettings(
            "127.0.0.1", site.a.esl_port, site.a.esl_password, backend=backend,
            command_timeout_ms=10_000, event_queue_max=50_000, backoff_max_ms=100,
        )  # fmt: skip
        self.esl = EslConnection(settings, events=["BACKGROUND_JOB", SUBCLASS], on_event=self._take)

    async def _take(self, item: EventItem) -> None:
        self.seen.append(item)

    @property
    def events(self) -> list[Event]:
        return [i for i in self.seen if isinstance(i, Event) and i.subclass == SUBCLASS]

    async def until(self, condition: Callable[[], bool], timeout_s: float = 30.0) -> None:
        end = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < end, f"timed out with {len(self.seen)} seen"
            await asyncio.sleep(0.02)

    async def fire(self, headers: dict[str, str], body: str = "") -> None:
        await self.esl.sendevent("CUSTOM", {"Event-Subclass": SUBCLASS, **headers}, body)


@asynccontextmanager
async def listening(site: Site, backend: str) -> AsyncIterator[Listener]:
    made = Listener(site, backend)
    await made.esl.start()
    await made.esl.wait_up(5000)
    try:
        yield made
    finally:
        await made.esl.stop()


@pytest.fixture(params=esl_backends.BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    name = str(request.param)
    if reason := esl_backends.missing(name):
        pytest.skip(reason)
    return name


def run(site: Site, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    return inside(site.a, work)


def test_each_backend_does_what_haclusterd_needs(site: Site, backend: str) -> None:
    """Logins, commands in order, events, a flood, and the end of FreeSWITCH amid one."""

    async def work() -> None:
        async with listening(site, backend) as it, listening(site, "native") as sender:
            assert "UP " in await it.esl.api("status")
            while "mod_sofia" not in await it.esl.api("show modules as json"):
                await asyncio.sleep(0.1)  # the list lags behind the start
            found = await capabilities.read(it.esl, ["east"])
            assert "mod_dptools" in found.modules
            assert found.profiles["east"].codecs == ("PCMA", "PCMU")
            assert found.contexts["public"]
            answers = await asyncio.gather(*(it.esl.api(f"echo {n}") for n in range(50)))
            assert answers == [str(n) for n in range(50)]
            await it.fire({"n": "first"}, "line one\n\nline: two" * 1000)
            assert await it.esl.api("echo after the body") == "after the body"
            await it.until(lambda: len(it.events) == 1)

            began = time.monotonic()
            for at in range(0, 20_000, 500):
                await asyncio.gather(*(sender.fire({"n": str(at + n)}) for n in range(500)))
            await it.until(lambda: len(it.events) == 20_001, 60)
            print(backend, "20,000 events in", round(time.monotonic() - began, 1), "s")
            assert [e.get("n") for e in it.events[1:]] == [str(n) for n in range(20_000)]
            assert (it.esl.events_dropped, it.esl.logins) == (0, 1)

            flood = asyncio.gather(
                *(sender.fire({"n": str(n), "v": "x" * 500}) for n in range(2000)),
                return_exceptions=True,
            )
            await asyncio.sleep(0.1)
            site.a.kill(signal.SIGKILL)
            await flood
            await it.until(lambda: not it.esl.up, 5)
            with pytest.raises(EslDown):
                await it.esl.api("status")
            await asyncio.to_thread(restart, site)
            await it.esl.wait_up(20_000)
            await it.until(lambda: it.seen.count(EventsLost("connected")) == 2)

    run(site, work)


def restart(site: Site) -> None:
    site.a.start()
    site.a.wait_ready()


@pytest.mark.parametrize("backend_name", ["native", "python-esl"])
def test_values_stay_values(site: Site, backend_name: str) -> None:
    """Line breaks, 60 kB and bytes that are not UTF-8, through FreeSWITCH and back."""
    if reason := esl_backends.missing(backend_name):
        pytest.skip(reason)
    values = {
        "a": "x%0AEvent-Name: SHUTDOWN",
        "b": '100% " \\ : ; {} <>',
        "c": "grüße \u2028 \u0085",
        "d": "y" * 60_000,
        "e": "\udcff\udcfe",
    }

    async def work() -> None:
        async with listening(site, backend_name) as it, listening(site, "native") as sender:
            for name, value in values.items():
                await sender.fire({"v": value, "name": name})
            await it.until(lambda: len(it.events) == len(values))
            got = {event.get("name"): event.get("v") for event in it.events}
            assert {event.name for event in it.events} == {"CUSTOM"}
            # FreeSWITCH itself decodes what was sent to it, into a value and nothing else.
            assert got["a"] in (values["a"], "x\nEvent-Name: SHUTDOWN")
            assert {n: got[n] for n in "bcde"} == {n: values[n] for n in "bcde"}
            assert it.esl.logins == sender.esl.logins == 1

    run(site, work)


def test_only_field_values_reach_the_neighbour(site: Site, tmp_path: Path) -> None:
    """Calls with hostile headers and names: recovered on b as they were, and b does as b did."""
    text = (SCENARIOS / "uac_echo.xml").read_text()
    assert "      Contact:" in text
    evil = text.replace("      Contact:", EVIL_HEADERS + "      Contact:", 1)
    scenario = tmp_path / "uac_evil.xml"
    scenario.write_text(evil)
    site.own(site.a, VIP)
    inside(site.a, lambda: activate(site.a, "east"))
    phones = site.phone(
        f"{VIP}:5060", "-sf", str(scenario), "-i", test_esl_real.CALLER, "-s", "9197", "-m", "5",
        "-r", "50", "-mp", "20000", "-rtp_echo", "-recv_timeout", "60000",
    )  # fmt: skip
    records = capture(site, site.a, 5)
    names = ("sip_h_X-A", "sip_h_X-B", "sip_h_X-D")  # C: FreeSWITCH refuses what it would expand
    before = {
        (uuid, name): site.a.api(f"uuid_getvar {uuid} {name}") for uuid in records for name in names
    }
    assert [key for key, value in before.items() if value in ("", "_undef_")] == []
    take_over(site, site.a, site.b, records)
    for (uuid, name), value in before.items():
        # A %0A that a stranger sent was a line break once it had been through the row (`percent`).
        assert site.b.api(f"uuid_getvar {uuid} {name}") == value
    assert test_esl_real.channels(site.b) == 5
    assert not Path("/tmp/never").exists()
    assert "UP " in site.b.api("status")
    site.b.api("hupall")
    assert phones.wait(10) == 0


def test_ms26_two_of_one_configuration_differ_until_one_unloads_a_module(site: Site) -> None:
    async def look() -> capabilities.Capabilities:
        async with listening(site, "native") as it:
            began = time.monotonic()
            found = await capabilities.read(it.esl, ["east", "west"])
            size = len(capabilities.encode(found))
            print(f"read in {(time.monotonic() - began) * 1000:.0f} ms, {size} bytes")
            return found

    time.sleep(1)  # the list of modules lags behind the start
    a = run(site, look)
    site.a, site.b = site.b, site.a
    b = run(site, look)
    assert capabilities.lacking(a, b, ["east", "west"], "a") == ""
    assert capabilities.drift(a, b, ["east", "west"], "a") == []
    assert a.digest == b.digest
    site.a.api("unload mod_hash")
    time.sleep(1)
    less = run(site, look)
    assert "lacks module mod_hash, which a has" in capabilities.lacking(a, less, ["east"], "a")
    site.a.api("load mod_hash")
    time.sleep(1)
    assert run(site, look) == b
