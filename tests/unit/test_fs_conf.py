"""`fs-conf render` (EG11): complete, the same bytes everywhere, never over what others wrote."""

from __future__ import annotations

import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from haclusterd.cli.main import main
from haclusterd.config import load_cluster
from haclusterd.freeswitch import conf
from tests.unit.config_example import GOOD

Printed = pytest.CaptureFixture[str]
_SET = re.compile(r'cmd="(?:exec-)?set" data="(\w+)=([^"]*)"')
_USED = re.compile(r"\$\$\{(\w+)\}")
_BUILT_IN = {"hostname"}


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """The contract's file, where it lies on a node: relative paths are relative to it."""
    path = tmp_path / "etc" / "haclusterd.toml"
    path.parent.mkdir()
    path.write_text(GOOD)
    return path


def render(config: Path, output: Path, *more: str) -> int:
    words = ["fs-conf", "render", "--config", str(config), "--output", str(output), *more]
    return main(words)


def everything(folder: Path) -> dict[str, bytes]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_what_is_rendered_is_whole(config: Path, tmp_path: Path) -> None:
    assert render(config, tmp_path / "fs") == 0
    files = everything(tmp_path / "fs")
    texts = {place: text.decode() for place, text in files.items() if place.endswith(".xml")}
    for text in texts.values():
        ElementTree.fromstring(text)
    given = dict(pair for text in texts.values() for pair in _SET.findall(text))
    used = {name for text in texts.values() for name in _USED.findall(text)}
    assert used - set(given) - _BUILT_IN == set()
    assert not any("@" in text for place, text in texts.items() if place.startswith("services/"))
    assert not any(place.startswith("test/") or "template" in place for place in files)
    section = load_cluster(config).freeswitch
    assert section is not None
    assert given["esl_password"] == f"cat {section.esl_password_file}"
    assert given["esl_port"] == str(section.esl_port)
    assert given["core_db_name"] == section.core_db.stem
    assert given["limits_port"] == str(section.limits_port)
    listed = set(re.findall(r'cidr="([^"]+)"', texts["acl/cluster.xml"]))
    assert listed == {
        f"{profile.address}/{128 if ':' in profile.address else 32}"
        for profile in conf.profiles(load_cluster(config))
    }


def test_eg11_the_same_bytes_whoever_renders_and_how_often(config: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        assert render(config, tmp_path / name) == 0
    first = everything(tmp_path / "one")
    assert first == everything(tmp_path / "two")
    assert render(config, tmp_path / "one") == 0
    assert everything(tmp_path / "one") == first


@pytest.mark.parametrize(
    ("addresses", "profiles", "expected"),
    [
        (["203.0.113.10/24"], ["a"], [("203.0.113.10", 5060)]),
        (["203.0.113.10/24", "2001:db8::10/64"], ["a", "b"],
         [("203.0.113.10", 5060), ("2001:db8::10", 5060)]),
        (["203.0.113.10/24"], ["a", "b", "c"],
         [("203.0.113.10", 5060), ("203.0.113.10", 5080), ("203.0.113.10", 5100)]),
        (["203.0.113.10/24", "203.0.113.11/24"], ["a"], [("203.0.113.10", 5060)]),
    ],
)  # fmt: skip
def test_profiles_share_out_the_addresses(
    tmp_path: Path, addresses: list[str], profiles: list[str], expected: list[tuple[str, int]]
) -> None:
    path = tmp_path / "haclusterd.toml"
    named = [f"{address} dev eth0" for address in addresses]
    path.write_text(
        f"{GOOD.partition('[[service]]')[0]}[[service]]\nname = 's'\n"
        f"addresses = {named}\nprofiles = {profiles}\n"
    )
    found = conf.profiles(load_cluster(path))
    assert [(profile.address, profile.port) for profile in found] == expected


def test_a_strange_file_is_named_and_nothing_is_written(
    config: Path, tmp_path: Path, capsys: Printed
) -> None:
    output = tmp_path / "fs"
    (output / "autoload_configs").mkdir(parents=True)
    (output / "freeswitch.xml").write_text("<document/>")
    (output / "autoload_configs" / "switch.conf.xml").symlink_to("/dev/null")
    before = everything(output)
    assert render(config, output) == 1
    said = capsys.readouterr().err
    assert f"{output}/freeswitch.xml: was not written by this command" in said
    assert f"{output}/autoload_configs/switch.conf.xml: leads elsewhere" in said
    assert "Fix: move" in said
    assert everything(output) == before


def test_a_changed_file_is_not_replaced_and_the_operators_own_are_kept(
    config: Path, tmp_path: Path, capsys: Printed
) -> None:
    output = tmp_path / "fs"
    assert render(config, output) == 0
    trunks = output / "acl" / "trunks.xml"
    trunks.write_text("<list name='trunks' default='allow'/>")
    (output / "node" / "mine.xml").write_text("<include/>")
    (output / "dialplan" / "mine.xml").write_text("<context name='mine'/>")
    capsys.readouterr()
    assert render(config, output, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["written"], told["strange"]) == ([], ["dialplan/mine.xml"])
    assert "allow" in trunks.read_text()
    vars_xml = output / "vars.xml"
    vars_xml.write_text(vars_xml.read_text().replace("5000", "9000"))
    assert render(config, output) == 1
    assert f"{vars_xml}: was changed since" in capsys.readouterr().err
    assert "9000" in vars_xml.read_text()


def test_a_service_that_is_gone_takes_its_profile_along(
    config: Path, tmp_path: Path, capsys: Printed
) -> None:
    output = tmp_path / "fs"
    assert render(config, output) == 0
    before = {path.name for path in (output / "services").glob("*.xml")}
    config.write_text(GOOD.replace('profiles = ["east"]', 'profiles = ["north"]'))
    assert render(config, output) == 0
    assert {path.name for path in (output / "services").glob("*.xml")} == (
        before - {"east.xml"} | {"north.xml"}
    )
    assert "2 removed" in capsys.readouterr().out


def test_a_list_that_names_files_outside_removes_none(config: Path, tmp_path: Path) -> None:
    output = tmp_path / "fs"
    assert render(config, output) == 0
    victim = tmp_path / "victim"
    victim.write_text("x")
    digest = "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"
    with (output / ".haclusterd.sums").open("a") as sums:
        sums.write(f"{digest}  ../victim\n{digest}  {victim}\n")
    assert render(config, output) == 0
    assert victim.exists()


@pytest.mark.parametrize(
    ("found", "put", "key"),
    [
        ('esl_host = "127.0.0.1"', 'esl_host = "10.1.0.1"', "freeswitch.esl_host"),
        ("esl_port = 8021", "esl_port = 0", "freeswitch.esl_port"),
        ('"esl.password"', '"{node}.password"', "freeswitch.esl_password_file"),
        ('"esl.password"', '"my password;reboot"', "freeswitch.esl_password_file"),
        ("core.db", "core.sqlite", "freeswitch.core_db"),
        ("core.db", "core-{node}.db", "freeswitch.core_db"),
        ('profiles = ["east"]', "profiles = []", "service"),
    ],
)
def test_what_one_configuration_cannot_serve_is_refused_by_key(
    config: Path, tmp_path: Path, capsys: Printed, found: str, put: str, key: str
) -> None:
    assert found in GOOD
    config.write_text(GOOD.replace(found, put))
    assert render(config, tmp_path / "fs") == 1
    said = capsys.readouterr().err
    assert said.startswith(f"haclusterctl: {key}")
    assert "Fix: " in said
    assert not (tmp_path / "fs").exists()
