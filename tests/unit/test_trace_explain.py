"""`explain`: each decision with its rule, what brought it about, and what was known before it."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest

from haclusterd.core.inputs import (
    AddressesRemoved,
    AgentChanged,
    AlienAnswered,
    CarrierChanged,
    FenceClosed,
    FreeswitchExited,
    FreeswitchHung,
    Froze,
    Input,
    LocalReport,
    MaintenanceRequested,
    Marked,
    MarksOrdered,
    PauseOrdered,
    RecoveryEnded,
    Restored,
    StopRequested,
    SwitchoverRequested,
    Tick,
)
from haclusterd.core.model import NOBODY
from haclusterd.core.state import start
from haclusterd.trace import explain as module
from haclusterd.trace.explain import explain, told
from haclusterd.trace.file import Trace, TraceError
from tests.fixtures.recorded import Recordings, a_takeover, recorded
from tests.unit.core_bench import spec_of

CORE = Path(__file__).parents[2] / "haclusterd" / "core"


@pytest.fixture(scope="module")
def takeover() -> Recordings:
    return a_takeover()


def test_a_takeover_is_explained_by_what_the_new_owner_knew(takeover: Recordings) -> None:
    dead, claim, won, served = explain(takeover.trace(2), 4)
    assert [x.row for x in (dead, claim, won, served)] == ["M4", "T101", "T201", "T301"]
    assert claim.rule == "STANDBY -> CLAIMING: it is this node's turn to claim"
    assert claim.trigger == "time went by, with nothing left unread"
    assert claim.service == "s0"
    assert "3 of 4 voters in two-way reach, 3 needed" in claim.facts
    assert any(re.match(r"n0: dead, silent for 16\d\.\d ms \(limit 150 ms\)", f)
               for f in claim.facts)  # fmt: skip
    assert "s0 here: STANDBY, standing by n0 at epoch 1" in claim.facts
    assert "slaves in order: n2, n3; next in line for s0: n2, n3, n1" in claim.facts
    assert won.trigger.startswith("a beat of n")
    assert "stands by n2 at epoch 2" in won.trigger
    assert any(f.startswith("votes for the claim of epoch 2: ") for f in won.facts)
    assert served.trigger == "the addresses of s0 are up"
    assert any(f.startswith("the lease reached ") for f in served.facts)


def test_a_voter_explains_its_grant(takeover: Recordings) -> None:
    grant = next(x for x in explain(takeover.trace(3), 5) if x.row == "V1" and x.epoch == 2)
    assert grant.trigger.endswith("for s0 it is CLAIMING and stands by n2 at epoch 2")
    assert any(f.startswith("its owner gave no sign of its right to s0 for 16")
               for f in grant.facts)  # fmt: skip


def test_a_release_is_told_as_such() -> None:
    with recorded() as (player, recordings):
        player.play(["cluster masters=1 slaves=2", "boot all", "run 2000ms", "switchover s0 n2",
                     "run 500ms", "expect owner s0 n2"])  # fmt: skip
    explained = explain(recordings.trace(2), 10)
    (release,) = [x for x in explained if x.row == "V7"]
    assert release.trigger.endswith("it released s0 of n0 at epoch 1")
    claim = next(x for x in explained if x.row == "T101" and x.epoch == 2)
    assert "released by its owner to n2" in claim.facts


def test_comings_and_goings_only_on_request(takeover: Recordings) -> None:
    rows = {x.row for x in explain(takeover.trace(2), 1000)}
    assert rows & module.COMINGS_AND_GOINGS == set()
    everything = {x.row for x in explain(takeover.trace(2), 1000, without=())}
    assert {"M1", "M2", "M3"} <= everything
    assert explain(takeover.trace(2), 0) == []


def test_decisions_come_in_order_over_segments() -> None:
    trace = a_takeover(segment_us=200_000).trace(2)
    assert len(trace.segments) > 10
    times = [x.at_us for x in explain(trace, 1000, without=())]
    assert times == sorted(times)
    assert [x.row for x in explain(trace, 4)] == ["M4", "T101", "T201", "T301"]


def test_every_row_that_the_core_writes_has_a_rule() -> None:
    written = {
        row
        for path in CORE.glob("*.py")
        for row in re.findall(r'Decided\(\s*now_us, "([A-Z]\d+)"', path.read_text())
    }
    assert len(written) > 10
    assert written - set(module._RULES) == set()


@pytest.mark.parametrize(
    ("event", "words"),
    [
        (Tick(), "time went by"),
        (Froze(120_000, 5), "stood still for 120 ms"),
        (Restored((NOBODY,)), "what it had promised"),
        (FreeswitchExited("was killed"), "FreeSWITCH was killed"),
        (FreeswitchHung(77), "pid 77"),
        (AgentChanged(False), "the agent is gone"),
        (LocalReport(True, 1, 100, 0, 0, False, ()), "reported"),
        (StopRequested(), "planned stop"),
        (MaintenanceRequested(1, True), "maintenance on"),
        (PauseOrdered(1, 256, 5, "anna"), "anna paused the cluster"),
        (PauseOrdered(1, 256, 0, "anna"), "anna resumed the cluster"),
        (MarksOrdered(-1, (Marked(1, 256, "anna"),)), "marked dead are now: n1"),
        (MarksOrdered(-1, ()), "are now: none"),
        (FenceClosed(0, False), "fence of s0 is not confirmed"),
        (AddressesRemoved(0, True), "addresses of s0 are gone"),
        (CarrierChanged(0, False), "NIC of s0 lost its carrier"),
        (SwitchoverRequested(1, 0, -1), "switchover of s0"),
        (RecoveryEnded(0, NOBODY, False, "no profile"), "recovery of s0: no profile"),
        (AlienAnswered(0, "203.0.113.1", "02:00"), "02:00 answered for 203.0.113.1"),
        (FenceClosed(44, True), "fence of service 44"),
    ],
)
def test_inputs_in_plain_words(event: Input, words: str) -> None:
    assert words in told(start(spec_of(), 1_000, 7), event)


def test_a_recording_that_contradicts_itself_is_an_error_not_a_crash(takeover: Recordings) -> None:
    trace = takeover.trace(2)
    segment = trace.segments[0]
    peers = [msgspec.structs.replace(p, flags="x") for p in segment.node.peers]
    node = msgspec.structs.replace(segment.node, peers=peers)
    broken = msgspec.structs.replace(segment, node=node)
    with pytest.raises(TraceError, match="contradicts itself"):
        explain(Trace(trace.header, [broken]), 1000)
