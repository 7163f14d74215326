"""The lab on virtual machines fits together: Vagrantfile, configuration, walk-through.

`scripts/test-vagrant` carries out the walk-through; this is what needs neither root nor network.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from haclusterd.cli.main import command_line
from haclusterd.config import load_cluster
from haclusterd.freeswitch import conf
from haclusterd.lab.emulator.config import EmulatorConfigError, of_cluster

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "vagrant"
VAGRANTFILE = (FOLDER / "Vagrantfile").read_text()
README = (FOLDER / "README.md").read_text()
MACHINES = {name: int(n) for name, n in re.findall(r'^  "([a-z-]+)" => (\d+),', VAGRANTFILE, re.M)}
NETWORKS = dict(re.findall(r'^  "(\w+)" => "([\d.]+)",', VAGRANTFILE, re.M))
CLUSTER = load_cluster(FOLDER / "haclusterd.toml")


def test_two_masters_two_slaves_three_networks_and_a_client() -> None:
    assert set(MACHINES) == {node.id for node in CLUSTER.nodes} | {"client"}
    assert list(NETWORKS) == ["service", "beats1", "beats2"]
    assert len(CLUSTER.nodes) == 4
    masters = [service.preferred for service in CLUSTER.services]
    assert len(set(masters)) == 2
    for node in CLUSTER.nodes:
        number = MACHINES[node.id]
        expected = tuple(f"{NETWORKS[name]}.{number}" for name in ("beats1", "beats2"))
        assert node.links == expected


def test_service_addresses_are_nobodys_own_and_on_the_service_network() -> None:
    taken = {f"{NETWORKS['service']}.{number}" for number in MACHINES.values()}
    for service in CLUSTER.services:
        for address in service.addresses:
            assert address.ip.startswith(f"{NETWORKS['service']}.")
            assert address.ip not in taken
            assert address.nic == "eth1", "networks are eth1 to eth3 in the Vagrantfile's order"


def test_both_providers_are_provided_for() -> None:
    for provider in ("libvirt", "virtualbox"):
        assert f'config.vm.provider "{provider}"' in VAGRANTFILE
        assert f"{provider}__" in VAGRANTFILE
    assert 'inline: "sh /vagrant/vagrant/provision #{name}"' in VAGRANTFILE


@pytest.mark.skipif(
    shutil.which("vagrant") is None and shutil.which("ruby") is None, reason="ruby is not installed"
)
def test_the_vagrantfile_is_valid() -> None:
    checks = {"vagrant": ["vagrant", "validate", "--ignore-provider"], "ruby": ["ruby", "-c"]}
    tool = "vagrant" if shutil.which("vagrant") else "ruby"
    words = checks[tool] + (["Vagrantfile"] if tool == "ruby" else [])
    done = subprocess.run(words, cwd=FOLDER, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("script", ["provision", "share-keys", "calls"])
def test_scripts_are_plain_shell(script: str) -> None:
    path = FOLDER / script
    assert path.read_text().startswith("#!/bin/sh\n")
    assert path.stat().st_mode & 0o111
    subprocess.run(["sh", "-n", str(path)], check=True)


def commands() -> list[tuple[str, str]]:
    """(machine, command) of each `vagrant ssh` of the walk-through."""
    return re.findall(r'^vagrant ssh (\S+) -c "([^"]+)"', README, re.M)


def test_the_walk_through_names_machines_and_commands_that_exist() -> None:
    found = commands()
    assert len(found) > 8
    for machine, command in found:
        assert machine in MACHINES
        words = command.removeprefix("sudo ").split()
        if words[0] == "haclusterctl":
            command_line().parse_args(words[1:])
        else:
            assert words[0] in ("systemctl", "calls"), command
    for service in CLUSTER.services:
        assert any(f"calls {service.addresses[0].ip} " in command for _, command in found)


def test_a_real_freeswitch_can_be_rendered_for_it() -> None:
    places = set(conf.render(CLUSTER))
    assert {"services/east.xml", "services/west.xml"} <= places


def test_the_emulator_is_what_the_configuration_says(tmp_path: Path) -> None:
    path = tmp_path / "haclusterd.toml"
    path.write_text((FOLDER / "haclusterd.toml").read_text())
    with pytest.raises(EmulatorConfigError, match=r"esl\.password: cannot be read"):
        of_cluster(path)
    (tmp_path / "esl.password").write_text("secret\n")
    made = of_cluster(path)
    assert [(p.name, p.ip, p.sip_port, p.standby) for p in made.profiles] == [
        ("east", "10.20.0.101", 5060, True),
        ("west", "10.20.0.102", 5060, True),
    ]
    assert made.esl.password == "secret"
    assert made.path(made.core_db) == Path("/var/lib/freeswitch/db/core.db")
    path.write_text("[cluster]\n")
    with pytest.raises(EmulatorConfigError, match=r"cluster\.name"):
        of_cluster(path)
