"""What the daemon answered, as parts for `show`: one function per command."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from haclusterd.cli.drawing import timeline
from haclusterd.cli.show import Part, Table, cell

_NUMBERS = frozenset({"rank", "calls", "health", "takes", "epoch", "lag ms", "rtt ms", "acked",
                      "head", "snapshots", "have", "want", "at ms", "gap ms", "version", "number",
                      "outage ms", "recovered", "lost", "%", "eta s"})  # fmt: skip
_CALL = frozenset({"call"})
_VERDICTS_SHOWN = 20


def status(found: dict[str, Any], watched: bool = False) -> list[Part]:
    """`status`; `watched`: nodes first, because the end of a long list is cut off there."""
    quorum = found["quorum"]
    word = "quorum" if quorum["ok"] else "NO QUORUM"
    head = (
        f"cluster {found['cluster']}, seen from {found['node']}: {word}, "
        f"{quorum['reachable']} of {quorum['voters']} voters ({quorum['policy']})"
    )
    order = {"unserved": 0, "moving": 1}
    revision = found.get("revision") or {}
    if revision.get("staged"):
        late = ", ".join(revision["lacking"]) or "no node"
        head += f"; revision {revision['active']}, {revision['staged']} staged, missing on {late}"
    elif revision.get("active", 1) > 1:
        head += f"; revision {revision['active']}"
    if found.get("stale"):
        head += "; STALE: this node is being filled"
    services = [
        [s["name"], cell(s["owner"]), s["state"], cell(s["epoch"]), _bare(s["addresses"]),
         _first(s["successors"])]
        for s in sorted(found["services"], key=lambda s: order.get(s["state"], 2))
    ]  # fmt: skip
    phones = found.get("registrations")
    registered = (
        [f"registrations: {phones['own']} made here, {phones['copies']} of other nodes"]
        if phones and (phones["own"] or phones["copies"]) else []
    )  # fmt: skip
    coming = [
        f"{s['name']} on {s['owner']}: {s['recovering']['answered']} of "
        f"{s['recovering']['replicated']} call legs are back so far"
        for s in found["services"] if s.get("recovering")
    ]  # fmt: skip
    drains = [_drain(drain) for drain in found.get("drains") or ()]
    told = {"drained"} if drains else set()  # the same at more length
    alarms = [f"ALARM {a['name']}: {a['text']}" for a in found["alarms"] if a["name"] not in told]
    drawn = [
        Table("services", ["service", "owner", "state", "epoch", "addresses", "next in line"],
              services, _NUMBERS),
        _nodes_in_short(found["nodes"]) if watched else _nodes(found["nodes"]),
    ]  # fmt: skip
    drawn += [] if watched else _sensors(found["nodes"])
    return [head, *registered, *coming, *drains, *alarms, *(drawn[::-1] if watched else drawn)]


def _drain(drain: dict[str, Any]) -> str:
    """One drain: how far it is."""
    what = cell(drain["services"]) if drain["services"] else "serves nothing"
    if drain["kind"] == "service":
        what = "no new calls"
    text = f"drain of {drain['kind']} {drain['name']} by {drain['by']}: {what}"
    text += f", {drain['calls']} call legs left"
    if drain["moves_s"] is not None and drain["services"]:
        text += f", moved in {drain['moves_s']} s" if drain["moves_s"] else ", moving"
    if drain["left_s"] is not None:
        text += f", ends in {drain['left_s']} s"
    return text


def keys(found: Sequence[dict[str, Any]]) -> list[Part]:
    """`keys status`."""
    rows = [
        [k["node"], k["phase"], cell([str(n) for n in k["ring"]]), cell(k["by"]), k["problem"]]
        for k in found
    ]
    return [Table("keys", ["node", "phase", "ring", "by", "problem"], rows, _NUMBERS)]


def _sensors(nodes: Sequence[dict[str, Any]]) -> list[Table]:
    """Of all nodes, those that have something to say."""
    rows = [
        [node["id"], one["name"], one["kind"], one["state"], cell(one["takes"]), one["text"]]
        for node in nodes
        for one in node.get("sensors", ())
        if one["state"] not in ("ok", "idle")
    ]
    headers = ["node", "sensor", "kind", "state", "takes", "what it says"]
    return [Table("sensors", headers, rows, _NUMBERS)] if rows else []


def _nodes(found: Sequence[dict[str, Any]]) -> Table:
    rows = [
        [n["id"], _role(n), cell(n["rank"]), _first(n["services"]),
         _load(n), "-" if _gone(n) else cell(n["health"]), n["sync"]["state"],
         _links(n["links"]), cell(n["version"])]
        for n in found
    ]  # fmt: skip
    headers = ["node", "role", "rank", "services", "calls", "health", "copies", "links", "version"]
    return Table("nodes", headers, rows, _NUMBERS)


def _nodes_in_short(found: Sequence[dict[str, Any]]) -> Table:
    """One line for each on a terminal of 80 columns."""
    rows = [
        [n["id"], _role(n), cell(n["rank"]), _first(n["services"]),
         _load(n), n["sync"]["state"], _up(n["links"])]
        for n in found
    ]  # fmt: skip
    headers = ["node", "role", "rank", "services", "calls", "copies", "links"]
    return Table("nodes", headers, rows, _NUMBERS)


def _gone(node: dict[str, Any]) -> bool:
    """What it said last is true no more."""
    return node["role"] in ("dead", "left")


def _load(node: dict[str, Any]) -> str:
    return "-" if _gone(node) else f"{node['calls']}/{node['capacity']}"


def _up(links: Sequence[dict[str, Any]]) -> str:
    return f"{sum(link['up'] for link in links)} of {len(links)} up"


def _bare(addresses: Sequence[str]) -> str:
    """Without prefix length and NIC, which --json has."""
    return cell([address.partition("/")[0] for address in addresses])


def _first(names: Sequence[str]) -> str:
    """The first two of them, and how many more there are."""
    return cell(list(names[:2])) + (f" +{len(names) - 2}" if len(names) > 2 else "")


def _role(node: dict[str, Any]) -> str:
    """For people a witness that lives is a witness."""
    alive = node["role"] == "maintenance"
    return "witness" if node.get("witness") and alive else str(node["role"])


def _links(links: Sequence[dict[str, Any]]) -> str:
    rtts = [link["rtt_ms"] for link in links if link["up"] and link["rtt_ms"]]
    text = _up(links)
    if rtts:
        text += f", {min(rtts):.2f} ms"
    losses = [link["loss"] for link in links if link["loss"] > 0]
    return f"{text}, {max(losses):.1%} loss" if losses else text


def rank(found: dict[str, Any], why: bool) -> list[Part]:
    """`rank [--why]`."""
    names = ["primary", "secondary", "tertiary"]
    slaves = [
        [str(n), names[n] if n < len(names) else "", node] for n, node in enumerate(found["slaves"])
    ]
    line = [[service, cell(nodes)] for service, nodes in found["successors"].items()]
    parts: list[Part] = [
        f"rank hash {found['rank_hash']}",
        Table("slaves", ["rank", "", "node"], slaves, _NUMBERS),
        Table("who would take over", ["service", "in this order"], line),
    ]
    if why:
        parts += [
            "",
            "slaves before masters, each by its place:",
            *found["why"],
            *found.get("health", ()),
        ]
        parts += [f"this node cannot take {s}: {r}" for s, r in found["not_ready"].items()]
    return parts


def history(found: Sequence[dict[str, Any]]) -> list[Part]:
    """`history`."""
    if not found:
        return ["nothing was decided yet"]
    return [decision(one) for one in found]


def decision(one: dict[str, Any]) -> str:
    """One decision as a line."""
    return f"{one['at']}  {one['row']:<5} {one['text']}"


def event(one: dict[str, Any]) -> str:
    """One record of `events` as a line that begins with its id."""
    text = one.get("text", "")
    what = f"{one.get('service')} {one.get('uuid')}"
    said = {
        "decision": f"{one.get('row', ''):<5} {text}",
        "call": f"call  {what} {one.get('state')}",
        "verdict": f"call  {what} {one.get('verdict')}: {text}",
        "gap": f"GAP   {text}",
    }
    return f"{one['id']}  {one['at']}  {said.get(one['kind'], text)}"


def report(found: dict[str, Any]) -> list[Part]:
    """`report`."""
    calls = found["calls"]
    outage = "not up" if found["outage_ms"] is None else f"{found['outage_ms']:.1f} ms"
    state = "" if found["done"] else " (still under way)"
    order = {"lost": 0, "partial": 1}
    verdicts = sorted(calls["verdicts"], key=lambda v: order.get(v["verdict"], 2))
    rows = [
        [v["uuid"], v["verdict"], cell(v["gap_ms"]), v["reason"]]
        for v in verdicts[:_VERDICTS_SHOWN]
    ]
    parts: list[Part] = [
        f"report {found['number']}: {found['service']} from {found['from'] or 'nobody'} to "
        f"{found['to']} at epoch {found['epoch']}{state}",
        f"cause: {found['cause']}; at {found['at']}; address back after {outage}",
        f"calls: {calls['replicated']} replicated, {calls['recovered']} recovered, "
        f"{calls['partial']} partly, {calls['lost']} lost",
        timeline(_moments(found), found["outage_ms"]),
    ]
    if found.get("copy", "") not in ("", "in-sync"):
        parts.append(f"the copy here was {found['copy']}: more may be lost than was counted")
    if verdicts:
        headers = ["call", "verdict", "gap ms", "why"]
        parts.append(Table("calls", headers, rows, _NUMBERS, whole=_CALL))
    if len(verdicts) > len(rows):
        parts.append(f"  and {len(verdicts) - len(rows)} more (--json shows all)")
    if found.get("newer"):
        parts.append(f"newer than this one: {found['newer']}")
    return parts


def _moments(found: dict[str, Any]) -> list[dict[str, Any]]:
    """Who released a service is not dead."""
    if " released it" not in found["cause"]:
        return list(found["timeline"])
    return [{**m, "event": "released"} if m["event"] == "dead" else m for m in found["timeline"]]


def capacity(found: dict[str, Any]) -> list[Part]:
    """`capacity --fail N`."""
    lost = "any one node" if found["fail"] == 1 else f"any {found['fail']} nodes at once"
    if found["fits"]:
        return [f"the load fits whichever is lost: {lost} ({found['cases']} cases)"]
    rows = [[cell(case["lost"]), _misfit(case)] for case in found["misfits"]]
    parts: list[Part] = [
        f"the load does not fit in {found['bad']} of {found['cases']} cases of losing {lost}",
        Table("", ["without", "what happens"], rows),
    ]
    if found["bad"] > len(rows):
        parts.append(f"  and {found['bad'] - len(rows)} more")
    return parts


def _misfit(case: dict[str, Any]) -> str:
    if not case["majority"]:
        return "no majority is left: nothing would be served"
    told = [f"nobody could serve {cell(case['unserved'])}"] if case["unserved"] else []
    told += [f"{o['node']} would carry {o['calls']} of {o['capacity']}" for o in case["overloaded"]]
    return "; ".join(told)


def best_nodes(found: Sequence[dict[str, Any]]) -> list[Part]:
    """`best-node`: the first one on a line that a script can read."""
    best = found[0]
    return [f"{best['node']} {' '.join(best['addresses'])}"]


def reports(found: Sequence[dict[str, Any]]) -> list[Part]:
    """`report all`."""
    rows = [
        [str(r["number"]), r["at"], r["service"], cell(r["from"]), r["to"], cell(r["outage_ms"]),
         str(r["calls"]["recovered"]), str(r["calls"]["lost"]), r["cause"]]
        for r in found
    ]  # fmt: skip
    headers = ["number", "at", "service", "from", "to", "outage ms", "recovered", "lost", "cause"]
    parts: list[Part] = [Table("reports", headers, rows, _NUMBERS, "nothing has moved yet")]
    if len({r["to"] for r in found}) > 1:
        parts.append("each node counts its own: `haclusterctl report NUMBER` on the node in `to`")
    return parts


def calls(found: dict[str, Any], at_risk: bool) -> list[Part]:
    """`calls [--at-risk]`."""
    rows = [
        [c["uuid"], c["service"], c["here"], c["direction"], cell(c["answered"]),
         "; ".join(c.get("why", ())) or ("at risk" if c["at_risk"] else "none")]
        for c in found["calls"]
    ]  # fmt: skip
    headers = ["call", "service", "here", "direction", "answered", "risk"]
    empty = "no call is at risk" if at_risk else "no calls"
    parts: list[Part] = [
        f"{found['total']} call legs shown here, {found['at_risk']} at risk",
        Table("", headers, rows, _NUMBERS, empty, _CALL, ("answered", "direction")),
    ]
    if found["total"] > len(rows):
        parts.append(f"  and {found['total'] - len(rows)} more (--limit)")
    return parts


def registrations(found: dict[str, Any]) -> list[Part]:
    """`registrations`."""
    rows = [
        [r["user"], r["contact"], cell(r["node"]), r["here"], str(r["expires_s"]),
         "ok" if r["replicated"] else "at risk", r["user_agent"]]
        for r in found["registrations"]
    ]  # fmt: skip
    headers = ["user", "contact", "registered at", "here", "expires s", "replicated", "user agent"]
    parts: list[Part] = [
        f"{found['total']} registrations, {found['at_risk']} at risk",
        Table("", headers, rows, frozenset({"expires s"}), "nobody is registered"),
    ]
    if found["total"] > len(rows):
        parts.append(f"  and {found['total'] - len(rows)} more (--limit)")
    return parts


def sync(found: dict[str, Any]) -> list[Part]:
    """`sync`."""
    peers = [
        [p["node"], "up" if p["connected"] else "down", cell(p["address"]),
         cell(p["rtt_ms"] if p["rtt_ms"] >= 0 else None), p["state"], cell(p["lag_ms"])]
        for p in found["peers"]
    ]  # fmt: skip
    outgoing = [
        [p["node"], _stream(o), o["data"], cell(o["epoch"]), o["state"], *_progress(o),
         cell(o["acked"]), cell(o["head"]), cell(o["lag_ms"]), cell(o["snapshots"])]
        for p in found["peers"]
        for o in p["outgoing"]
    ]  # fmt: skip
    own = {_stream(o) for p in found["peers"] for o in p["outgoing"]}
    incoming = [
        [_stream(i), i["data"], cell(i["origin"]), cell(i["epoch"]), i["state"], *_progress(i),
         cell(i["lag_ms"])]
        for i in found["incoming"]
        if i["state"] != "none" or _stream(i) not in own
    ]  # fmt: skip
    return [
        f"{found['waiting']} changes wait, {found['at_risk']} calls at risk, acknowledged within "
        f"{found['ack_ms_p50']} ms (p50) and {found['ack_ms_p99']} ms (p99)",
        Table("peers", ["node", "link", "address", "rtt ms", "state", "lag ms"], peers, _NUMBERS),
        Table("sent: own services", ["to", "service", "data", "epoch", "state", *_PROGRESS,
                                     "acked", "head", "lag ms", "snapshots"], outgoing, _NUMBERS),
        Table("held: services of others", ["service", "data", "from", "epoch", "state", *_PROGRESS,
                                           "lag ms"], incoming, _NUMBERS),
    ]  # fmt: skip


_PROGRESS = ["have", "want", "%", "eta s"]


def _stream(row: dict[str, Any]) -> str:
    """The service of a stream, without the name of its lane."""
    return str(row["service"]).rpartition(":")[2]


def _progress(row: dict[str, Any]) -> list[str]:
    eta_ms = row["eta_ms"]
    left = "" if eta_ms is None else f"{eta_ms / 1000:.1f}"
    return [cell(row["have"]), cell(row["want"]), cell(row["percent"]), left]


def checks(found: Sequence[dict[str, Any]]) -> list[Part]:
    """`doctor`."""
    rows = [[c["state"], c["name"], c["text"]] for c in found]
    parts: list[Part] = [Table("", ["result", "check", "found"], rows)]
    fixes = [f"  {c['name']}: {c['fix']}" for c in found if c["fix"]]
    return [*parts, "", "to do:", *fixes] if fixes else parts
