"""What haclusterd relies on in the emulator: rows that outlive it, recovery, standby, deaths.

Loopback addresses and processes only; neither namespaces nor root.
"""

from __future__ import annotations

import json
import signal
import socket
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from haclusterd.lab.emulator.config import EmulatorConfigError, load
from tests.unit.emulator_lab import Emulator, eventually, loopback
from tests.unit.emulator_peers import Telephone, header

Make = Callable[..., Emulator]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    made: list[Emulator] = []

    def build(name: str = "a", ip: str = "", **settings: Any) -> Emulator:
        made.append(Emulator(tmp_path / name, ip, **{"sql_flush_ms": 20, **settings}))
        return made[-1].start()

    yield build
    for emulator in made:
        emulator.kill()


def tracked(emulator: Emulator, count: int) -> bool:
    rows = emulator.rows()
    return len(rows) == count and all("sip_full_to" in row[5] for row in rows)


def moved(make: Make, old: Emulator, **settings: Any) -> Emulator:
    """A second emulator on the dead one's address, with its rows."""
    rows = old.rows()
    old.kill()
    new = make("b", old.ip, **settings)
    for row in rows:
        new.sql("INSERT INTO recovery VALUES (?,?,?,?,?,?)", *row)
    return new


def live_call(emulator: Emulator) -> Telephone:
    telephone = emulator.telephone()
    telephone.call()
    eventually(lambda: tracked(emulator, 1))
    return telephone


def test_a_call_moves_from_one_to_the_next_and_on(make: Make) -> None:
    first = make()
    telephone = live_call(first)
    uuid = first.rows()[0][4]
    port = header(telephone.received[-1], "Call-ID") and first.rows()[0][5]
    second = moved(make, first, profile={"standby": True})
    assert second.api("sofia profile pa recover") == "Recovered 1 session(s)\n"
    answer_reinvite(telephone)
    own = second.api("global_getvar core_uuid")
    eventually(lambda: [row[0] for row in second.rows()] == [own])
    rows = second.rows()
    assert rows[0][4] == uuid
    assert f"<local_media_port>{media_port(port)}<" in rows[0][5]
    time.sleep(2.1)  # the CSeq is time based: it has to grow (FREESWITCH.md 1.4)
    second.kill()
    third = make("c", first.ip)
    third.sql("INSERT INTO recovery VALUES (?,?,?,?,?,?)", *rows[0])
    third.api("sofia profile pa recover")
    invite = answer_reinvite(telephone)
    assert header(invite, "To").endswith(f"tag={telephone.port}SIPpTag001")
    assert telephone.rtp.recv(2000)
    telephone.theirs = header(invite, "From")
    telephone.hang_up(cseq=7)
    eventually(lambda: third.rows() == [])


def media_port(document: str) -> str:
    return document.partition("<local_media_port>")[2].partition("<")[0]


def answer_reinvite(telephone: Telephone) -> str:
    invite = telephone.wait_for("INVITE")
    telephone.answer(invite, body=telephone.sdp())
    telephone.wait_for("ACK")
    return invite


def test_rows_outlive_a_kill_and_are_recovered_in_place(make: Make) -> None:
    emulator = make()
    telephone = live_call(emulator)
    emulator.kill()
    assert len(emulator.rows()) == 1
    emulator.start()
    assert emulator.api("sofia profile pa recover") == "Recovered 1 session(s)\n"
    answer_reinvite(telephone)
    assert emulator.api("sofia profile pa recover") == "No sessions to recover.\n"


def test_a_polite_stop_hangs_up_and_untracks(make: Make) -> None:
    emulator = make()
    telephone = live_call(emulator)
    with emulator.esl() as esl:
        esl.ask("event plain SHUTDOWN")
        emulator.signal(signal.SIGTERM)
        assert esl.events("SHUTDOWN")
    telephone.answer(telephone.wait_for("BYE"))
    assert emulator.process is not None
    assert emulator.process.wait(5) == 0
    assert emulator.rows() == []
    assert not (emulator.directory / "freeswitch.pid").exists()


def test_standby_answers_503_until_recover(make: Make) -> None:
    emulator = make(profile={"standby": True})
    telephone = emulator.telephone()
    for cseq, method in enumerate(("INVITE", "REGISTER", "OPTIONS"), start=1):
        telephone.request(method, cseq)
        assert telephone.receive().startswith("SIP/2.0 503 System Paused")
    assert emulator.api("sofia profile pa recover") == "No sessions to recover.\n"
    telephone.request("OPTIONS", 4)
    telephone.wait_for("SIP/2.0 200")
    emulator.api("fsctl pause")
    telephone.request("INVITE", 5, telephone.sdp())
    assert telephone.receive().startswith("SIP/2.0 503 Maximum Calls In Progress")


def test_fsctl_recover_takes_one_pseudo_profile_and_leaves_standby(make: Make) -> None:
    first = make()
    telephone = live_call(first)
    second = moved(make, first, profile={"standby": True})
    second.sql("UPDATE recovery SET profile_name='pa#1'")
    assert second.api("fsctl recover sofia:pa#0") == "+OK 0 session(s) recovered in total\n"
    assert second.api("fsctl recover sofia:pa#1") == "+OK 1 session(s) recovered in total\n"
    answer_reinvite(telephone)
    telephone.request("OPTIONS", 9)
    telephone.wait_for("SIP/2.0 503 System Paused")


@pytest.mark.parametrize(
    ("answer", "cause"),
    [
        ("481 Call Does Not Exist", "NORMAL_TEMPORARY_FAILURE"),
        ("silence", "RECOVERY_ON_TIMER_EXPIRE"),
        ("nobody there", "NORMAL_TEMPORARY_FAILURE"),
    ],
)
def test_a_reinvite_that_fails_ends_the_call(make: Make, answer: str, cause: str) -> None:
    first = make()
    telephone = live_call(first)
    second = moved(make, first, transaction_timeout_s=1.0)
    if answer == "nobody there":
        telephone.close()
    with second.esl() as esl:
        esl.ask("event plain CHANNEL_HANGUP CHANNEL_HANGUP_COMPLETE")
        assert second.api("sofia profile pa recover") == "Recovered 1 session(s)\n"
        if answer.startswith("481"):
            telephone.answer(telephone.wait_for("INVITE"), answer)
            telephone.wait_for("ACK")
        event = esl.events("CHANNEL_HANGUP")[-1]
    assert (event["Hangup-Cause"], event["variable_recovered"]) == (cause, "true")
    eventually(lambda: second.rows() == [])
    eventually(lambda: second.api("show channels count") == "\n0 total.\n")


def test_a_provisional_answer_changes_all_but_the_media(make: Make) -> None:
    """As FreeSWITCH 1.11.1 does: `sip_cseq` alone proves no answer."""
    first = make()
    telephone = live_call(first)
    uuid = first.rows()[0][4]
    second = moved(make, first)
    flow = "<remote_audio_media_flow>"
    second.sql("UPDATE recovery SET metadata = replace(metadata, ?, ?)", f"{flow}s", f"{flow}un-s")
    second.api("sofia profile pa recover")
    invite = telephone.wait_for("INVITE")
    telephone.answer(invite, "180 Ringing")
    number = header(invite, "CSeq").split()[0]
    eventually(lambda: second.api(f"uuid_getvar {uuid} sip_cseq").strip() == number)
    asked = f"uuid_getvar {uuid} remote_audio_media_flow"
    assert second.api(asked).strip() == "un-sendrecv"
    telephone.answer(invite, body=telephone.sdp())
    eventually(lambda: second.api(asked).strip() == "sendrecv")


def test_bad_rows_and_duplicates_cost_nothing_but_themselves(make: Make) -> None:
    first = make()
    telephone = live_call(first)
    document = first.rows()[0][5]
    second = moved(make, first)
    second.sql("DELETE FROM recovery")
    for number, text in enumerate(
        (
            "",
            "<cdr>",
            "<cdr/>",
            "<!DOCTYPE x [<!ENTITY a 'b'>]><cdr>&a;</cdr>",
            document.replace("<recovery_profile_name>pa", "<recovery_profile_name>other"),
            document.replace("sip_call_id>", "sip_no_call_id>"),
            document.replace(f"<local_media_port>{media_port(document)}", "<local_media_port>x"),
            document.replace("<sip_contact_uri>", "<sip_contact_uri>%0d%0aEvil:"),
            document,
            document,
        )
    ):
        row = ("someone else", "sofia", "pa", "n", f"u{number}", text)
        second.sql("INSERT INTO recovery VALUES (?,?,?,?,?,?)", *row)
    assert second.api("sofia profile pa recover") == "Recovered 1 session(s)\n"
    answer_reinvite(telephone)
    eventually(lambda: len(second.rows()) == 1)
    assert "Duplicate UUID!" in second.log()
    assert "Invalid profile other" in second.log()
    assert "Traceback" not in second.log()


def test_an_outbound_leg_keeps_its_direction_and_its_mended_cseq(make: Make) -> None:
    """The captured B leg of a bridge: From and To as they were, CSeq from `sip_invite_cseq`."""
    emulator = make()
    telephone = emulator.telephone()
    captures = Path(__file__).parent.parent / "fixtures" / "freeswitch"
    row = json.loads((captures / "recovery_rows_bridge.json").read_text())[0]
    text = row[5].replace("10.77.0.101", emulator.ip)
    text = text.replace("10.77.0.22%3A5060", f"{telephone.ip}%3A{telephone.port}")
    text = text.replace("10.77.0.22", telephone.ip)
    port = str(telephone.rtp.getsockname()[1])
    text = text.replace("<remote_media_port>7000<", f"<remote_media_port>{port}<")
    text = text.replace("<sip_cseq>", "<sip_invite_cseq>123126408</sip_invite_cseq><sip_cseq>")
    emulator.sql("INSERT INTO recovery VALUES (?,?,?,?,?,?)", *row[:5], text)
    assert emulator.api("sofia profile pa recover") == "Recovered 1 session(s)\n"
    invite = answer_reinvite(telephone)
    assert header(invite, "CSeq") == "123126409 INVITE"
    assert header(invite, "From").endswith(";tag=2eKXt4103UZ3H")
    assert header(invite, "To").endswith(";tag=23663SIPpUas01104")
    assert telephone.rtp.recv(2000)
    assert emulator.api(f"uuid_getvar {row[4]} sip_cseq") == "123126409"


def test_triggers_of_another_process_run_in_its_connection(make: Make) -> None:
    emulator = make()
    emulator.sql("CREATE TABLE ha_log (seq INTEGER PRIMARY KEY AUTOINCREMENT, op, uuid)")
    for operation, row in (("INSERT", "new"), ("UPDATE", "new"), ("DELETE", "old")):
        emulator.sql(
            f"CREATE TRIGGER ha_{operation} AFTER {operation} ON recovery BEGIN "
            f"INSERT INTO ha_log (op, uuid) VALUES ('{operation}', {row}.uuid); END"
        )
    telephone = live_call(emulator)
    telephone.hang_up()
    eventually(lambda: emulator.rows() == [])
    logged = [row[0] for row in emulator.sql("SELECT op FROM ha_log ORDER BY seq")]
    assert logged == ["INSERT", "UPDATE", "DELETE"]


def test_rows_are_written_with_the_real_delay(make: Make) -> None:
    emulator = make(sql_flush_ms=210)
    delays = []
    for _ in range(3):
        telephone = emulator.telephone()
        telephone.call()
        begin = time.monotonic()
        eventually(lambda: tracked(emulator, 1))
        delays.append(time.monotonic() - begin)
        telephone.hang_up()
        telephone.close()
        eventually(lambda: emulator.rows() == [])
    assert max(delays) < 0.6
    assert sum(delays) / len(delays) > 0.03


def test_a_locked_core_db_delays_rows_but_not_calls(make: Make) -> None:
    emulator = make()
    path = emulator.directory / "core.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as lock:
        lock.execute("BEGIN EXCLUSIVE")
        telephone = emulator.telephone()
        telephone.call()
        assert telephone.rtp.recv(2000)
        lock.execute("COMMIT")
    eventually(lambda: tracked(emulator, 1))


def test_a_repeated_invite_makes_one_call_and_the_200_repeats_until_ack(make: Make) -> None:
    emulator = make()
    telephone = emulator.telephone()
    message = telephone.request("INVITE", 1, telephone.sdp())
    first = telephone.wait_for("SIP/2.0 200")
    telephone.send(message)
    assert telephone.wait_for("SIP/2.0 200") == first
    assert telephone.wait_for("SIP/2.0 200") == first  # nobody asked: no ACK came
    telephone.theirs = header(first, "To")
    telephone.request("ACK", 1)
    eventually(lambda: emulator.api("show channels count") == "\n1 total.\n")


def test_echo_sends_back_what_it_hears(make: Make) -> None:
    emulator = make()
    telephone = emulator.telephone("9196")
    answer = telephone.call()
    port = int(answer.partition("m=audio ")[2].split(" ")[0])
    packet = b"\x80\x00\x00\x01\x00\x00\x00\xa0\x00\x00\x00\x07" + b"\x11" * 160
    telephone.rtp.sendto(packet, (emulator.ip, port))
    assert telephone.rtp.recv(2000)[12:] == packet[12:]


def test_a_reinvite_of_the_peer_moves_the_media(make: Make) -> None:
    emulator = make()
    telephone = live_call(emulator)
    with closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as elsewhere:
        elsewhere.bind((telephone.ip, 0))
        elsewhere.settimeout(5)
        old, new = telephone.rtp.getsockname()[1], elsewhere.getsockname()[1]
        telephone.request("INVITE", 2, telephone.sdp().replace(f"audio {old}", f"audio {new}"))
        telephone.wait_for("SIP/2.0 200")
        telephone.request("ACK", 2)
        assert elsewhere.recv(2000)
        eventually(lambda: f"<remote_media_port>{new}<" in emulator.rows()[0][5])


def test_cancel_of_a_ringing_call(make: Make) -> None:
    emulator = make()
    telephone = emulator.telephone("9198")
    telephone.request("INVITE", 1, telephone.sdp(), branch="z9hG4bK-ring")
    telephone.wait_for("SIP/2.0 180")
    telephone.request("CANCEL", 1, branch="z9hG4bK-ring")
    telephone.wait_for("SIP/2.0 200")
    telephone.wait_for("SIP/2.0 487")
    eventually(lambda: emulator.api("show channels count") == "\n0 total.\n")
    assert emulator.rows() == []


def test_ports_collide_with_recovered_calls_unless_robust(make: Make) -> None:
    first = make()
    telephone = live_call(first)
    port = int(media_port(first.rows()[0][5]))
    second = moved(
        make,
        first,
        rtp_port_min=port,
        rtp_port_max=port + 2,
        rtp_port_usage_robustness=True,
    )
    second.api("sofia profile pa recover")
    answer_reinvite(telephone)
    other = second.telephone()
    assert f"m=audio {port + 2} " in other.call()


def test_hostile_input_changes_nothing(make: Make) -> None:
    emulator = make()
    telephone = live_call(emulator)
    with closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as sock:
        sock.bind((loopback(), 0))
        good = telephone.received[-1].encode()
        invite = telephone.sdp().encode()
        for garbage in (
            b"",
            b"\r\n\r\n",
            b"\x00" * 2000,
            b"INVITE\r\n\r\n",
            b"INVITE sip:\xff SIP/2.0\r\nVia: x\r\nFrom: y\r\nTo: z\r\nCall-ID: 1\r\n"
            b"CSeq: 1 INVITE\r\n\r\n" + invite,
            b"INVITE sip:a@b SIP/2.0\r\nVia: x;branch=\r\nFrom: <\r\nTo: >\r\nCall-ID: 1\r\n"
            b"CSeq: 99999999999999999999 INVITE\r\n\r\n",
            good.replace(b"200", b"2000"),
            good.replace(b"CSeq: 1", b"CSeq: one"),
            good[: len(good) // 2],
            b"a: b\r\n" * 5000,
        ):
            sock.sendto(garbage, emulator.sip)
    with closing(socket.create_connection(("127.0.0.1", emulator.port))) as esl:
        esl.sendall(b"\xff\xfe\n\nauth ClueCon\n\napi\n\ncontent-length: 99999999999\n\nx")
        esl.sendall(b"sendevent FOO\ncontent-length: 999999999999\n\n")
    assert emulator.api("uuid_getvar") == "-USAGE: <uuid> <var>\n"
    telephone.hang_up()
    assert "Traceback" not in emulator.log()


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("{", "JSON"),
        ('{"run_dir":"/nowhere"}', "profiles"),
        ('{"run_dir":"x","profiles":[],"wrong":1}', "wrong"),
        ('{"run_dir":"x","profiles":[],"media_pps":0}', "media_pps"),
    ],
)
def test_a_bad_configuration_is_refused_by_name(tmp_path: Path, text: str, complaint: str) -> None:
    file = tmp_path / "x.json"
    file.write_text(text)
    with pytest.raises(EmulatorConfigError, match=complaint) as caught:
        load(file)
    assert str(file) in str(caught.value)
