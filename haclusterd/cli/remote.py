"""Commands that ask the daemon: from its answer to the terminal."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from haclusterd.cli import tables
from haclusterd.cli.client import Client, Misused, NotReachable, Refused
from haclusterd.cli.ordered import confirm, ordered, target, user
from haclusterd.cli.show import Part, clean, show
from haclusterd.core.text import printable

DONE, FAILED = 0, 1
UPGRADE_S = 40.0  # the daemon's own patience is 35 s
UPGRADE_POLL_S = 0.2


def run(arguments: argparse.Namespace, socket: Path) -> int:
    """Carry out one command. Raises NotReachable, Refused."""
    client = Client(socket)
    command: str = arguments.command
    if command == "watch" or (command == "status" and arguments.watch):
        _watch(client, arguments)
    elif command == "capacity":
        found = client.ask("capacity", fail=arguments.fail)
        _print(found, tables.capacity, arguments.json)
        return DONE if found["fits"] else FAILED
    elif command == "export":
        _export(client, arguments)
    elif command in _SHOWN:
        method, params, render = _SHOWN[command](arguments)
        _print(client.ask(method, **params), render, arguments.json)
    elif command == "events":
        _events(client, arguments)
    elif command == "upgrade":
        _print(_upgrade(client), _text, arguments.json)
    elif command == "failover":
        _print(_failover(client, arguments), _text, arguments.json)
    elif command == "keys" and arguments.action == "status":
        if arguments.abort:
            raise Misused("--abort belongs to `keys rotate`")
        _print(client.ask("keys_status"), tables.keys, arguments.json)
    elif command == "hand-over":
        _print(_hand_over(client, arguments.within), _text, arguments.json)
    else:
        method, params = ordered(arguments)
        _print(client.ask(method, **params), _text, arguments.json)
    return DONE


Render = Callable[[Any], list[Part]]
Question = tuple[str, dict[str, Any], Render]


def _print(found: Any, render: Render, as_json: bool) -> None:
    if as_json:
        print(json.dumps(found, indent=2))
    else:
        show(render(found))


def _text(found: Any) -> list[Part]:
    return [str(found["text"])]


def _report(arguments: argparse.Namespace) -> Question:
    if arguments.which == "all":
        return "reports", {}, tables.reports
    return "report", {"which": arguments.which}, tables.report


def _calls(arguments: argparse.Namespace) -> Question:
    params = {"at_risk": arguments.at_risk, "limit": arguments.limit}
    return "calls", params, lambda found: tables.calls(found, arguments.at_risk)


_SHOWN: dict[str, Callable[[argparse.Namespace], Question]] = {
    "status": lambda arguments: ("status", {}, tables.status),
    "rank": lambda arguments: ("rank", {}, lambda found: tables.rank(found, arguments.why)),
    "history": lambda arguments: ("history", {"count": arguments.count}, tables.history),
    "report": _report,
    "calls": _calls,
    "registrations": lambda arguments: (
        "registrations",
        {"limit": arguments.limit},
        tables.registrations,
    ),
    "sync": lambda arguments: ("sync", {}, tables.sync),
    "best-node": lambda arguments: ("best_node", {}, tables.best_nodes),
}


def _export(client: Client, arguments: argparse.Namespace) -> None:
    from haclusterd.cli import upstream

    if arguments.form == "dns" and not arguments.domain:
        raise Misused("dns needs the domain of the records: --domain voice.example.org")
    status = client.ask("status")
    wanted = upstream.Wanted(
        arguments.port,
        arguments.transport,
        arguments.order,
        arguments.domain or "",
        arguments.group,
    )
    if arguments.json:
        listed = [target._asdict() for target in upstream.targets(status)]
        print(json.dumps(listed, indent=2))
    else:
        print(upstream.export(arguments.form, status, wanted), end="")


def _events(client: Client, arguments: argparse.Namespace) -> None:
    after = "begin" if arguments.all else arguments.after
    for one in client.events(after=after, own=arguments.own):
        if arguments.json:
            print(json.dumps(one), flush=True)
        elif one["kind"] != "keepalive":
            print(clean(tables.event(one)), flush=True)


def _watch(client: Client, arguments: argparse.Namespace) -> None:
    """Again and again; on a terminal in place, else one after the other."""
    if not sys.stdout.isatty() or arguments.json:
        while True:
            _print(client.ask("status"), tables.status, arguments.json)
            sys.stdout.flush()
            time.sleep(arguments.interval)
    from rich.console import Group
    from rich.live import Live

    from haclusterd.cli.show import rich_part

    with Live(auto_refresh=False, screen=True) as live:
        while True:
            try:
                parts = tables.status(client.ask("status"), watched=True)
            except (NotReachable, Refused) as error:  # it starts again, and knows nothing yet
                parts = [f"ALARM {error}"]
            live.update(Group(*(rich_part(clean(part)) for part in parts)), refresh=True)
            time.sleep(arguments.interval)


def _upgrade(client: Client) -> dict[str, Any]:
    """Order it, then wait for the agent that the new heart starts."""
    before = client.ask("about")
    # The agent may be gone before its answer is: what follows tells.
    with contextlib.suppress(NotReachable):
        client.ask("upgrade")
    until = time.monotonic() + UPGRADE_S
    while time.monotonic() < until:
        try:
            now = client.ask("about")
        except NotReachable:
            time.sleep(UPGRADE_POLL_S)
            continue
        if now["heart_pid"] != before["heart_pid"]:
            return {"text": f"upgraded from {before['version']} to {now['version']}", **now}
        time.sleep(UPGRADE_POLL_S)
    raise NotReachable(f"the upgraded daemon does not answer after {UPGRADE_S:.0f} s; see its log")


def _failover(client: Client, arguments: argparse.Namespace) -> Any:
    """Ask what it would cost, have it confirmed, then do it."""
    wanted = {"service": arguments.service, "to": target(arguments)}
    warning = printable(client.ask("failover_check", **wanted)["text"])
    if not arguments.yes:
        confirm(arguments.service, f"{warning}.\nType {arguments.service} to go on: ")
    return client.ask("failover", **wanted, by=user())


def _hand_over(client: Client, within_s: float) -> dict[str, Any]:
    """Switch over whatever this node owns, one after the other, within the time.

    FreeSWITCH's unit calls it before it stops FreeSWITCH, which would hang up every call. What
    cannot be moved is told, and does not keep the others.
    """
    until = time.monotonic() + within_s
    client.answer_s = within_s
    status = client.ask("status")
    owned = [s["name"] for s in status["services"] if s["owner"] == status["node"]]
    moved: list[str] = []
    kept: dict[str, str] = {}
    for service in owned:
        client.answer_s = until - time.monotonic()
        if client.answer_s <= 0:
            kept[service] = f"{within_s:g} s were over"
            continue
        try:
            moved.append(str(client.ask("switchover", service=service, to="")["text"]))
        except (Refused, NotReachable) as error:
            kept[service] = str(error)
    if kept:
        lines = [*moved, *(f"{service} stays: {reason}" for service, reason in kept.items())]
        raise Refused("\n".join(lines), partly=bool(moved))
    if not owned:
        return {"text": f"{status['node']} serves nothing", "moved": []}
    return {"text": "\n".join(moved), "moved": owned}
