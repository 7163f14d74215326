"""What an operator orders, from the command line to a request; the dangerous asks back first."""

from __future__ import annotations

import argparse
import getpass
import sys
from collections.abc import Callable
from typing import Any

from haclusterd.cli.client import Misused, Refused

_QUESTION = """Is {node} really dead, and will it stay off until it can hear the other nodes?
If it still runs somewhere, or is started where it cannot hear them, two nodes may serve one address
and calls are lost. Type {node} to go on: """


Order = tuple[str, dict[str, Any]]


def ordered(arguments: argparse.Namespace) -> Order:
    """(method, parameters) of an order. Raises Refused where it is not confirmed."""
    if arguments.command == "switchover":
        return "switchover", {"service": arguments.service, "to": target(arguments)}
    return _ORDERS[arguments.command](arguments)


def target(arguments: argparse.Namespace) -> str:
    """`--to`; empty where it was left out. Misused where it names nothing."""
    if arguments.to == "":
        raise Misused("--to is empty: name a node, or leave it out for the first in line")
    return arguments.to or ""


def _timed(arguments: argparse.Namespace) -> dict[str, Any]:
    """Parameter `for_s`, where a length was given."""
    return {} if arguments.for_s is None else {"for_s": arguments.for_s}


def _maintenance(arguments: argparse.Namespace) -> Order:
    on = arguments.state == "on"
    if not on and (arguments.for_s or arguments.drain_s):
        option = "--for" if arguments.for_s else "--drain"
        raise Misused(f"{option} belongs to `maintenance on`")
    params = {"on": on, "node": arguments.on_node or "", **_timed(arguments), "by": user()}
    if arguments.drain_s is not None:
        params["drain_s"] = arguments.drain_s
    return "maintenance", params


def _drain(arguments: argparse.Namespace) -> Order:
    words = list(arguments.words)
    off = words[0] == "off"
    if off:
        if arguments.for_s:
            raise Misused("--for belongs to `drain SERVICE|NODE`")
        words = words[1:]
    if len(words) != 1:
        raise Misused("name one service or node: `drain east`, `drain off east`")
    if off:
        return "undrain", {"target": words[0], "by": user()}
    return "drain", {"target": words[0], **_timed(arguments), "by": user()}


def _keys(arguments: argparse.Namespace) -> Order:
    return ("keys_abort" if arguments.abort else "keys_rotate"), {"by": user()}


def _node(arguments: argparse.Namespace) -> Order:
    if arguments.action == "unmark":
        return "unmark", {"node": arguments.id, "by": user()}
    if not arguments.verified_by:
        raise Misused("say who has verified that it is dead: --verified-by NAME")
    if not arguments.yes:
        confirm(arguments.id, _QUESTION.format(node=arguments.id))
    return "mark_dead", {"node": arguments.id, "verified_by": arguments.verified_by}


_ORDERS: dict[str, Callable[[argparse.Namespace], Order]] = {
    "reload": lambda arguments: (
        "reload",
        {"without_majority": True} if arguments.without_majority else {},  # older agents know none
    ),
    "pause": lambda arguments: ("pause", {**_timed(arguments), "by": user()}),
    "resume": lambda arguments: ("resume", {"by": user()}),
    "node": _node,
    "maintenance": _maintenance,
    "drain": _drain,
    "keys": _keys,
}


def confirm(name: str, question: str) -> None:
    """Only whoever types the name goes on. Raises Refused."""
    if not sys.stdin.isatty():
        raise Refused("this asks for confirmation on a terminal; without one, say --yes", False)
    print(question, end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip() != name:
        raise Refused("not confirmed, nothing was done", False)


def user() -> str:
    """Who gives the order, for history and alarm."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "somebody"
