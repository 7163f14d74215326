"""A command that recovers calls reaches FreeSWITCH, whenever its connection ends."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.fixtures.freeswitch.fake_recovery import Switch, calls
from tests.unit import test_recovery
from tests.unit.test_calls import until
from tests.unit.test_recovery import recovering, short

pytestmark = pytest.mark.timeout(30)
switch = test_recovery.switch


@pytest.mark.parametrize("read", [False, True], ids=["unread", "read"])
@pytest.mark.parametrize("what", ["fsctl recover", "sofia profile"])
async def test_e2_a_connection_that_ends_with_the_command_loses_no_call(
    switch: Switch, what: str, read: bool
) -> None:
    """A reload of mod_event_socket: the calls of that stream were called lost, and never asked."""
    real, ended = switch.api[what], Counter[str]()

    def end_once(line: str) -> str | None:
        ended[line] += 1
        if ended[line] > 1 or (what == "fsctl recover" and not line.endswith("#1")):
            return real(line)  # type: ignore[operator]
        if read:
            real(line)  # type: ignore[operator]
        switch.drop_all()
        return None

    switch.api[what] = end_once
    many = calls(12)
    async with recovering(switch) as recovery:
        await until(lambda: recovery.problem == "")
        found = await recovery.recover("east", ["pa"], many, epoch=1)
    assert Counter(short(found).values()) == {"recovered": 12}
    assert Counter(uuid for uuid, _, _ in switch.recovered_rows) == {r.uuid: 1 for r in many}
    assert switch.rows() == []
