"""The fixture `rig`; skipped, with the reason, where no FreeSWITCH or namespace is to be had."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from haclusterd.lab import freeswitch, netns
from haclusterd.lab.freeswitch import FreeswitchInstance, FreeswitchOptions, ServiceProfile
from tests.freeswitch.rig import CALLEE_PORT, CLIENT, EAST, WEST, Rig, Wire, namespaces

_numbers = itertools.count(9000)


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    """Both FreeSWITCHes ready, profiles east and west in standby on each; nobody owns them."""
    reason = netns.why_not()
    if reason:
        pytest.skip(reason)
    try:
        freeswitch.find_binary()
    except netns.LabError as error:
        pytest.skip(str(error))
    name = f"{netns.own_name()}-{next(_numbers)}"
    services = [ServiceProfile("east", EAST), ServiceProfile("west", WEST)]
    with namespaces(name):
        a, b = (
            FreeswitchInstance(
                None,
                tmp_path / what,
                f"{name}-{what}",
                services,
                options=FreeswitchOptions(
                    switchname=f"fs-{what}",
                    bridge_target=f"{CLIENT}:{CALLEE_PORT}",
                    rtp_start_port=16384,
                    rtp_end_port=16484,
                ),
            )
            for what in ("a", "b")
        )
        rig = Rig(name, tmp_path, a, b, Wire(f"{name}-cl"))
        try:
            a.start()
            b.start()
            a.wait_ready()
            b.wait_ready()
            yield rig
        finally:
            rig.wire.close()
            for node in (a, b):
                if node.pid is not None:
                    node.kill()
            for process in rig.processes:
                process.kill()
                process.wait()
