"""Phones on TCP, TLS and WebSocket at a takeover of a real FreeSWITCH.

Their connection ends with their FreeSWITCH. Whether the new one can reach them is up to them: what
`calls --at-risk` says before has to be what the verdict says after.
"""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import pytest

from haclusterd.freeswitch import risks
from haclusterd.freeswitch.mends import Mends
from haclusterd.freeswitch.options import RecoveryOptions
from haclusterd.lab.laboratory import Laboratory
from haclusterd.lab.plan import LabPlan
from haclusterd.lab.run import endure, ready_cluster
from tests.fixtures.srtp import SecurePhone
from tests.fixtures.talker import Talker
from tests.freeswitch.moving import moved, varied, watched
from tests.freeswitch.obstacle import obstacle
from tests.freeswitch.rig import CLIENT, EAST, Rig

_REASON = obstacle()
pytestmark = [
    pytest.mark.freeswitch,
    pytest.mark.skipif(bool(_REASON), reason=_REASON),
    pytest.mark.timeout(180),
]

COMES_BACK = "it comes back if the phone takes connections at its Contact"
WEB = "nobody can connect to it, so the call is lost"


def talk(phone: Talker, extension: str) -> None:
    phone.call(extension)


@pytest.fixture
def streams(rig: Rig, tmp_path: Path) -> tuple[Rig, Path]:
    """The rig with TLS and WebSocket on both nodes, and a certificate of its own."""
    folder = tmp_path / "tls"
    folder.mkdir()
    made = folder / "agent.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "9", "-subj",
         "/CN=lab.test", "-keyout", folder / "key.pem", "-out", folder / "cafile.pem"],
        check=True, capture_output=True,
    )  # fmt: skip
    made.write_bytes((folder / "key.pem").read_bytes() + (folder / "cafile.pem").read_bytes())
    (folder / "wss.pem").write_bytes(made.read_bytes())
    for node in (rig.a, rig.b):
        varied(
            node, ("tls", "true"), ("tls-cert-dir", str(folder)), ("tls-sip-port", "5061"),
            ("ws-binding", ":5066"), ("wss-binding", ":7443"),
        )  # fmt: skip
    rig.activate(rig.a, "east", EAST)
    return rig, made


@pytest.mark.parametrize(
    ("transport", "listens", "verdict", "risk"),
    [
        ("tcp", True, "recovered", COMES_BACK),
        ("tcp", False, "lost", COMES_BACK),
        ("tls", True, "recovered", COMES_BACK),
        ("tls", False, "lost", COMES_BACK),
        ("ws", False, "lost", WEB),
        ("wss", False, "lost", WEB),
    ],
)
def test_e3_e4_a_call_of_a_phone_on_a_stream(
    streams: tuple[Rig, Path], transport: str, listens: bool, verdict: str, risk: str
) -> None:
    rig, certificate = streams
    phone = Talker(
        f"{rig.name}-cl", CLIENT, EAST, transport, listens=listens,
        certificate=certificate if transport == "tls" else None,
    )  # fmt: skip
    records = watched(rig.a, 1, during=lambda: talk(phone, "9196"))
    (record,) = records.values()
    assert risks.of_record(record) == [f"over {transport.upper()}: {risk}"]
    died_s, (told,) = moved(rig, records, RecoveryOptions())
    assert told.verdict == verdict, told
    asked = phone.requests("INVITE", died_s)
    # Where it came back, FreeSWITCH has connected to the phone, not the phone to FreeSWITCH.
    assert [seen.connection for seen in asked] == ([1] if listens else [])
    phone.close()


@pytest.mark.parametrize("transport", ["tcp", "tls"])
@pytest.mark.parametrize("on", [True, False], ids=["on", "off"])
def test_eg1_a_recovered_call_keeps_its_transport(
    streams: tuple[Rig, Path], transport: str, on: bool
) -> None:
    """A phone sends its BYE to the Contact of the re-INVITE."""
    rig, certificate = streams
    phone = Talker(
        f"{rig.name}-cl", CLIENT, EAST, transport,
        certificate=certificate if transport == "tls" else None,
    )  # fmt: skip
    records = watched(rig.a, 1, during=lambda: talk(phone, "9196"))
    (dialogue,) = phone.dialogues.values()
    end = f"{EAST}:{'5061' if transport == 'tls' else '5060'};transport={transport}"
    assert dialogue.target == f"sip:9196@{end}"
    _, (told,) = moved(rig, records, RecoveryOptions(mends=Mends(transport=on)))
    assert told.verdict == "recovered"
    assert dialogue.target == (f"sip:1000@{end}" if on else f"sip:1000@{EAST}:5060")
    if on:
        phone.connect()
        assert phone.bye(dialogue).startswith("SIP/2.0 200")
    phone.close()


@pytest.mark.parametrize(
    ("transport", "listens", "verdicts"),
    [
        ("tcp", True, {"inbound": "recovered", "outbound": "recovered"}),
        ("tls", True, {"inbound": "recovered", "outbound": "recovered"}),
        ("ws", False, {"inbound": "partial", "outbound": "lost"}),
    ],
)
def test_e4_a_call_to_a_registered_phone_on_a_stream(
    streams: tuple[Rig, Path], transport: str, listens: bool, verdicts: dict[str, str]
) -> None:
    rig, certificate = streams
    phone = Talker(
        f"{rig.name}-cl", CLIENT, EAST, transport, listens=listens,
        certificate=certificate if transport == "tls" else None,
    )  # fmt: skip
    caller = Talker(f"{rig.name}-cl", CLIENT, EAST, user="1001")
    assert phone.register().startswith("SIP/2.0 200")
    records = watched(rig.a, 2, during=lambda: talk(caller, "1000"), settle_s=1.0)
    reasons = {r.direction: risks.of_record(r) for r in records.values()}
    end = WEB if transport == "ws" else COMES_BACK
    assert reasons == {"inbound": [], "outbound": [f"over {transport.upper()}: {end}"]}
    _, told = moved(rig, records, RecoveryOptions())
    assert {records[v.uuid].direction: v.verdict for v in told} == verdicts
    phone.close()
    caller.close()


@pytest.mark.parametrize("first", [0, 65_450], ids=["first-round", "second-round"])
def test_e4_an_srtp_call_is_heard_until_its_packets_have_been_counted_round(
    rig: Rig, first: int
) -> None:
    """The keys are in the row, but not how often the phone's 16 bit count began anew."""
    rig.activate(rig.a, "east", EAST)
    phone = SecurePhone(f"{rig.name}-cl", CLIENT, EAST, first=first)
    records = watched(rig.a, 1, during=lambda: talk(phone, "9196"), settle_s=2.5)
    (record,) = records.values()
    (reason,) = risks.of_record(record)
    assert reason.startswith("SRTP: the phone is not heard")
    assert phone.heard_own > 50
    keys = phone.theirs
    assert keys is not None
    _, (told,) = moved(rig, records, RecoveryOptions())
    assert told.verdict == "recovered"
    assert told.reason == "re-INVITE answered, SRTP comes: whether it can be read, nobody tells"
    assert phone.theirs is not None
    assert phone.theirs.inline == keys.inline
    before = phone.heard_own
    time.sleep(1)
    assert (phone.heard_own - before > 25) is (first == 0)
    phone.close()


def dial(lab: Laboratory, node: str) -> str:
    """What FreeSWITCH of a node says to a call to user 1000."""
    switch = lab.nodes[node].switch
    assert switch is not None
    with switch.esl(timeout_s=30) as esl:
        return esl.api("originate {originate_timeout=8}user/1000@lab.test &park").strip()


@pytest.mark.parametrize("listens", [True, False], ids=["listens", "behind-nat"])
def test_eg8_a_phone_on_tcp_is_reached_from_other_nodes_and_after_a_takeover(listens: bool) -> None:
    # For a phone behind NAT FreeSWITCH has to be told to keep to the connection it came over.
    params = () if listens else (("tcp-always-nat", "true"),)
    plan = LabPlan(masters=2, slaves=1, freeswitch="real", profile_params=params)
    with ready_cluster(plan, None, print) as lab:
        time.sleep(2)  # a new agent gives heart a second to order a recovery
        first = lab.plan.services[0]
        phone = Talker(lab.topology.client, lab.plan.client_ip, first.ip, "tcp", listens=listens)
        assert phone.register().startswith("SIP/2.0 200")
        lab.wait(lambda: dial(lab, "fs-b").startswith("+OK"), 30, "the phone to be reached from B")
        if not listens:
            assert phone.requests("INVITE")[0].connection == 0
        endure(lab, "freeswitch", print, victims=("fs-a",))
        assert lab.holder(first.ip) == "fs-c"

        began_s = time.monotonic()
        answers = dial(lab, "fs-b"), dial(lab, "fs-c")
        assert [a.startswith("+OK") for a in answers] == [listens, listens], answers
        assert len(phone.requests("INVITE", began_s)) == 2 * listens
        phone.connect()
        assert phone.register().startswith("SIP/2.0 200")
        began_s = time.monotonic()
        lab.wait(lambda: dial(lab, "fs-b").startswith("+OK"), 30, "the phone to be reached again")
        assert phone.requests("INVITE", began_s)
        phone.close()
