"""`sofia status|xmlstatus|profile ...|recover`."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Final
from xml.sax.saxutils import escape

from haclusterd.lab.emulator.events import Source
from haclusterd.lab.emulator.recovery import recover

if TYPE_CHECKING:
    from haclusterd.lab.emulator.profile import SofiaProfile
    from haclusterd.lab.emulator.switch import Switch

_LINE: Final = "=" * 97
_RELOADED: Final = "Reload XML [Success]\n"
_RECOVERED: Final = Source("mod_sofia.c", "sofia_function", 4631)
_USAGE: Final = (
    "USAGE:\n--------\nsofia help\nsofia profile <name> [start | stop | restart | rescan] [wait]\n"
    "                     recover [flush]\nsofia status|xmlstatus\n"
    "sofia recover [flush]\n--------\n"
)


async def sofia(switch: Switch, argument: str) -> str:
    words = argument.split()
    command = words[0].lower() if words else "help"
    if command == "status":
        return _status(switch, words[1:])
    if command == "xmlstatus":
        return _xml_status(switch)
    if command == "profile":
        return await _profile(switch, words[1:])
    if command == "recover":
        return await _recover_all(switch, words[1:2] == ["flush"])
    return _USAGE


def _state(profile: SofiaProfile) -> str:
    return f"RUNNING ({len(profile.channels())})"


def _running(switch: Switch) -> list[SofiaProfile]:
    return [profile for profile in switch.profiles.values() if profile.running]


def _status(switch: Switch, words: list[str]) -> str:
    if len(words) > 1 and words[0].lower() == "profile":
        return _profile_status(switch, words[1])
    profiles = _running(switch)
    lines = [f"{'Name':>25}\t{'Type':>7}\t{'Data':>42}\tState", _LINE]
    lines += [f"{p.name:>25}\t{'profile':>7}\t{p.url:>42}\t{_state(p)}" for p in profiles]
    plural = "" if len(profiles) == 1 else "s"
    return "\n".join([*lines, _LINE, f"{len(profiles)} profile{plural} 0 aliases", ""])


def _xml_status(switch: Switch) -> str:
    parts = ['<?xml version="1.0" encoding="ISO-8859-1"?>\n<profiles>\n']
    for profile in _running(switch):
        parts.append(
            f"<profile>\n<name>{escape(profile.name)}</name>\n<type>profile</type>\n"
            f"<data>{escape(profile.url)}</data>\n<state>{_state(profile)}</state>\n</profile>\n"
        )
    return "".join(parts) + "</profiles>\n"


def _profile_status(switch: Switch, name: str) -> str:
    profile = switch.profiles.get(name)
    if profile is None or not profile.running:
        return "Invalid Profile!\n"
    fields = {
        "Name": profile.name,
        "Domain Name": "N/A",
        "Auto-NAT": "false",
        "DBName": f"sofia_reg_{profile.name}",
        "Pres Hosts": profile.config.ip,
        "Dialplan": "XML",
        "Context": profile.config.context,
        "Challenge Realm": "auto_to",
        "RTP-IP": profile.config.ip,
        "SIP-IP": profile.config.ip,
        "URL": profile.url,
        "BIND-URL": profile.url,
        "CODECS IN": profile.config.codecs,
        "CODECS OUT": profile.config.codecs,
        "TEL-EVENT": "101",
        "CALLS-IN": str(len(profile.channels())),
        "FAILED-CALLS-IN": "0",
        "REGISTRATIONS": str(profile.registrar.count()),
    }
    lines = [f"{name:<17}\t{value}" for name, value in fields.items()]
    return "\n".join([_LINE, *lines, "", ""])


async def _profile(switch: Switch, words: list[str]) -> str:
    if len(words) < 2:
        return "Invalid Args!\n"
    name, command = words[0], words[1].lower()
    profile = switch.profiles.get(name)
    if command == "start":
        return _start(name, profile)
    if profile is None or not profile.running:
        return f"Invalid Profile [{name}]"
    if command == "recover":
        return await _recover(switch, profile, words[2:3] == ["flush"])
    if command == "rescan":
        profile.standby = profile.config.standby  # applied again; calls that are up go on
        return _RELOADED + "+OK scan complete\n"
    if command in ("stop", "restart"):
        return _stop(switch, profile, restart=command == "restart")
    if command == "flush_inbound_reg":
        profile.registrar.flush()
    if command in ("flush_inbound_reg", "check_sync"):
        return "+OK flushing all registrations\n"
    return "-ERR Unknown command!\n"


def _start(name: str, profile: SofiaProfile | None) -> str:
    if profile is None:
        return f"{_RELOADED}Failure starting {name}\n"
    if not profile.running:
        profile.start()
    return f"{_RELOADED}{name} started successfully\n"


def _stop(switch: Switch, profile: SofiaProfile, *, restart: bool) -> str:
    least = int(switch.config.profile_min_uptime_s)
    remain = least - int(time.monotonic() - profile.started)
    if remain > 0:
        plural = "" if remain == 1 else "s"
        return (
            f"Profile {profile.name} must be up for at least {least} seconds to stop/restart.\n"
            f"Please wait {remain} second{plural}\n"
        )
    for channel in profile.channels():
        switch.hangup(channel, "MANAGER_REQUEST")
    loop = asyncio.get_running_loop()
    loop.call_later(0.05, profile.stop)
    if restart:
        loop.call_later(1.4, profile.start)
    return f"{_RELOADED}{'restarting' if restart else 'stopping'}: {profile.name}"


async def _recover(switch: Switch, profile: SofiaProfile, flush: bool) -> str:
    """Standby ends first, whatever comes of the rows (FREESWITCH.md 1.3)."""
    profile.standby = False
    if flush:
        await asyncio.to_thread(switch.db.flush_rows, "sofia", profile.name)
        return "Flushing recovery database.\n"
    count = await recover(switch, "sofia", profile.name)
    return f"Recovered {count} session(s)\n" if count else "No sessions to recover.\n"


async def _recover_all(switch: Switch, flush: bool) -> str:
    total = 0
    for profile in _running(switch):
        profile.standby = False
        if flush:
            await asyncio.to_thread(switch.db.flush_rows, "sofia", profile.name)
        else:
            total += await recover(switch, "sofia", profile.name)
    if flush:
        return "Flushing recovery database.\n"
    headers = [("recovered_calls", str(total))]
    switch.bus.fire_custom("sofia::recovery_recovered", _RECOVERED, headers)
    return f"Recovered {total} call(s)\n" if total else "No calls to recover.\n"
