"""No room for a temporary file, or no file descriptor left: programs are run as far as that goes,
and what runs them again and again goes on."""

from __future__ import annotations

import asyncio
import errno
import os
import tempfile
import time
from pathlib import Path

import pytest

from haclusterd.agent import child, promised, starting
from haclusterd.agent.promised import Promised
from haclusterd.agent.starting import Starter
from haclusterd.core.actions import Persist
from haclusterd.core.model import Identity
from haclusterd.core.promises import FILE_NAME
from haclusterd.sensors.program import Program
from tests.fixtures.agent_parts import spec
from tests.unit.sync_cluster import until

pytestmark = pytest.mark.timeout(20)


def refuse(number: int) -> object:
    def refused(*_: object, **__: object) -> object:
        raise OSError(number, os.strerror(number))

    return refused


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "TemporaryFile", refuse(errno.ENOSPC))


async def test_a_program_is_run_on_a_full_disk(full_disk: None, tmp_path: Path) -> None:
    done = tmp_path / "done"
    assert await child.run(["touch", str(done)], b"", 5, {}) == child.Ended(0, "")
    assert done.exists()
    failed = await child.run(["false"], b"", 5, {})
    assert (failed.status, failed.said) == (1, "status 1: it said nothing")


async def test_freeswitch_is_started_on_a_full_disk(full_disk: None, tmp_path: Path) -> None:
    up = tmp_path / "up"
    starter = Starter(["touch", str(up)], up.exists, lambda text: None)
    starter.exited()
    await until(up.exists)
    await starter.stop()


async def test_without_a_descriptor_it_is_said_and_tried_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(starting, "GRACE_S", 0.01)
    up = tmp_path / "up"
    told: list[str] = []
    starter = Starter(["touch", str(up)], up.exists, told.append, backoff_first_s=0.01)
    with monkeypatch.context() as none_left:
        none_left.setattr(tempfile, "TemporaryFile", refuse(errno.EMFILE))
        none_left.setattr(Path, "open", refuse(errno.EMFILE))
        none_left.setattr(os, "pipe", refuse(errno.EMFILE))
        ended = await child.run(["true"], b"", 5, {})
        assert ended == child.Ended(None, "true: Too many open files")
        ran = await Program(["true"], {}).run(5)
        assert (ran.status, ran.said) == (127, "true: Too many open files")
        starter.exited()
        await until(lambda: len(told) > 1)
        assert "Too many open files" in told[0]
    await until(up.exists)
    await starter.stop()


async def test_what_heart_promised_is_written_as_soon_as_there_is_room(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Nobody promises it again: the alarm stood, and the promise was on no disk, until the next."""
    monkeypatch.setattr(promised, "RETRY_S", 0.02)
    problems: dict[str, str] = {}
    keeper = Promised(spec(1), tmp_path, problems)
    with monkeypatch.context() as full:
        full.setattr(promised, "write_atomically", refuse(errno.ENOSPC))
        keeper.keep(Persist((Identity(7, 0, 99),), (7,)))
        await until(lambda: problems)
        assert "No space left" in problems["state"]
        await asyncio.sleep(0.1)
    await until(lambda: problems == {})
    assert b"99" in (tmp_path / FILE_NAME).read_bytes()
    await keeper.stop()


async def test_a_newer_promise_takes_the_place_of_one_that_waits(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    problems: dict[str, str] = {}
    keeper = Promised(spec(1), tmp_path, problems)
    with monkeypatch.context() as full:
        full.setattr(promised, "write_atomically", refuse(errno.ENOSPC))
        keeper.keep(Persist((Identity(7, 0, 99),), (7,)))
        await until(lambda: problems)
    keeper.keep(Persist((Identity(8, 0, 123456),), (8,)))
    await until(lambda: problems == {})
    assert b"123456" in (tmp_path / FILE_NAME).read_bytes()
    began = asyncio.get_running_loop().time()
    await keeper.stop()
    assert asyncio.get_running_loop().time() - began < 1


async def test_a_write_that_fails_while_the_agent_ends_is_not_tried_again_after_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The next agent writes this file by then."""
    monkeypatch.setattr(promised, "RETRY_S", 0.02)
    tried: list[object] = []

    def slow(*words: object) -> None:
        tried.append(words)
        time.sleep(0.05)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(promised, "write_atomically", slow)
    keeper = Promised(spec(1), tmp_path, {})
    keeper.keep(Persist((Identity(7, 0, 99),), (7,)))
    await until(lambda: tried)
    await keeper.stop()
    await asyncio.sleep(0.1)
    assert len(tried) == 1
