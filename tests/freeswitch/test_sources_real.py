"""Both sources of call state against the same calls of a real FreeSWITCH, and a recovery from 2."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from haclusterd.core.records import CallRecord
from haclusterd.freeswitch import metadata
from haclusterd.freeswitch.calls import CallSource
from haclusterd.freeswitch.esl_source import EslCallSource
from haclusterd.lab.freeswitch import FreeswitchInstance
from tests.freeswitch.test_esl_real import (
    VIP,
    Collector,
    Site,
    activate,
    channels,
    factory,
    inside,
    recover,
    until,
    why_not,
)

pytestmark = [
    pytest.mark.freeswitch,
    pytest.mark.timeout(180),
    pytest.mark.skipif(bool(why_not()), reason=why_not() or "ready"),
]
TONES, BRIDGES = 3, 2
LEGS = TONES + 2 * BRIDGES
# What a recovery is made of (FREESWITCH.md 1.3); all else may differ between row and dump.
SAME = (
    "sip_call_id", "sip_full_from", "sip_full_to", "sip_from_tag", "sip_to_tag", "sip_cseq",
    "sip_contact_uri", "sip_network_ip", "sip_network_port", "sip_via_protocol", "sip_req_uri",
    "recovery_profile_name", "local_media_ip", "local_media_port", "remote_media_ip",
    "remote_media_port", "rtp_use_codec_name", "rtp_use_pt", "rtp_local_sdp_str", "switch_r_sdp",
    "rtp_2833_send_payload", "signal_bond", "originate_signal_bond",
)  # fmt: skip


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path)
    try:
        made.start()
        yield made
    finally:
        made.close()


def both(instance: FreeswitchInstance) -> tuple[dict[str, CallRecord], dict[str, CallRecord]]:
    """The same legs as source 1 and as source 2 tell them, in their last versions."""

    async def work() -> tuple[dict[str, CallRecord], dict[str, CallRecord]]:
        rows, dumps = Collector(), Collector()
        one = CallSource(
            instance.core_db, {"east": "east"}, rows.take, esl_factory=factory(instance)
        )
        two = EslCallSource({"east": "east"}, dumps.take, esl_factory=factory(instance))
        await one.start()
        await two.start()
        await until(lambda: len(rows.records) == LEGS and len(dumps.records) == LEGS, 20)
        await asyncio.sleep(0.6)
        snapshot = {record.uuid for record in await two.snapshot()}
        assert snapshot == dumps.records.keys()
        await two.stop()
        await one.stop()
        return rows.records, dumps.records

    return inside(instance, work)


def test_both_sources_tell_the_same_of_every_call_and_the_second_recovers_them(site: Site) -> None:
    site.own(site.a, VIP)
    inside(site.a, lambda: activate(site.a, "east"))
    site.callee()
    phones = [site.callers("9197", TONES), site.callers("4100", BRIDGES)]
    rows, dumps = both(site.a)
    assert rows.keys() == dumps.keys()
    for uuid, row in rows.items():
        dump = dumps[uuid]
        for name in ("profile", "runtime_uuid", "partner", "direction", "answered_ms", "sip_cseq"):
            assert getattr(dump, name) == getattr(row, name), (uuid, name)
        for name in SAME:
            found = metadata.variable(dump.metadata, name), metadata.variable(row.metadata, name)
            assert found[0] == found[1], (uuid, row.direction, name)
    assert {len(metadata.extension(d.metadata)) for d in dumps.values() if not d.partner} == {1}

    site.kill(site.a)
    site.own(site.b, VIP)
    verdicts, _ = recover(site.b, list(dumps.values()))
    assert len(verdicts) == LEGS
    assert all(v.startswith("recovered: re-INVITE answered") for v in verdicts.values()), verdicts
    time.sleep(0.5)
    assert channels(site.b) == LEGS
    site.b.api("hupall")
    assert [phone.wait(20) for phone in phones] == [0, 0]
