"""The API commands: the table of them, and those about the core and about single calls.

Replies are the real ones to the letter, errors included, because clients compare them.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final

import msgspec

from haclusterd.lab.emulator import apis_calls, apis_conf, apis_show, apis_sofia, registrar
from haclusterd.lab.emulator.channel import Channel
from haclusterd.lab.emulator.events import Event, Source, plain_text
from haclusterd.lab.emulator.recovery import recover
from haclusterd.lab.emulator.switch import known_cause

if TYPE_CHECKING:
    from haclusterd.lab.emulator.switch import Switch

Api = Callable[["Switch", str], str | Awaitable[str]]
_API: Final = Source("switch_loadable_module.c", "switch_api_execute", 3140)
_RELOADED: Final = Source("switch_xml.c", "switch_xml_open_root", 2416)
_DUMP: Final = Source("mod_commands.c", "uuid_dump_function", 6495)
_NO_CHANNEL: Final = "-ERR No such channel!\n"
_RELEASE: Final = "1.11.3-dev git cc93a68 2026-08-21 14:10:14Z 64bit"


async def execute(switch: Switch, name: str, argument: str) -> str:
    """Run an API command; what it prints, or the real one's text for an unknown command."""
    api = APIS.get(name.lower())
    if api is None:
        return f"-ERR {name} Command not found!\n"
    reply = api(switch, argument)
    text = reply if isinstance(reply, str) else await reply
    headers = [("API-Command", name)]
    if argument:
        headers.append(("API-Command-Argument", argument))
    switch.bus.fire("API", _API, lambda: headers)
    return text


def status(switch: Switch, _argument: str) -> str:
    count, peak = len(switch.channels), switch.peak
    return (
        f"UP {switch.uptime_text()}\n"
        f"FreeSWITCH (Version {_RELEASE}) is ready\n"
        f"{switch.sessions} session(s) since startup\n"
        f"{count} session(s) - peak {peak}, last 5min {peak} \n"
        f"0 session(s) per Sec out of max 500, peak 1, last 5min 1 \n"
        f"{switch.config.max_sessions} session(s) max\n"
        "min idle cpu 0.00/99.00\n"
        "Current Stack Size/Max 240K/8192K\n"
    )


def version(_switch: Switch, _argument: str) -> str:
    return (
        "FreeSWITCH Version 1.11.3-dev+git~20260821T141014Z~cc93a683ca~64bit "
        "(git cc93a68 2026-08-21 14:10:14Z 64bit)\n"
    )


def global_getvar(switch: Switch, argument: str) -> str:
    if argument:
        return switch.variables.get(argument, "")
    return "".join(f"{name}={value}\n" for name, value in switch.variables.items())


def global_setvar(switch: Switch, argument: str) -> str:
    name, equals, value = argument.partition("=")
    if not name:
        return "-USAGE: <var>=<value> [=<value2>]\n"
    switch.variables[name] = value if equals else ""
    return "+OK"


async def fsctl(switch: Switch, argument: str) -> str:
    words = argument.split()
    if not words:
        return (
            "-USAGE: [recover|hupall|pause [inbound|outbound]|resume [inbound|outbound]|shutdown]\n"
        )
    command = words[0].lower()
    sides = [w for w in words[1:2] if w in switch.paused] or list(switch.paused)
    if command == "recover":
        return await _fsctl_recover(switch, words[1] if len(words) > 1 else "")
    if command in ("pause", "resume"):
        for side in sides:
            switch.paused[side] = command == "pause"
        return "+OK\n"
    if command == "pause_check":
        return "true" if all(switch.paused[side] for side in sides) else "false"
    if command == "hupall":
        switch.hupall(known_cause(words[1] if len(words) > 1 else "MANAGER_REQUEST"))
        return "+OK\n"
    if command == "shutdown":
        if "cancel" not in words:
            switch.stopping.set()
        return "+OK\n"
    if command in ("ready_check", "shutdown_check"):
        return "true" if (command == "ready_check") != switch.stopping.is_set() else "false"
    if command in ("send_sighup", "reclaim_mem", "loglevel", "flush_db_handles"):
        return "+OK\n"
    return "-ERR Invalid command\nUSAGE: fsctl [recover|hupall|pause|resume|shutdown]\n"


async def _fsctl_recover(switch: Switch, what: str) -> str:
    """`recover [tech[:profile]]`, colon syntax; standby stays (FREESWITCH.md 1.3)."""
    if what.startswith("flush"):
        _, _, rest = what.partition(":")
        technology, _, profile = rest.partition(":")
        await asyncio.to_thread(switch.db.flush_rows, technology, profile)
        return "+OK flushed\n"
    technology, _, profile = what.partition(":")
    count = await recover(switch, technology, profile)
    return f"+OK {count} session(s) recovered in total\n"


def hupall(switch: Switch, argument: str) -> str:
    words = argument.split()
    cause = known_cause(words[0]) if words else "MANAGER_REQUEST"
    wanted = list(zip(words[1::2], words[2::2], strict=False))
    if not wanted:
        switch.hupall(cause)
        return f"+OK hangup all channels with cause {cause}\n"
    switch.hupall(cause, lambda c: any(c.variables.get(name) == value for name, value in wanted))
    name, value = wanted[0]
    dots = "..." if len(wanted) > 1 else ""
    return f"+OK hangup all channels matching [{name}]=[{value}]{dots} with cause: {cause}\n"


def uuid_exists(switch: Switch, argument: str) -> str:
    return "true" if argument in switch.channels else "false"


def uuid_kill(switch: Switch, argument: str) -> str:
    words = argument.split()
    channel = switch.channels.get(words[0]) if words else None
    if not words:
        return "-USAGE: <uuid> [cause]\n"
    if channel is None:
        return _NO_CHANNEL
    switch.hangup(channel, known_cause(words[1]) if len(words) > 1 else "NORMAL_CLEARING")
    return "+OK\n"


def uuid_getvar(switch: Switch, argument: str) -> str:
    words = argument.split()
    if len(words) < 2:
        return "-USAGE: <uuid> <var>\n"
    channel = switch.channels.get(words[0])
    if channel is None:
        return _NO_CHANNEL
    return channel.variables.get(words[1], "_undef_")


def uuid_setvar(switch: Switch, argument: str) -> str:
    words = argument.split(" ", 2)
    if len(words) < 2:
        return "-USAGE: <uuid> <var> [value]\n"
    channel = switch.channels.get(words[0])
    if channel is None:
        return _NO_CHANNEL
    if len(words) == 3 and words[2]:
        channel.set(words[1], words[2])
    else:
        channel.variables.pop(words[1], None)
    return "+OK\n"


def uuid_dump(switch: Switch, argument: str) -> str:
    words = argument.split()
    if not words:
        return "-USAGE: <uuid> [format]\n"
    channel = switch.channels.get(words[0])
    if channel is None:
        return _NO_CHANNEL
    event = _channel_data(switch, channel)
    if len(words) > 1 and words[1].lower() == "json":
        return msgspec.json.encode(dict(event.headers)).decode()
    return plain_text(event.headers)


def _channel_data(switch: Switch, channel: Channel) -> Event:
    return switch.bus.make("CHANNEL_DATA", _DUMP, channel.extended_headers())


async def msleep(_switch: Switch, argument: str) -> str:
    if argument.isascii() and argument.isdigit():
        await asyncio.sleep(min(int(argument), 60_000) / 1000)
        return "+OK"
    return "-USAGE: <milliseconds>\n"


def reloadxml(switch: Switch, _argument: str) -> str:
    switch.bus.fire("RELOADXML", _RELOADED, list)
    return "+OK [Success]\n"


def accepted(_switch: Switch, _argument: str) -> str:
    return "+OK\n"


def hash_dump(_switch: Switch, argument: str) -> str:
    if argument.split()[:1] in (["all"], ["limit"], ["db"]):
        return ""
    return "Usage: all|limit|db [<realm>]\n"


APIS: Final[dict[str, Api]] = {
    "status": status,
    "version": version,
    "uptime": lambda switch, _: f"{switch.uptime_us() // 1_000_000}\n",
    "switchname": lambda switch, _: switch.config.switchname,
    "hostname": lambda switch, _: switch.variables["hostname"],
    "strepoch": lambda _switch, _: str(int(time.time())),
    "create_uuid": lambda _switch, _: str(uuid.uuid4()),
    "echo": lambda _switch, argument: argument,
    "global_getvar": global_getvar,
    "global_setvar": global_setvar,
    "fsctl": fsctl,
    "hupall": hupall,
    "uuid_exists": uuid_exists,
    "uuid_kill": uuid_kill,
    "uuid_getvar": uuid_getvar,
    "uuid_setvar": uuid_setvar,
    "uuid_dump": uuid_dump,
    "uuid_limit": apis_calls.uuid_limit,
    "limit_usage": apis_calls.limit_usage,
    "json": apis_calls.json_api,
    "msleep": msleep,
    "reloadxml": reloadxml,
    "alias": accepted,
    "complete": accepted,
    "hash_dump": hash_dump,
    "load": apis_conf.load,
    "unload": apis_conf.unload,
    "module_exists": apis_conf.module_exists,
    "xml_locate": apis_conf.xml_locate,
    "show": apis_show.show,
    "sofia": apis_sofia.sofia,
    "sofia_contact": registrar.sofia_contact,
}
