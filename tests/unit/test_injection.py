"""Nothing of a dead process stays in core.db (M12), whatever the recovery was interrupted by."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

import msgspec
import pytest

from haclusterd.freeswitch import injection
from tests.fixtures.freeswitch.fake_recovery import Switch, calls


@pytest.fixture
def switch(tmp_path: Path) -> Switch:
    return Switch(tmp_path / "core.db")


def owners(switch: Switch) -> set[str]:
    """Every process that anything in core.db belongs to."""
    with contextlib.closing(switch.open()) as db:
        found = db.execute("SELECT runtime_uuid FROM recovery UNION SELECT core_uuid FROM"
                           " ha_injected").fetchall()  # fmt: skip
    return {str(row[0]) for row in found}


@pytest.mark.parametrize("alive", ["core-c", None])
async def test_m12_no_row_of_a_dead_process_remains(switch: Switch, alive: str | None) -> None:
    rows = [injection.StreamRow("pa#0", record) for record in calls(3)]
    injection.inject(switch.path, "core-b", "east", 4, ["pa"], rows)
    with contextlib.closing(switch.open()) as db:
        db.execute("INSERT INTO recovery VALUES ('core-b', 'sofia', 'pa', 'h', 'own', '')")
        if alive:
            db.execute("INSERT INTO recovery VALUES (?, 'sofia', 'pa', 'h', 'new', '')", (alive,))
    assert owners(switch) >= {"core-a", "core-b"}
    assert injection.clear_stale(switch.path, alive) == 4
    assert owners(switch) == ({alive} if alive else set())


async def test_an_attempt_keeps_the_cseq_it_injected(switch: Switch) -> None:
    rows = [injection.StreamRow("pa", record) for record in calls(1)]
    injection.inject(switch.path, "core-b", "east", 4, ["pa"], rows)
    (found,) = injection.attempts(switch.path, "east", 4).values()
    assert found == injection.Attempt("core-b", True, "1")
    assert injection.attempts(switch.path, "east", 5) == {}


@pytest.mark.parametrize("waiting", [1, 6000])
async def test_withdrawing_many_does_not_keep_core_db_from_freeswitch_for_seconds(
    switch: Switch, waiting: int
) -> None:
    """It takes 0.1 s; with a look through all attempts for each call it took 3 s."""
    uuids = [f"call-{number}" for number in range(6000)]
    (record,) = calls(1)
    rows = [
        injection.StreamRow("pa", msgspec.structs.replace(record, uuid=uuid, metadata="x"))
        for uuid in uuids
    ]
    injection.inject(switch.path, "core-b", "east", 4, ["pa"], rows)
    with contextlib.closing(switch.open()) as db:
        db.execute("CREATE INDEX recovery3 ON recovery(uuid)")  # as FreeSWITCH has it
        db.execute("DELETE FROM recovery WHERE rowid > ?", (waiting,))
    began = time.monotonic()
    injection.withdraw(switch.path, uuids, again=True)
    assert time.monotonic() - began < 1.0
    assert switch.rows() == []
    tried = injection.attempts(switch.path, "east", 4)
    assert sum(1 for one in tried.values() if one.core_uuid == "") == waiting
