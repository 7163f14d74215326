"""agent.leaving: what stands in the way of clearing old rows is said once, not twice a second."""

from __future__ import annotations

import asyncio
import logging
from typing import cast

import pytest

from haclusterd.agent import leaving
from haclusterd.agent.history import History
from haclusterd.agent.switch import Switch, SwitchError


class ReadOnly:
    """A core.db that cannot be written for the first tries."""

    up = True

    def __init__(self, *failures: str) -> None:
        self._failures = list(failures)

    async def clear_stale(self) -> int:
        if self._failures:
            raise SwitchError(self._failures.pop(0))
        return 2


async def said(caplog: pytest.LogCaptureFixture, *failures: str) -> tuple[list[str], History]:
    history = History()
    switch = cast(Switch, ReadOnly(*failures))
    with caplog.at_level(logging.INFO):
        await asyncio.wait_for(leaving.clear_old_rows(lambda: switch, history, "fs-a"), 10)
    return [r.getMessage() for r in caplog.records if "not cleared yet" in r.getMessage()], history


async def test_a_read_only_core_db_is_said_once_until_it_is_something_else(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leaving, "RETRY_S", 0.001)
    lines, history = await said(caplog, *["read-only"] * 20, "disk full", "disk full")
    assert [line.rpartition(": ")[2] for line in lines] == ["read-only", "disk full"]
    assert "cleared 2 old recovery rows" in history.last()[-1].text


async def test_it_is_said_again_after_a_minute(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leaving, "RETRY_S", 0.001)
    monkeypatch.setattr(leaving, "SAY_AGAIN_S", 0.0)
    lines, _ = await said(caplog, "read-only", "read-only")
    assert len(lines) == 2
