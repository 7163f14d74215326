"""What callers write reaches the new owner's FreeSWITCH as values, or not at all."""

from __future__ import annotations

import re
import time
from pathlib import Path
from urllib.parse import quote

import pytest

from haclusterd.freeswitch.calls import CallSource
from haclusterd.freeswitch.limits import parse_dump, usage_question
from haclusterd.freeswitch.options import RecoveryOptions
from tests.fixtures.talker import Talker
from tests.freeswitch.moving import recovered
from tests.freeswitch.rig import CLIENT, EAST, Rig, channels, rows
from tests.freeswitch.test_esl_real import Collector, factory, inside, until

pytestmark = [pytest.mark.freeswitch, pytest.mark.timeout(120)]

# Two places for each caller: as many a dialplan has it.
DIALPLAN = """<include>
  <extension name="a limit for each caller">
    <condition field="destination_number" expression="^7700$">
      <action application="limit" data="hash in ${caller_id_number} 2"/>
      <action application="answer"/>
      <action application="echo"/>
    </condition>
  </extension>
</include>
"""


def answering(rig: Rig) -> None:
    """Both nodes have the dialplan; A owns the service."""
    for node in (rig.a, rig.b):
        (node.directory / "conf/dialplan/public/abuse.xml").write_text(DIALPLAN)
        assert "+OK" in node.api("reloadxml")
    rig.activate(rig.a, "east", EAST)


def known(rig: Rig, legs: int) -> tuple[Collector, CallSource]:
    """What a slave would hold of A when all `legs` are known or refused."""
    held = Collector()
    sources: list[CallSource] = []

    async def work() -> None:
        source = CallSource(rig.a.core_db, {"east": "east"}, held.take, esl_factory=factory(rig.a))
        sources.append(source)
        await source.start()
        try:
            await until(lambda: len(held.records) + source.refused == legs, 15)
        finally:
            await source.stop()

    inside(rig.a, work)
    return held, sources[0]


def test_s_a_caller_in_the_name_of_a_variable_runs_nothing_at_the_new_owner(
    rig: Rig, tmp_path: Path
) -> None:
    mark = tmp_path / "ran"
    command = quote(f"system touch {mark}", safe="")
    users = {
        "markup": f"a><api_hangup_hook>{command}</api_hangup_hook",
        "nested": f"a>1</limit_usage_in_a><api_hangup_hook>{command}</api_hangup_hook><b",
        "slash": "gw/1",
        "lines": "x\r\nL/cluster_line/999/0/0/0\nL/y_y",
        "plain": "1000",
    }
    answering(rig)
    phones = [
        Talker(f"{rig.name}-cl", CLIENT, EAST, user=quote(u, safe="")) for u in users.values()
    ]
    for phone in phones:
        phone.call("7700")
    time.sleep(0.6)
    by_name = dict(zip(users, (r for r in sorted_rows(rig)), strict=True))
    for name in ("markup", "nested"):
        assert "<api_hangup_hook>" in by_name[name][5], "FreeSWITCH encodes names now: simplify"
    held, source = known(rig, len(users))
    assert source.refused == 2
    assert "the name of a channel variable has < or > in it" in source.unprotected
    assert set(held.records) == {by_name[n][4] for n in ("slash", "lines", "plain")}

    rig.a.kill()
    rig.own(rig.b, EAST)
    verdicts = recovered(rig.b, held.records, RecoveryOptions(), 2 << 12)
    assert {by_name[n][4]: "recovered" for n in ("slash", "lines", "plain")} == {
        uuid: verdict.verdict for uuid, verdict in verdicts.items()
    }, verdicts
    assert channels(rig.b) == 3
    told = phones[list(users).index("lines")].requests("INVITE")[-1].text
    assert told.startswith("INVITE sip:x%0D%0AL/cluster_line/999/0/0/0%0AL/y_y@")
    assert not re.search(r"^L/", told, re.MULTILINE), "a number became lines of SIP"
    rig.b.api("hupall")
    time.sleep(0.5)
    assert not mark.exists(), "a number became a command"
    for phone in phones:
        phone.close()


def sorted_rows(rig: Rig) -> list[tuple[str, ...]]:
    """The rows of A in the order in which the calls were made."""
    found = rows(rig.a, "east")
    return sorted(found, key=lambda row: int(re.findall(r"<created_time>(\d+)<", row[5])[-1]))


def test_s_a_line_that_a_caller_wrote_into_the_dump_of_limits_is_not_confirmed(rig: Rig) -> None:
    """mod_hash writes keys as they are, so the dump alone proves nothing (`limit_proof`)."""
    answering(rig)
    forged = "x_x/1/0/0/0\nL/cluster_line/999/0/0/0\nL/y_y"
    phone = Talker(f"{rig.name}-cl", CLIENT, EAST, user=quote(forged, safe=""))
    other = Talker(f"{rig.name}-cl", CLIENT, EAST, user="1000")
    phone.call("7700")
    other.call("7700")
    usage = parse_dump(rig.a.api("hash_dump limit"))
    assert usage.counts["cluster_line"] == 999
    assert rig.a.api(usage_question("cluster_line")) == "0"
    assert rig.a.api(usage_question("in_1000")) == "1"
    phone.close()
    other.close()
