"""The command line `haclusterctl`: arguments, dispatch and exit codes (DESIGN section 8).

0 done, 1 refused or failed (the reason on stderr), 2 usage, 3 daemon not reachable, 4 partly done.
Whatever a command needs is imported when it runs, so that `status` starts fast.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

DONE, FAILED, USAGE, UNREACHABLE, PARTLY = range(5)
DEFAULT_CONFIG = Path("/etc/haclusterd/haclusterd.toml")
DEFAULT_SOCKET = Path("/run/haclusterd/haclusterd.sock")
_REMOTE = frozenset(
    {
        "status",
        "rank",
        "history",
        "report",
        "calls",
        "registrations",
        "sync",
        "switchover",
        "failover",
        "hand-over",
        "maintenance",
        "drain",
        "pause",
        "resume",
        "node",
        "upgrade",
        "reload",
        "events",
        "watch",
        "capacity",
        "best-node",
        "export",
    }
)  # fmt: skip
_ORDERS = frozenset(
    {"switchover", "failover", "hand-over", "maintenance", "drain", "pause", "resume", "node",
     "upgrade", "reload", "keys"}
)  # fmt: skip
_INTERRUPTED = (
    "interrupted: what was ordered before is carried out all the same; see `haclusterctl status` "
    "and `history`"
)
_UNANSWERED = "the order may be carried out all the same; see `haclusterctl status` and `history`"
_RECORDED = frozenset({"trace", "explain", "replay", "simulate"})


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `haclusterctl`; the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    lab = _lab_words(words)
    if lab is not None:
        from haclusterd.lab.cli import main as lab_main

        return lab_main(lab)
    arguments = command_line().parse_args(words)
    try:
        return _run(arguments)
    except BrokenPipeError:
        # The reader (head, less) has seen enough; keep Python from complaining at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return DONE
    except KeyboardInterrupt:
        if _is_order(arguments):
            complain(_INTERRUPTED)
        return 130


def _is_order(arguments: argparse.Namespace) -> bool:
    return arguments.command in _ORDERS and getattr(arguments, "action", "") != "status"


def _run(arguments: argparse.Namespace) -> int:
    from haclusterd.cli.client import Misused, NotReachable, Refused

    try:
        if arguments.command in _REMOTE or _asks_the_daemon(arguments):
            from haclusterd.cli import remote

            return remote.run(arguments, socket_path(arguments))
        if arguments.command in _RECORDED:
            from haclusterd.cli import recorded

            return recorded.run(arguments, lambda: socket_path(arguments))
        from haclusterd.cli import local

        return local.run(arguments)
    except NotReachable as error:
        complain(str(error))
        if error.asked and _is_order(arguments):
            complain(_UNANSWERED)
        return UNREACHABLE
    except Misused as error:
        complain(str(error))
        return USAGE
    except Refused as error:
        complain(str(error))
        return PARTLY if error.partly else FAILED


def _asks_the_daemon(arguments: argparse.Namespace) -> bool:
    return bool(arguments.command == "keys" and arguments.action != "create")


def complain(text: str) -> None:
    """A reason on stderr, one line each."""
    from haclusterd.core.text import printable

    for line in text.split("\n"):
        print(f"haclusterctl: {printable(line)}", file=sys.stderr)


def socket_path(arguments: argparse.Namespace) -> Path:
    """`--socket`, HACLUSTERD_SOCKET, what the configuration says, or the default."""
    if arguments.socket is not None:
        return Path(arguments.socket)
    named = os.environ.get("HACLUSTERD_SOCKET")
    if named:
        return Path(named)
    given = arguments.config or os.environ.get("HACLUSTERD_CONFIG")
    path = Path(given or DEFAULT_CONFIG)
    if not given and not os.path.exists(path):
        return DEFAULT_SOCKET
    from haclusterd.cli.client import Refused
    from haclusterd.cli.local import api_socket

    if not os.path.isfile(path):  # that never raises
        raise Refused(f"{path}: is no file: name the configuration, or the socket with --socket")
    return api_socket(path, arguments.node_id)


def _lab_words(words: Sequence[str]) -> list[str] | None:
    """The words for `lab`, which has a command line of its own; None for other commands."""
    at = 0
    while at < len(words) and words[at].startswith("-"):
        at += 2 if words[at] in ("--socket", "--config", "--node") else 1
    return list(words[at + 1 :]) if at < len(words) and words[at] == "lab" else None


def command_line() -> argparse.ArgumentParser:
    """All commands but what is behind `lab`; completion and the manual page are made of it."""
    common = argparse.ArgumentParser(add_help=False)
    _add_common(common, argparse.SUPPRESS)
    parser = argparse.ArgumentParser(
        prog="haclusterctl",
        description="Looks at and commands the haclusterd of this node.",
        epilog="Exit: 0 done, 1 refused or failed, 2 usage, 3 daemon not reachable, 4 partly done.",
    )
    _add_common(parser, None)
    from haclusterd import __version__

    parser.add_argument("--version", action="version", version=f"haclusterctl {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_looking(commands, common)
    _add_planning(commands, common)
    _add_acting(commands, common)
    _add_recorded(commands, common)
    _add_local(commands, common)
    return parser


def _add_common(parser: argparse.ArgumentParser, default: str | None) -> None:
    """Options that may stand before or after the command."""
    parser.add_argument("--socket", metavar="PATH", default=default, help="the daemon's socket")
    parser.add_argument(
        "--json", action="store_true", help="JSON for programs",
        default=False if default is None else default,
    )  # fmt: skip
    parser.add_argument("--config", metavar="FILE", default=default, help="configuration file")
    parser.add_argument(
        "--node", dest="node_id", metavar="ID", default=default,
        help="which node this is, where addresses do not tell",
    )  # fmt: skip


def _add_looking(commands: Commands, common: argparse.ArgumentParser) -> None:
    def add(name: str, text: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=text, description=text, parents=[common])

    status = add("status", "the cluster as this node sees it")
    status.add_argument("--watch", action="store_true", help="again and again, like `watch`")
    status.add_argument("--interval", type=_seconds, default=1.0, metavar="S", help="seconds (1)")
    rank = add("rank", "the order of the slaves, and who would take over what")
    rank.add_argument("--why", action="store_true", help="a line per node that says why")
    history = add("history", "what was decided, newest last")
    history.add_argument("-n", "--count", type=_count, default=50, help="how many (50)")
    report = add("report", "one takeover: timeline and a verdict per call")
    report.add_argument(
        "which",
        nargs="?",
        default="last",
        help="last (default), a number, a service's name, or all",
    )
    calls = add("calls", "the replicated calls that this node knows")
    calls.add_argument(
        "--at-risk",
        action="store_true",
        help="only those that a takeover would or may lose, and why",
    )
    calls.add_argument("--limit", type=_count, default=1000, help="at most that many (1000)")
    phones = add("registrations", "the phones that are registered at any node")
    phones.add_argument("--limit", type=_count, default=1000, help="at most that many (1000)")
    add("sync", "replication: per peer and service have, want and lag")
    events = add("events", "what happens on all nodes, without silent gaps, until interrupted")
    where = events.add_mutually_exclusive_group()
    where.add_argument(
        "--after", default="", metavar="ID,..", help="what came after these: each node's last id"
    )
    where.add_argument("--all", action="store_true", help="all that is kept, then what comes")
    events.add_argument("--own", action="store_true", help="only what this node says itself")
    watch = add("watch", "status, shown again and again")
    watch.add_argument("--interval", type=_seconds, default=1.0, metavar="S", help="seconds (1)")


def _add_planning(commands: Commands, common: argparse.ArgumentParser) -> None:
    def add(name: str, text: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=text, description=text, parents=[common])

    capacity = add("capacity", "does the load still fit when nodes are lost? exit 1 if not")
    capacity.add_argument("--fail", type=int, choices=(1, 2, 3), default=1, metavar="N",
                          help="any N nodes at once, 1 to 3 (1)")  # fmt: skip
    add("best-node", "the node where a new call should go; --json: all that could take it")
    export = add("export", "what those in front of the cluster want written")
    export.add_argument("what", choices=("upstream",))
    export.add_argument("--format", dest="form", required=True,
                        choices=("kamailio", "opensips", "cube", "dns"))  # fmt: skip
    export.add_argument("--order", choices=("weight", "priority"), default="weight",
                        help="weight: all alike (default); priority: top down")  # fmt: skip
    export.add_argument("--port", type=_port, default=5060, help="SIP port of the profiles (5060)")
    export.add_argument("--transport", choices=("udp", "tcp", "tls"), default="udp")
    export.add_argument("--domain", type=_domain, help="for dns: the domain of the records")
    export.add_argument("--group", type=_count, default=1, metavar="N",
                        help="dispatcher set or server-group (1)")  # fmt: skip


def _add_acting(commands: Commands, common: argparse.ArgumentParser) -> None:
    def add(name: str, text: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=text, description=text, parents=[common])

    switchover = add("switchover", "move a service, with its calls, to another node")
    switchover.add_argument("service", metavar="SERVICE")
    switchover.add_argument("--to", metavar="NODE", help="the new owner (default: first in line)")
    failover = add(
        "failover", "move a service whose owner is lost or cannot hand it over: calls may be lost"
    )
    failover.add_argument("service", metavar="SERVICE")
    failover.add_argument("--to", metavar="NODE", help="the new owner (default: first in line)")
    failover.add_argument("--yes", action="store_true", help="do not ask for confirmation")
    hand_over = add(
        "hand-over", "move everything that this node serves, before its FreeSWITCH is stopped"
    )
    hand_over.add_argument(
        "--within", type=_seconds, default=20.0, metavar="S", help="give up after S seconds (20)"
    )
    maintenance = add("maintenance", "take a node out of the line of candidates, or back in")
    maintenance.add_argument("state", choices=("on", "off"))
    maintenance.add_argument("on_node", nargs="?", metavar="NODE", help="default: this node")
    maintenance.add_argument(
        "--drain", dest="drain_s", type=_span, metavar="TIME",
        help="no new calls, and what it serves moves when it has no calls left or that is over",
    )  # fmt: skip
    drain = add("drain", "a service or node takes no new calls; nothing moves: `drain off` ends it")
    drain.add_argument(
        "words", nargs="+", metavar="[off] SERVICE|NODE", help="off: it takes new calls again"
    )
    pause = add("pause", "nothing moves by itself, on no node, until resumed")
    for order in (maintenance, drain, pause):
        order.add_argument(
            "--for", dest="for_s", type=_span, metavar="TIME",
            help="it ends by itself after that: 90s, 15m, 2h",
        )  # fmt: skip
    add("resume", "end a pause: services move by themselves again")
    node = add("node", "what an operator knows of a node, and the cluster cannot")
    node.add_argument("action", choices=("mark-dead", "unmark"))
    node.add_argument("id", metavar="ID", help="a mark is kept for one boot of each host")
    node.add_argument("--verified-by", metavar="NAME", help="mark-dead: who has looked")
    node.add_argument("--yes", action="store_true", help="mark-dead: do not ask for confirmation")
    add("upgrade", "replace the running daemon by the installed version; nothing moves")
    reload = add("reload", "agree to the set of nodes in the file: one more or less; nothing moves")
    text = "also where it leaves too few who are heard: services end until more of them run"
    reload.add_argument("--without-majority", action="store_true", help=text)


def _add_recorded(commands: Commands, common: argparse.ArgumentParser) -> None:
    def add(name: str, text: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=text, description=text, parents=[common])

    trace = add("trace", "the flight recorder: save what led to the present, list what is saved")
    trace.add_argument("action", choices=("save", "list"))
    trace.add_argument("file", nargs="?", metavar="FILE", help="where to (default: its folder)")
    explain = add("explain", "the last decisions, each with what was known and what led to it")
    explain.add_argument("count", nargs="?", type=_count, default=5, metavar="N", help="(5)")
    explain.add_argument("--all", action="store_true", help="links and peers that come and go, too")
    explain.add_argument("--trace", metavar="FILE", help="explain a saved recording instead")
    replay = add("replay", "run a recording through the core again: it has to decide the same")
    replay.add_argument("file", metavar="FILE")
    simulate = add("simulate", "who would own what, if: nothing is changed, the cores only think")
    failures = {
        "--fail": ("NODE,..", "these nodes are lost at once"),
        "--fail-freeswitch": ("NODE,..", "the FreeSWITCH of each exits"),
        "--stop": ("NODE,..", "these nodes are stopped as planned"),
        "--cut": ("NIC,..", "these heartbeat NICs (nic1, nic2, ..) are gone on all nodes"),
    }
    for option, (what, meaning) in failures.items():
        simulate.add_argument(
            option, metavar=what, help=meaning, type=_names, default=[], action="extend"
        )
    simulate.add_argument("--trace", metavar="FILE", help="on the last state of a recording")


def _add_local(commands: Commands, common: argparse.ArgumentParser) -> None:
    def add(name: str, text: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=text, description=text, parents=[common])

    add("doctor", "is this host fit to be a node: checks, each with its fix")
    config = add("config", "the configuration file")
    config.add_argument("action", choices=("check",), help="check: all that is wrong with it")
    fs_conf = add("fs-conf", "FreeSWITCH's configuration for this cluster")
    fs_conf.add_argument(
        "action", choices=("render",), help="render: write it, the same bytes on every node"
    )
    fs_conf.add_argument("--output", metavar="DIR", required=True, help="FreeSWITCH's folder")
    completion = add("completion", "print the completion of this command line for a shell")
    completion.add_argument("shell", choices=("bash", "zsh"))
    keys = add("keys", "key material of the cluster")
    keys.add_argument(
        "action", choices=("create", "rotate", "status"),
        help="create: what the config needs and is not there yet; rotate: new keys and "
        "certificates for all nodes, while they run; status: where each node stands",
    )  # fmt: skip
    keys.add_argument("--abort", action="store_true", help="rotate: back to the old keys")
    backup = add("backup", "configuration, keys and promises of this node in one file, mode 0600")
    backup.add_argument("file", metavar="FILE")
    restore = add("restore", "put a backup of this node back; the daemon must not run")
    restore.add_argument("file", metavar="FILE")
    for one in (backup, restore):
        one.add_argument("--run-dir", metavar="DIR", help="as the daemon has it")
    commands.add_parser("lab", help="clusters in network namespaces: lab run, lab demo, lab down")


def _count(text: str) -> int:
    if not text.isdigit() or not 1 <= int(text) <= 10_000:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to 10000")
    return int(text)


def _port(text: str) -> int:
    if not text.isdigit() or not 1 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port from 1 to 65535")
    return int(text)


def _domain(text: str) -> str:
    labels = text.rstrip(".").split(".")
    good = all(0 < len(label) < 64 and label.replace("-", "").replace("_", "").isalnum()
               for label in labels)  # fmt: skip
    if not good or len(text) > 253:
        raise argparse.ArgumentTypeError(f"{text!r} is no domain like voice.example.org")
    return text


def _names(text: str) -> list[str]:
    return [name for name in text.split(",") if name]


def _span(text: str) -> int:
    """90s, 15m, 2h or 1d as seconds."""
    units = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
    number, unit = text[:-1], text[-1:]
    good = number.isascii() and number.isdigit() and len(number) < 8 and unit in units
    seconds = int(number) * units[unit] if good else 0
    if not 1 <= seconds <= 30 * 86_400:
        raise argparse.ArgumentTypeError(f"{text!r} is no time (90s, 15m, 2h) up to 30d")
    return seconds


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.1 <= value <= 3600:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds from 0.1 to 3600")
    return value


if __name__ == "__main__":
    sys.exit(main())
