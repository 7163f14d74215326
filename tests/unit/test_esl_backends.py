"""The choice of an ESL backend: what is loaded, what is said where it cannot be, its document."""

from __future__ import annotations

import ast
import asyncio
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from haclusterd.config import ConfigError, load, load_cluster
from haclusterd.freeswitch import capabilities, esl_thread
from haclusterd.freeswitch.esl import EslConnection, EslSettings, EventItem, EventsLost
from haclusterd.freeswitch.esl_errors import EslDown
from haclusterd.freeswitch.esl_protocol import Event
from tests.fixtures.freeswitch import esl_backends
from tests.unit.config_example import changed
from tests.unit.emulator_lab import Emulator

DOCUMENT = Path(__file__).parents[2] / "docs" / "esl-backends.md"
SUITE = Path(__file__).with_name("test_esl_contract.py")
LIBRARIES = ("gevent", "greenswitch", "ESL", "_ESL")


def rows() -> list[tuple[str, str]]:
    """Test and first line of its docstring, in the order of the suite."""
    return [
        (node.name.removeprefix("test_"), (ast.get_docstring(node) or "").partition("\n")[0])
        for node in ast.parse(SUITE.read_text()).body
        if isinstance(node, ast.AsyncFunctionDef) and node.name.startswith("test_")
    ]


def test_document_is_what_the_suite_says(request: pytest.FixtureRequest) -> None:
    expected = esl_backends.document(rows(), esl_thread.THREADS_MAX)
    if request.config.getoption("--rewrite"):
        DOCUMENT.write_text(expected)
    assert DOCUMENT.read_text() == expected


def test_every_expected_failure_is_a_test_of_the_suite() -> None:
    cases = dict(rows())
    assert {case for _, case in esl_backends.FAILS} <= set(cases)
    assert all(title.endswith(".") for title in cases.values())
    assert "native" not in {backend for backend, _ in esl_backends.FAILS}


@pytest.mark.parametrize("module", ["haclusterd.agent.daemon", "haclusterd.heart.main"])
def test_nothing_of_the_libraries_is_loaded_by_default(module: str) -> None:
    code = (
        f"import sys, {module}\n"
        "from haclusterd.freeswitch.esl import EslConnection, EslSettings\n"
        "from haclusterd.agent import local_switch\n"
        "EslConnection(EslSettings('127.0.0.1', 1, 'x'))\n"
        f"print([name for name in {LIBRARIES} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("backend", ["greenswitch", "python-esl"])
def test_a_library_that_cannot_be_loaded_is_named(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [*LIBRARIES, "haclusterd.freeswitch.esl_greenswitch",
                 "haclusterd.freeswitch.esl_python_esl"]:  # fmt: skip
        monkeypatch.delitem(sys.modules, name, raising=False)
    for name in ("greenswitch", "greenswitch.esl", "ESL"):  # a submodule stays importable alone
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(EslDown) as refused:
        EslConnection(EslSettings("127.0.0.1", 1, "x", backend=backend))
    for word in (f'esl_backend = "{backend}"', f"haclusterd[{backend}]", "[freeswitch]"):
        assert word in str(refused.value)


async def test_threads_that_hang_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(esl_thread, "THREADS_MAX", 0)
    link = esl_thread.ThreadLink(EslSettings("127.0.0.1", 1, "x"), lambda _: None, lambda *_: None)
    with pytest.raises(EslDown, match="hang already"):
        await link.open()


def write(folder: Path, text: str) -> Path:
    path = folder / "haclusterd.toml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("backend", "module"), [("greenswitch", "greenswitch"), ("python-esl", "ESL")]
)
def test_a_backend_that_is_not_installed(
    tmp_path: Path, backend: str, module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    path = write(tmp_path, changed("esl_port = 8021", f'esl_backend = "{backend}"'))
    assert load_cluster(path).freeswitch is not None  # elsewhere it may be installed
    with pytest.raises(ConfigError) as caught:
        load(path, node="fs-a")
    (problem,) = caught.value.problems
    assert (problem.file, problem.key) == (str(path), "freeswitch.esl_backend")
    assert module in problem.message
    assert f"haclusterd[{backend}]" in problem.fix
    path.write_text(path.read_text().replace("[freeswitch]", "[freeswitch]\nesl_port = 0"))
    assert load(path, node="fs-a").me == 0  # no ESL, no library


def test_greenswitch_is_warned_of(tmp_path: Path) -> None:
    found = load_cluster(
        write(tmp_path, changed("esl_port = 8021", 'esl_backend = "greenswitch"'))
    ).warnings
    assert "forge" in "".join(found)


@pytest.mark.parametrize("backend", esl_backends.BACKENDS)
async def test_each_backend_with_the_emulator(backend: str, tmp_path: Path) -> None:
    """What the agent does with a connection, over the death and the return of FreeSWITCH."""
    if reason := esl_backends.missing(backend):
        pytest.skip(reason)
    seen: list[EventItem] = []

    async def sink(item: EventItem) -> None:
        seen.append(item)

    async def until(condition: Callable[[], bool]) -> None:
        end = time.monotonic() + 10
        while not condition():
            assert time.monotonic() < end, seen
            await asyncio.sleep(0.01)

    emulator = Emulator(tmp_path, lacks=["mod_hash"])
    await asyncio.to_thread(emulator.start)
    settings = EslSettings("127.0.0.1", emulator.port, "ClueCon", backend=backend)
    esl = EslConnection(settings, events=["MODULE_LOAD"], on_event=sink)
    await esl.start()
    try:
        await esl.wait_up(3000)
        assert (await esl.api("status")).startswith("UP")
        found = await capabilities.read(esl, ["pa"])
        assert "mod_sofia" in found.modules
        assert found.profiles["pa"].codecs == ("PCMA", "PCMU")
        assert "+OK" in await esl.api("load mod_hash")
        await until(lambda: len(seen) == 2)
        event = seen[1]
        assert isinstance(event, Event)
        assert (event.name, event.get("key")) == ("MODULE_LOAD", "mod_hash")
        await asyncio.to_thread(emulator.kill)
        await until(lambda: not esl.up)
        await asyncio.to_thread(emulator.start)
        await esl.wait_up(5000)
        await until(lambda: seen[2:] == [EventsLost("connected")])
    finally:
        await esl.stop()
        emulator.kill()
