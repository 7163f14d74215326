"""The table that holds new calls back is made again where somebody took it away."""

from __future__ import annotations

from pathlib import Path

import pytest

from haclusterd.agent.admission import FROM_LEGS, TABLE, Admission
from tests.fixtures.agent_parts import spec

pytestmark = pytest.mark.timeout(20)

# As nft: what is added to a table that is not there fails, and nothing of it is done.
NFT = """#!/bin/sh
text=$(cat)
case "$text" in
*"table inet {table} {{"*) touch "{folder}/table" ;;
*) [ -e "{folder}/table" ] || exit 1 ;;
esac
echo "$text" >> "{folder}/done"
"""


async def test_e18_a_firewall_that_flushes_all_rules_ends_nothing_for_good(tmp_path: Path) -> None:
    nft = tmp_path / "nft"
    nft.write_text(NFT.format(folder=tmp_path, table=TABLE))
    nft.chmod(0o755)
    admission = Admission(5, 5, str(nft))
    service = spec().services[0]
    for _ in range(2):
        with admission.of(service, FROM_LEGS):
            await admission_done(admission)
        await admission_done(admission)
        (tmp_path / "table").unlink()
    done = (tmp_path / "done").read_text()
    address = service.addresses[0].ip
    assert done.count(f"first4 {{ {address} timeout 10s }}") == 2
    assert done.count(f"after4 {{ {address} timeout 10s }}") == 2
    (tmp_path / "table").touch()
    await admission.stop()


async def admission_done(admission: Admission) -> None:
    while tasks := list(admission._tasks):
        await tasks[0]
