"""Phones that come, go and run out while their master is lost: the new owner has the living ones.

By a slave, whose table holds them already, and by a master, which puts them in.
"""

from __future__ import annotations

import os
import signal
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace

import pytest

from haclusterd.freeswitch.registration_db import database_of
from haclusterd.lab.laboratory import Laboratory
from haclusterd.lab.run import ready_cluster
from tests.fixtures.phones import Phone
from tests.freeswitch.owning import as_preferred
from tests.freeswitch.test_registrations_real import _REASON, PLAN, dialled, soon

pytestmark = [
    pytest.mark.freeswitch,
    pytest.mark.skipif(bool(_REASON), reason=_REASON),
    pytest.mark.timeout(180),
]

# Of mod_sofia's own: 60 s are added to each registration, and it looks every 30 s.
PROFILE = (("sip-expires-late-margin", "0"),)


@pytest.fixture(params=[1, 0], ids=["by a slave", "by a master"])
def lab(request: pytest.FixtureRequest) -> Iterator[Laboratory]:
    plan = replace(PLAN, slaves=request.param, profile_params=PROFILE)
    with ready_cluster(plan, None, print) as made:
        time.sleep(1.5)  # a new agent gives heart a second to order a recovery
        as_preferred(made)
        yield made


def left_s(lab: Laboratory, node: str, profile: str = "profile1") -> dict[str, float]:
    """{user: seconds that are left} in a profile's table at a node; each once."""
    switch = lab.nodes[node].switch
    assert switch is not None
    with closing(sqlite3.connect(database_of(switch.core_db, profile), timeout=5)) as opened:
        found = opened.execute("SELECT sip_user, expires FROM sip_registrations").fetchall()
    assert len({user for user, _ in found}) == len(found), f"twice: {found}"
    return {str(user): expires - time.time() for user, expires in found}


def lose(lab: Laboratory, node: str) -> float:
    switch = lab.nodes[node].switch
    assert switch is not None
    assert switch.pid is not None
    os.kill(switch.pid, signal.SIGKILL)
    return time.monotonic()


def test_eg8_the_new_owner_has_exactly_the_phones_that_are_still_there(lab: Laboratory) -> None:
    address = lab.plan.services[0].ip
    phones = {
        user: Phone(lab.topology.client, lab.plan.client_ip, "secret")
        for user in ("1000", "1001", "2002", "2000", "2001", "2003")
    }
    anew = Phone(lab.topology.client, lab.plan.client_ip, "secret")
    others = [node for node in lab.nodes if node in ("fs-b", "fs-c")]

    def known(*users: str) -> None:
        soon(lab, lambda: all(dialled(lab, n, u) for n in others for u in users), f"{users}")

    for user in ("1000", "1001"):
        phones[user].call_id = "one-phone-with-two-users"
        assert phones[user].register(user, address) == 200
    assert phones["2000"].register("2000", address) == 200
    assert phones["2001"].register("2001", address, 20) == 200
    assert phones["2003"].register("2003", address) == 200
    known("1000", "1001", "2000", "2001", "2003")
    assert phones["2001"].register("2001", address, 600) == 200  # refreshed in time
    assert phones["2002"].register("2002", address, 2) == 200
    known("2002")
    soon(lab, lambda: left_s(lab, "fs-a").get("2002", -1) < 0, "2002 to run out")

    lost_at = lose(lab, "fs-a")
    # Comes as another phone, which replaces the first: multiple-registrations is off.
    newcomer = threading.Thread(target=anew.insist, args=("2003", address, 900))
    newcomer.start()
    gone_at = phones["2000"].insist("2000", address, 0)  # unregisters as soon as it is answered
    print(f"unregistered {1000 * (gone_at - lost_at):.0f} ms after the loss")
    newcomer.join(15)
    stay = {"1000", "1001", "2001", "2003"}
    soon(lab, lambda: lab.holder(address) not in ("", "fs-a"), "the takeover")
    new = lab.holder(address)
    soon(lab, lambda: left_s(lab, new).keys() == stay, "the living ones at the new owner", 3)
    time.sleep(1.5)
    assert left_s(lab, new).keys() == stay
    assert 560 < left_s(lab, new)["2001"] < 600
    assert 3500 < left_s(lab, new)["1000"] < 3600
    assert 860 < left_s(lab, new)["2003"] <= 900
    for node in others:
        soon(lab, lambda n=node: dialled(lab, n, "2000") == [], "2000 to be unknown")
        assert dialled(lab, node, "2002") == []
        for user in stay:
            assert len(dialled(lab, node, user)) == 1
    assert phones["2000"].register("2000", address, 300) == 200
    known("2000")
    for phone in (*phones.values(), anew):
        phone.close()
