"""A cluster of 20 nodes and 50 services in an ordinary bad night, for the page and the commands."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from haclusterd.agent import schema, status
from haclusterd.agent.clock import now_us, wall_text
from haclusterd.agent.events import Book
from haclusterd.agent.history import History
from haclusterd.agent.metrics import Outside
from haclusterd.agent.operators import Operators
from haclusterd.agent.orders import Orders
from haclusterd.agent.peers import Word
from haclusterd.agent.registrations import Listed
from haclusterd.agent.reports import Reports
from haclusterd.agent.traces import Traces
from haclusterd.core.model import AddressSpec, ClusterSpec, NodeSpec, ServiceSpec
from haclusterd.core.records import CallRecord
from haclusterd.core.view import AlarmView, LinkView, NodeView, ServiceView, View
from haclusterd.freeswitch.risks import Ringing
from tests.fixtures.agent_parts import TIMING

NODES = 20
SERVICES = 50
MASTERS = 15
DEAD = 4  # fs-05 was lost; fs-16 has its services
ILL = 8  # the disk of fs-09 is full
CLOSED = 3  # vienna-1 is drained
HOSTILE = '<img src=x onerror="document.title=1">\u202eevil\x1b[2J'
TIMELINE = [("last_heartbeat", 0.0), ("dead", 150.4), ("claimed", 151.0), ("granted", 152.3),
            ("address_up", 153.2), ("announced", 153.9), ("injected", 171.0),
            ("first_reinvite", 184.2), ("first_answer", 197.5), ("recovered", 262.8)]  # fmt: skip
TIMELINE_EXIT = [("dead", 0.0), ("claimed", 0.6), ("granted", 2.1), ("address_up", 3.4),
                 ("announced", 4.1), ("injected", 16.0), ("first_reinvite", 29.2),
                 ("recovered", 91.0)]  # fmt: skip


def spec() -> ClusterSpec:
    """Its configuration."""
    nodes = tuple(NodeSpec(name(n), (f"10.1.0.{n + 1}", f"10.2.0.{n + 1}")) for n in range(NODES))
    services = tuple(
        ServiceSpec(service(k), (AddressSpec(f"203.0.113.{k + 10}", 24, "eth0"),))
        for k in range(SERVICES)
    )
    return ClusterSpec("voice1", 0, nodes, services, TIMING)


def name(n: int) -> str:
    return f"fs-{n + 1:02d}"


def view(hostile: bool = False, quiet: bool = False) -> View:
    """`hostile`: names and reasons that want to be more than text. `quiet`: nothing is wrong."""
    dead = -1 if quiet else DEAD
    owner = {k: k % MASTERS for k in range(SERVICES)}
    if not quiet:
        owner |= {k: MASTERS for k, n in owner.items() if n == DEAD}
    ids = [name(n) for n in range(NODES)]
    slaves = [n for n in range(NODES) if n not in owner.values() and n != dead]
    lost = SERVICES - 1 if not quiet else -1
    nodes = tuple(
        NodeView(
            ids[n], "dead" if n == dead else "master" if n in owner.values() else "slave",
            tuple(service(k) for k, o in owner.items() if o == n and k != lost),
            slaves.index(n) if n in slaves else -1, 100 - n % 3,
            tuple(LinkView(f"10.{nic}.0.{n + 1}", n != dead and (quiet or (n, nic) != (7, 2)),
                           0 if n in (0, dead) else 380 + 11 * n, 0) for nic in (1, 2)),
            0 if n == dead or n in slaves else 120 + 37 * n, 1000, 0, 0, (True,) * SERVICES,
        )
        for n in range(NODES)
    )  # fmt: skip
    services = tuple(
        ServiceView(
            service(k), "" if k == lost else ids[owner[k]], 8 if owner[k] == MASTERS else 3,
            "unserved" if k == lost else "owned", "standby",
            (f"203.0.113.{k + 10}/24 dev eth0", f"2001:db8::{k + 10:x}/64 dev eth0"),
            tuple(ids[n] for n in slaves), 0, "",
        )
        for k in range(SERVICES)
    )  # fmt: skip
    if hostile:
        services = (_named(services[0], HOSTILE), *services[1:])
    alarms = () if quiet else (
        AlarmView("unserved", f"nobody serves {service(lost)}"),
        AlarmView("single_link", f"one link left to {ids[7]}"),
        *((AlarmView("x", HOSTILE),) if hostile else ()),
    )  # fmt: skip
    return View("voice1", ids[0], now_us(), "majority", NODES, NODES - (not quiet), True, 0xABC, 7,
                nodes, services, alarms, ("x",))  # fmt: skip


def service(k: int) -> str:
    places = ("berlin", "paris", "madrid", "vienna", "oslo", "lisbon", "rome", "dublin", "athens",
              "prague")  # fmt: skip
    return f"{places[k % len(places)]}-{k // len(places) + 1}"


def _named(one: ServiceView, text: str) -> ServiceView:
    import msgspec

    return msgspec.structs.replace(one, name=text)


def report(number: int, **changed: Any) -> schema.Report:
    """A takeover of a lost node, unless `changed` says otherwise."""
    values: dict[str, Any] = {
        "number": number, "at": wall_text(now_us() - 40_000_000 + number * 1_000_000),
        "service": service(DEAD + MASTERS * (number % 3)), "from_": name(DEAD),
        "to": name(MASTERS), "epoch": 8, "cause": f"{name(DEAD)} is silent on both links",
        "timeline": [schema.Moment(at, event) for event, at in TIMELINE], "outage_ms": 153.2,
        "calls": schema.Calls(97, 97, 0, 0, []),
    }  # fmt: skip
    return schema.Report(**(values | changed))


class Large:
    """What the daemon of the first node would tell (`commands.Source`)."""

    def __init__(self, hostile: bool = False, quiet: bool = False) -> None:
        self.now = view(hostile, quiet)
        self.history = History()
        self.events = Book("fs-a", 1)
        self.spec = spec()
        self.reports = Reports(None)
        self.traces = Traces(spec(), Path("none"), lambda message: None)
        self.operators = Operators(spec(), self.history, lambda: self.now, lambda message: None)
        self.orders = Orders(
            spec(), Path("none"), lambda: self.now, self.operators.ask, lambda message: None
        )
        self.told = [] if quiet else [
            report(1, timeline=[schema.Moment(at, event) for event, at in TIMELINE_EXIT],
                   outage_ms=3.4, service="oslo-1", from_="fs-09", to="fs-11", epoch=3,
                   cause="fs-09 released it: its FreeSWITCH exited",
                   calls=schema.Calls(120, 118, 1, 1, [])),
            report(2), report(3), report(4),
        ]  # fmt: skip
        text = HOSTILE if hostile else "slave fs-16 claims paris-2 epoch 8: fs-05 is silent"
        for row in range(12):
            self.history.add(f"T{101 + 2 * row}", text, now_us() - (12 - row) * 7_000_000)

        self.maintaining: Any = None
        self.failover: Any = None
        self.rotation: Any = None

    def closed(self) -> dict[str, str]:
        return {service(CLOSED): "drained by anna on fs-01"}

    def view(self) -> View:
        return self.now

    def status(self) -> schema.Status:
        ill = schema.SensorState("disk", "disk", "critical", "97 % used", 60, False, "")
        words = {
            name(n): Word(
                "0.1.0", schema.Sync("syncing" if n == 18 else "in-sync", n % 4),
                sensors=[ill] if n == ILL else [],
            )
            for n in range(1, NODES)
            if n != DEAD
        }  # fmt: skip
        coming = {service(1): schema.Progress(40, 40, 12)}
        return status.status(
            self.now, schema.Sync("in-sync", 3), words, recovering=coming, closed=self.closed()
        )

    def about(self) -> schema.About:
        return schema.About("0.1.0", "fs-01", "voice1", 1, 2, "now", "c.toml", "ff", "/run")

    def sync(self) -> Any:
        return None

    def calls_here(self) -> Iterator[tuple[str, str, CallRecord]]:
        yield from ()

    def registrations(self) -> Iterator[Listed]:
        yield from ()

    def service_risks(self) -> dict[str, str]:
        return {}

    async def ringing(self) -> list[tuple[str, Ringing]]:
        return []

    def at_risk(self) -> list[str]:
        return []

    def stale(self) -> bool:
        return False

    def heart_silent(self) -> str:
        return ""

    def not_ready(self) -> str:
        return ""

    def counters(self) -> dict[str, int]:
        return {"decisions": self.history.total}

    def certificate_ends(self) -> dict[str, float]:
        return {}

    def outside(self) -> Outside:
        return Outside({}, {})

    def health_reasons(self) -> list[str]:
        return ["fs-a: health 40: disk critical -60 (97 % used)"]

    def known_reports(self) -> list[schema.Report]:
        return self.told
