"""A second recovery in the same epoch, by an agent that knows nothing of the first."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from haclusterd.freeswitch import injection
from tests.fixtures.freeswitch.fake_recovery import Switch, calls
from tests.unit.test_recovery import recovering, short

pytestmark = pytest.mark.timeout(30)


@pytest.fixture
async def switch(tmp_path: Path) -> AsyncIterator[Switch]:
    fake = Switch(tmp_path / "core.db")
    await fake.listen()
    yield fake
    await fake.close()


async def test_a_new_agent_does_not_recover_again_what_the_earlier_one_brought_up(
    switch: Switch,
) -> None:
    async with recovering(switch) as recovery:
        assert short(await recovery.recover("east", ["pa"], calls(3), epoch=4)) == {
            f"call-{number}": "recovered" for number in range(3)
        }
    # What the others got to know: FreeSWITCH's own record, with the CSeq of the re-INVITE.
    records = [
        msgspec.structs.replace(old, runtime_uuid="core-b", sip_cseq="123000") for old in calls(3)
    ]
    del switch.channels["call-2"]
    before = len(switch.recovered_rows)
    async with recovering(switch) as recovery:
        verdicts = short(await recovery.recover("east", ["pa"], records, epoch=4))
    assert verdicts == {"call-0": "recovered", "call-1": "recovered", "call-2": "lost"}
    assert len(switch.recovered_rows) == before


@pytest.mark.parametrize("cleared", [True, False])
async def test_a_call_that_was_injected_but_never_launched_is_injected_anew(
    switch: Switch, cleared: bool
) -> None:
    rows = [injection.StreamRow("pa#1", record) for record in calls(2)]
    injection.inject(switch.path, "core-b", "east", 4, ["pa"], rows)
    if cleared:
        assert injection.clear_stale(switch.path, "core-b") == 2
    async with recovering(switch) as recovery:
        assert await recovery.recover("east", ["pa"], [], epoch=4) == []
        verdicts = short(await recovery.recover("east", ["pa"], calls(2), epoch=4))
    assert verdicts == {"call-0": "recovered", "call-1": "recovered"}
