"""What an operator orders, from the command line to a request; the dangerous asks back first."""

from __future__ import annotations

import argparse
import getpass
import sys
from typing import Any

from haclusterd.cli.client import Refused

_QUESTION = """Is {node} really dead, and will it stay off until it can hear the other nodes?
If it still runs somewhere, or is started where it cannot hear them, two nodes may serve one address
and calls are lost. Type {node} to go on: """


def ordered(arguments: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """(method, parameters) of an order. Raises Refused where it is not confirmed."""
    if arguments.command == "switchover":
        if arguments.to == "":
            raise Refused(
                "--to is empty: name a node, or leave it out for the first in line", False
            )
        return "switchover", {"service": arguments.service, "to": arguments.to or ""}
    if arguments.command == "reload":
        return "reload", {}
    if arguments.command == "pause":
        return "pause", {"for_s": arguments.for_s, "by": user()}
    if arguments.command == "resume":
        return "resume", {"by": user()}
    if arguments.command == "node":
        return _node(arguments)
    on = arguments.state == "on"
    if not on and arguments.for_s:
        raise Refused("--for belongs to `maintenance on`", False)
    return "maintenance", {"on": on, "node": arguments.on_node or "", "for_s": arguments.for_s}


def _node(arguments: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    if arguments.action == "unmark":
        return "unmark", {"node": arguments.id, "by": user()}
    if not arguments.verified_by:
        raise Refused("say who has verified that it is dead: --verified-by NAME", False)
    if not arguments.yes:
        _confirm(arguments.id)
    return "mark_dead", {"node": arguments.id, "verified_by": arguments.verified_by}


def _confirm(node: str) -> None:
    if not sys.stdin.isatty():
        raise Refused("this asks for confirmation on a terminal; without one, say --yes", False)
    print(_QUESTION.format(node=node), end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip() != node:
        raise Refused("not confirmed, nothing was done", False)


def user() -> str:
    """Who gives the order, for history and alarm."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "somebody"
