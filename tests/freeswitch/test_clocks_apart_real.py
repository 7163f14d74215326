"""The new owner's wall clock is 45 s ahead: registrations run out when they should.

Its FreeSWITCH and its haclusterd run under libfaketime; without it, this is skipped.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from haclusterd.lab import switches
from haclusterd.lab.instrument import python_environment
from haclusterd.lab.laboratory import Laboratory
from haclusterd.lab.node import LabNode
from haclusterd.lab.run import ready_cluster
from tests.fixtures.phones import Phone
from tests.freeswitch.owning import as_preferred
from tests.freeswitch.test_registrations_real import _REASON, PLAN, dialled, soon
from tests.freeswitch.test_takeover_phones_real import left_s, lose

AHEAD_S = 45
LIBRARY = next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), None)
_WHY = _REASON or ("" if LIBRARY else "libfaketime is missing: apt-get install libfaketime")
pytestmark = [
    pytest.mark.freeswitch,
    pytest.mark.skipif(bool(_WHY), reason=_WHY),
    pytest.mark.timeout(180),
]
# Heart decides by CLOCK_BOOTTIME, FreeSWITCH's timers by CLOCK_MONOTONIC: only the wall differs.
FAKED = {
    "LD_PRELOAD": str(LIBRARY),
    "FAKETIME": f"+{AHEAD_S}s",
    "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    "FAKETIME_DONT_RESET": "1",
}
# libfaketime 0.9.10, told to leave CLOCK_MONOTONIC alone, refuses to sleep until a time of it
# (EINVAL from clock_nanosleep), which is how Python sleeps.
SLEEP = """import select, time
time.sleep = lambda seconds: select.select([], [], [], seconds) and None
"""


@pytest.fixture
def lab(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Laboratory]:
    """fs-b, the slave, lives 45 s in the future."""
    (tmp_path / "sitecustomize.py").write_text(SLEEP)
    real_environment = python_environment
    real_init, real_script = LabNode.__init__, switches.Switch._write_script

    def init(node: LabNode, *arguments: Any) -> None:
        real_init(node, *arguments)
        if node.id == "fs-b":
            path = f"{tmp_path}:{node._environment['PYTHONPATH']}"
            node._environment |= FAKED | {"PYTHONPATH": path}

    def script(switch: switches.Switch, command: Any) -> None:
        more = FAKED if switch.directory.parent.name == "fs-b" else {}
        monkeypatch.setattr(switches, "python_environment", lambda: real_environment() | more)
        real_script(switch, command)

    monkeypatch.setattr(LabNode, "__init__", init)
    monkeypatch.setattr(switches.Switch, "_write_script", script)
    with ready_cluster(replace(PLAN, masters=1, slaves=1), None, print) as made:
        time.sleep(1.5)
        as_preferred(made)
        yield made


def clocks(lab: Laboratory, node: str) -> list[str]:
    status = lab.nodes[node].status()
    assert status is not None
    return [alarm["text"] for alarm in status["alarms"] if alarm["name"] == "clocks"]


def test_eg8_a_registration_runs_out_in_time_where_the_clock_is_ahead(lab: Laboratory) -> None:
    address = lab.plan.services[0].ip
    phone = Phone(lab.topology.client, lab.plan.client_ip, "secret")
    soon(lab, lambda: clocks(lab, "fs-a") and clocks(lab, "fs-b"), "the clocks to be compared")
    assert "fs-b's is 45 s ahead" in clocks(lab, "fs-a")[0]
    assert phone.register("1000", address, 90) == 200  # and 60 s of mod_sofia's own
    assert phone.register("1001", address, 3600) == 200
    soon(lab, lambda: all(dialled(lab, "fs-b", u) for u in ("1000", "1001")), "B's rows")
    soon(lab, lambda: 148 < left_s(lab, "fs-b")["1000"] - AHEAD_S < 152, "converted", 5)
    lose(lab, "fs-a")
    soon(lab, lambda: lab.holder(address) == "fs-b", "B to serve")
    time.sleep(1.5)
    left = left_s(lab, "fs-b")
    assert left.keys() == {"1000", "1001"}
    assert 125 < left["1000"] - AHEAD_S < 150, "by B's clock, as by A's"
    # And back: A, whose clock is right, is the slave now.
    soon(lab, lambda: 110 < left_s(lab, "fs-a").get("1000", 0) < 150, "A's row", 30)
    phone.close()
