"""FreeSWITCH's configuration of a node, as `fs_conf/` and haclusterd.toml make it: only contents.

What depends on the cluster is a file per SIP profile and a few variables. Everything is the same
on every node (EG11), so nothing here may depend on the host.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape

import haclusterd
from haclusterd.config import Config
from haclusterd.config.model import NODE_PLACEHOLDER

SIP_PORT = 5060
SIP_PORT_STEP = 20  # a second profile on the same address: FreeSWITCH's own habit of 5080
CORE_DB_SUFFIX = ".db"
# What belongs to the host, not into FreeSWITCH's folder.
HOST_FOLDERS = ("sysctl.d", "systemd")
# Written for the operator to go on with.
OPERATORS_FILES = frozenset({"acl/trunks.xml"})
CLUSTER_LIST = "acl/cluster.xml"

_TEMPLATE = "services/service.xml.template"
_GATEWAYS = "gateways/README"
_LOOPBACK = {"localhost": "127.0.0.1", "127.0.0.1": "127.0.0.1", "::1": "::1"}
_PLAIN_PATH = re.compile(r"[A-Za-z0-9_./@%+=:,-]+")
_SAFE_NAME = re.compile(r"[A-Za-z0-9_.-]+")
_VARIABLE = re.compile(r'(cmd="(?:exec-)?set" data=")(\w+)=[^"]*"')


class ConfError(Exception):
    """haclusterd.toml cannot be served by one configuration; one problem with its fix a line."""


@dataclass(frozen=True)
class Profile:
    """A SIP profile and where it listens; the same on every node."""

    name: str
    service: str
    address: str
    port: int = SIP_PORT


def source() -> Path:
    """Where `fs_conf/` is: inside the installed package, or beside it in a source tree."""
    package = Path(haclusterd.__file__).parent
    for candidate in (package / "fs_conf", package.parent / "fs_conf"):
        if (candidate / "freeswitch.xml").is_file():
            return candidate
    raise ConfError(f"fs_conf is missing: neither in {package} nor beside it; install haclusterd")


def profiles(config: Config) -> list[Profile]:
    """Every profile of every service. The n-th one has the n-th address of its service.

    Further ones share the first address, each on a port of its own.
    """
    found: list[Profile] = []
    for service in config.services:
        ips = [address.ip for address in service.addresses]
        for number, name in enumerate(service.profiles):
            further = max(0, number - len(ips) + 1)
            ip = ips[0] if further else ips[number]
            found.append(Profile(name, service.name, ip, SIP_PORT + SIP_PORT_STEP * further))
    return found


def render(config: Config) -> dict[str, bytes]:
    """Content by place below FreeSWITCH's folder. ConfError with all that stands in the way."""
    problems = list(_problems(config))
    if problems:
        raise ConfError("\n".join(problems))
    origin = source()
    found = {place: (origin / place).read_bytes() for place in _copied(origin)}
    found["vars.xml"] = _with_variables(found["vars.xml"].decode(), variables(config)).encode()
    addresses = [profile.address for profile in profiles(config)]
    found[CLUSTER_LIST] = cluster_list((origin / CLUSTER_LIST).read_text(), addresses).encode()
    template = (origin / _TEMPLATE).read_text()
    gateways = found.pop(_GATEWAYS)
    for profile in profiles(config):
        found[f"services/{profile.name}.xml"] = service_file(template, profile).encode()
        # FreeSWITCH logs an error for a folder that is not there.
        found[f"gateways/{profile.name}/README"] = gateways
    return dict(sorted(found.items()))


def variables(config: Config) -> dict[str, str]:
    """What haclusterd.toml says of FreeSWITCH, by the variable of vars.xml that carries it."""
    section = config.freeswitch
    if section is None:
        return {}
    return {
        "esl_password": f"cat {section.esl_password_file}",
        "esl_listen_ip": _LOOPBACK[section.esl_host],
        "esl_port": str(section.esl_port),
        "core_db_name": section.core_db.stem,
        "limits_port": str(section.limits_port),
    }


def cluster_list(template: str, addresses: Iterable[str]) -> str:
    """The list of all service addresses: calls to phones of other nodes come from them."""
    lines = [
        f'  <node type="allow" cidr="{address}/{128 if ":" in address else 32}"/>\n'
        for address in dict.fromkeys(addresses)
    ]
    return template.replace("</list>", "".join(lines) + "</list>")


def service_file(template: str, profile: Profile) -> str:
    """The file of one profile. ConfError if its name is none for a file."""
    if not _SAFE_NAME.fullmatch(profile.name) or profile.name.startswith("."):
        raise ConfError(f"profile name {profile.name!r}: letters, digits, '_', '.', '-' only")
    filled = template.replace("@NAME@", profile.name).replace("@ADDRESS@", profile.address)
    return filled.replace("@PORT@", str(profile.port))


def _copied(origin: Path) -> Iterator[str]:
    for path in sorted(origin.rglob("*")):
        place = path.relative_to(origin).as_posix()
        if path.is_file() and not place.startswith("test/") and place != _TEMPLATE:
            yield place


def _with_variables(text: str, values: dict[str, str]) -> str:
    """vars.xml with other defaults."""

    def changed(match: re.Match[str]) -> str:
        name = match[2]
        if name not in values:
            return match[0]
        return f'{match[1]}{name}={escape(values[name], {chr(34): "&quot;"})}"'

    return _VARIABLE.sub(changed, text)


def _problems(config: Config) -> Iterator[str]:
    section = config.freeswitch
    if section is None:
        yield "freeswitch: is missing, so only addresses move. Fix: add a section [freeswitch]"
        return
    if section.esl_host not in _LOOPBACK:
        yield (
            f'freeswitch.esl_host: "{section.esl_host}" is not the loopback, and whoever reaches '
            'that port owns FreeSWITCH. Fix: esl_host = "127.0.0.1"'
        )
    if not section.esl_port:
        yield "freeswitch.esl_port: is 0, so calls are not recovered. Fix: esl_port = 8021"
    password = str(section.esl_password_file)
    if NODE_PLACEHOLDER in password:
        yield (
            f"freeswitch.esl_password_file: {password} differs by node, and FreeSWITCH's files are "
            f"the same on all of them. Fix: a path without {NODE_PLACEHOLDER}"
        )
    elif not _PLAIN_PATH.fullmatch(password):
        yield (
            f"freeswitch.esl_password_file: {password!r} has characters that FreeSWITCH's shell "
            "would read. Fix: letters, digits and any of _ . / @ % + = : , -"
        )
    if section.core_db.suffix != CORE_DB_SUFFIX or not _SAFE_NAME.fullmatch(section.core_db.stem):
        yield (
            f"freeswitch.core_db: {section.core_db.name} is no name that FreeSWITCH can give it "
            f"on all nodes. Fix: FOLDER/core{CORE_DB_SUFFIX}"
        )
    if not any(service.profiles for service in config.services):
        yield 'service: none has a SIP profile. Fix: profiles = ["NAME"] in each [[service]]'
    yield from _problems_of_names([profile.name for profile in profiles(config)])


def _problems_of_names(names: Sequence[str]) -> Iterator[str]:
    """Names that differ in case only are one file where folders are shared with other systems."""
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(name.casefold(), name)
        if other != name:
            yield f"service.profiles: {other} and {name} differ in case only. Fix: another name"
