"""Defects of FreeSWITCH's `recover` by version, and what `doctor` says of them."""

from __future__ import annotations

import dataclasses

import pytest

from haclusterd.cli.checks import OK, SKIPPED, WARNING, Check
from haclusterd.cli.checks_defects import defect_checks
from haclusterd.config import RecoverySection
from haclusterd.freeswitch import defects
from haclusterd.freeswitch.defects import Version

NOW = "FreeSWITCH Version 1.11.1-release+git~20260526T204126Z~c2c59645f6~64bit (git c2c5964 64bit)"


@pytest.mark.parametrize(
    ("text", "version"),
    [
        (NOW, (1, 11, 1)),
        ("1.11.3-dev~64bit", (1, 11, 3)),
        ("FreeSWITCH version: 1.10.12-release~64bit", (1, 10, 12)),
        ("v1.8.7", (1, 8, 7)),
        ("", None),
        ("FreeSWITCH Version git-head", None),
        ("x" * 600 + " 1.10.7", None),
        ("10.77.0.101", None),
    ],
)
def test_the_version_is_read(text: str, version: Version | None) -> None:
    assert defects.parse_version(text) == version


@pytest.mark.parametrize(
    ("version", "names"),
    [
        ((1, 11, 1), set()),
        ((1, 10, 7), set()),
        ((1, 10, 6), {"announcements left out", "caller and callee exchanged"}),
        (
            (1, 10, 5),
            {"announcements left out", "caller and callee exchanged", "dialogue turned round"},
        ),
    ],
)
def test_only_an_update_helps_against_what_was_mended_in_freeswitch(
    version: Version, names: set[str]
) -> None:
    found = defects.harmful(version, [])
    assert {finding.defect.name for finding in found} == names
    assert all(finding.fix.startswith("update FreeSWITCH to 1.10.") for finding in found)


def test_every_defect_has_evidence_and_one_way_out() -> None:
    assert len({defect.name for defect in defects.KNOWN}) == len(defects.KNOWN)
    switches = {field.name for field in dataclasses.fields(RecoverySection)}
    for defect in defects.KNOWN:
        assert defect.evidence
        ways = bool(defect.mend) + defect.always + bool(defect.advice)
        assert ways == 1, defect.name
        assert not defect.mend or defect.mend in switches
        assert not defect.advice or defect.fixed is not None


def told(version: str, recovery: RecoverySection | None = None) -> list[Check]:
    return list(defect_checks(version, recovery or RecoverySection()))


def test_doctor_says_what_haclusterd_keeps_calls_from() -> None:
    (check,) = told(NOW)
    assert (check.name, check.state, check.fix) == ("recover", OK, "")
    assert "FreeSWITCH 1.11.1" in check.text
    assert "transport forgotten" in check.text
    assert "row outlives its call" not in check.text
    assert "row outlives its call" in told("1.10.6-release")[-1].text


def test_doctor_names_a_mend_that_is_off() -> None:
    warning, rest = told(NOW, RecoverySection(mend_transport=False, mend_position=False))
    assert (warning.name, warning.state) == ("recover: transport forgotten", WARNING)
    assert warning.fix == "set mend_transport to true in [recovery]"
    assert "transport forgotten" not in rest.text


def test_doctor_advises_an_update() -> None:
    checks = told("FreeSWITCH Version 1.10.3-release~64bit")
    assert [check.state for check in checks] == [WARNING, WARNING, WARNING, OK]
    assert checks[0].fix == "update FreeSWITCH to 1.10.6 or later"
    assert "481" in checks[0].text


@pytest.mark.parametrize("version", ["1.4.26", "1.12.0", "2.0.0"])
def test_doctor_says_which_versions_it_knows(version: str) -> None:
    last = told(version)[-1]
    assert last.state == WARNING
    assert "1.6.0 to 1.11.3" in last.text
    assert last.fix


def test_doctor_without_a_version() -> None:
    (check,) = told("-ERR")
    assert check.state == SKIPPED
