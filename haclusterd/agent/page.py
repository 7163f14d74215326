"""The status page: one self-contained HTML document, no scripts, no outside assets."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape as escape_html

from haclusterd.agent.schema import Decision, Node, Service, Status
from haclusterd.core.text import printable

_STYLE = """
:root{color-scheme:light dark;--bg:#f6f7f9;--card:#fff;--ink:#1c2430;--soft:#66707f;--line:#e2e6ec;
--good:#1a7f4b;--wait:#9a6700;--bad:#b3261e;--mark:#2456b8}
@media(prefers-color-scheme:dark){:root{--bg:#12161c;--card:#1a2029;--ink:#e4e9f0;--soft:#97a3b4;
--line:#2b3440;--good:#4cc38a;--wait:#e0b03c;--bad:#ff7b72;--mark:#7aa7ff}}
*{box-sizing:border-box}body{margin:0;background:var(--bg);color:var(--ink);
font:15px/1.45 system-ui,sans-serif}main{max-width:1100px;margin:0 auto;padding:24px 16px 48px}
header{display:flex;flex-wrap:wrap;gap:4px 20px;align-items:baseline;margin-bottom:20px}
h1{font-size:22px;margin:0}h2{font-size:15px;margin:28px 0 8px;color:var(--soft);font-weight:600}
.soft{color:var(--soft)}.card{background:var(--card);border:1px solid var(--line);
border-radius:10px;overflow-x:auto}table{width:100%;border-collapse:collapse}
th,td{text-align:left;padding:9px 14px;border-bottom:1px solid var(--line);vertical-align:top}
tr:last-child td{border-bottom:0}th{font-size:12px;color:var(--soft);font-weight:600}
td.n{font-variant-numeric:tabular-nums}.good{color:var(--good)}.wait{color:var(--wait)}
.bad{color:var(--bad)}.tag{font-weight:600}.alarm{border-left:4px solid var(--bad);
padding:9px 14px;background:var(--card);border-radius:6px;margin:6px 0}
time{color:var(--soft);font-variant-numeric:tabular-nums;white-space:nowrap}
"""
_TONE = {
    "master": "good", "slave": "good", "owned": "good", "in-sync": "good",
    "starting": "wait", "syncing": "wait", "moving": "wait", "maintenance": "wait",
    "suspended": "wait", "left": "soft", "none": "soft",
}  # fmt: skip


def escape(text: str) -> str:
    """Text of others between tags: no tag of its own, and nothing that turns what follows."""
    return escape_html(printable(text))


def render(status: Status, history: Sequence[Decision]) -> str:
    """The whole document."""
    quorum = status.quorum
    tone = "good" if quorum.ok else "bad"
    word = "quorum" if quorum.ok else "no quorum"
    alarms = "".join(
        f'<div class="alarm"><b>{escape(a.name)}</b> {escape(a.text)}</div>' for a in status.alarms
    )
    services = "".join(_service(service) for service in status.services)
    nodes = "".join(_node(node, status.node) for node in status.nodes)
    lines = "".join(
        f"<tr><td><time>{escape(d.at)}</time></td><td>{escape(d.text)}</td></tr>"
        for d in reversed(history)
    )
    return (
        "<!doctype html><html lang=en><head><meta charset=utf-8>"
        '<meta name=viewport content="width=device-width,initial-scale=1">'
        '<meta http-equiv=refresh content="5">'
        f"<title>{escape(status.cluster)} on {escape(status.node)}</title>"
        f"<style>{_STYLE}</style></head><body><main><header><h1>{escape(status.cluster)}</h1>"
        f"<span class=soft>seen from {escape(status.node)}</span>"
        f'<span class="{tone} tag">{word}: {quorum.reachable} of {quorum.voters} voters</span>'
        f"</header>{alarms}<h2>Services</h2><div class=card><table><tr><th>Service<th>Owner"
        f"<th>State<th>Epoch<th>Addresses<th>Next in line</tr>{services}</table></div>"
        "<h2>Nodes</h2><div class=card><table><tr><th>Node<th>Role<th>Rank<th>Calls<th>Health"
        f"<th>Copies<th>Links<th>Version</tr>{nodes}</table></div>"
        f"<h2>What happened</h2><div class=card><table>{lines}</table></div></main></body></html>"
    )


def _tag(word: str) -> str:
    return f'<span class="tag {_TONE.get(word, "bad")}">{escape(word)}</span>'


def _service(service: Service) -> str:
    return (
        f"<tr><td><b>{escape(service.name)}</b><td>{escape(service.owner or 'nobody')}"
        f"<td>{_tag(service.state)}<td class=n>{service.epoch}"
        f"<td>{'<br>'.join(escape(a) for a in service.addresses)}"
        f"<td>{escape(', '.join(service.successors) or 'nobody')}</tr>"
    )


def _node(node: Node, me: str) -> str:
    here = " <span class=soft>(this node)</span>" if node.id == me else ""
    links = "<br>".join(
        f"<span class={'good' if link.up else 'bad'}>{escape(link.address)}</span>"
        + (f" <span class=soft>{link.rtt_ms:.2f} ms</span>" if link.rtt_ms else "")
        for link in node.links
    )
    rank = "" if node.rank is None else str(node.rank)
    owns = f"<br><span class=soft>{escape(', '.join(node.services))}</span>"
    return (
        f"<tr><td><b>{escape(node.id)}</b>{here}<td>{_tag(node.role)}"
        f"{owns if node.services else ''}<td class=n>{rank}"
        f"<td class=n>{node.calls} of {node.capacity}<td class=n>{node.health}"
        f"<td>{_tag(node.sync.state)}<td>{links}<td>{escape(node.version)}</tr>"
    )
