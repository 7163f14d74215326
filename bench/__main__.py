"""Figures of haclusterd in the lab: `python -m bench`, or `make bench`. Root, like the lab itself.

Parts, each in a module of its own: faults and what clients saw of them, what the daemons cost, the
same faults done to keepalived in the same run, and, only when asked for, minutes on a busy machine.
A part that cannot run here says why.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Any

from bench import busy, faults, footprint, peers
from bench.tables import busy_line, fault_tables, footprint_table, peers_table
from haclusterd.lab.cli import backend_name
from haclusterd.lab.netns import LabError
from haclusterd.lab.plan import LabPlan, PlanError

DONE, FAILED, USAGE = 0, 1, 2
_CALLS_MAX = 1000
_BUSY_MINUTES_MAX = 600


def main(argv: list[str] | None = None) -> int:
    """0; 1 if a run lost a call, touched a foreign one, saw two holders, or could not be done."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    if arguments.repeat < 1 or not 1 <= arguments.calls <= _CALLS_MAX:
        parser.error(f"--repeat 1.., --calls 1..{_CALLS_MAX}")
    if arguments.busy is not None and not 0 < arguments.busy <= _BUSY_MINUTES_MAX:
        parser.error(f"--busy is more than 0 and at most {_BUSY_MINUTES_MAX} minutes")
    if not arguments.json.parent.is_dir():
        parser.error(f"--json: there is no folder {arguments.json.parent}")
    signal.signal(signal.SIGTERM, _interrupted)
    result: dict[str, Any] = {"system": "haclusterd", "machine": _machine()}
    try:
        good = _measure(arguments, result)
    except (LabError, PlanError, KeyboardInterrupt) as error:
        _say(f"bench: {str(error) or 'interrupted'}")
        good = False
    finally:
        # Hours of figures are not thrown away because the last one was interrupted.
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")
    print(_report(result))
    _say(f"all of it is in {arguments.json}")
    return DONE if good else FAILED


def _measure(arguments: argparse.Namespace, result: dict[str, Any]) -> bool:
    """Fill `result` as it comes; whether all of it is as it must be."""
    everything = not (arguments.only or arguments.footprint or arguments.peers or arguments.busy)
    plan = faults.plan_of(LabPlan(nice=arguments.nice), arguments.freeswitch)
    result |= {"freeswitch": backend_name(plan, arguments.freeswitch), "nice": plan.nice}
    good = True
    if everything or arguments.only:
        chosen = arguments.only or list(faults.FAULTS)
        good = faults.run(
            plan, chosen, arguments.repeat, arguments.calls, arguments.freeswitch,
            result.setdefault("runs", []), _say,
        )  # fmt: skip
    if everything or arguments.footprint:
        footprint.run(plan, arguments.freeswitch, result.setdefault("footprint", []), _say)
    if arguments.busy:
        result["busy"] = busy.run(plan, arguments.freeswitch, _say, minutes=arguments.busy)
        good = good and not result["busy"]["problems"]
    if everything or arguments.peers:
        if reason := peers.why_not():
            _say(f"keepalived beside us: skipped, {reason}")
            result["peers_skipped"] = reason
            good = good and not arguments.peers
        else:
            peers.run(arguments.repeat, result.setdefault("peers", []), _say)
    return good


def _report(result: dict[str, Any]) -> str:
    machine = result["machine"]
    parts = [
        f"{machine['cpus']} CPUs, Linux {machine['kernel']}, load {machine['load']} at the start; "
        f"FreeSWITCH: {result.get('freeswitch')}; nice {result.get('nice')}.",
        *fault_tables(result.get("runs", [])),
    ]
    if result.get("footprint"):
        parts.append(footprint_table(result["footprint"]))
    if result.get("busy"):
        parts.append(busy_line(result["busy"]))
    if result.get("peers"):
        parts.append(peers_table(result["peers"]))
    if reason := result.get("peers_skipped"):
        parts.append(f"keepalived beside us: skipped, {reason}.")
    return "\n\n".join(parts)


def _machine() -> dict[str, Any]:
    return {
        "cpus": os.cpu_count(),
        "kernel": platform.release(),
        "load": round(os.getloadavg()[0], 2),
        "when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--repeat", type=int, default=10, help="runs of each fault (10)")
    parser.add_argument("--calls", type=int, default=100, help="calls on the master (100)")
    names = ", ".join(faults.FAULTS)
    parser.add_argument("--only", nargs="+", choices=list(faults.FAULTS), metavar="FAULT",
                        help=f"these; only what is asked for is run: {names}")  # fmt: skip
    parser.add_argument("--footprint", action="store_true",
                        help="what the daemons cost; only what is asked for is run")  # fmt: skip
    parser.add_argument("--peers", action="store_true",
                        help="keepalived beside us; only what is asked for is run")  # fmt: skip
    parser.add_argument("--busy", type=float, metavar="MINUTES",
                        help=f"beside {busy.LOOPS} busy loops; only if asked for")  # fmt: skip
    parser.add_argument(
        "--freeswitch", metavar="PREFIX", help="a real FreeSWITCH, not the emulator"
    )
    parser.add_argument("--nice", type=int, default=LabPlan.nice, metavar="N",
                        help=f"as `haclusterctl lab run --nice` ({LabPlan.nice})")  # fmt: skip
    parser.add_argument("--json", type=Path, default=Path("bench.json"), metavar="FILE",
                        help="all results (bench.json)")  # fmt: skip
    return parser


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _interrupted(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
