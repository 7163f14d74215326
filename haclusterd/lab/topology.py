"""The wires of a laboratory: namespaces, one bridge per NIC, a client, and cutting cables.

    switch namespace     bridge svc, hb1, hb2 ..   one port per node and NIC, one for the client
    node namespaces      NIC svc, hb1, hb2 ..      named alike in every node
    client namespace     NIC svc

A cable is cut by putting the bridge port into the state `disabled`: nothing passes, and neither
side sees its carrier go, as with a switch that hangs. Many ports change in one netlink datagram.
"""

from __future__ import annotations

import shutil
import socket
import struct
from collections.abc import Iterable
from types import TracebackType

from haclusterd.lab import netns
from haclusterd.lab.netns import LabError
from haclusterd.lab.plan import SERVICE_NIC, LabPlan, NodePlan

CLIENT_MAC = "02:ac:00:00:00:fe"
_RTM_SETLINK, _NLM_F_REQUEST, _NLM_F_ACK, _NLMSG_ERROR = 19, 1, 4, 2
_IFLA_PROTINFO, _IFLA_BRPORT_STATE, _NESTED = 12, 1, 0x8000
_DISABLED, _FORWARDING = 0, 3

_NODE_SYSCTLS = {
    "ipv4/ip_nonlocal_bind": 1,
    "ipv6/ip_nonlocal_bind": 1,
    # One host, several NICs: each answers only for what is on it.
    "ipv4/conf/all/arp_ignore": 1,
    "ipv4/conf/all/arp_announce": 2,
    "ipv4/conf/all/rp_filter": 0,
    "ipv6/conf/all/accept_ra": 0,
    "ipv6/conf/default/accept_ra": 0,
    "ipv6/conf/all/accept_dad": 0,
    "ipv6/conf/default/accept_dad": 0,
}


class Topology:
    """The namespaces and wires of one laboratory. A context manager; `name` is unique."""

    def __init__(self, plan: LabPlan) -> None:
        self.plan = plan
        self.name = _unused_name()
        self.directory = netns.base_dir() / self.name
        self.switch = f"{self.name}-sw"
        self.client = f"{self.name}-cl"
        self._ports: dict[str, int] = {}
        self._netlink: socket.socket | None = None

    def __enter__(self) -> Topology:
        try:
            self._up()
        except BaseException:
            self.down()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.down()

    def namespace(self, node_id: str) -> str:
        return f"{self.name}-{node_id}"

    @property
    def namespaces(self) -> list[str]:
        return [self.switch, self.client, *(self.namespace(n.id) for n in self.plan.nodes)]

    def down(self, *, keep_files: bool = False) -> None:
        """Remove everything; harmless when repeated."""
        if self._netlink is not None:
            self._netlink.close()
            self._netlink = None
        netns.kill_inside(self.namespaces)
        netns.delete(self.namespaces)
        if not keep_files:
            shutil.rmtree(self.directory, ignore_errors=True)

    def release(self) -> None:
        """Let the laboratory live on without this process (`lab down` ends it)."""
        (self.directory / netns.KEPT).touch()

    def cut(self, node_id: str, nics: Iterable[str] = ()) -> None:
        """Cut cables of a node, all of them unless `nics` names some, in one instant."""
        self._set_ports(_port_names(self.plan, node_id, nics), _DISABLED)

    def plug(self, node_id: str, nics: Iterable[str] = ()) -> None:
        self._set_ports(_port_names(self.plan, node_id, nics), _FORWARDING)

    def _up(self) -> None:
        reason = netns.why_not()
        if reason:
            raise LabError(reason)
        netns.remove_left_overs()
        self.directory.mkdir(parents=True)
        netns.ip(batch=[f"netns add {name}" for name in self.namespaces])
        for name in self.namespaces:
            netns.sysctl(name, _NODE_SYSCTLS)
        netns.ip(namespace=self.switch, batch=list(self._switch_lines()))
        for node in self.plan.nodes:
            netns.ip(namespace=self.namespace(node.id), batch=self._node_lines(node))
        netns.ip(namespace=self.client, batch=self._client_lines())
        with netns.inside(self.switch):
            self._netlink = socket.socket(
                socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE
            )
            self._netlink.bind((0, 0))
            self._netlink.settimeout(2.0)
            self._ports = {name: index for index, name in socket.if_nameindex()}

    def _switch_lines(self) -> Iterable[str]:
        yield "link set lo up"
        for nic in self.plan.node_nics:
            yield f"link add {nic} type bridge stp_state 0 forward_delay 0 mcast_snooping 0"
            yield f"link set {nic} up"
        for node in self.plan.nodes:
            for nic in self.plan.node_nics:
                port = _port_name(node.number, nic)
                address = f"address {node.mac} " if nic == SERVICE_NIC else ""
                peer = f"peer name {nic} {address}netns {self.namespace(node.id)}"
                yield f"link add {port} type veth {peer}"
                yield f"link set {port} master {nic} up"
        yield f"link add client type veth peer name svc address {CLIENT_MAC} netns {self.client}"
        yield f"link set client master {SERVICE_NIC} up"

    def _node_lines(self, node: NodePlan) -> list[str]:
        lines = ["link set lo up"]
        for nic, address in zip(self.plan.heartbeat_nics, node.links, strict=True):
            lines += [f"addr add {address}/24 dev {nic}", f"link set {nic} up"]
        return [
            *lines,
            f"addr add {node.service_ip}/24 dev {SERVICE_NIC}",
            f"addr add fd00:9::{node.number}/64 dev {SERVICE_NIC} nodad",
            f"link set {SERVICE_NIC} up",
        ]

    def _client_lines(self) -> list[str]:
        return [
            "link set lo up",
            f"addr add {self.plan.client_ip}/24 dev {SERVICE_NIC}",
            f"addr add {self.plan.client_ip6}/64 dev {SERVICE_NIC} nodad",
            f"link set {SERVICE_NIC} up",
        ]

    def _set_ports(self, names: list[str], state: int) -> None:
        if self._netlink is None:
            raise LabError("the laboratory is down")
        self._netlink.send(b"".join(_port_message(self._ports[name], state) for name in names))
        answers = 0
        while answers < len(names):
            data = self._netlink.recv(65536)
            while len(data) >= 16:
                length, kind = struct.unpack_from("=IH", data)
                error = -struct.unpack_from("=i", data, 16)[0] if kind == _NLMSG_ERROR else 0
                if error:
                    raise LabError(f"bridge ports {names}: errno {error}")
                answers += kind == _NLMSG_ERROR
                data = data[(length + 3) & ~3 :]


def _unused_name() -> str:
    """Several laboratories may run in one process, as in tests."""
    taken = netns.laboratories()
    name, number = netns.own_name(), 0
    while f"{name}-{number}" in taken:
        number += 1
    return f"{name}-{number}"


def _port_name(node_number: int, nic: str) -> str:
    return f"n{node_number}{nic}"


def _port_names(plan: LabPlan, node_id: str, nics: Iterable[str]) -> list[str]:
    node = next(node for node in plan.nodes if node.id == node_id)
    return [_port_name(node.number, nic) for nic in (tuple(nics) or plan.node_nics)]


def _attribute(kind: int, payload: bytes) -> bytes:
    size = 4 + len(payload)
    return struct.pack("=HH", size, kind) + payload + b"\0" * (-size % 4)


def _port_message(index: int, state: int) -> bytes:
    body = struct.pack("=BxHiII", socket.AF_BRIDGE, 0, index, 0, 0)
    body += _attribute(_IFLA_PROTINFO | _NESTED, _attribute(_IFLA_BRPORT_STATE, bytes([state])))
    flags = _NLM_F_REQUEST | _NLM_F_ACK
    return struct.pack("=IHHII", 16 + len(body), _RTM_SETLINK, flags, 1, 0) + body
