"""Rows at which a real FreeSWITCH dies: as they are, and as they are injected."""

from __future__ import annotations

import re
import time

import pytest
from msgspec.structs import replace

from haclusterd.core.records import CallRecord
from haclusterd.freeswitch import metadata
from haclusterd.freeswitch.injection import clear_stale
from haclusterd.freeswitch.options import RecoveryOptions
from haclusterd.lab.esl_blocking import EslRefused
from haclusterd.lab.freeswitch import FreeswitchInstance
from haclusterd.lab.netns import LabError
from tests.fixtures.sip_messages import Seen
from tests.fixtures.talker import Talker
from tests.freeswitch.moving import recovered, watched
from tests.freeswitch.rig import CLIENT, EAST, Rig, channels, insert

pytestmark = [pytest.mark.freeswitch, pytest.mark.timeout(180)]


class Odd(Talker):
    """Its Contact has a display name; that is brackets, once it is decoded."""

    display = b"%3C%3E"

    def _answer(self, request: Seen, status: str, body: str) -> bytes:
        whole = super()._answer(request, status, body)
        return whole.replace(b"Contact: <", b"Contact: " + self.display + b" <")


def with_video(text: str, without: str) -> str:
    """As a channel that has video, but for one variable."""
    variables = {"local_video_port": "16450", "rtp_use_video_codec_name": "VP8"}
    for name, value in variables.items():
        text = metadata.set_variable(text, name, value)
    text = metadata.without_variable(text, without)
    return re.sub(r"<flags>", "<flags>26=1;", text, count=1)


def dies_of(node: FreeswitchInstance, record: CallRecord, text: str) -> bool:
    """Start anew, and recover a row as it is."""
    if node.pid is not None:
        node.kill()
    node.start()
    node.wait_ready()
    clear_stale(node.core_db, None)
    insert(node, [("other", "sofia", "east", "h", record.uuid, text)])
    try:
        node.api("sofia profile east recover")
        time.sleep(1)
        node.api("hupall")
        time.sleep(0.2)
    except (LabError, OSError, EslRefused):
        pass
    return node.pid is None


def called(rig: Rig, phone: Talker) -> CallRecord:
    """What a slave holds of a call from A to a phone."""
    rig.activate(rig.a, "east", EAST)
    phone.strict = False  # it is taken up again and again
    assert rig.a.api(f"originate sofia/east/1000@{CLIENT}:{phone.port} &echo").startswith("+OK")
    (record,) = watched(rig.a, 1).values()
    rig.a.kill()
    rig.own(rig.b, EAST)
    return record


def test_e1_a_phone_that_was_called_ends_no_freeswitch_by_the_name_in_its_contact(rig: Rig) -> None:
    phone = Odd(f"{rig.name}-cl", CLIENT, EAST)
    record = called(rig, phone)
    assert metadata.variable(record.metadata, "sip_recover_contact").startswith("<> <sip:")
    (verdict,) = recovered(rig.b, {record.uuid: record}, RecoveryOptions()).values()
    assert verdict.verdict == "recovered", verdict
    assert channels(rig.b) == 1
    assert phone.requests("INVITE")[-1].first.split()[1] == phone.contact
    assert dies_of(rig.b, record, record.metadata), "FreeSWITCH survives it now: simplify"
    phone.close()


@pytest.mark.parametrize("name", ['"Bob <sip:bob@home.test>"', '"\\"<sip:bob@home.test>\\""'])
def test_e1_an_address_in_the_name_of_a_phone_is_not_where_it_is_asked(rig: Rig, name: str) -> None:
    phone = Odd(f"{rig.name}-cl", CLIENT, EAST)
    phone.display = name.encode()
    record = called(rig, phone)
    (verdict,) = recovered(rig.b, {record.uuid: record}, RecoveryOptions()).values()
    assert verdict.verdict == "recovered", verdict
    assert phone.requests("INVITE")[-1].first.split()[1] == phone.contact
    phone.close()


@pytest.mark.parametrize("missing", ["local_video_port", "rtp_use_video_codec_name"])
def test_e1_video_without_its_port_or_codec_is_recovered_as_sound(rig: Rig, missing: str) -> None:
    phone = Talker(f"{rig.name}-cl", CLIENT, EAST)
    record = called(rig, phone)
    video = with_video(record.metadata, missing)
    records = {record.uuid: replace(record, metadata=video)}
    (verdict,) = recovered(rig.b, records, RecoveryOptions()).values()
    assert (verdict.verdict, verdict.reason) == ("recovered", "re-INVITE answered, RTP flows")
    assert "m=video" not in phone.requests("INVITE")[-1].text
    assert dies_of(rig.b, record, video), "FreeSWITCH survives it now: simplify"
    phone.close()


def test_e1_a_row_that_no_freeswitch_writes_is_lost_alone(rig: Rig) -> None:
    phone = Talker(f"{rig.name}-cl", CLIENT, EAST)
    record = called(rig, phone)
    bad = {
        "no-direction": re.sub(r"<direction>\w+</direction>", "", record.metadata, count=1),
        "far-flag": record.metadata.replace("<flags>", "<flags>-900000000=1;", 1),
    }
    records = {name: replace(record, uuid=name, metadata=text) for name, text in bad.items()}
    records[record.uuid] = record
    verdicts = recovered(rig.b, records, RecoveryOptions())
    assert {uuid: one.verdict for uuid, one in verdicts.items()} == {
        "no-direction": "lost", "far-flag": "lost", record.uuid: "recovered",
    }, verdicts  # fmt: skip
    for text in bad.values():
        assert dies_of(rig.b, record, text), "FreeSWITCH survives it now: simplify"
    phone.close()
