"""The view: roles, owners and alarms as one node sees them (E4, V7, EG16)."""

from __future__ import annotations

import msgspec

from haclusterd.core import inputs as inp
from haclusterd.core.model import Flag, Identity, LastResort, Quorum, State
from haclusterd.core.standing import entries
from haclusterd.core.view import AlarmView, View, view
from tests.unit.core_bench import STANDBY, Bench, entry, spec_of

OWNER = Identity(3, 1, 77)


def seen(bench: Bench) -> View:
    return view(bench.node, bench.now_us)


def roles(bench: Bench) -> list[str]:
    return [node.role for node in seen(bench).nodes]


def alarms(bench: Bench) -> dict[str, AlarmView]:
    return {alarm.name: alarm for alarm in seen(bench).alarms}


def test_starting_alone_without_quorum() -> None:
    bench = Bench()
    bench.pass_ms(30)
    assert roles(bench) == ["starting", "dead", "dead"]
    assert seen(bench).services[0].state == "unserved"
    assert "no_quorum" in alarms(bench)
    assert "unserved" not in alarms(bench)  # too early to tell


def test_unserved_is_an_alarm() -> None:
    """V7."""
    bench = Bench().after_hold_down()
    bench.pass_ms(100)
    assert alarms(bench)["unserved"].text == "nobody serves s0"


def test_master_slaves_and_successors() -> None:
    bench = Bench()
    bench.own()
    bench.hear(2, STANDBY)
    bench.hear(1, entry(bench.service.identity, lease_seq=bench.node.seq))
    bench.pass_ms(30)
    found = seen(bench)
    assert roles(bench) == ["master", "slave", "slave"]
    assert [node.rank for node in found.nodes] == [-1, 0, 1]
    service = found.services[0]
    assert (service.owner, service.state, service.epoch) == ("n0", "owned", 1)
    assert service.successors == ("n1", "n2")
    assert service.lease_left_us > 0
    assert (found.reachable, found.voters, found.quorate) == (3, 3, True)
    assert set(alarms(bench)) == {"single_link"}  # the bench beats on one of two
    assert found.nodes[0].services == ("s0",)
    msgspec.msgpack.decode(msgspec.msgpack.encode(found), type=View)


def test_another_master_and_what_its_owner_says() -> None:
    bench = Bench().after_hold_down()
    bench.hear(1, entry(OWNER, State.OWNED))
    bench.hear(2, STANDBY)
    bench.pass_ms(30)
    assert roles(bench) == ["slave", "master", "slave"]
    assert seen(bench).services[0].owner == "n1"
    bench.hear(2, entry(Identity(4, 2, 5), State.CLAIMING))
    bench.hear(1, entry(OWNER, State.RELEASING))
    assert seen(bench).services[0].state == "moving"


def test_roles_by_flags() -> None:
    for flag, role in (
        (Flag.MAINTENANCE, "maintenance"),
        (Flag.LEAVING, "left"),
        (Flag.STARTING, "starting"),
        (Flag.SYNCING, "syncing"),
        (Flag(0), "failed"),
    ):
        bench = Bench().after_hold_down()
        bench.hear(1, entry(ready=False), flags=int(flag))
        bench.pass_ms(30)
        assert roles(bench)[1] == role
    bench.hear(1, STANDBY, flags=int(Flag.LEAVING))
    bench.pass_ms(500)
    assert roles(bench)[1] == "left"


def test_witness_has_no_rank() -> None:
    nodes = spec_of().nodes
    witness = msgspec.structs.replace(nodes[2], witness=True)
    bench = Bench(spec_of(nodes=3, quorum=Quorum.WITNESS))
    bench.node.spec = msgspec.structs.replace(bench.spec, nodes=(nodes[0], nodes[1], witness))
    bench.after_hold_down()
    bench.hear(2, STANDBY)
    bench.hear(1, STANDBY)
    bench.pass_ms(30)
    found = seen(bench)
    assert found.nodes[2].rank == -1
    assert "n2: votes only (witness)" in found.why


def test_master_without_a_successor_is_unprotected() -> None:
    bench = Bench(spec_of(last_resort=LastResort.NONE))
    bench.own()
    bench.hear(1, entry(bench.service.identity, ready=False))
    bench.pass_ms(30)
    assert "no node is ready to take s0 over" in alarms(bench)["unprotected"].text


def test_links_configuration_and_ranking_alarms() -> None:
    bench = Bench().after_hold_down()
    for _ in range(150):
        bench.hear(1, STANDBY, config_hash=9, rank_hash=1)
        bench.hear(2, STANDBY, config_hash=9, rank_hash=1)
        bench.pass_ms(25)
    found = alarms(bench)
    assert {"config_mismatch", "config_odd", "rank_mismatch", "single_link"} <= set(found)
    assert "n1 runs another configuration than n0" in str(seen(bench).alarms)
    for _ in range(3):
        bench.hear(1, STANDBY)
        bench.hear(2, STANDBY)
        bench.pass_ms(25)
    assert not {"config_odd", "rank_mismatch"} & set(alarms(bench))


def test_lapsed_owner_is_no_master_and_its_silence_is_dated() -> None:
    bench = Bench()
    bench.own()
    bench.pass_ms(400)
    found = seen(bench)
    assert found.services[0].owner == ""
    assert found.services[0].local_state == "lapsed"
    assert found.nodes[1].silent_us >= 400_000


def test_reason_why_this_node_could_not_take_over() -> None:
    bench = Bench()
    bench.report(ready=False)
    assert seen(bench).services[0].reason == "not ready"
    bench.give(inp.AgentChanged(False))
    assert "the agent of n0 is not running" in alarms(bench)["unprotected"].text


def test_a_node_in_maintenance_is_named_whatever_its_role() -> None:
    bench = Bench()
    bench.own()
    bench.give(inp.MaintenanceRequested(1, True))
    assert roles(bench)[0] == "master"
    assert alarms(bench)["maintenance"].text == "n0 is in maintenance: it takes nothing over"
    bench.give(inp.MaintenanceRequested(2, False))
    bench.hear(1, flags=int(Flag.MAINTENANCE))
    assert alarms(bench)["maintenance"].text.startswith("n1 ")


def test_nobody_is_a_slave_in_the_eyes_of_a_node_without_a_majority() -> None:
    """A slave could take over now (contract): alone nobody can."""
    bench = Bench().after_hold_down()
    bench.pass_ms(100)
    assert roles(bench)[0] == "syncing", "nothing is wrong with it"
    assert [node.rank for node in seen(bench).nodes] == [-1, -1, -1]


def test_a_healthy_node_without_a_majority_is_not_failed() -> None:
    bench = Bench()
    bench.own()
    bench.pass_ms(300)
    assert bench.stands_in(State.LAPSED)
    bench.report(ready=False)
    assert roles(bench)[0] == "syncing", "it stands fenced, its calls kept"
    bench.give(inp.AgentChanged(False))
    bench.report(freeswitch_up=False)
    assert roles(bench)[0] == "failed", "its FreeSWITCH is down"
    bare = Bench(spec_of(freeswitch=False)).after_hold_down()
    assert roles(bare)[0] == "syncing"
    broken = Bench(ready=False).after_hold_down()
    broken.report(ready=False)
    assert roles(broken)[0] == "failed"


def test_a_node_with_an_odd_configuration_is_ready_for_nothing() -> None:
    bench = Bench().after_hold_down()
    bench.keep_hearing(50, (1, STANDBY), (2, STANDBY))
    assert all(e.ready for e in entries(bench.node))
    for peer in (1, 2):
        bench.hear(peer, config_hash=99)
    assert not any(e.ready for e in entries(bench.node))
    bench.pass_ms(30)
    assert roles(bench)[0] == "failed"


def test_a_witness_that_lives_is_no_slave() -> None:
    """The contract has no word for it: `witness` tells, its role is that of who stands aside."""
    nodes = spec_of().nodes
    witness = msgspec.structs.replace(nodes[2], witness=True)
    bench = Bench(spec_of(nodes=3, quorum=Quorum.WITNESS)).after_hold_down()
    bench.node.spec = msgspec.structs.replace(bench.spec, nodes=(nodes[0], nodes[1], witness))
    bench.hear(2, flags=int(Flag.STARTING))
    assert roles(bench)[2] == "starting"
    bench.keep_hearing(100, (2, STANDBY))
    shown = seen(bench).nodes[2]
    assert (shown.role, shown.witness, shown.rank) == ("maintenance", True, -1)
    assert "maintenance" not in alarms(bench)
    bench.pass_ms(200)
    assert roles(bench)[2] == "dead"
