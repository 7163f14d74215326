"""The files that make a real FreeSWITCH a node: rendered completely, and refused with a reason."""

from __future__ import annotations

import math
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from haclusterd.lab import freeswitch
from haclusterd.lab.freeswitch import FreeswitchInstance, ServiceProfile
from haclusterd.lab.netns import LabError
from haclusterd.lab.tone import write_tone

_SET = re.compile(r'cmd="(?:exec-)?set" data="(\w+)=')
_USED = re.compile(r"\$\$\{(\w+)\}")
_BUILT_IN = {"hostname"}


@pytest.fixture
def node(tmp_path: Path) -> FreeswitchInstance:
    program = tmp_path / "bin" / "freeswitch"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\necho 'FreeSWITCH version: 1.10.12-release~64bit (64bit)'\n")
    program.chmod(0o755)
    services = [ServiceProfile("east", "203.0.113.10"), ServiceProfile("west", "2001:db8::10")]
    return FreeswitchInstance(tmp_path, tmp_path / "node", "", services, sip_port=5090)


def test_every_file_is_xml_and_every_variable_is_set(node: FreeswitchInstance) -> None:
    node.prepare()
    files = sorted((node.directory / "conf").rglob("*.xml"))
    texts = {path: path.read_text() for path in files}
    for text in texts.values():
        ElementTree.fromstring(text)
    given = {name for text in texts.values() for name in _SET.findall(text)}
    used = {name for text in texts.values() for name in _USED.findall(text)}
    assert used - given - _BUILT_IN == set()


def test_each_service_has_its_profile_and_nothing_of_the_template_is_left(
    node: FreeswitchInstance,
) -> None:
    node.prepare()
    services = node.directory / "conf" / "services"
    assert [path.name for path in sorted(services.glob("*.xml"))] == ["east.xml", "west.xml"]
    west = (services / "west.xml").read_text()
    assert "service_address=2001:db8::10" in west
    assert "service_port=5090" in west
    assert "@" not in west


def test_preparing_again_drops_old_services_and_keeps_the_calls(node: FreeswitchInstance) -> None:
    node.prepare()
    node.core_db.write_bytes(b"rows")
    again = FreeswitchInstance(
        node.binary.parent.parent, node.directory, "", [ServiceProfile("north", "203.0.113.9")]
    )
    again.prepare()
    services = node.directory / "conf" / "services"
    assert [path.name for path in services.glob("*.xml")] == ["north.xml"]
    assert node.core_db.read_bytes() == b"rows"


def test_version_and_pid_of_what_does_not_run(node: FreeswitchInstance) -> None:
    assert node.version() == "1.10.12-release~64bit"
    assert node.pid is None
    node.prepare()
    node.pid_file.write_text("1\n")  # a pid that runs, but on no configuration of ours
    assert node.pid is None
    with pytest.raises(LabError, match="no FreeSWITCH runs"):
        node.kill()


def test_a_profile_name_that_is_no_file_name_is_refused(node: FreeswitchInstance) -> None:
    bad = FreeswitchInstance(
        node.binary.parent.parent, node.directory, "", [ServiceProfile("../x", "203.0.113.9")]
    )
    with pytest.raises(LabError, match=r"profile name '\.\./x'"):
        bad.prepare()


def test_a_missing_freeswitch_names_the_fix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(LabError, match="give the prefix"):
        freeswitch.find_binary(tmp_path)
    monkeypatch.delenv(freeswitch.PREFIX_VARIABLE, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LabError, match="--freeswitch or"):
        freeswitch.find_binary()


def test_the_tone_is_the_sine_it_claims_to_be(tmp_path: Path) -> None:
    """Decoded by G.711's own formula, every sample is within half a mu-law step of the sine."""
    coded = write_tone(tmp_path).read_bytes()
    assert len(coded) == 8000
    for n, byte in enumerate(coded):
        inverted = ~byte & 0xFF
        exponent, mantissa = inverted >> 4 & 7, inverted & 0x0F
        magnitude = (((mantissa << 3) + 0x84) << exponent) - 0x84
        decoded = -magnitude if inverted & 0x80 else magnitude
        expected = 8000 * math.sin(2 * math.pi * 440 * n / 8000)
        assert abs(decoded - expected) <= (4 << exponent) + 1, n
