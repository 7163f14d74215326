"""`[[sensor]]`, `[health]` and movers in the file: what is right, what each mistake is called."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from haclusterd.config import ConfigError, config_hash, load_cluster
from haclusterd.config.sensors import KINDS, split
from tests.unit.config_example import GOOD

DISK = '[[sensor]]\nname = "var"\nkind = "disk"\npath = "/var/{node}"\n'
EVENT = """[[sensor]]
name = "trunk"
kind = "event"
event = "CUSTOM sofia::gateway_state"
raise_if = ["Gateway=trunk", "State=DOWN"]
clear_if = ["Gateway=trunk", "State=REGED"]
"""
MOVER = 'mover = "exec"\nmover_add = ["/etc/haclusterd/move", "{node}"]\n'


def written(folder: Path, text: str) -> Path:
    path = folder / "c.toml"
    path.write_text(GOOD + text)
    return path


def sensor(kind: str, rest: str = "") -> str:
    needs = {"path": '"/"', "nic": '"eth0"', "host": '"192.0.2.1"', "gateway": '"trunk"',
             "target": '"self"', "event": '"HEARTBEAT"', "raise_if": '["A=1"]',
             "exec": '["/bin/true"]'}  # fmt: skip
    given = "".join(f"{key} = {needs[key]}\n" for key in KINDS[kind].needs if key not in rest)
    return f'[[sensor]]\nname = "x"\nkind = "{kind}"\n{given}{rest}\n'


def test_what_is_left_out_has_a_default(tmp_path: Path) -> None:
    config = load_cluster(written(tmp_path, DISK + EVENT)).bound_to(1)
    var, trunk = config.sensors
    assert (var.interval_ms, var.timeout_ms, var.fails, var.passes) == (5000, 2000, 3, 3)
    assert (var.warn, var.critical, var.weight, var.required) == (85, 95, 60, False)
    assert (var.path, var.notices_ms) == ("/var/fs-b", 17_000)
    assert trunk.raise_if == (("Gateway", "trunk"), ("State", "DOWN"))
    assert trunk.notices_ms == 0
    (quick,) = load_cluster(written(tmp_path, sensor("load", "interval_ms = 1000"))).sensors
    assert quick.timeout_ms == 1000, "never longer than to the next reading"
    assert not config.health.hand_over, "MS11: health moves nothing unless that is wanted"


def test_a_file_without_them_means_what_it_did(tmp_path: Path) -> None:
    """Nodes of two versions must not differ in a rolling upgrade."""
    plain = load_cluster(written(tmp_path, ""))
    assert not {"sensor", "health"} & set(plain.document)
    assert "mover" not in plain.document["service"][0]
    usual = load_cluster(written(tmp_path, "[health]\nbetter_by = 30\n"))
    assert config_hash(usual) == config_hash(plain)
    assert config_hash(load_cluster(written(tmp_path, DISK))) != config_hash(plain)


def test_what_is_wrong_with_another_node_takes_nothing_from_this_one(tmp_path: Path) -> None:
    """MS10: evidence only."""
    text = sensor("options", 'target = "peers"')
    assert load_cluster(written(tmp_path, text)).sensors[0].weight == 0


def test_a_mover_knows_the_node(tmp_path: Path) -> None:
    config = load_cluster(written(tmp_path, MOVER)).bound_to(2)
    (mover,) = config.movers
    assert (mover.service, mover.mover_add) == ("east", ("/etc/haclusterd/move", "fs-c"))
    assert (mover.mover_deadline_ms, mover.mover_check_ms) == (20_000, 30_000)
    assert config.document["service"][0]["mover_add"] == ["/etc/haclusterd/move", "{node}"]


BAD = [
    (sensor("disk", 'path = "var"'), "sensor[x].path", "relative", "root"),
    (sensor("disk", "warn = 96"), "sensor[x].warn", "not below critical = 95", "raise critical"),
    (sensor("disk", "critical = 101"), "sensor[x].critical", "out of range", "0 to 100"),
    (sensor("disk", 'nic = "eth0"'), "sensor[x].nic", "no meaning", 'belongs to "nic"'),
    (sensor("nic", "warn = 3"), "sensor[x].warn", "no meaning", '"disk"'),
    (sensor("disk").replace('path = "/"\n', ""), "sensor[x].path", "missing", "needs it"),
    (sensor("disk", "interval_ms = 10"), "sensor[x].interval_ms", "out of range", "500"),
    (sensor("disk", "timeout_ms = 9000"), "sensor[x].timeout_ms", "longer than", "lower it"),
    (sensor("disk", "timeot_ms = 9"), "sensor[x].timeot_ms", "timeout_ms", "remove"),
    (sensor("disk", "weight = 0\nrequired = true"), "sensor[x].required", "only raises", "weight"),
    (sensor("disk", 'nodes = ["fs-z"]'), "sensor[x].nodes", "no node", "fs-a"),
    (sensor("nic", 'nic = "eth0;"'), "sensor[x].nic", "name of a NIC", "ip link"),
    (sensor("ping", 'host = "example.org"'), "sensor[x].host", "not an IP address", "DNS"),
    (sensor("gateway", 'gateway = "a b"'), "sensor[x].gateway", "its name", "letters"),
    (sensor("options", 'target = "10.1.0.1"'), "sensor[x].target", "not known", "peers"),
    (sensor("options", 'target = "10.1.0.1:0"'), "sensor[x].target", "not known", "5060"),
    (sensor("options", 'target = "peers"\nweight = 9'), "sensor[x].weight", "another node", "0"),
    (sensor("event", "fails = 2"), "sensor[x].fails", "at once", "remove"),
    (sensor("event"), "sensor[x].clear_if", "for ever", "clear_after_s"),
    (sensor("event", 'event = "ALL"'), "sensor[x].event", "name of an event", "CUSTOM"),
    (sensor("event", 'event = "CUSTOM x"'), "sensor[x].event", "name of an event", "CUSTOM"),
    (sensor("event", 'raise_if = ["A"]'), "sensor[x].raise_if", "Header=value", "State"),
    (sensor("event", f"raise_if = {['A=1'] * 9}"), "sensor[x].raise_if", "too many", "8"),
    (sensor("exec", f"exec = {['x'] * 65}"), "sensor[x].exec", "too many", "64"),
    (sensor("disk").replace("disk", "dsk"), "sensor[x].kind", 'mean "disk"', "one of"),
    (sensor("disk") + sensor("load"), "sensor[x].name", "twice", "rename"),
    ("[health]\nhand_over = true\n", "health.hand_over", "no sensor", "add a"),
    ("[health]\nhand_over = true\nafter_s = 9\n" + sensor("load"), "health.after_s", "17000",
     "after_s = 17"),
    ("[health]\nevery_s = 1\n", "health.every_s", "out of range", "60"),
    ("".join(sensor("load").replace('"x"', f'"x{n}"') for n in range(65)), "sensor", "65", "64"),
    ('mover = "exec"\n', "service[east].mover_add", "missing", "docs/movers.md"),
    ('mover = "aws"\n', "service[east].mover", "not known", '"exec"'),
    ('mover_add = ["x"]\n', "service[east].mover_add", "no meaning", "remove"),
    (f'mover = "exec"\nmover_add = {["x"] * 65}\n', "service[east].mover_add", "too many", "64"),
    ('mover = "exec"\nmover_add = ["x"]\nmover_deadline_ms = 1\n',
     "service[east].mover_deadline_ms", "out of range", "100"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "key", "message", "fix"), BAD)
def test_bad_files(tmp_path: Path, text: str, key: str, message: str, fix: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load_cluster(path)
    found = caught.value.problems
    fitting = [p for p in found if p.key == key and message in p.message and fix in p.fix]
    assert fitting, "\n".join(map(str, found))
    assert fitting[0].file == str(path)


def test_gateways_and_events_need_esl(tmp_path: Path) -> None:
    path = written(tmp_path, EVENT)
    path.write_text(path.read_text().replace("esl_port = 8021", "esl_port = 0"))
    with pytest.raises(ConfigError, match=re.escape("sensor[trunk].kind") + ".*needs ESL"):
        load_cluster(path)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("192.0.2.7:5060", ("192.0.2.7", 5060)),
        ("[2001:db8::7]:5061", ("2001:db8::7", 5061)),
        ("2001:db8::7:5061", ("", 0)),
        ("[192.0.2.7]:5060", ("", 0)),
        ("192.0.2.7", ("", 0)),
        ("192.0.2.7:99999", ("", 0)),
        ("192.0.2.7:५०", ("", 0)),
    ],
)
def test_targets(text: str, found: tuple[str, int]) -> None:
    assert split(text) == found
