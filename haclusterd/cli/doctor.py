"""`doctor`: is this host fit to be a node? Works with the daemon down too."""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from haclusterd.cli import tables
from haclusterd.cli.checks import FAILED, OK, WARNING, Check, HostProbe, host_checks
from haclusterd.cli.checks_freeswitch import freeswitch_checks
from haclusterd.cli.checks_peers import peer_checks
from haclusterd.cli.checks_unit import unit_checks
from haclusterd.cli.checks_watching import watching_checks
from haclusterd.cli.client import Client, NotReachable, Refused
from haclusterd.cli.main import DONE
from haclusterd.cli.main import FAILED as EXIT_FAILED
from haclusterd.cli.show import Part, show
from haclusterd.config import ConfigError, load

_FAILING = frozenset({"unreadable_peer", "heart_silent"})  # alarms of what does not work now


def run(arguments: argparse.Namespace, path: Path) -> int:
    """Examine and print; 1 if a check failed (warnings do not count)."""
    socket = Path(arguments.socket) if arguments.socket else None
    checks = examine(path, arguments.node_id, socket, HostProbe())
    if arguments.json:
        listed = [dataclasses.asdict(check) for check in checks]
        print(json.dumps({"ok": not _failed(checks), "checks": listed}, indent=2))
    else:
        show(report(checks))
    return EXIT_FAILED if _failed(checks) else DONE


def examine(path: Path, node: str | None, socket: Path | None, host: HostProbe) -> list[Check]:
    """All checks, in the order in which things have to be put right."""
    try:
        config = load(path, node=node)
    except ConfigError as error:
        return [Check("config", FAILED, f"{p.where}: {p.message}", p.fix)
                for p in error.problems]  # fmt: skip
    checks = [Check("config", OK, f"{path} is right, this is {config.node.id}")]
    checks += [
        Check("config", WARNING, text, "see the documentation of [timing] and quorum")
        for text in config.warnings
    ]
    daemon, about, status = _daemon(socket or config.api.socket)
    heart_pid = about.get("heart_pid")
    checks += host_checks(config, host, heart_pid if isinstance(heart_pid, int) else None)
    checks += peer_checks(config, host, status)
    if not config.node.witness:
        checks += asyncio.run(freeswitch_checks(config, host))
        checks += unit_checks(host) if config.freeswitch is not None else ()
        checks += asyncio.run(watching_checks(config))
    return [*checks, *daemon]


def report(checks: Sequence[Check]) -> list[Part]:
    """As parts for `show`."""
    return tables.checks([dataclasses.asdict(check) for check in checks])


def _failed(checks: Sequence[Check]) -> bool:
    return any(check.state == FAILED for check in checks)


def _daemon(socket: Path) -> tuple[list[Check], dict[str, Any], dict[str, Any] | None]:
    """Does it run, and what does it complain about? Its `about` and `status` beside it."""
    client = Client(socket)
    try:
        about = client.ask("about")
        status = client.ask("status")
    except NotReachable as error:
        return [Check("daemon", WARNING, str(error), "systemctl start haclusterd")], {}, None
    except Refused as error:
        return [Check("daemon", WARNING, str(error), "wait a second and look again")], {}, None
    checks = [Check("daemon", OK, f"haclusterd {about['version']} runs, agent pid {about['pid']}")]
    checks += [
        Check(
            f"alarm {alarm['name']}",
            FAILED if alarm["name"] in _FAILING else WARNING,
            alarm["text"],
            f"haclusterctl status, history; {alarm['name']} in docs/runbook.md says what to do",
        )
        for alarm in status["alarms"]
    ]
    return checks, about, status
