"""What a registration is, and which of its texts may travel.

A SIP user wrote the contact and the user agent, so nothing is taken as it comes: rows of table
`sip_registrations` become `Registration`s here or are refused with a reason, and records of other
nodes are held to the same rules before they become rows again. What passes can stand in a dial
string: no quote, no line break, no separator or variable of a dial string, however often encoded.
"""

from __future__ import annotations

import ipaddress
import re
import time
from dataclasses import dataclass
from hashlib import blake2b
from typing import NamedTuple
from urllib.parse import quote, unquote

from haclusterd.core.records import Registration

TEXT_MAX = 255
CONTACT_MAX = 1023  # mod_sofia's buffer has 1024
DECODE_ROUNDS = 4
OWN_PARAMETER = "ha_to"  # see `via_owner`

_USER = re.compile(r"[A-Za-z0-9_.!~*+=%&/-]{1,255}")
_HOST = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9.-]{0,253}[A-Za-z0-9])?|\[[0-9A-Fa-f:.]{2,45}\]")
_PARAMETERS = re.compile(r"(?:;[A-Za-z0-9_.!~*+%-]{1,64}(?:=[A-Za-z0-9_.!~*+%:/@\[\]-]{0,900})?)*")
_URI = re.compile(
    rf"(?P<scheme>sips?):(?P<user>{_USER.pattern})@(?P<host>{_HOST.pattern})"
    rf"(?::(?P<port>[0-9]{{1,5}}))?(?P<rest>{_PARAMETERS.pattern})"
)
_CONTACT = re.compile(r'(?:"(?P<display>[^"\\]{0,120})"\s*)?<(?P<uri>[^<>"]+)>')
CALL_ID = re.compile(r"[A-Za-z0-9_.!~*+=%@:/?()\[\]{}-]{1,255}")
_STATUS = re.compile(r"Registered(?:\([A-Za-z-]{1,20}\))?")
_WORD = re.compile(r"[A-Za-z0-9_.-]{0,64}")
_NAME = re.compile(r"[A-Za-z0-9_.@!~*+=%&:-]{0,255}")
HOSTS = re.compile(r"[A-Za-z0-9_.,:\[\]/ -]{0,255}")
# What ends or begins something in SQL, ESL, XML or a dial string.
_FORBIDDEN = re.compile(r"[\x00-\x20\x7f\"'`\\<>{}|^$,]")


class Refused(ValueError):
    """A registration that does not travel; the message names the field."""


class Uri(NamedTuple):
    """A contact's address; `rest` holds the parameters with their semicolons."""

    scheme: str
    user: str
    host: str
    port: str
    rest: str


class Row(NamedTuple):
    """The columns of `sip_registrations` that matter, in the order of COLUMNS."""

    call_id: str
    sip_user: str
    sip_host: str
    presence_hosts: str
    contact: str
    status: str
    rpid: str
    expires: int
    user_agent: str
    server_user: str
    server_host: str
    profile_name: str
    hostname: str
    network_ip: str
    network_port: str
    sip_username: str
    sip_realm: str
    mwi_user: str
    mwi_host: str
    orig_server_host: str
    orig_hostname: str
    sub_host: str
    force_ping: int

    @property
    def key(self) -> str:
        return key_of(self.profile_name, self.sip_user, self.sip_host, self.call_id, self.contact)


COLUMNS = Row._fields
BY_US = "haclusterd"  # orig_hostname of rows that lead to another node


def wall_s() -> float:
    """Now, as the column `expires` counts: the only times here that are FreeSWITCH's and people's.

    Another node may have another: `agent.wall_clocks` converts.
    """
    return time.time()


def key_of(profile: str, user: str, host: str, call_id: str, contact: str) -> str:
    """Names one contact of one user in one profile."""
    text = "\0".join((profile, user, host, call_id, contact)).encode("utf-8", "surrogateescape")
    return blake2b(text, digest_size=16).hexdigest()


def record_of_row(row: Row, service: str, version: int) -> Registration:
    """One row as it travels. Raises Refused."""
    record = Registration(
        service=service,
        uuid=row.key,
        version=version,
        profile=row.profile_name,
        user=row.sip_user,
        host=row.sip_host,
        contact=row.contact,
        call_id=row.call_id,
        expires_s=row.expires,
        status=row.status,
        rpid=row.rpid if _WORD.fullmatch(row.rpid) else "unknown",
        user_agent=harmless(row.user_agent),
        server_user=row.server_user,
        network_ip=row.network_ip,
        network_port=row.network_port,
        username=row.sip_username,
        realm=row.sip_realm,
        mwi_user=row.mwi_user,
        mwi_host=row.mwi_host,
        sub_host=row.sub_host,
        presence_hosts=row.presence_hosts,
        force_ping=1 if row.force_ping else 0,
    )
    check(record)
    return record


def check(record: Registration) -> Uri:
    """Refuse what must not reach another FreeSWITCH; the contact's address. Raises Refused."""
    uri = contact_uri(record.contact)
    _demand("user", record.user, _USER)
    for name, value in (("host", record.host), ("sub_host", record.sub_host or record.host)):
        _demand(name, value, _HOST)
    _demand("call-id", record.call_id, CALL_ID)
    _demand("status", record.status, _STATUS)
    _demand("rpid", record.rpid, _WORD)
    _demand("presence hosts", record.presence_hosts, HOSTS)
    _demand("profile", record.profile, re.compile(r"[A-Za-z0-9_.-]{1,64}"))
    for name in ("server_user", "username", "realm", "mwi_user", "mwi_host"):
        _demand(name, getattr(record, name), _NAME)
    if record.network_ip:
        try:
            ipaddress.ip_address(record.network_ip)
        except ValueError:
            raise Refused("network ip is no address") from None
    if not re.fullmatch(r"[0-9]{0,5}", record.network_port):
        raise Refused("network port is no number")
    if record.user_agent != harmless(record.user_agent):
        raise Refused("user agent has signs that it must not have")
    if not 0 < record.expires_s < 1 << 40:
        raise Refused("expires is no time")
    if record.uuid != key_of(
        record.profile, record.user, record.host, record.call_id, record.contact
    ):
        raise Refused("its name is not that of its contact")
    return uri


def contact_uri(contact: str) -> Uri:
    """The address in a contact as mod_sofia stores it, `"display" <uri>`. Raises Refused."""
    if len(contact.encode("utf-8", "surrogateescape")) > CONTACT_MAX:
        raise Refused(f"contact has more than {CONTACT_MAX} bytes")
    found = _CONTACT.fullmatch(contact)
    if found is None:
        raise Refused("contact is not of the form <uri>")
    display = found["display"] or ""
    if not display.isprintable() or _hides(display.replace(" ", "").replace(",", "")):
        raise Refused("contact's display name has signs that it must not have")
    uri = _URI.fullmatch(found["uri"])
    if uri is None:
        raise Refused("contact's address is not of the form sip:user@host:port;parameters")
    if _hides(found["uri"]):
        raise Refused("contact hides signs that it must not have")
    if uri["port"] and not 0 < int(uri["port"]) < 65536:
        raise Refused("contact's port is out of range")
    if f";{OWN_PARAMETER}=" in uri["rest"].lower():
        raise Refused(f"contact has the parameter {OWN_PARAMETER}, which is ours")
    return Uri(uri["scheme"], uri["user"], uri["host"], uri["port"] or "", uri["rest"])


def harmless(text: str) -> str:
    """A text that only people read, without signs that could do something; at most TEXT_MAX."""
    text = text[:TEXT_MAX]
    shown = "".join(c if c.isprintable() and c not in "\"'`\\<>{}|^$%" else "?" for c in text)
    return shown.encode("utf-8", "replace")[:TEXT_MAX].decode("utf-8", "ignore")


def _demand(name: str, value: str, form: re.Pattern[str]) -> None:
    if form.fullmatch(value) is None or _hides(value.replace(" ", "").replace(",", ""), "{}"):
        raise Refused(f"{name} is not as it has to be: {value[:40]!a}")


def _hides(text: str, but: str = "") -> bool:
    """Whether a forbidden sign is in the text, or comes out when it is decoded again and again."""
    for _ in range(DECODE_ROUNDS):
        plain = "".join(c for c in text if c not in but)
        # fs_path of mod_sofia is <uri> encoded: these two come out of it and are no harm there.
        if _FORBIDDEN.search(plain.replace("<", "").replace(">", "")):
            return True
        decoded = unquote(text, errors="surrogateescape")
        if decoded == text:
            return False
        text = decoded
    return True


@dataclass(frozen=True, slots=True)
class Place:
    """Where rows go: a profile of this FreeSWITCH, and who it is."""

    profile: str
    switchname: str
    server_host: str


def row_here(record: Registration, place: Place) -> Row:
    """The row of a registration in its own profile on this node: this FreeSWITCH has it now."""
    return _row(record, place, record.contact, record.status, place.switchname, record.force_ping)


def row_via_owner(record: Registration, place: Place, owner: str) -> Row:
    """The row that leads to a phone of another node: through `owner`, that service's address.

    `place` is a profile that serves here. Not pinged from here: the owner does that.
    """
    return _row(record, place, via_owner(record, owner), "Registered", BY_US, 0)


def via_owner(record: Registration, owner: str) -> str:
    """The contact `<sip:user@phone;ha_to=PARAMETERS;fs_path=OWNER>`. Raises Refused.

    FreeSWITCH sends the INVITE to fs_path, the service's address, which moves with the service;
    whoever owns it finds in `ha_to` how it reaches the phone: the parameters that mod_sofia stored
    there (transport, and the fs_path of a phone behind NAT), encoded once more.
    """
    uri = check(record)
    port = f":{uri.port}" if uri.port else ""
    to = quote(uri.rest.lstrip(";") or "-", safe="")
    path = quote(owner, safe="")
    text = f"<{uri.scheme}:{uri.user}@{uri.host}{port};{OWN_PARAMETER}={to};fs_path={path}>"
    if len(text) > CONTACT_MAX:
        raise Refused(f"contact has more than {CONTACT_MAX} bytes with the way to its owner")
    return text


def _row(
    record: Registration, place: Place, contact: str, status: str, orig: str, force_ping: int
) -> Row:
    return Row(
        call_id=record.call_id,
        sip_user=record.user,
        sip_host=record.host,
        presence_hosts=record.presence_hosts,
        contact=contact,
        status=status,
        rpid=record.rpid,
        expires=record.expires_s,
        user_agent=record.user_agent,
        server_user=record.server_user,
        server_host=place.server_host,
        profile_name=place.profile,
        hostname=place.switchname,
        network_ip=record.network_ip,
        network_port=record.network_port,
        sip_username=record.username,
        sip_realm=record.realm,
        mwi_user=record.mwi_user,
        mwi_host=record.mwi_host,
        orig_server_host=place.server_host,
        orig_hostname=orig,
        # mod_sofia deletes rows without one whenever the profile starts (FREESWITCH.md 4)
        sub_host=record.sub_host or record.host,
        force_ping=force_ping,
    )
