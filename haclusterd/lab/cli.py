"""`haclusterctl lab ...`: parse, run, print. The work is done in `run` and `demo`."""

from __future__ import annotations

import argparse
import json
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any

from haclusterd.lab import netns
from haclusterd.lab.demo import demo
from haclusterd.lab.faults import FAULTS, STUN_MS
from haclusterd.lab.freeswitch import FreeswitchInstance
from haclusterd.lab.laboratory import Laboratory
from haclusterd.lab.netns import LabError
from haclusterd.lab.outcome import Outcome
from haclusterd.lab.plan import LabPlan, PlanError
from haclusterd.lab.run import measure, ready_cluster

DONE, FAILED, USAGE = 0, 1, 2
_CALLS_MAX = 2000
_STUN_MAX_MS = 60_000


def main(argv: list[str] | None = None) -> int:
    """Exit code as `haclusterctl`: 0 done, 1 failed, 2 usage.

    A run failed if it lost a call, touched a foreign one, or saw two holders of an address beyond
    what the fence in use admits to: never with nf_tables, for `overlap_bound_ms` without.
    """
    arguments = command_line().parse_args(argv)
    signal.signal(signal.SIGTERM, _interrupted)
    try:
        code: int = arguments.act(arguments)
    except (LabError, PlanError) as error:
        print(f"haclusterctl lab: {error}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        print("haclusterctl lab: interrupted, everything is torn down", file=sys.stderr)
        return FAILED
    return code


def command_line() -> argparse.ArgumentParser:
    """Everything behind `haclusterctl lab`."""
    parser = argparse.ArgumentParser(prog="haclusterctl lab", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    run = commands.add_parser("run", help="bring a cluster up, break something, measure")
    run.add_argument("--masters", type=int, default=1, help="nodes that own a service (1)")
    run.add_argument("--slaves", type=int, default=2, help="nodes that own none (2)")
    run.add_argument("--nics", type=int, default=2, help="heartbeat NICs per node (2)")
    run.add_argument(
        "--calls", type=int, default=0, help="calls on every master, for a --fault (0)"
    )
    run.add_argument("--fault", choices=FAULTS, help="what happens to the first master")
    run.add_argument("--preset", default="lan", choices=("lan", "fast", "wan"))
    run.add_argument("--no-nftables", action="store_true",
                     help="nodes without nf_tables: the fallback fence; two holders of an address "
                     "within the bound that status shows are no failure then")  # fmt: skip
    run.add_argument("--freeswitch", metavar="PREFIX", help="a real FreeSWITCH, not the emulator")
    run.add_argument("--address-only", action="store_true", help="no FreeSWITCH at all")
    run.add_argument("--repeat", type=int, default=1, help="that many runs, each from scratch")
    run.add_argument("--json", type=Path, metavar="FILE", help="write the results to FILE (- ok)")
    run.add_argument("--nodes-up", action="store_true", help="leave the cluster up for hand work")
    run.add_argument("--stun-ms", type=float, default=STUN_MS, metavar="MS",
                     help=f"how long stun-heart and stun-switch last ({STUN_MS})")  # fmt: skip
    run.add_argument("--nice", type=int, default=LabPlan.nice, metavar="N",
                     help="what all but the instruments runs at; 0: like everything else "
                     f"({LabPlan.nice})")  # fmt: skip
    run.set_defaults(act=_run)
    down = commands.add_parser("down", help="end what --nodes-up left")
    down.add_argument("name", nargs="?", help="which one; not needed while there is only one")
    down.add_argument("--all", action="store_true", help="every one of them")
    down.set_defaults(act=_down)
    show = commands.add_parser("demo", help="two takeovers with live calls, step by step")
    show.add_argument("--freeswitch", metavar="PREFIX", help="a real FreeSWITCH, not the emulator")
    show.add_argument("--calls", type=int, default=20, help="calls on each master (20)")
    show.set_defaults(act=_demo)
    return parser


def _run(arguments: argparse.Namespace) -> int:
    if not arguments.fault and not arguments.nodes_up:
        print("haclusterctl lab run: --fault or --nodes-up is needed", file=sys.stderr)
        return USAGE
    if not 0 <= arguments.calls <= _CALLS_MAX or arguments.repeat < 1:
        print(f"haclusterctl lab run: --calls 0..{_CALLS_MAX}, --repeat 1..", file=sys.stderr)
        return USAGE
    if not 0 < arguments.stun_ms <= _STUN_MAX_MS:
        print(f"haclusterctl lab run: --stun-ms 1..{_STUN_MAX_MS}", file=sys.stderr)
        return USAGE
    if arguments.calls and not arguments.fault:
        print("haclusterctl lab run: --calls needs a --fault: the calls go on from this process, "
              "and end with it", file=sys.stderr)  # fmt: skip
        return USAGE
    if arguments.address_only and arguments.calls:
        print("haclusterctl lab run: --address-only has no calls", file=sys.stderr)
        return USAGE
    file = arguments.json
    if file is not None and str(file) != "-" and (file.is_dir() or not file.parent.is_dir()):
        print(f"haclusterctl lab run: --json {file}: name a file in a folder that is there",
              file=sys.stderr)  # fmt: skip
        return USAGE
    plan = LabPlan(
        masters=arguments.masters,
        slaves=arguments.slaves,
        nics=arguments.nics,
        preset=arguments.preset,
        freeswitch=_backend(arguments),
        kernel_fence=not arguments.no_nftables,
        nice=arguments.nice,
    )
    results: list[dict[str, Any]] = []
    good = True
    try:
        for number in range(1, arguments.repeat + 1):
            outcome = _one_run(plan, arguments, number)
            if outcome is not None:
                results.append(outcome.as_json())
                good = good and not outcome.problems
    finally:
        if results:
            _write(plan, arguments, results)
    return DONE if good else FAILED


def _one_run(plan: LabPlan, arguments: argparse.Namespace, number: int) -> Outcome | None:
    with ready_cluster(plan, arguments.freeswitch, _say) as lab:
        if arguments.nodes_up and number == arguments.repeat:
            lab.keep()
        outcome = None
        if arguments.fault:
            outcome = measure(
                lab, arguments.fault, _say,
                calls=arguments.calls, foreign_calls=arguments.calls, stun_ms=arguments.stun_ms,
            )  # fmt: skip
            _say(f"run {number}/{arguments.repeat}: {outcome.line()}")
            for problem in outcome.problems:
                _say(f"  {problem}")
        if arguments.nodes_up and number == arguments.repeat:
            _tell_how_to_use(lab)
    return outcome


def _backend(arguments: argparse.Namespace) -> str:
    if arguments.address_only:
        # A death can only be seen where there is something that dies.
        return "process" if arguments.fault == "freeswitch" else "none"
    return "real" if arguments.freeswitch else "emulator"


def _write(plan: LabPlan, arguments: argparse.Namespace, runs: list[dict[str, Any]]) -> None:
    """The JSON of the contract."""
    result = {
        "system": "haclusterd",
        "freeswitch": backend_name(plan, arguments.freeswitch),
        "nice": plan.nice,
        "runs": runs,
    }
    text = json.dumps(result, indent=1) + "\n"
    if arguments.json is None:
        return
    if str(arguments.json) == "-":
        sys.stdout.write(text)
    else:
        arguments.json.write_text(text)


def backend_name(plan: LabPlan, prefix: str | None) -> str | None:
    """What results say of FreeSWITCH: emulator, the real one's version, None if there is none."""
    if plan.freeswitch == "real":
        return FreeswitchInstance(prefix, Path(), "", []).version()
    return "emulator" if plan.freeswitch == "emulator" else None


def _down(arguments: argparse.Namespace) -> int:
    if arguments.name and arguments.all:
        print("haclusterctl lab down: NAME or --all, not both", file=sys.stderr)
        return USAGE
    netns.remove_left_overs()
    kept = [name for name in netns.laboratories() if netns.is_kept(name)]
    for name in _chosen(kept, arguments.name, arguments.all):
        netns.remove(name)
        _say(f"{name} is gone")
    return DONE


def _chosen(kept: list[str], name: str | None, everyone: bool) -> list[str]:
    """Which of the laboratories that were left up to end. LabError if that is not clear."""
    listed = ", ".join(kept) or "none"
    if name is not None and name not in kept:
        raise LabError(f"no laboratory {name!r} was left up; there are: {listed}")
    if name is None and not everyone and len(kept) > 1:
        raise LabError(
            f"{len(kept)} laboratories are up: {listed}; name one (lab down NAME) or use --all"
        )
    return [name] if name is not None else kept


def _demo(arguments: argparse.Namespace) -> int:
    if not 0 <= arguments.calls <= _CALLS_MAX:
        print(f"haclusterctl lab demo: --calls 0..{_CALLS_MAX}", file=sys.stderr)
        return USAGE
    return DONE if demo(arguments.calls, arguments.freeswitch, _say) else FAILED


def _tell_how_to_use(lab: Laboratory) -> None:
    _say(f"this laboratory is {lab.topology.name}")
    for node in lab.nodes.values():
        _say(f"{node.id}: ip netns exec {node.namespace} haclusterctl "
             f"--socket {node.run_dir}/haclusterd.sock status")  # fmt: skip
    _say(f"client: ip netns exec {lab.topology.client} bash; files: {lab.directory}")
    _say(f"haclusterctl lab down {lab.topology.name} ends it")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _interrupted(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
