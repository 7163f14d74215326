"""config: which node this host is, the hash that nodes compare, and the values in force."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import netifaces
import pytest

from haclusterd.config import (
    Config,
    ConfigError,
    cluster_spec,
    config_hash,
    effective,
    identity,
    load,
    load_cluster,
    seen_by,
    shape,
)
from tests.unit.config_example import GOOD, changed

Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(text: str) -> Path:
        path = tmp_path / "haclusterd.toml"
        path.write_text(text)
        return path

    return write


def test_the_node_finds_itself(write: Write) -> None:
    path = write(GOOD)
    assert load(path, local_addresses=["127.0.0.1", "10.2.0.3"]).node.id == "fs-c"


def test_a_stranger_is_told_what_it_has(write: Write) -> None:
    with pytest.raises(ConfigError, match=r"it has 127\.0\.0\.1, 192\.0\.2\.7.*--node"):
        load(write(GOOD), local_addresses=["192.0.2.7", "127.0.0.1"])


def test_a_host_of_several_nodes_must_choose(write: Write) -> None:
    with pytest.raises(ConfigError, match=r'several nodes: "fs-a", "fs-b".*--node'):
        load(write(GOOD), local_addresses=["10.1.0.1", "10.1.0.2"])


def test_an_unknown_node(write: Write) -> None:
    with pytest.raises(ConfigError, match=r'"fs-d" is no node.*"fs-a", "fs-b", "fs-c"'):
        load(write(GOOD), node="fs-d")


def test_the_kernels_addresses_are_asked(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "127.0.0.1" in identity.local_addresses()
    monkeypatch.setattr(identity, "local_addresses", lambda: ("127.0.0.1", "10.1.0.2"))
    assert load(write(GOOD)).node.id == "fs-b"


def test_a_nic_that_goes_while_they_are_asked_is_no_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    nics = netifaces.interfaces()
    monkeypatch.setattr(netifaces, "interfaces", lambda: ["veth-gone", *nics])
    assert "127.0.0.1" in identity.local_addresses()


def hash_of(write: Write, text: str, node: str | None = None) -> int:
    config = load(write(text), node=node) if node else load_cluster(write(text))
    return config_hash(config)


def test_43_a_file_hashes_as_it_did_before_there_were_younger_keys(write: Write) -> None:
    """Or nodes of two versions take each other's files for others and claim nothing, and no
    version can take over from an older one while it runs."""
    usual = 'limits_port = 7803\nesl_backend = "native"\ncompare = true\npresence = false\n'
    spelt = GOOD.replace("[sync]", f"{usual}[sync]").replace(
        "[timing]", "relinquish = false\n[timing]"
    )
    for text in (GOOD, spelt):
        assert hash_of(write, text) == 0x3FC749BC, "as version 1 of the wire had it"
    for key, other in (("limits_port", "0"), ("compare", "false"), ("presence", "true")):
        changed_one = GOOD.replace("[sync]", f"{key} = {other}\n[sync]")
        assert hash_of(write, changed_one) != 0x3FC749BC, key
    spared = GOOD.replace("[timing]", "relinquish = true\n[timing]")
    assert hash_of(write, spared) != 0x3FC749BC


def test_the_hash_is_of_the_meaning(write: Write) -> None:
    base = hash_of(write, GOOD)
    assert 0 <= base < 1 << 32
    assert base == hash_of(write, GOOD, "fs-a") == hash_of(write, GOOD, "fs-b")
    assert base == hash_of(write, GOOD + "# a comment\n")
    assert base == hash_of(write, changed('preset = "lan"\n', ""))
    assert base == hash_of(write, changed("2001:DB8::10", "2001:db8::0:10"))
    assert base != hash_of(write, changed("priority = 10\n", "priority = 11\n"))
    assert base != hash_of(write, changed("[timing]", "[timing]\ndiscovery_ms = 5001"))


def test_the_hash_does_not_depend_on_the_place(tmp_path: Path) -> None:
    found = set()
    for name in ("x", "y"):
        (tmp_path / name).mkdir()
        path = tmp_path / name / "haclusterd.toml"
        path.write_text(GOOD)
        found.add(config_hash(load(path, node="fs-a", run_dir=tmp_path / name)))
    assert len(found) == 1


WEST = """[[service]]
name = "west"
addresses = ["203.0.113.20/24 dev eth0"]
"""
TWO = GOOD + WEST


def shape_of(config: Config) -> int:
    return shape(config.nodes, config.services)


def two(old: str, new: str) -> str:
    assert old in TWO
    return TWO.replace(old, new, 1)


@pytest.mark.parametrize(
    "same",
    [
        two("2001:DB8::10", "2001:db8::0:10") + "# a comment\n",
        two("[timing]", "[timing]\ndiscovery_ms = 5001"),
        two("priority = 10\n", "priority = 11\n"),
        two('preferred = "fs-a"\n', ""),
        two('profiles = ["east"]\n', ""),
        two("priority = 100\n", "priority = 90\n"),
        two("10/24 dev eth0", "10/25 dev eth1"),
        two("10.2.0.3", "10.2.0.4"),
        two(
            '"203.0.113.10/24 dev eth0", "2001:DB8::10/64 dev eth0"',
            '"2001:DB8::10/64 dev eth0", "203.0.113.10/24 dev eth0"',
        ),
    ],
)
def test_f35_the_shape_is_of_what_the_numbers_stand_for(write: Write, same: str) -> None:
    base = shape_of(load_cluster(write(TWO)))
    assert 0 < base < 1 << 32
    config = load(write(same), node="fs-b")
    assert shape_of(config) == base == cluster_spec(config).shape == seen_by(config, "fs-z").shape


@pytest.mark.parametrize(
    "other",
    [
        GOOD,
        TWO.replace("[[service]]", f"{WEST}[[service]]", 1).removesuffix(WEST),
        two('"west"', '"north"'),
        two("203.0.113.20", "203.0.113.21"),
        two("203.0.113.10", "203.0.113.0").replace("113.20", "113.10").replace("113.0/", "113.20/"),
        two(', "2001:DB8::10/64 dev eth0"', ""),
        two('"fs-c"', '"fs-d"'),
        two('"fs-b"', '"x"').replace('"fs-c"', '"fs-b"').replace('"x"', '"fs-c"'),
    ],
    ids=["one less", "order", "name", "address", "swapped", "fewer", "a node", "order of nodes"],
)
def test_f35_files_whose_numbers_stand_for_others_differ_in_shape(write: Write, other: str) -> None:
    base = load_cluster(write(TWO))
    changed_one = load_cluster(write(other))
    assert shape_of(changed_one) != shape_of(base)
    assert config_hash(changed_one) != config_hash(base)


@pytest.mark.parametrize(
    ("changed", "others"),
    [("lease_ms = 99", True), ("arm_ms = 9", True), ("discovery_ms = 5001", False)],
)
def test_f38_files_with_other_times_differ_in_them(
    write: Write, changed: str, others: bool
) -> None:
    base = cluster_spec(load(write(TWO), node="fs-b"))
    other = cluster_spec(load(write(two("[timing]", f"[timing]\n{changed}")), node="fs-b"))
    assert 0 < base.times < 1 << 16
    assert (other.times != base.times) is others
    assert other.shape == base.shape


def test_f35_all_versions_agree_about_a_shape_and_none_is_0(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    """0 is whoever does not know shapes."""
    config = load_cluster(write(GOOD))
    assert shape_of(config) == 0x9285A123
    nothing = SimpleNamespace(digest=lambda: bytes(4))
    monkeypatch.setattr("hashlib.blake2b", lambda text, digest_size: nothing)
    assert shape_of(config) == 1


def test_effective_is_every_value_in_plain_json(write: Write) -> None:
    shown = effective(load(write(GOOD), node="fs-b"))
    assert json.loads(json.dumps(shown)) == shown
    assert shown["timing"]["dead_ms"] == 150
    assert shown["freeswitch"]["core_db"] == "/var/lib/freeswitch/fs-b/core.db"
    assert shown["node_id"] == "fs-b"
    assert shown["node"][1]["capacity"] == 1000
    assert effective(load_cluster(write(GOOD)))["node_id"] is None
