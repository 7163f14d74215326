"""fs_conf makes a FreeSWITCH a cluster node: it boots, waits in standby, and tracks its calls."""

from __future__ import annotations

import sqlite3
import statistics
import subprocess
import time
from contextlib import closing

import pytest

from haclusterd.cli.checks import OK
from haclusterd.cli.checks_defects import defect_checks
from haclusterd.config import RecoverySection
from haclusterd.freeswitch import defects
from haclusterd.lab import netns
from tests.freeswitch.rig import EAST, WEST, Rig, channels, eventually, rows

pytestmark = pytest.mark.freeswitch


def test_every_profile_waits_in_standby_until_its_own_recover(rig: Rig) -> None:
    rig.own(rig.a, EAST)
    rig.own(rig.a, WEST)
    assert (rig.options(EAST), rig.options(WEST)) == (503, 503)
    rig.activate(rig.a, "east", EAST)
    assert (rig.options(EAST), rig.options(WEST)) == (200, 503)


def test_boot_logs_no_error_but_the_missing_password_file(rig: Rig) -> None:
    bad = [line for line in rig.a.log_file.read_text().splitlines() if "[ERR" in line]
    assert [line for line in bad if "/etc/haclusterd/esl.password" not in line] == []


def test_the_settings_that_recovery_needs_are_in_force(rig: Rig) -> None:
    with closing(sqlite3.connect(rig.a.core_db)) as connection:
        columns = [row[1] for row in connection.execute("PRAGMA table_info(recovery)")]
    assert columns == [
        "runtime_uuid",
        "technology",
        "profile_name",
        "hostname",
        "uuid",
        "metadata",
    ]
    pid = rig.a.pid
    assert pid is not None
    with netns.inside(rig.a.namespace):
        listening = subprocess.run(["ss", "-Hlnut"], capture_output=True, text=True, check=True)
    assert f"{EAST}:5060" in listening.stdout  # bound although no node has the address
    assert rig.a.api("global_getvar switchname") == "fs-a"


def test_answered_calls_are_rows_within_300_ms(rig: Rig) -> None:
    rig.activate(rig.a, "east", EAST)
    with rig.a.esl() as esl:
        esl.subscribe("CHANNEL_ANSWER")
        rig.call(EAST, "9197", 10)
        seen_us: dict[str, int] = {}
        end = time.monotonic() + 5
        while len(seen_us) < 10 and time.monotonic() < end:
            now_us = time.time_ns() // 1000
            for row in rows(rig.a, "east"):
                seen_us.setdefault(row[4], now_us)
            time.sleep(0.002)
        answered_us = {
            event["Unique-ID"]: int(event["Event-Date-Timestamp"]) for event in esl.events(0.5)
        }
    assert sorted(seen_us) == sorted(answered_us)
    delays_ms = [(seen_us[uuid] - answered_us[uuid]) / 1000 for uuid in seen_us]
    assert statistics.median(delays_ms) < 300, delays_ms


def test_hupall_ends_the_calls_of_one_profile_only(rig: Rig) -> None:
    """How an owner that also serves another service lets go of one (DESIGN 2.4)."""
    for profile, address in (("east", EAST), ("west", WEST)):
        rig.activate(rig.a, profile, address)
    rig.callee(2)
    east, _west = rig.call(EAST, "4100", 2), rig.call(WEST, "9197", 3)
    eventually(lambda: channels(rig.a) == 7, "2 bridged and 3 single calls")
    # Answered, not only there: a call that still rings ends in a refusal, not in a BYE.
    eventually(lambda: len(rows(rig.a, "east")) == 4, "both legs of both bridged calls")
    rig.a.api("hupall normal_clearing sofia_profile_name east")
    assert east.wait(5) == 0
    eventually(lambda: channels(rig.a) == 3, "the calls of west alone")
    eventually(lambda: not rows(rig.a, "east"), "no rows of east")
    assert len(rows(rig.a, "west")) == 3


def test_rescan_puts_one_profile_back_into_standby_and_keeps_its_calls(rig: Rig) -> None:
    for profile, address in (("east", EAST), ("west", WEST)):
        rig.activate(rig.a, profile, address)
    talking = rig.call(EAST, "9197", 2, hold_ms=3000)
    eventually(lambda: channels(rig.a) == 2, "two calls")
    assert "+OK" in rig.a.api("sofia profile east rescan")
    assert (rig.options(EAST), rig.options(WEST)) == (503, 200)
    assert rig.call(EAST, "9197").wait(5) != 0, "a new call was accepted in standby"
    assert channels(rig.a) == 2
    assert talking.wait(10) == 0, "a BYE within a call must be answered in standby"
    rig.activate(rig.a, "east", EAST)
    assert rig.options(EAST) == 200


def test_the_start_command_of_a_node_brings_it_back(rig: Rig) -> None:
    first = rig.a.pid
    rig.a.kill()
    with netns.inside(rig.a.namespace):
        subprocess.run(rig.a.start_command, check=True, timeout=30, capture_output=True)
    rig.a.wait_ready()
    assert rig.a.pid not in (None, first)
    rig.own(rig.a, EAST)
    assert rig.options(EAST) == 503


def test_a_conference_has_the_number_that_was_called_and_logs_no_error(rig: Rig) -> None:
    rig.activate(rig.a, "east", EAST)
    rig.call(EAST, "3042", hold_ms=5000)
    eventually(lambda: "Conference 3042" in rig.a.api("conference list"), "conference 3042")
    bad = [line for line in rig.a.log_file.read_text().splitlines() if "[ERR" in line]
    assert [line for line in bad if "/etc/haclusterd/esl.password" not in line] == []


def test_doctor_knows_the_defects_of_this_version(rig: Rig) -> None:
    checks = list(defect_checks(rig.a.api("version"), RecoverySection()))
    assert [check.state for check in checks] == [OK]
    version = defects.parse_version(rig.a.version())
    assert version is not None
    assert ".".join(map(str, version)) in checks[0].text
