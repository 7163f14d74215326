"""Commands on recordings: trace, explain, replay, simulate.

The daemon only hands out what it recorded. Replaying, explaining and asking what-if happen here,
with the same core, so that no question costs the daemon more than a copy of its memory.
"""

from __future__ import annotations

import argparse
import base64
import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec

from haclusterd import __version__
from haclusterd.cli.client import Client, Misused, Refused
from haclusterd.cli.main import DONE, FAILED, complain
from haclusterd.cli.show import Part, Table, show
from haclusterd.core.model import ClusterSpec
from haclusterd.files import write_new
from haclusterd.trace import folder
from haclusterd.trace.explain import COMINGS_AND_GOINGS, Explained, explain
from haclusterd.trace.file import Trace, TraceError, unpack
from haclusterd.trace.replay import Outcome, replay
from haclusterd.whatif import Answer, Failure, Fate, WhatIfError, what_if

_NO_PROMISE = (
    "This is what the cores decide on the present view of {node}; hosts and FreeSWITCHes are "
    "taken to do as told, and nothing was changed. It is no promise."
)
_DECIDED_SHOWN = 30


def run(arguments: argparse.Namespace, socket: Callable[[], Path]) -> int:
    """Carry out one command; the exit code. Raises NotReachable, Refused."""
    try:
        return _COMMANDS[arguments.command](arguments, socket)
    except (TraceError, WhatIfError) as error:
        raise Refused(str(error)) from None


# -- trace ---------------------------------------------------------------------------------------


def _trace(arguments: argparse.Namespace, socket: Callable[[], Path]) -> int:
    if arguments.action == "list" and arguments.file is not None:
        raise Misused("`trace list` takes no file")
    client = Client(socket())
    if arguments.action == "list":
        found = client.ask("trace_list")
        _print(arguments, found, [_listed(_readable(found))])
    elif arguments.file is None:
        saved = client.ask("trace_save")
        _print(arguments, saved, [f"saved {saved['path']} ({saved['bytes'] // 1024} KiB)"])
    else:
        # The daemon may be root: it is this process, with its rights, that writes where told.
        path = Path(arguments.file).absolute()
        content = _content(client.ask("trace"))
        try:
            write_new(path, content)
        except FileExistsError:
            raise Refused(f"{path}: is there already. Fix: name a new file") from None
        except OSError as error:
            raise Refused(f"{path}: {error.strerror}: name a file in a folder of yours") from None
        saved = {"path": str(path), "bytes": len(content)}
        _print(arguments, saved, [f"saved {path} ({len(content) // 1024} KiB)"])
    return DONE


def _readable(found: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those of the folder that can be read; of the others it is said why not."""
    for saved in found:
        if saved.get("wrong"):
            complain(f"left out: {saved['wrong']}")
    return [saved for saved in found if not saved.get("wrong")]


def _listed(found: Sequence[dict[str, Any]]) -> Part:
    rows = [[s["saved"], s["reason"], str(s["bytes"] // 1024), s["path"]] for s in found]
    headers = ["saved", "reason", "KiB", "file"]
    return Table("recordings", headers, rows, frozenset({"KiB"}), "none saved yet")


def _content(answer: dict[str, Any]) -> bytes:
    return base64.b64decode(answer["content"])


# -- explain -------------------------------------------------------------------------------------


def _explain(arguments: argparse.Namespace, socket: Callable[[], Path]) -> int:
    without = frozenset() if arguments.all else COMINGS_AND_GOINGS
    if arguments.trace is not None:
        trace = _read(arguments.trace)
        clock = _clock(trace)
        found = [msgspec.structs.replace(one, at=clock(one.at_us))
                 for one in explain(trace, arguments.count, without)]  # fmt: skip
    else:
        found = _explain_live(Client(socket()), arguments.count, without)
    parts: list[Part] = []
    for one in found:
        parts += _explained(one)
    _print(arguments, found, parts or ["nothing was decided yet"])
    return DONE


def _explain_live(client: Client, count: int, without: frozenset[str]) -> list[Explained]:
    """The newest decisions; those older than the memory of heart from the saved recordings."""
    history = client.ask("history", count=10_000)
    wanted = [d for d in history if d["row"][0] != "A" and d["row"] not in without][-count:]
    known = {_key(e): e for e in explain(unpack(_content(client.ask("trace")), "heart"), count,
                                         without)}  # fmt: skip
    missing = [d for d in wanted if (d["at_us"], d["row"], d["text"]) not in known]
    for saved in reversed(_readable(client.ask("trace_list")) if missing else []):
        try:
            trace = unpack(_content(client.ask("trace_read", name=saved["name"])), saved["path"])
            if any(trace.began_us <= d["at_us"] <= trace.ended_us for d in missing):
                known |= {_key(e): e for e in explain(trace, 10_000, without)}
        except (TraceError, Refused) as error:
            complain(f"left out: {error}")
    found = [(d, known.get((d["at_us"], d["row"], d["text"]), _forgotten(d))) for d in wanted]
    return [msgspec.structs.replace(one, at=d["at"]) for d, one in found]


def _key(one: Explained) -> tuple[int, str, str]:
    return one.at_us, one.row, one.text


def _forgotten(decision: dict[str, Any]) -> Explained:
    """A decision that is in no recording any more."""
    return Explained(
        decision["at_us"], decision["row"], decision["text"], decision["service"],
        decision["epoch"] or 0, "", "no recording has it any more", (),
    )  # fmt: skip


def _explained(one: Explained) -> list[Part]:
    rule = [f"    rule     {one.rule}"] if one.rule else []
    return [
        f"{one.at}  {one.row:4}  {one.text}",
        *rule,
        f"    because  {one.trigger}",
        *(f"    known    {fact}" for fact in one.facts),
    ]


# -- replay --------------------------------------------------------------------------------------


def _replay(arguments: argparse.Namespace, socket: Callable[[], Path]) -> int:
    trace = _read(arguments.file)
    outcome = replay(trace)
    found = {"header": trace.header, "steps_recorded": trace.steps, **_fields(outcome)}
    _print(arguments, found, _replayed(trace, outcome))
    return DONE if outcome.difference is None else FAILED


def _replayed(trace: Trace, outcome: Outcome) -> list[Part]:
    header, clock = trace.header, _clock(trace)
    seconds = (trace.ended_us - trace.began_us) / 1e6
    parts: list[Part] = [
        f"{header.node} of {header.cluster}, saved {header.saved} ({header.reason}): "
        f"{trace.steps} steps in {seconds:.1f} s",
        *(f"{clock(d.at_us)}  {d.row:4}  {d.text}" for d in outcome.decided[-_DECIDED_SHOWN:]),
    ]
    if header.version != __version__:
        parts.append(f"recorded by version {header.version}, replayed by {__version__}")
    difference = outcome.difference
    if difference is not None:
        parts.append(
            f"DIFFERENT at step {difference.step} ({clock(difference.at_us)}): {difference.what}"
        )
        parts.append(f"    input    {difference.input}")
        parts += [f"    asked    {action}" for action in difference.asked]
    elif outcome.ended:
        parts.append(f"the same {outcome.steps} steps, ending in the same fault: {outcome.ended}")
    else:
        parts.append(f"the same actions in all {outcome.steps} steps")
    return parts


# -- simulate ------------------------------------------------------------------------------------


def _simulate(arguments: argparse.Namespace, socket: Callable[[], Path]) -> int:
    if not (arguments.fail or arguments.fail_freeswitch or arguments.stop or arguments.cut):
        raise Misused("say what shall fail: --fail NODE, --fail-freeswitch NODE, --stop NODE, "
                      "--cut nic1")  # fmt: skip
    if arguments.trace is not None:
        trace = _read(arguments.trace)
    else:
        trace = unpack(_content(Client(socket()).ask("trace", whole=False)), "heart")
    last = trace.segments[-1]
    answer = what_if(last.node, last.began_us, _failure(arguments, last.node.spec))
    note = _NO_PROMISE.format(node=answer.seen_from)
    _print(arguments, {**_fields(answer), "note": note}, [*_simulated(answer), note])
    return DONE


def _failure(arguments: argparse.Namespace, spec: ClusterSpec) -> Failure:
    """Names to indices. Raises Misused with all that cannot be."""
    nodes = {node.id: n for n, node in enumerate(spec.nodes)}
    links = {f"nic{n + 1}": n for n in range(spec.links)}
    asked = {*arguments.fail, *arguments.fail_freeswitch, *arguments.stop}
    wrong = []
    if asked - set(nodes):
        unknown = ", ".join(sorted(asked - set(nodes)))
        wrong.append(f"there is no node {unknown}; known: {', '.join(nodes)}")
    if set(arguments.cut) - set(links):
        unknown = ", ".join(sorted(set(arguments.cut) - set(links)))
        wrong.append(f"there is no heartbeat NIC {unknown}; known: {', '.join(links)}")
    for node in spec.nodes:
        if node.witness and node.id in arguments.fail_freeswitch:
            wrong.append(f"{node.id} is a witness and has no FreeSWITCH: say --fail {node.id}")
        also = {"--fail-freeswitch": arguments.fail_freeswitch, "--stop": arguments.stop}
        twice = [option for option, names in also.items() if node.id in names]
        if node.id in arguments.fail and twice:
            wrong.append(f"{node.id} is lost by --fail: leave it out of {' and '.join(twice)}")
    if wrong:
        raise Misused("\n".join(wrong))

    def indices(names: Sequence[str]) -> tuple[int, ...]:
        return tuple(sorted({nodes[name] for name in names}))

    return Failure(
        indices(arguments.fail),
        indices(arguments.fail_freeswitch),
        indices(arguments.stop),
        tuple(sorted({links[name] for name in arguments.cut})),
    )


def _simulated(answer: Answer) -> list[Part]:
    rows = [[f.service, f.was or "-", f.owner or "-", f.outcome, _after(f), _remark(f)]
            for f in answer.services]  # fmt: skip
    parts: list[Part] = [
        Table("services", ["service", "now at", "then at", "outcome", "after ms", "remark"], rows)
    ]
    parts += [f"{s.at_ms:9.1f} ms  {s.node}  {s.row:4}  {s.text}" for s in answer.sentences]
    return parts


def _after(fate: Fate) -> str:
    if fate.after_ms is None:
        return "-"
    least, most = fate.after_ms
    return f"{least:.0f}" if round(least) == round(most) else f"{least:.0f}..{most:.0f}"


def _remark(fate: Fate) -> str:
    also = f"or {', '.join(fate.also)}, by the phase of the heartbeats" if fate.also else ""
    return "; ".join(filter(None, (fate.reason, also))) or "-"


# -- common --------------------------------------------------------------------------------------


def _read(file: str) -> Trace:
    return unpack(folder.read(Path(file)), file)


def _clock(trace: Trace) -> Callable[[int], str]:
    """The time of day of a time in the recording.

    One that does not say at which of its times it was saved: as if when its last step was over,
    some ms too late.
    """
    ended_us, saved_us = trace.ended_us, trace.header.saved_us
    if saved_us is None:
        saved_us = ended_us
    try:
        saved = datetime.fromisoformat(trace.header.saved).astimezone(UTC)
    except ValueError:
        return lambda at_us: f"{(at_us - ended_us) / 1e6:.4f} s"

    def text(at_us: int) -> str:
        try:
            moment = saved + timedelta(microseconds=at_us - saved_us)
        except OverflowError:
            return f"{(at_us - saved_us) / 1e6:.4f} s"
        return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")

    return text


def _fields(value: msgspec.Struct) -> dict[str, Any]:
    return {name: getattr(value, name) for name in value.__struct_fields__}


def _print(arguments: argparse.Namespace, found: Any, parts: Sequence[Part]) -> None:
    if arguments.json:
        print(json.dumps(msgspec.to_builtins(found), indent=2))
    else:
        show(parts)


_COMMANDS: dict[str, Callable[[argparse.Namespace, Callable[[], Path]], int]] = {
    "trace": _trace,
    "explain": _explain,
    "replay": _replay,
    "simulate": _simulate,
}
