"""Results as Markdown, in the columns of docs/figures.md. Pure: values in, text out."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from typing import Any

_CALL_HEADS = (
    "fault", "runs", "calls up", "address silent ms", "first re-INVITE ms", "media gap p50 ms",
    "worst media gap ms", "RTP lost", "holders", "owner",
)  # fmt: skip
_PEERS_NOTE = (
    "Median / maximum. `times ours` compares the silence, in `freeze` the time until there is a "
    "new holder: a frozen holder that nothing fences goes on answering, beside the new one. "
    "`on two nodes` counts who has the address configured, not who answers: ours is "
    "fenced meanwhile."
)
_MEMORY_NOTE = (
    "The nodes of a laboratory share the pages of one Python: a node alone is between PSS and RSS."
)
_ADDRESS_HEADS = ("fault", "runs", "address silent ms", "stun ms", "holders", "owner")


def fault_tables(runs: Sequence[dict[str, Any]]) -> list[str]:
    """One table of the faults with calls, one of those without; median / maximum of each column.

    A run that was none counts in `runs` as failed and nowhere else.
    """
    by_fault: dict[str, list[dict[str, Any]]] = {}
    for entry in runs:
        by_fault.setdefault(entry["fault"], []).append(entry)
    with_calls, addresses = [], []
    for fault, group in by_fault.items():
        done = [entry for entry in group if "holders_max" in entry]
        count = f"{len(done)}" if len(done) == len(group) else f"{len(done)} of {len(group)}"
        if not done:
            addresses.append([fault, count, *["-"] * (len(_ADDRESS_HEADS) - 2)])
        elif any(entry["calls"]["total"] for entry in done):
            with_calls.append([fault, count, *_calls_row(done)])
        else:
            addresses.append([fault, count, *_address_row(done)])
    tables = []
    if with_calls:
        tables.append(f"{markdown(_CALL_HEADS, with_calls)}\n\nMedian / maximum.")
    if addresses:
        tables.append(f"{markdown(_ADDRESS_HEADS, addresses)}\n\nMedian / maximum.")
    return tables


def busy_line(entry: dict[str, Any]) -> str:
    """What `busy.run` found, as a sentence; its problems follow."""
    silent = ", ".join(f"{name} {ms} ms" for name, ms in entry["address_silent_ms"].items())
    text = (
        f"{entry['minutes']:g} minutes beside {entry['loops']} busy loops: {entry['moved']}"
        f" services moved, {entry['heard']}/{entry['calls']} calls heard, longest silence {silent}."
    )
    return "\n".join([text, *(f"- {problem}" for problem in entry["problems"])])


def footprint_table(entries: Sequence[dict[str, Any]]) -> str:
    """Rows of `footprint.run`."""
    heads = ("node", "calls", "heart CPU %", "agent CPU %", "both %", "heart PSS MiB",
             "agent PSS MiB", "both PSS MiB", "both RSS MiB")  # fmt: skip
    rows = []
    for entry in entries:
        heart, agent = entry["heart"], entry["agent"]
        rows.append([
            f"{entry['node']} ({entry['role']})", str(entry["calls"]),
            f"{heart['cpu_percent']:.1f}", f"{agent['cpu_percent']:.1f}",
            f"{heart['cpu_percent'] + agent['cpu_percent']:.1f}",
            f"{heart['pss_mib']:.1f}", f"{agent['pss_mib']:.1f}",
            f"{heart['pss_mib'] + agent['pss_mib']:.1f}",
            f"{heart['rss_mib'] + agent['rss_mib']:.1f}",
        ])  # fmt: skip
    seconds = entries[0]["seconds"] if entries else 0
    return f"{markdown(heads, rows)}\n\nCPU in % of one core over {seconds:g} s. {_MEMORY_NOTE}"


def peers_table(entries: Sequence[dict[str, Any]]) -> str:
    """Rows of `peers.run`, and how many times ours the other one's median is."""
    heads = ("fault", "system", "trials", "moved", "silent ms", "new holder after ms", "times ours",
             "on two nodes ms")  # fmt: skip
    ours = {e["fault"]: e for e in entries if e["system"].startswith("haclusterd")}
    rows = []
    for entry in entries:
        mine = ours.get(entry["fault"])
        rows.append([
            entry["fault"], entry["system"], str(len(entry["outage_ms"])),
            f"{entry['moved']}/{len(entry['outage_ms'])}", spread(entry["outage_ms"]),
            spread(entry["new_holder_ms"]), "" if entry is mine else ratio(entry, mine),
            spread(entry["dual_holder_ms"]),
        ])  # fmt: skip
    return f"{markdown(heads, rows)}\n\n{_PEERS_NOTE}"


def ratio(other: dict[str, Any], ours: dict[str, Any] | None) -> str:
    """The other one's median by ours; "-" where one of them is missing."""
    key = "new_holder_ms" if other["fault"] == "freeze" else "outage_ms"
    if ours is None or not ours[key] or not other[key]:
        return "-"
    return f"{statistics.median(other[key]) / statistics.median(ours[key]):.1f}"


def spread(values: Iterable[float | None]) -> str:
    """Median / maximum of what there is."""
    found = [value for value in values if value is not None]
    if not found:
        return "none"
    return f"{_figure(statistics.median(found))} / {_figure(max(found))}"


def markdown(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _calls_row(done: list[dict[str, Any]]) -> list[str]:
    up = sum(entry["calls"]["recovered"] for entry in done)
    total = sum(entry["calls"]["total"] for entry in done)
    return [
        f"{up}/{total}",
        spread(entry["address_outage_ms"] for entry in done),
        spread(entry["first_reinvite_ms"] for entry in done),
        spread(entry["media_gap_ms"]["p50"] for entry in done),
        spread(entry["media_gap_ms"]["max"] for entry in done),
        spread(entry["rtp_lost"] for entry in done),
        str(max(entry["holders_max"] for entry in done)),
        _owner(done),
    ]


def _address_row(done: list[dict[str, Any]]) -> list[str]:
    return [
        spread(entry["address_outage_ms"] for entry in done),
        spread(entry["stun_ms"] for entry in done),
        str(max(entry["holders_max"] for entry in done)),
        _owner(done),
    ]


def _owner(done: list[dict[str, Any]]) -> str:
    kept = sum(entry["owner_kept"] for entry in done)
    if kept == 0:
        return f"moved {len(done)}/{len(done)}"
    return f"kept {kept}/{len(done)}"


def _figure(value: float) -> str:
    """Three digits are all that such a measurement has."""
    return f"{value:.0f}" if value >= 20 or value == int(value) else f"{value:.1f}"
