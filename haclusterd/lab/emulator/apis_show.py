"""`show channels|calls|registrations|...`: text with commas, or JSON, and counts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

if TYPE_CHECKING:
    from haclusterd.lab.emulator.switch import Switch

_CALL_COLUMNS: Final = [
    "uuid",
    "direction",
    "created",
    "created_epoch",
    "name",
    "state",
    "cid_name",
    "cid_num",
    "ip_addr",
    "dest",
    "presence_id",
    "presence_data",
    "accountcode",
    "callstate",
    "callee_name",
    "callee_num",
    "callee_direction",
    "call_uuid",
    "hostname",
    "sent_callee_name",
    "sent_callee_num",
]
_NOT_B: Final = ("hostname", "call_uuid")
_USAGE: Final = "-USAGE: calls [count]|channels [count]|bridged_calls|aliases|complete|limits\n"
_EMPTY: Final = ("registrations", "bridged_calls", "aliases", "complete", "limits", "nat_map")


def show(switch: Switch, argument: str) -> str:
    words = argument.lower().split()
    if not words:
        return _USAGE
    as_json = words[-2:] == ["as", "json"]
    if words[0] in _EMPTY:
        rows: list[dict[str, str]] = []
    elif words[0] in ("modules", "codec", "codecs"):
        rows = _loaded(switch, words[0])
    elif words[0] in ("channels", "calls"):
        rows = [c.show_row(switch.config.switchname) for c in switch.shown]
    else:
        return _USAGE
    if words[0] == "calls":
        rows = [_as_call(row) for row in rows]
    if "count" in words[1:]:
        return f'{{"row_count":{len(rows)},"rows":[]}}' if as_json else f"\n{len(rows)} total.\n"
    return _json(rows) if as_json else _text(rows)


def _loaded(switch: Switch, what: str) -> list[dict[str, str]]:
    codecs = [{"type": "codec", "name": n, "ikey": "CORE_PCM_MODULE"} for n in switch.codecs]
    if what != "modules":
        return codecs
    folder = "/usr/lib/freeswitch/mod"
    modules = [
        {"type": kind, "name": name.removeprefix("mod_"), "ikey": name}
        for name, kind in switch.loaded.items()
    ]
    return [row | {"filename": f"{folder}/{row['ikey']}.so"} for row in (*codecs, *modules)]


def _as_call(row: dict[str, str]) -> dict[str, str]:
    call = {name: row[name] for name in _CALL_COLUMNS}
    return (
        call
        | {f"b_{name}": "" for name in _CALL_COLUMNS if name not in _NOT_B}
        | {"call_created_epoch": ""}
    )


def _json(rows: list[dict[str, str]]) -> str:
    if not rows:
        return '{"row_count": 0}\n'
    return msgspec.json.encode({"row_count": len(rows), "rows": rows}).decode()


def _text(rows: list[dict[str, str]]) -> str:
    if not rows:
        return "\n0 total.\n"
    lines = [",".join(rows[0]), *(",".join(row.values()) for row in rows)]
    return "\n".join(lines) + f"\n\n{len(rows)} total.\n"
