"""FreeSWITCH's side of `doctor`: login, profiles, ports, core database, core dumps."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

from haclusterd.cli.checks import FAILED, OK, SKIPPED, WARNING, Check, HostProbe
from haclusterd.cli.checks_defects import defect_checks
from haclusterd.config import Config, FreeSwitch
from haclusterd.freeswitch.changelog import CoreDbError, explain, open_core_db
from haclusterd.freeswitch.esl import EslConnection, EslSettings
from haclusterd.freeswitch.esl_errors import EslError
from haclusterd.freeswitch.profiles import FreeswitchFacts, facts

LOGIN_MS = 3000
_ROBUST = "rtp-port-usage-robustness"


async def freeswitch_checks(config: Config, host: HostProbe) -> list[Check]:
    """Everything about the local FreeSWITCH, as far as it can be asked."""
    section = config.freeswitch
    if section is None:
        return [Check("FreeSWITCH", SKIPPED, "no [freeswitch]: the cluster moves addresses only")]
    found = list(process_checks(section, host))
    if section.esl_port == 0:
        return [*found, Check("ESL", SKIPPED, "esl_port is 0: only the process is watched")]
    found += await _esl(config, section)
    found.append(core_db_check(section.core_db))
    return found


def process_checks(section: FreeSwitch, host: HostProbe) -> Iterator[Check]:
    """Its pid file and the limit of its core dumps."""
    try:
        pid = int(host.read(str(section.pid_file)))
        limits = host.read(f"/proc/{pid}/limits")
    except (OSError, ValueError):
        text = f"no running process in {section.pid_file}"
        fix = "start FreeSWITCH (its option -run names the folder), or correct pid_file"
        yield Check("FreeSWITCH", FAILED, text, fix)
        return
    yield Check("FreeSWITCH", OK, f"runs as pid {pid}")
    line = next((text for text in limits.splitlines() if text.startswith("Max core file size")), "")
    words = line.split()
    soft = words[4] if len(words) > 4 else "?"
    if soft == "0":
        yield Check("core dumps", OK, "off: a crash is visible at once")
    else:
        text = f"limit {soft}: writing a core delays the takeover by its size"
        yield Check("core dumps", WARNING, text, "set LimitCORE=0 in FreeSWITCH's unit")


async def _esl(config: Config, section: FreeSwitch) -> list[Check]:
    file = section.esl_password_file
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return [Check("ESL", SKIPPED, "no password to log in with")]
    password = lines[0].strip() if lines else ""  # as the agent reads it
    if not password:
        fix = "write the password of event_socket.conf.xml there"
        return [Check("ESL", FAILED, f"{file}: its first line is empty", fix)]
    profiles = sorted({name for service in config.services for name in service.profiles})
    settings = EslSettings(
        section.esl_host, section.esl_port, password, backend=section.esl_backend
    )
    try:
        esl = EslConnection(settings, name="doctor")
    except EslError as error:  # its library; `config` has said so before
        return [Check("ESL", FAILED, str(error), "see esl_backend in [freeswitch]")]
    await esl.start()
    try:
        await esl.wait_up(LOGIN_MS)
        found = await facts(esl, profiles)
    except EslError as error:
        text, _, fix = str(error).partition(": ")
        return [Check("ESL", FAILED, text, fix or "see FreeSWITCH's log")]
    finally:
        await esl.stop()
    text = f"logged in at {section.esl_host}:{section.esl_port}"
    words = found.version.split()
    text += f", FreeSWITCH {words[2]}" if len(words) > 2 else ""
    defects = defect_checks(found.version, config.recovery)
    return [Check("ESL", OK, text), *facts_checks(found), *defects]


def facts_checks(found: FreeswitchFacts) -> Iterator[Check]:
    """What FreeSWITCH told of itself."""
    robust = found.rtp_port_usage_robustness
    if robust is None:
        yield Check(_ROBUST, SKIPPED, "FreeSWITCH does not tell")
    elif robust:
        yield Check(_ROBUST, OK, "true")
    else:
        text = "off: new calls get the audio ports of recovered ones"
        yield Check(_ROBUST, FAILED, text, f"set {_ROBUST} to true in switch.conf.xml, restart")
    for profile in found.profiles:
        name = f"profile {profile.name}"
        if not profile.running:
            text = f"is {profile.state}" if profile.state else "does not run"
            fix = "add it to sofia.conf.xml on every node; is ip_nonlocal_bind 1?"
            yield Check(name, FAILED, text, fix)
        elif profile.track_calls is False:
            text = "track-calls is off: none of its calls can be recovered"
            yield Check(name, FAILED, text, "set track-calls to true and restart the profile")
        elif profile.standby is False:
            text = "profile-standby is off: a slave would answer calls"
            yield Check(name, FAILED, text, "set profile-standby to true on every node")
        elif profile.auto_restart:
            text = "auto-restart is on: when an address of this host comes or goes, mod_sofia"
            text += " restarts the profile, which ends its calls"
            fix = "set auto-restart to false in its settings and in global_settings of"
            yield Check(name, FAILED, text, f"{fix} sofia.conf.xml, restart FreeSWITCH")
        else:
            known = profile.standby is not None and profile.track_calls is not None
            text = "running, track-calls and profile-standby set"
            yield Check(name, OK, text if known else "running; its parameters were not told")


def core_db_check(path: Path) -> Check:
    """core.db can be opened for writing and has table recovery."""
    try:
        connection = open_core_db(path)
    except CoreDbError as error:
        return _core_db_failed(str(error))
    try:
        columns = connection.execute("PRAGMA table_info(recovery)").fetchall()
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("ROLLBACK")
    except sqlite3.Error as error:
        return _core_db_failed(str(explain(path, error)))
    finally:
        connection.close()
    if not columns:
        fix = "start FreeSWITCH once without -nosql, or correct core_db in [freeswitch]"
        return Check("core.db", FAILED, f"{path}: has no table recovery", fix)
    return Check("core.db", OK, f"{path} is writable and has table recovery")


def _core_db_failed(text: str) -> Check:
    found, _, fix = text.rpartition(": ")
    return Check("core.db", FAILED, found or text, fix)
