"""EG8 with a real FreeSWITCH on every node: phones are known everywhere, dialled, taken over."""

from __future__ import annotations

import signal
import sqlite3
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import pytest

from haclusterd.lab.demo import is_slave
from haclusterd.lab.laboratory import Laboratory
from haclusterd.lab.plan import LabPlan
from haclusterd.lab.run import bring_calls, endure, ready_cluster
from tests.fixtures.phones import DOMAIN, Phone
from tests.freeswitch.obstacle import obstacle

_REASON = obstacle()
pytestmark = [
    pytest.mark.freeswitch,
    pytest.mark.skipif(bool(_REASON), reason=_REASON),
    pytest.mark.timeout(180),
]

PLAN = LabPlan(masters=2, slaves=1, freeswitch="real")
KNOWN_S = 0.25


@pytest.fixture
def lab() -> Iterator[Laboratory]:
    with ready_cluster(PLAN, None, print) as made:
        time.sleep(2)  # a new agent gives heart a second to order a recovery
        yield made


@pytest.fixture
def phone(lab: Laboratory) -> Iterator[Phone]:
    made = Phone(lab.topology.client, lab.plan.client_ip, "secret")
    yield made
    made.close()


def api(lab: Laboratory, node: str, command: str) -> str:
    switch = lab.nodes[node].switch
    assert switch is not None
    with switch.esl() as esl:
        return esl.api(command).strip()


def dialled(lab: Laboratory, node: str, user: str) -> list[str]:
    answer = api(lab, node, f"sofia_contact */{user}@{DOMAIN}")
    return [] if answer.startswith("error/") else answer.split(",")


def rows(lab: Laboratory, node: str, profile: str) -> list[tuple[Any, ...]]:
    switch = lab.nodes[node].switch
    assert switch is not None
    path = switch.core_db.with_name(f"sofia_reg_{profile}.db")
    with closing(sqlite3.connect(path, timeout=5)) as connection:
        return connection.execute(
            "SELECT sip_user, contact, hostname, orig_hostname, status FROM sip_registrations"
            " ORDER BY sip_user"
        ).fetchall()


def row_number(lab: Laboratory, node: str, profile: str) -> int:
    """When the newest row came, as a number that grows; 0 while there is none."""
    switch = lab.nodes[node].switch
    assert switch is not None
    path = switch.core_db.with_name(f"sofia_reg_{profile}.db")
    with closing(sqlite3.connect(path, timeout=5)) as connection:
        found = connection.execute("SELECT max(ping_expires) FROM sip_registrations").fetchone()[0]
    return int(found or 0)


def soon(lab: Laboratory, condition: Any, what: str, within_s: float = 10.0) -> float:
    began = time.monotonic()
    lab.wait(condition, within_s, what)
    return time.monotonic() - began


def ring(lab: Laboratory, phone: Phone, node: str, destination: str) -> tuple[str, str]:
    """(INVITE at the phone, what the caller was told) when `node` calls; the phone is busy."""
    with ThreadPoolExecutor(1) as pool:
        told = pool.submit(api, lab, node, f"originate {destination} &echo")
        invite = phone.receive("INVITE")
        phone.answer(invite, "486 Busy Here")
        phone.receive("ACK")
        return invite, told.result()


def quickest(lab: Laboratory, phone: Phone) -> float:
    """Seconds until a phone is dialled at B and C; a busy machine is slow now and then."""
    times = []
    for user in ("1001", "2000", "2001"):
        assert phone.register(user, lab.plan.services[0].ip) == 200
        known = soon(
            lab, lambda user=user: all(dialled(lab, n, user) for n in ("fs-b", "fs-c")), user
        )
        times.append(known)
        assert phone.register(user, lab.plan.services[0].ip, 0) == 200
    print("dialled at B and C after", *(f"{1000 * took_s:.0f} ms" for took_s in times))
    return min(times)


def test_eg8_a_phone_of_another_master_rings_through_its_service(
    lab: Laboratory, phone: Phone
) -> None:
    first = lab.plan.services[0]
    assert phone.register("1000", first.ip) == 200
    soon(lab, lambda: all(dialled(lab, n, "1000") for n in lab.nodes), "1000 everywhere")
    assert quickest(lab, phone) < KNOWN_S
    here = phone.uri("1000").removeprefix("sip:")
    way = f"sofia/profile2/sip:{here};ha_to=-;fs_path=sip%3A{first.ip}%3A5060"
    assert dialled(lab, "fs-a", "1000") == [f"sofia/profile1/sip:{here}"]
    assert dialled(lab, "fs-b", "1000") == [way]
    assert dialled(lab, "fs-c", "1000") == [f"sofia/profile1/sip:{here}"]
    # Why B has no row in the service's own profile: it would be dialled, and refused.
    refused = api(lab, "fs-b", f"originate sofia/profile1/sip:{here} &echo")
    assert refused == "-ERR SYSTEM_SHUTDOWN"

    invite, told = ring(lab, phone, "fs-b", "user/1000@lab.test")
    assert told == "-ERR USER_BUSY"
    assert invite.startswith(f"INVITE sip:{here} SIP/2.0\r\n")
    assert f"Via: SIP/2.0/UDP {first.ip};" in invite, "not from the address it registered at"

    # Behind NAT mod_sofia keeps the way to the phone in fs_path, and the owner has to use it.
    there = "sip:1001@192.168.9.9:5062;transport=udp"
    nat = f"{there};fs_path=sip%3A1001%40{phone.ip}%3A{phone.port}"
    assert phone.register("1001", first.ip, contact=f"<{nat}>") == 200
    soon(lab, lambda: all(dialled(lab, n, "1001") for n in lab.nodes), "1001 everywhere")
    for node in ("fs-a", "fs-b"):
        invite, told = ring(lab, phone, node, "user/1001@lab.test")
        assert (told, invite.split()[1]) == ("-ERR USER_BUSY", there)
    # Nobody else may use this way: a client is not in the list of the service addresses.
    stranger = Phone(lab.topology.client, lab.plan.client_ip)
    stranger.socket.sendto(stranger.invite(f"sip:{here};ha_to=-"), (first.ip, 5060))
    phone.socket.settimeout(1)
    with pytest.raises(TimeoutError):
        phone.receive("INVITE")
    stranger.close()


def test_eg8_whoever_takes_the_service_over_has_its_phones_once(
    lab: Laboratory, phone: Phone
) -> None:
    first, second = lab.plan.services
    for user, service in (("1000", first), ("1001", first), ("2000", second)):
        assert phone.register(user, service.ip) == 200
    soon(lab, lambda: all(dialled(lab, "fs-c", u) for u in ("1000", "1001", "2000")), "C's rows")
    endure(lab, "freeswitch", print, victims=("fs-a",))
    here = phone.uri("1000").removeprefix("sip:")
    soon(lab, lambda: [r[0] for r in rows(lab, "fs-c", "profile1")] == ["1000", "1001", "2000"],
         "C's table")  # fmt: skip
    assert dialled(lab, "fs-c", "1000") == [f"sofia/profile1/sip:{here}"]
    for node in ("fs-c", "fs-b"):  # B's row leads to the service's address: it did not change
        invite, told = ring(lab, phone, node, "user/1000@lab.test")
        assert (told, invite.split()[1]) == ("-ERR USER_BUSY", f"sip:{here}")
        assert f"Via: SIP/2.0/UDP {first.ip};" in invite
    lab.wait(lambda: is_slave(lab, "fs-a"), 60, "fs-a to be a slave again")
    soon(lab, lambda: [r[0] for r in rows(lab, "fs-a", "profile1")] == ["1000", "1001"], "A's")
    soon(lab, lambda: [r[0] for r in rows(lab, "fs-a", "profile2")] == ["2000"], "A's other")

    # The phone comes again, to the new owner: what was handed over is replaced, not doubled.
    assert phone.register("1000", first.ip) == 200
    assert phone.register("1001", first.ip, 0) == 200
    soon(lab, lambda: [r[0] for r in rows(lab, "fs-a", "profile1")] == ["1000"], "A's table")
    assert [r[0] for r in rows(lab, "fs-c", "profile1")] == ["1000", "2000"]
    # A profile that is started anew keeps what was put into its table (sub_host is set).
    time.sleep(10)
    before = rows(lab, "fs-a", "profile1")
    assert "restarting" in api(lab, "fs-a", "sofia profile profile1 restart")
    time.sleep(3)
    assert rows(lab, "fs-a", "profile1") == before
    # And what somebody flushes there comes back: the same row, written anew.
    written = row_number(lab, "fs-a", "profile1")
    api(lab, "fs-a", "sofia profile profile1 flush_inbound_reg")
    soon(lab, lambda: row_number(lab, "fs-a", "profile1") not in (0, written), "the row again", 45)
    assert rows(lab, "fs-a", "profile1") == before


def known(lab: Laboratory, node: str) -> tuple[list[str], bool]:
    """(users of the first service, stale) as a node answers `registrations`."""
    name = lab.plan.services[0].name
    told = lab.nodes[node].api("registrations", limit=100)
    users = sorted(
        one["user"].partition("@")[0] for one in told["registrations"] if one["service"] == name
    )
    return users, told.get("stale", False)


def renewed(lab: Laboratory, node: str) -> None:
    """Another agent, as after a crash: without what the one before held."""
    _, agents = lab.nodes[node].haclusterd_pids()
    lab.nodes[node].send(agents, signal.SIGKILL)
    lab.wait(lambda: lab.nodes[node].haclusterd_pids()[1] not in ([], agents), 10, "a new agent")
    lab.wait(lambda: lab.nodes[node].status() is not None, 10, "its API")


def registers(lab: Laboratory, phone: Phone, user: str, within_s: float) -> float:
    return soon(
        lab, lambda: phone.register(user, lab.plan.services[0].ip) == 200, "200 to REGISTER",
        within_s,
    )  # fmt: skip


def stands_by(lab: Laboratory, node: str, phone: Phone) -> bool:
    here = phone.uri("1000").removeprefix("sip:")
    return api(lab, node, f"originate sofia/profile1/sip:{here} &echo") == "-ERR SYSTEM_SHUTDOWN"


def test_a_profile_that_comes_up_serves_at_the_owner_and_stands_by_at_a_slave(
    lab: Laboratory, phone: Phone
) -> None:
    """Stopped and started by hand, stopped and started by the agent, restarted; nobody lifts it."""
    first = lab.plan.services[0]
    bring_calls(lab, {first.name: 2}, print)
    assert phone.register("1000", first.ip) == 200
    for how in ("by hand", "by the agent", "restart"):
        time.sleep(10.5)  # mod_sofia stops none that began just now
        command = "restart" if how == "restart" else "stop"
        for node in ("fs-a", "fs-c"):
            assert "ing: profile1" in api(lab, node, f"sofia profile profile1 {command}")
        for node in ("fs-a", "fs-c"):
            soon(lab, lambda n=node: "profile1" not in api(lab, n, "sofia status"), "its end")
        if how == "by hand":
            time.sleep(3)  # before that its port may not be free, after 4 s the agent starts it
            for node in ("fs-a", "fs-c"):
                assert "started" in api(lab, node, "sofia profile profile1 start")
        soon(lab, lambda: "profile1" in api(lab, "fs-a", "sofia status"), "profile1", 30)
        print(f"{how}: REGISTER gets 200 {registers(lab, phone, '1000', 10):.1f} s after its start")
        assert api(lab, "fs-a", "show channels count") == "0 total.", "ended with the profile"
        soon(lab, lambda: "profile1" in api(lab, "fs-c", "sofia status"), "the slave's", 30)
        time.sleep(3)
        assert stands_by(lab, "fs-c", phone)
    assert ring(lab, phone, "fs-a", "user/1000@lab.test")[1] == "-ERR USER_BUSY"


def test_eg8_a_profile_that_is_not_loaded_keeps_its_phones_and_holds_up_no_node(
    lab: Laboratory, phone: Phone
) -> None:
    """The owner's agent starts while its profile is away, then a slave's: nothing is stale."""
    first = lab.plan.services[0]
    for user in ("1000", "1001"):
        assert phone.register(user, first.ip) == 200
    soon(lab, lambda: known(lab, "fs-c") == (["1000", "1001"], False), "C's copy")
    switch = lab.nodes["fs-a"].switch
    assert switch is not None
    loaded = switch.core_db.parent.parent / "conf" / "services" / "profile1.xml"
    loaded.rename(loaded.with_suffix(".away"))
    api(lab, "fs-a", "reloadxml")
    time.sleep(10)  # mod_sofia stops none that began just now
    api(lab, "fs-a", "sofia profile profile1 stop")
    soon(lab, lambda: "profile1" not in api(lab, "fs-a", "sofia status"), "its end", 20)

    renewed(lab, "fs-a")
    time.sleep(5)
    renewed(lab, "fs-c")
    time.sleep(5)
    assert known(lab, "fs-c")[1], "the owner has not read its phones, and nobody told them on"
    took_s = soon(lab, lambda: known(lab, "fs-c") == (["1000", "1001"], False), "C's copy", 40)
    print(f"complete again {took_s:.1f} s after the start")
    assert known(lab, "fs-a") == (["1000", "1001"], False)
    alarms = {a["name"] for a in lab.nodes["fs-a"].api("status")["alarms"]}
    assert "registrations" in alarms

    loaded.with_suffix(".away").rename(loaded)
    api(lab, "fs-a", "reloadxml")
    soon(lab, lambda: "profile1" in api(lab, "fs-a", "sofia status"), "profile1", 30)
    there = [row[0] for row in rows(lab, "fs-a", "profile1")]
    soon(lab, lambda: known(lab, "fs-c") == (there, False), f"C's copy of {there}", 20)
    registers(lab, phone, "1000", 15)
    assert phone.register("1001", first.ip, 0) == 200
    soon(lab, lambda: known(lab, "fs-c") == (["1000"], False), "what changes", 20)
    assert known(lab, "fs-a") == (["1000"], False)
