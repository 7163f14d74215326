"""One function per section of the file: from its table to the values of `config.model`.

Each also returns what belongs into `Config.document`: the content as written, defaults filled
in. What spans sections is judged in `config.rules`.
"""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path
from typing import Any

from haclusterd.config.model import ESL_BACKENDS, NODE_PLACEHOLDER, Api, FreeSwitch
from haclusterd.config.movers import read_mover
from haclusterd.config.presets import KEYS, MS_MAX, PRESETS, broken_rules
from haclusterd.config.reading import NAME, NAME_RULE, Section
from haclusterd.core.model import AddressSpec, NodeSpec

Document = dict[str, Any]

ADDRESSES_MAX = PROFILES_MAX = 64  # of one service
HOSTS_MAX = 32
PREFIX_MIN = {4: 8, 6: 16}  # a shorter one would route much of the internet to the NIC
_FREESWITCH_YOUNGER: Document = {
    "limits_port": 7803, "esl_backend": "native", "compare": True, "presence": False,
}  # fmt: skip
# The kernel takes nearly everything; what it takes and nobody uses would need quoting elsewhere.
_NIC = re.compile(r"(?!\.{1,2}$)[A-Za-z0-9._@+-]{1,15}")
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?")
_PLACEHOLDER = re.compile(r"\{[^{}]*\}")


def read_path(section: Section, name: str, base: Path, default: str) -> tuple[str, Path]:
    """(as written, as used): relative paths are relative to the folder of the file."""
    written = section.text(name, default, "a path")
    for found in _PLACEHOLDER.findall(written):
        if found != NODE_PLACEHOLDER:
            section.note(
                name, f"unknown placeholder {found}", f"only {NODE_PLACEHOLDER} is filled in"
            )
    if not written:
        section.note(name, "is empty", f'write a path, for example "{default}"')
    return written, base / written


def read_timing(section: Section, preset: str) -> dict[str, int]:
    """`[timing]` over the preset, in ms, by key of the file."""
    times = {}
    for stem in KEYS:
        key = f"{stem}_ms"
        times[key] = section.integer(key, PRESETS[preset][key], 1, MS_MAX[key])
    section.finish()
    for key, message, fix in broken_rules(times):
        section.note(key, message, fix)
    return times


def changed(younger: Document, usual: Document) -> Document:
    """Of keys that the first version did not know: those that say something else than it did.

    A file without them has to mean, and to hash, what it always meant: nodes of two versions would
    refuse each other's claims in a rolling upgrade, and an upgrade the running configuration.
    """
    return {key: value for key, value in younger.items() if value != usual[key]}


def read_freeswitch(section: Section, base: Path) -> tuple[FreeSwitch, Document]:
    host = section.text("esl_host", "127.0.0.1", "an address or host name")
    if not is_host(host):
        fix = 'write the address mod_event_socket listens on, for example "127.0.0.1"'
        section.note("esl_host", f'"{host}" is no address and no host name', fix)
    port = section.integer("esl_port", 8021, 0, 65535)
    password, password_path = read_path(section, "esl_password_file", base, "esl.password")
    db, db_path = read_path(section, "core_db", base, "/var/lib/freeswitch/db/core.db")
    pid, pid_path = read_path(section, "pid_file", base, "/run/freeswitch/freeswitch.pid")
    command = section.texts("start_command", [], "a command and its words")
    usual = _FREESWITCH_YOUNGER
    limits = section.integer("limits_port", usual["limits_port"], 0, 65535)
    backend = section.choice("esl_backend", list(ESL_BACKENDS), usual["esl_backend"])
    compare = section.flag("compare", usual["compare"])
    presence = section.flag("presence", usual["presence"])
    section.finish()
    found = FreeSwitch(
        host, port, password_path, db_path, pid_path, tuple(command), limits, backend, compare,
        presence,
    )  # fmt: skip
    written: Document = {
        "esl_host": host,
        "esl_port": port,
        "esl_password_file": password,
        "core_db": db,
        "pid_file": pid,
        "start_command": command,
    }
    younger: Document = {
        "limits_port": limits, "esl_backend": backend, "compare": compare, "presence": presence,
    }  # fmt: skip
    return found, written | changed(younger, _FREESWITCH_YOUNGER)


def read_api(section: Section, base: Path) -> tuple[Api, Document]:
    written, socket = read_path(section, "socket", base, "/run/haclusterd/haclusterd.sock")
    http = section.text("http", "127.0.0.1:7802", 'ADDRESS:PORT, or ""')
    hosts = _read_hosts(section)
    section.finish()
    host, port = "", 0
    if http:
        host, _, digits = http.rpartition(":")
        host = host.removeprefix("[").removesuffix("]")
        good = digits.isascii() and digits.isdigit() and len(digits) < 6
        if not (is_host(host) and good and 0 < int(digits) < 65536):
            section.note(
                "http",
                f'"{http}" is not ADDRESS:PORT',
                'write for example "127.0.0.1:7802" or "[::1]:7802", or "" for no HTTP',
            )
            host, port = "", 0
        else:
            port = int(digits)
    document: Document = {"socket": written, "http": http}
    if hosts:  # a file without it means what it meant to earlier versions
        document["hosts"] = hosts
    return Api(socket, host, port, tuple(hosts)), document


def _read_hosts(section: Section) -> list[str]:
    hosts = section.texts("hosts", [], "host names")
    for host in hosts:
        if not is_host(host):
            fix = 'write names without a port, for example "status.example.org"'
            section.note("hosts", f'"{host}" is no host name', fix)
    if len(hosts) > HOSTS_MAX:
        section.note("hosts", f"{len(hosts)} are too many", f"use at most {HOSTS_MAX}")
    return hosts


def is_host(text: str) -> bool:
    """Whether this can be a host name or an address."""
    if _HOST.fullmatch(text):
        return True
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def read_node(section: Section) -> tuple[NodeSpec, Document]:
    node_id = section.named("id")
    links = tuple(
        _read_link(section, text) for text in section.texts("links", allowed="IP addresses")
    )
    priority = section.integer("priority", 100, 0, 65535)
    capacity = section.integer("capacity", 1000, 1, 1_000_000)
    witness = section.flag("witness", False)
    section.finish()
    found = NodeSpec(node_id, links, priority, capacity, witness)
    return found, {
        "id": node_id,
        "links": list(links),
        "priority": priority,
        "capacity": capacity,
        "witness": witness,
    }


def _read_link(section: Section, text: str) -> str:
    """A link address in canonical text, as the kernel will show it."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        fix = "write one plain IPv4 or IPv6 address per heartbeat NIC"
        section.note("links", f'"{text}" is not an IP address', fix)
        return text
    if reason := _unfit(address):
        fix = "use an address that belongs to this NIC of this node alone"
        section.note("links", f'"{text}" cannot serve as a link address: {reason}', fix)
    return str(address)


def _unfit(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> str:
    """Why no other host could use this address, or nothing."""
    if address.is_loopback:
        return "it is a loopback address, which never leaves the host"
    if address.is_unspecified:
        return "it stands for no address"
    if address.is_multicast:
        return "it is a multicast address"
    if address.is_link_local:
        return "it is link-local, and means another host on every NIC"
    if isinstance(address, ipaddress.IPv4Address):
        return "it is reserved" if address.is_reserved else ""
    if address.scope_id is not None:
        return "it has a scope, which is another one on every host"
    mapped = address.ipv4_mapped
    return f"write it as {mapped}" if mapped is not None else ""


class ServiceText:
    """A service as the file has it: `preferred` is still a name."""

    def __init__(self, section: Section) -> None:
        self.section = section
        self.name = section.named("name")
        self.addresses = tuple(
            address
            for text in section.texts("addresses", allowed='"IP/LENGTH dev NIC"')
            if (address := _read_address(section, text)) is not None
        )
        self.profiles = tuple(section.texts("profiles", [], "names"))
        for key, found, most in (
            ("addresses", self.addresses, ADDRESSES_MAX),
            ("profiles", self.profiles, PROFILES_MAX),
        ):
            if len(found) > most:
                section.note(key, f"{len(found)} are too many", f"use at most {most} per service")
        for profile in self.profiles:
            if not NAME.fullmatch(profile):
                section.note("profiles", f'"{profile}" cannot serve as a name', NAME_RULE)
        self.preferred = section.text("preferred", "", "the id of a node")
        self.priority = section.integer("priority", 10, 0, 65535)
        self.mover, self._mover_document = read_mover(section, self.name)
        section.finish()

    def document(self) -> Document:
        return {
            "name": self.name,
            "addresses": [f"{a.ip}/{a.prefix} dev {a.nic}" for a in self.addresses],
            "profiles": list(self.profiles),
            "preferred": self.preferred,
            "priority": self.priority,
            **self._mover_document,  # only where it is: see `load`
        }


def _read_address(section: Section, text: str) -> AddressSpec | None:
    """ "IP/len dev NIC", or None after noting what is wrong with it."""
    words = text.split()
    fix = 'write it as "203.0.113.10/24 dev eth0"'
    if len(words) != 3 or words[1] != "dev" or "/" not in words[0]:
        section.note("addresses", f'"{text}" is not "IP/LENGTH dev NIC"', fix)
        return None
    try:
        interface = ipaddress.ip_interface(words[0])
    except ValueError as error:
        section.note("addresses", f'"{text}": {error}', fix)
        return None
    if not words[0].partition("/")[2].isdigit():
        section.note("addresses", f'"{text}": the length is not a number of bits', fix)
        return None
    if not _NIC.fullmatch(words[2]):
        fix = "write it as `ip link` shows it: at most 15 letters, digits, and any of . _ @ + -"
        section.note("addresses", f'"{text}": "{words[2]}" cannot be the name of a NIC', fix)
        return None
    _refuse_unusable(section, interface)
    return AddressSpec(str(interface.ip), interface.network.prefixlen, words[2])


def _refuse_unusable(
    section: Section, interface: ipaddress.IPv4Interface | ipaddress.IPv6Interface
) -> None:
    ip, network = interface.ip, interface.network
    kind = ""
    if reason := _unfit(ip):
        kind = f"an address that no client can reach: {reason}"
    elif network.prefixlen < PREFIX_MIN[ip.version]:
        kind = f"too wide: a length below {PREFIX_MIN[ip.version]} routes half the world to the NIC"
    elif network.prefixlen < ip.max_prefixlen - 1:
        if ip == network.network_address:
            kind = f"the address of the network {network} itself"
        elif ip.version == 4 and ip == network.broadcast_address:
            kind = f"the broadcast address of {network}"
    if kind:
        section.note("addresses", f'"{interface}" is {kind}', "use the address of one host")
