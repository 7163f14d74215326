"""config: a good file means what the contract says; a bad one shows every error with its fix."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from haclusterd.config import (
    PRESETS,
    ConfigError,
    Problem,
    cluster_spec,
    config_hash,
    load,
    load_cluster,
)
from haclusterd.config.presets import broken_rules
from haclusterd.core.model import AddressSpec, LastResort, Quorum
from tests.unit.config_example import GOOD, changed

NODE_C = '[[node]]\nid = "fs-c"\nlinks = ["10.1.0.3", "10.2.0.3"]\n'

Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(text: str) -> Path:
        path = tmp_path / "haclusterd.toml"
        path.write_text(text)
        return path

    return write


def problems_of(path: Path) -> list[Problem]:
    with pytest.raises(ConfigError) as caught:
        load_cluster(path)
    return list(caught.value.problems)


def test_the_contracts_example(write: Write) -> None:
    path = write(GOOD)
    config = load(path, node="fs-b")
    assert config.name == "voice1"
    assert config.key_file == path.parent / "cluster.key"
    assert config.quorum is Quorum.MAJORITY
    assert config.last_resort is LastResort.MASTERS
    assert (config.heartbeat_port, config.sync_port) == (7800, 7801)
    assert (config.api.http_host, config.api.http_port) == ("127.0.0.1", 7802)
    assert config.freeswitch is not None
    assert config.freeswitch.esl_password_file == path.parent / "esl.password"
    assert config.freeswitch.core_db == Path("/var/lib/freeswitch/fs-b/core.db")
    assert config.freeswitch.start_command == ("systemctl", "start", "freeswitch@fs-b")
    assert config.node.id == "fs-b"
    assert (config.node.priority, config.node.capacity, config.node.witness) == (100, 1000, False)
    (service,) = config.services
    assert service.addresses == (
        AddressSpec("203.0.113.10", 24, "eth0"),
        AddressSpec("2001:db8::10", 64, "eth0"),
    )
    assert service.preferred == 0
    assert config.warnings == ()


def test_cluster_spec_is_what_the_core_gets(write: Write) -> None:
    config = load(write(GOOD), node="fs-c")
    spec = cluster_spec(config)
    assert (spec.name, spec.me, spec.links, spec.needed) == ("voice1", 2, 2, 2)
    assert spec.config_hash == config_hash(config)
    assert spec.freeswitch
    assert spec.timing.heartbeat_us == 25_000
    assert spec.timing.fence_us == 60_000
    with pytest.raises(ValueError, match="bound to a node"):
        cluster_spec(load_cluster(config.path))


def test_what_may_be_left_out(write: Write) -> None:
    path = write(
        '[cluster]\nname = "c"\n[[node]]\nid = "a"\nlinks = ["10.0.0.1"]\n'
        '[[service]]\nname = "s"\naddresses = ["192.0.2.1/32 dev lo"]\n'
    )
    config = load(path, node="a")
    assert config.freeswitch is None
    assert config.quorum is Quorum.MAJORITY
    assert config.preset == "lan"
    assert config.services[0].preferred == -1
    assert config.api.socket == Path("/run/haclusterd/haclusterd.sock")
    assert config.state_dir == Path("/var/lib/haclusterd")


def test_run_dir_overrides_the_socket_and_holds_the_state(write: Write, tmp_path: Path) -> None:
    config = load(write(GOOD), node="fs-a", run_dir=tmp_path / "run")
    assert config.api.socket == tmp_path / "run" / "haclusterd.sock"
    assert config.run_dir == config.state_dir == tmp_path / "run"


def test_node_placeholder_in_the_socket(write: Write) -> None:
    path = write(changed("/run/haclusterd/haclusterd.sock", "run/{node}/ctl.sock"))
    config = load(path, node="fs-a")
    assert config.api.socket == path.parent / "run/fs-a/ctl.sock"
    assert config.run_dir == path.parent / "run/fs-a"


# (changed from, to, key of the problem, words of its message, words of its fix)
BAD: list[tuple[str, str, str, str, str]] = [
    ('name = "voice1"\n', "", "cluster.name", "missing", 'add name = "..."'),
    ('"voice1"', '"voice 1"', "cluster.name", "cannot serve", "letters"),
    ('"voice1"', "1", "cluster.name", "not a string", '"..."'),
    ('preset = "lan"', 'preset = "lam"', "cluster.preset", 'did you mean "lan"', '"wan"'),
    ('"majority"', '"witness"', "cluster.quorum", "no node is one", "witness = true"),
    ('"majority"', '"most"', "cluster.quorum", "not known", '"availability"'),
    ('"majority"', '"majority"\nlast_resort = "all"', "cluster.last_resort", "known", '"none"'),
    (
        '"majority"',
        '"majority"\nlast_resort = "none"\nrelinquish = true',
        "cluster.relinquish",
        "more than one",
        '"masters"',
    ),
    ('"cluster.key"', '"{node}.key"', "cluster.key_file", "no sense", "remove"),
    ('"cluster.key"', '"{host}.key"', "cluster.key_file", "{host}", "{node}"),
    ('"cluster.key"', '"fs-a.key"', "node[fs-a].id", "taken", "another id"),
    ("[timing]", "[timing]\nhearbeat_ms = 9", "timing.hearbeat_ms", "heartbeat_ms", "remove"),
    ("[timing]", "[timing]\nlease_ms = 0", "timing.lease_ms", "out of range", "1 to"),
    ("[timing]", "[timing]\ndead_ms = 60001", "timing.dead_ms", "out of range", "60000"),
    ("[timing]", "[timing]\nlease_ms = true", "timing.lease_ms", "not an integer", "123"),
    ("[timing]", "[timing]\nlease_ms = 109", "timing.dead_ms", "148.5", "at least 151"),
    ("[timing]", "[timing]\nfence_ms = 100", "timing.fence_ms", "not below lease_ms", "75"),
    ("[timing]", "[timing]\nfence_ms = 76", "timing.fence_ms", "no regular beat", "75"),
    ("[timing]", "[timing]\nfence_ms = 25", "timing.fence_ms", "between two beats", "above 25"),
    ("[timing]", "[timing]\ndiscovery_ms = 9", "timing.discovery_ms", "cold start", "150"),
    ("esl_port = 8021", "esl_port = 65536", "freeswitch.esl_port", "out of range", "65535"),
    ("esl_port = 8021", "esl_prt = 8021", "freeswitch.esl_prt", "esl_port", "remove"),
    ('["systemctl"', "[3", "freeswitch.start_command", "item 1 is 3", '["..."'),
    ("esl_port = 8021", 'esl_backend = "esl"', "freeswitch.esl_backend", "not known", '"native"'),
    ("esl_port = 8021", "compare = 1", "freeswitch.compare", "not true or false", "true"),
    ("port = 7801", "port = 7800", "heartbeat.port|sync.port", "already", "another port"),
    ("port = 7801", "port = 7802", "api.http", "7802 is already sync.port", "another port"),
    ("port = 7801", "port = 8021", "sync.port", "already freeswitch.esl_port", "another port"),
    ("port = 7801", "port = 0", "sync.port", "out of range", "1 to 65535"),
    ("[sync]\nport = 7801", "sync = 7801", "freeswitch.sync", "unknown key", "known here"),
    ("127.0.0.1:7802", "7802", "api.http", "ADDRESS:PORT", '"127.0.0.1:7802"'),
    ("127.0.0.1:7802", "not a host:7802", "api.http", "ADDRESS:PORT", "7802"),
    ('"127.0.0.1"', '""', "freeswitch.esl_host", "no address", "mod_event_socket"),
    ('"cluster.key"', '"ca.key"', "cluster.key_file", "file of the CA", "cluster.key"),
    ('"cluster.key"', '"fs-a.crt"', "node[fs-a].id", "taken", "another id"),
    ("/run/haclusterd/", f"/run/{'x' * 87}/", "api.socket", "108 bytes", "shorter"),
    ("/run/haclusterd/", f"/run/{'x' * 83}{{node}}/", "api.socket", "108 bytes", "shorter"),
    ("/run/freeswitch/", "/run/\\u001b[2J/", "freeswitch.pid_file", "U+001B", "by hand"),
    ("/run/freeswitch/", "/run/\\u202e/", "freeswitch.pid_file", "U+202E", "by hand"),
    ('["systemctl"', '["a\\u0085"', "freeswitch.start_command", "U+0085", "by hand"),
    ("127.0.0.1:7802", "127.0.0.1:99999", "api.http", "ADDRESS:PORT", "7802"),
    ("[[service]]", "[servce]\n[[service]]", "servce", 'mean "service"', "known"),
    ('id = "fs-b"', 'id = "fs-a"', "node[fs-a].id", "twice", "rename"),
    ('id = "fs-b"', 'id = "FS-A"', "node[FS-A].id", "twice", "rename"),
    ('id = "fs-b"\n', "", "node[#2].id", "missing", "add id"),
    ('id = "fs-b"', 'id = "../b"', "node[../b].id", "cannot serve", "letters"),
    ('id = "fs-b"', 'id = "ca"', "node[ca].id", "taken", "another id"),
    ("10.1.0.2", "10.1.0.1", "node[fs-b].links", "already a link address of fs-a", "its own"),
    ('"10.1.0.2", ', "", "node[fs-b].links", "1 link(s), but fs-a has 2", "same order"),
    ("10.1.0.2", "10.1.0", "node[fs-b].links", "not an IP address", "IPv4 or IPv6"),
    ("10.1.0.2", "224.0.0.1", "node[fs-b].links", "cannot serve", "this NIC"),
    ("10.1.0.2", "fe80::1", "node[fs-b].links", "cannot serve", "this NIC"),
    ("10.1.0.2", "fe80::1%eth0", "node[fs-b].links", "cannot serve", "this NIC"),
    ("10.1.0.2", "fd00::1%eth0", "node[fs-b].links", "has a scope", "this NIC"),
    ("10.1.0.2", "0.0.0.0", "node[fs-b].links", "no address", "this NIC"),
    ("10.1.0.2", "127.0.0.2", "node[fs-b].links", "loopback", "this NIC"),
    ("10.1.0.2", "::1", "node[fs-b].links", "loopback", "this NIC"),
    ("10.1.0.2", "255.255.255.255", "node[fs-b].links", "reserved", "this NIC"),
    ("10.1.0.2", "::ffff:10.1.0.1", "node[fs-b].links", "write it as 10.1.0.1", "this NIC"),
    ("10.1.0.2", "fd00::2", "node[fs-b].links", "10.1.0.1 on fs-a", "one address family"),
    ("capacity = 1000", "capacity = 0", "node[fs-a].capacity", "out of range", "1 to"),
    ("capacity = 1000", "capcity = 9", "node[fs-a].capcity", 'mean "capacity"', "remove"),
    (' dev eth0"', '"', "service[east].addresses", 'not "IP/LENGTH dev NIC"', "dev eth0"),
    ("10/24 dev", "10 dev", "service[east].addresses", 'not "IP/LENGTH dev NIC"', "/24"),
    ("10/24 dev", "10/33 dev", "service[east].addresses", "/33", "/24"),
    ("10/24 dev", "10/255.255.255.0 dev", "service[east].addresses", "number of bits", "/24"),
    ("10/24 dev", "0/24 dev", "service[east].addresses", "network", "one host"),
    ("10/24 dev", "255/24 dev", "service[east].addresses", "broadcast", "one host"),
    ("203.0.113.10/24", "127.0.0.9/8", "service[east].addresses", "no client", "one host"),
    ("dev eth0", "dev a-name-longer-than-15", "service[east].addresses", "NIC", "at most 15"),
    ("dev eth0", "dev ..", "service[east].addresses", "NIC", "at most 15"),
    ("dev eth0", "dev eth0;", "service[east].addresses", "NIC", "ip link"),
    ("10/24 dev", "10/0 dev", "service[east].addresses", "too wide", "one host"),
    ("203.0.113.10", "240.0.0.1", "service[east].addresses", "reserved", "one host"),
    ('["east"]', f"{[f'p{n}' for n in range(65)]}", "service[east].profiles", "65", "at most 64"),
    ("203.0.113.10", "10.1.0.3", "service[east].addresses", "link address of fs-c", "free"),
    ('preferred = "fs-a"', 'preferred = "fs-d"', "service[east].preferred", "no node", '"fs-a"'),
    ('profiles = ["east"]', 'profiles = "east"', "service[east].profiles", "array", '["..."]'),
    ('profiles = ["east"]', 'profiles = ["e t"]', "service[east].profiles", "serve", "letters"),
    ("[[service]]", "[service]", "service", "array of tables", "[[service]]"),
]


@pytest.mark.parametrize(("old", "new", "key", "message", "fix"), BAD)
def test_bad_files(write: Write, old: str, new: str, key: str, message: str, fix: str) -> None:
    path = write(changed(old, new))
    found = problems_of(path)
    fitting = [
        problem
        for problem in found
        if problem.key in key.split("|") and message in problem.message and fix in problem.fix
    ]
    assert fitting, "\n".join(map(str, found))
    assert fitting[0].file == str(path)
    assert str(fitting[0]).startswith(f"{path}: {fitting[0].key}: ")


def test_all_errors_at_once(write: Write) -> None:
    text = GOOD
    for old, new in (
        ('preset = "lan"', 'preset = "lam"'),
        ("esl_port = 8021", 'esl_port = "x"'),
        ("10.1.0.2", "10.1.0.1"),
        ('preferred = "fs-a"', 'preferred = "nobody"'),
        ("priority = 10\n", "priorty = 10\n"),
    ):
        text = text.replace(old, new)
    keys = {problem.key for problem in problems_of(write(text))}
    assert keys == {
        "cluster.preset",
        "freeswitch.esl_port",
        "node[fs-b].links",
        "service[east].preferred",
        "service[east].priorty",
    }


SECOND_SERVICE = '[[service]]\nname = "{}"\naddresses = ["{}/24 dev eth0"]\nprofiles = ["{}"]\n'


@pytest.mark.parametrize(
    ("name", "address", "profile", "key"),
    [
        ("east", "203.0.113.11", "west", "name"),
        ("west", "203.0.113.10", "west", "addresses"),
        ("west", "203.0.113.11", "east", "profiles"),
    ],
)
def test_what_belongs_to_one_service(
    write: Write, name: str, address: str, profile: str, key: str
) -> None:
    found = problems_of(write(GOOD + SECOND_SERVICE.format(name, address, profile)))
    assert [problem.key for problem in found] == [f"service[{name}].{key}"]
    assert "already in service east" in found[0].message


def test_an_ipv6_address_twice_in_two_spellings(write: Write) -> None:
    text = GOOD + '[[service]]\nname = "w"\naddresses = ["2001:db8:0::0010/64 dev eth0"]\n'
    (found,) = problems_of(write(text))
    assert "2001:db8::10" in found.message


def two_nodes(quorum: str) -> str:
    return GOOD.replace(NODE_C, "").replace('quorum = "majority"\n', quorum)


def test_two_nodes_need_a_choice(write: Write) -> None:
    (found,) = problems_of(write(two_nodes("")))
    assert found.key == "cluster.quorum"
    for choice in ("witness = true", '"availability"', '"majority"'):
        assert choice in found.fix


@pytest.mark.parametrize("quorum", ["majority", "availability"])
def test_two_nodes_with_a_choice_are_warned(write: Write, quorum: str) -> None:
    config = load_cluster(write(two_nodes(f'quorum = "{quorum}"\n')))
    assert config.quorum.value == quorum
    assert any("quorum" in warning for warning in config.warnings)


def test_a_witness_chooses_the_policy(write: Write) -> None:
    text = two_nodes("") + '[[node]]\nid = "w"\nlinks = ["10.1.0.9", "10.2.0.9"]\nwitness = true\n'
    config = load_cluster(write(text))
    assert config.quorum is Quorum.WITNESS
    assert config.nodes[2].witness


def test_a_witness_cannot_be_preferred(write: Write) -> None:
    text = changed('"majority"', '"witness"').replace(
        "capacity = 1000", "capacity = 1000\nwitness = true"
    )
    (found,) = problems_of(write(text))
    assert found.key == "service[east].preferred"
    assert "witness" in found.message
    assert "fs-a" not in found.fix


def test_beats_that_do_not_fit_are_refused_with_the_numbers(write: Write) -> None:
    extra = "".join(
        f'[[service]]\nname = "s{n}"\naddresses = ["203.0.113.{n + 20}/24 dev eth0"]\n'
        for n in range(40)
    )
    (found,) = problems_of(write(GOOD + extra))
    assert "3 nodes and 41 services" in found.message
    assert "1200" in found.message


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_presets_keep_their_own_rules(write: Write, name: str) -> None:
    assert list(broken_rules(PRESETS[name])) == []
    assert load_cluster(write(changed('"lan"', f'"{name}"'))).preset == name


@pytest.mark.parametrize(
    ("preset", "times"),
    [("lan", (25, 100, 40, 150)), ("fast", (5, 16, 7, 24)), ("wan", (200, 1200, 200, 1500))],
)
def test_presets_are_the_designs_table(preset: str, times: tuple[int, ...]) -> None:
    keys = ("heartbeat_ms", "lease_ms", "stop_ms", "dead_ms")
    assert tuple(PRESETS[preset][key] for key in keys) == times


def test_timing_overrides_the_preset(write: Write) -> None:
    config = load_cluster(write(changed("[timing]", "[timing]\ndead_ms = 142\ndiscovery_ms = 700")))
    assert (config.timing.dead_us, config.timing.discovery_us) == (142_000, 700_000)
    assert config.timing.lease_us == 100_000


@pytest.mark.parametrize(("dead_ms", "good"), [(141, False), (142, True)])
def test_the_safety_rule_at_its_edge(write: Write, dead_ms: int, good: bool) -> None:
    """140 <= 0.99 * dead_ms: 141 gives 139.59, 142 gives 140.58."""
    path = write(changed("[timing]", f"[timing]\ndead_ms = {dead_ms}"))
    if good:
        load_cluster(path)
    else:
        assert [problem.key for problem in problems_of(path)] == ["timing.dead_ms"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[cluster\n", "is not TOML"),
        (b'[cluster]\nname = "\xff"\n', "is not UTF-8 in line 2"),
        (b"#" * (1 << 20) + b"#", "larger than"),
    ],
)
def test_files_that_are_no_config(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "x.toml"
    path.write_bytes(content)
    (found,) = problems_of(path)
    assert message in found.message
    assert str(path) in str(found)


def test_missing_file(tmp_path: Path) -> None:
    (found,) = problems_of(tmp_path / "absent.toml")
    assert "No such file" in found.message
    assert "--config" in found.fix


def test_empty_names_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "haclusterd.toml"
    path.write_text('[cluster]\nname = ""\nkey_file = "cluster.key"\n[[service]]\nname = ""\n')
    with pytest.raises(ConfigError) as caught:
        load_cluster(path)
    keys = [p.key for p in caught.value.problems if "cannot serve as a name" in p.message]
    assert len(keys) == 2


@pytest.mark.parametrize("content", ["x = " + "9" * 5000, "x = " + "[" * 5000])
def test_what_the_toml_reader_chokes_on_is_named(tmp_path: Path, content: str) -> None:
    path = tmp_path / "haclusterd.toml"
    path.write_text(content)
    with pytest.raises(ConfigError, match="is not TOML"):
        load_cluster(path)


def test_only_regular_files_are_read() -> None:
    with pytest.raises(ConfigError, match="no regular file"):
        load_cluster(Path("/dev/zero"))


def test_the_longest_paths_of_a_socket(write: Write, tmp_path: Path) -> None:
    """107 bytes fit; `--run-dir` counts too, whatever the file says."""
    config = load_cluster(write(changed("/run/haclusterd/", f"/run/{'x' * 82}{{node}}/")))
    assert len(str(config.bound_to(0).api.socket)) == 107
    run_dir = tmp_path / "r"
    run_dir /= "x" * (106 - len(str(run_dir)) - len("/haclusterd.sock"))
    assert len(str(load(write(GOOD), node="fs-a", run_dir=run_dir).api.socket)) == 107
    with pytest.raises(ConfigError, match=r"--run-dir: .* has 108 bytes.*Fix: use a shorter"):
        load(write(GOOD), node="fs-a", run_dir=Path(f"{run_dir}x"))


def test_what_the_file_holds_never_commands_the_terminal(write: Write) -> None:
    text = changed('id = "fs-b"', 'id = "\\u001b[31mfs\\u009b"\n"\\u001b[2J" = 1')
    with pytest.raises(ConfigError) as caught:
        load_cluster(write(text))
    shown = str(caught.value)
    assert r"\x1b[31mfs\x9b" in shown
    assert r"\x1b[2J" in shown
    assert all(line.isprintable() for line in shown.split("\n"))
