"""API commands about single calls that recovery uses afterwards: media counters and limits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec

if TYPE_CHECKING:
    from haclusterd.lab.emulator.switch import Switch

_LIMITS_MAX: Final = 10_000
_LIMIT_USAGE: Final = (
    "USAGE: uuid_limit <uuid> <backend> <realm> <resource> [<max>[/interval]]"
    " [number [dialplan [context]]]\n"
)


def json_api(switch: Switch, argument: str) -> str:
    """Only `mediaStats`: packets in and out of one leg, as the real one nests them."""
    try:
        asked: Any = msgspec.json.decode(argument)
    except (msgspec.DecodeError, UnicodeEncodeError):
        return "-ERR Parse error.\n"
    if not isinstance(asked, dict) or asked.get("command") != "mediaStats":
        return "-ERR Invalid or missing command.\n"
    data = asked.get("data")
    channel = switch.channels.get(str(data.get("uuid"))) if isinstance(data, dict) else None
    reply: dict[str, Any] = {**asked, "status": "success"}
    if channel is None:
        reply |= {"status": "error", "response": {"response": "Session does not exist"}}
    elif channel.stream is None:
        reply["response"] = {}
    else:
        stream = channel.stream
        reply["response"] = {
            "audio": {"in_packet_count": stream.received, "out_packet_count": stream.sent}
        }
    return msgspec.json.encode(reply).decode() + "\n"


def uuid_limit(switch: Switch, argument: str) -> str:
    """Counts only: there is no dialplan here to transfer a refused call to."""
    words = argument.split()
    if len(words) < 4:
        return _LIMIT_USAGE
    channel = switch.channels.get(words[0])
    if channel is None:
        return f"-ERR Cannot find session with uuid {words[0]}\n"
    key = f"{words[2]}_{words[3]}"
    if len(switch.limits) < _LIMITS_MAX or key in switch.limits:
        switch.limits.setdefault(key, set()).add(channel.uuid)
    return "+OK"


def limit_usage(switch: Switch, argument: str) -> str:
    words = argument.split()
    if len(words) < 3:
        return "-USAGE: <backend> <realm> <id>\n"
    return str(len(switch.limits.get(f"{words[1]}_{words[2]}", ())))
