"""docs/metrics.md, made of the catalog of metrics and the meanings of outcomes.

`pytest tests/unit/test_metrics.py --rewrite` writes it.
"""

from __future__ import annotations

from haclusterd.agent.metrics import CATALOG, PREFIX

_HEAD = """# Metrics

Generated from `haclusterd/agent/metrics.py` (`pytest tests/unit/test_metrics.py --rewrite`); do not
edit.

`/metrics` of the HTTP interface (`[api] http`) has these, in Prometheus' text format.
[`contrib/`](../contrib/README.md) has alert rules and a Grafana dashboard that use them.

| name | kind | labels | meaning |
|---|---|---|---|
"""
_MIDDLE = """
Counters end in `_total` there; those of links and peers start again with heart, also at an
upgrade. `link` is this node's own address of the link. Every node has the whole cluster, as it sees
it: aggregate by `max` or `min`, not by `sum`.

## Outcomes of a datagram

No datagram with another outcome than `ok` changes anything but its counter.

| outcome | what it was |
|---|---|
"""
OUTCOMES = {
    "ok": "a beat of this cluster",
    "malformed": "no beat: too short, wrong magic, or a body that contradicts it",
    "foreign": "another cluster, or not the address the sender has on this link",
    "unknown_key": "sealed with a key that this node does not have",
    "bad_mac": "forged, damaged, or another key under the same id",
    "replay": "seen before, or too old to tell",
    "version": "another version of the wire format",
    "oversize": "larger than a beat can be",
    "other_config": "authentic, but nodes or services are not numbered as here",
    "alien_source": "from an address that no configured peer has on this link; not looked into",
}


def render() -> str:
    """The whole document."""
    rows = [
        f"| `{PREFIX}_{metric.name}` | {metric.kind} | {', '.join(metric.labels)} "
        f"| {metric.text} |\n"
        for metric in CATALOG
    ]
    outcomes = [f"| `{name}` | {meaning} |\n" for name, meaning in OUTCOMES.items()]
    return "".join([_HEAD, *rows, _MIDDLE, *outcomes])
