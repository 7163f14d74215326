"""`export upstream`: the cluster's addresses as those in front of it want them written.

A service's addresses stay the same whoever serves it, so what is written here is written once.
Order "weight": all alike. Order "priority": top down, the next one only where the first is silent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from haclusterd.core.text import printable

FORMATS = ("kamailio", "opensips", "cube", "dns")
ORDERS = ("weight", "priority")
TRANSPORTS = ("udp", "tcp", "tls")
CUBE_SERVERS_MAX = 5  # of one server-group


class Wanted(NamedTuple):
    """How it is to be written."""

    port: int
    transport: str
    order: str
    domain: str
    group: int


class Target(NamedTuple):
    """One address of one service. `place` counts services from 0."""

    service: str
    ip: str
    place: int


def targets(status: dict[str, Any]) -> list[Target]:
    """In the order of the configuration."""
    return [
        Target(printable(service["name"]), address.partition("/")[0], place)
        for place, service in enumerate(status["services"])
        if not service.get("closed")
        for address in service["addresses"]
    ]


def export(form: str, status: dict[str, Any], wanted: Wanted) -> str:
    """The whole text, commented in the manner of its reader."""
    mark = {"kamailio": "#", "opensips": "--", "cube": "!", "dns": ";"}[form]
    order = "top down" if wanted.order == "priority" else "all alike"
    head = f"{mark} cluster {printable(status['cluster'])}, {order}: haclusterctl export upstream\n"
    shut = [printable(s["name"]) for s in status["services"] if s.get("closed")]
    if shut:
        head += f"{mark} left out, because they take no new calls now: {', '.join(shut)}\n"
    lines = _FORMS[form](targets(status), wanted)
    return head + "".join(f"{line}\n" for line in lines)


def _kamailio(found: Sequence[Target], wanted: Wanted) -> Iterator[str]:
    """dispatcher.list: setid, destination, flags, priority (higher first), attributes."""
    last = max((target.place for target in found), default=0)
    weight = 100 // max(1, len(found))
    for target in found:
        priority = last - target.place if wanted.order == "priority" else 0
        attributes = f"service={target.service}"
        if wanted.order == "weight":
            attributes = f"weight={weight};rweight={weight};{attributes}"
        yield f"{wanted.group} {_uri(target, wanted)} 0 {priority} {attributes}"


def _opensips(found: Sequence[Target], wanted: Wanted) -> Iterator[str]:
    """Rows of table `dispatcher`; algorithm 8 uses the higher priority first."""
    last = max((target.place for target in found), default=0)
    for target in found:
        priority = last - target.place if wanted.order == "priority" else 0
        yield (
            "INSERT INTO dispatcher (setid, destination, state, weight, priority, description) "
            f"VALUES ({wanted.group}, '{_uri(target, wanted)}', 0, 1, {priority}, "
            f"'{_quoted(target.service)}');"
        )


def _cube(found: Sequence[Target], wanted: Wanted) -> Iterator[str]:
    """Server groups and an OPTIONS keepalive; the smaller preference is used first."""
    transport = "tcp tls" if wanted.transport == "tls" else wanted.transport
    yield "voice class sip-options-keepalive 1"
    yield f" transport {transport}"
    yield " down-interval 5"
    yield " up-interval 5"
    yield " retry 2"
    for family in ("ipv4", "ipv6"):
        some = [t for t in found if (":" in t.ip) == (family == "ipv6")]
        for number in range(0, len(some), CUBE_SERVERS_MAX):
            group = wanted.group + number // CUBE_SERVERS_MAX + (50 if family == "ipv6" else 0)
            yield "!"
            yield f"voice class server-group {group}"
            for place, target in enumerate(some[number : number + CUBE_SERVERS_MAX], start=1):
                preference = place if wanted.order == "priority" else 1
                ip = f"[{target.ip}]" if family == "ipv6" else target.ip
                yield f" {family} {ip} port {wanted.port} preference {preference}"
            if wanted.order == "weight":
                yield " hunt-scheme round-robin"


def _dns(found: Sequence[Target], wanted: Wanted) -> Iterator[str]:
    """SRV records and the addresses that they name, for a zone file."""
    scheme = "_sips._tcp" if wanted.transport == "tls" else f"_sip._{wanted.transport}"
    domain = wanted.domain.rstrip(".") + "."
    seen: set[str] = set()
    for target in found:
        if target.service in seen:
            continue
        seen.add(target.service)
        priority = 10 * (target.place + 1) if wanted.order == "priority" else 10
        yield f"{scheme}.{domain} 300 IN SRV {priority} 10 {wanted.port} {_label(target)}.{domain}"
    for target in found:
        kind = "AAAA" if ":" in target.ip else "A"
        yield f"{_label(target)}.{domain} 300 IN {kind} {target.ip}"


def _label(target: Target) -> str:
    """A service's name as a DNS label: letters, digits and hyphens, an end that is none."""
    text = "".join(char if char.isalnum() else "-" for char in target.service.lower())
    return text.strip("-") or f"service{target.place + 1}"


def _uri(target: Target, wanted: Wanted) -> str:
    host = f"[{target.ip}]" if ":" in target.ip else target.ip
    return f"sip:{host}:{wanted.port};transport={wanted.transport}"


def _quoted(text: str) -> str:
    return text.replace("\\", "\\\\").replace("'", "''")


_FORMS: dict[str, Callable[[Sequence[Target], Wanted], Iterator[str]]] = {
    "kamailio": _kamailio,
    "opensips": _opensips,
    "cube": _cube,
    "dns": _dns,
}
