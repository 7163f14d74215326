"""REGISTER at a profile: table `sip_registrations`, the three events, `sofia_contact`.

Everybody may register where the profile says `blind_reg` (apply-register-acl); one contact per
user, as without multiple-registrations. The rows are written before the 200, as mod_sofia does;
those that ran out are announced and deleted later (FREESWITCH.md 4).
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Final

from haclusterd.lab.emulator.events import Source
from haclusterd.lab.emulator.sip_message import SipMessage, SipParseError, Uri, address_uri
from haclusterd.lab.emulator.sip_transport import Address

if TYPE_CHECKING:
    from haclusterd.lab.emulator.profile import SofiaProfile
    from haclusterd.lab.emulator.switch import Switch

_TEXTS: Final = [
    "call_id", "sip_user", "sip_host", "presence_hosts", "contact", "status",
    "ping_status", "rpid", "user_agent", "server_user", "server_host", "profile_name",
    "hostname", "network_ip", "network_port", "sip_username", "sip_realm", "mwi_user",
    "mwi_host", "orig_server_host", "orig_hostname", "sub_host",
]  # fmt: skip
_NUMBERS: Final = ["ping_count", "ping_time", "force_ping", "expires", "ping_expires"]
_SCHEMA: Final = (
    "CREATE TABLE IF NOT EXISTS sip_registrations ("
    + ", ".join([*(f"{name} VARCHAR(255)" for name in _TEXTS), *(f"{n} BIGINT" for n in _NUMBERS)])
    + ")"
)
_INDEXES: Final = ("call_id", "sip_user", "sip_host", "contact", "expires", "profile_name")
_EXPIRED: Final = "SELECT * FROM sip_registrations WHERE expires > 0 AND expires <= ?"
_REGISTERED: Final = Source("sofia_reg.c", "sofia_reg_handle_register_token", 2059)
_UNREGISTERED: Final = Source("sofia_reg.c", "sofia_reg_handle_register_token", 2213)
_GONE: Final = Source("sofia_reg.c", "sofia_reg_del_callback", 726)
_BUSY_S: Final = 5.0
_EXPIRES_MAX: Final = 86_400
_DELETE_LATER_S: Final = 0.1


class Registrar:
    """The registrations of one profile."""

    def __init__(self, profile: SofiaProfile, path: Path) -> None:
        self._profile = profile
        self._path = path
        self._connection: sqlite3.Connection | None = None
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """A start of the profile: the schema, and rows of this host without sub_host go."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(self._path, timeout=_BUSY_S, isolation_level=None)
        connection.row_factory = sqlite3.Row
        connection.execute("PRAGMA synchronous=OFF")
        connection.execute(_SCHEMA)
        for name in _INDEXES:
            connection.execute(f"CREATE INDEX IF NOT EXISTS sr_{name} ON sip_registrations({name})")
        self._connection = connection
        self._run("DELETE FROM sip_registrations WHERE sub_host IS NULL AND hostname=?", self._host)
        self._schedule()

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def count(self) -> int:
        rows = self._run("SELECT count(*) FROM sip_registrations WHERE profile_name=?", self._name)
        return int(rows[0][0]) if rows else 0

    def contacts(self, user: str, domain: str) -> list[str]:
        """What `sofia_contact` makes of the rows of a user."""
        rows = self._run(
            "SELECT contact FROM sip_registrations WHERE profile_name=?"
            " AND upper(sip_user)=upper(?) AND (sip_host=? OR presence_hosts LIKE ?)",
            self._name, user, domain, f"%{domain}%",
        )  # fmt: skip
        uris = [address_uri(row[0]) for row in rows]
        return [f"sofia/{self._name}/sip:{uri.partition(':')[2]}" for uri in uris]

    def register(self, request: SipMessage, source: Address) -> None:
        """Answer a REGISTER of somebody who may."""
        to, sender = Uri(address_uri(request.get("to"))), Uri(address_uri(request.get("from")))
        header = request.get("contact")
        expires_s = _expires_s(request, header)
        if header and header != "*":
            uri = Uri(address_uri(header))
            contact = f'"" <sip:{uri.user_host_port}{uri.params}>'
        elif header:
            contact, expires_s = "", 0
        else:
            self._answer(request, source, [])
            return
        self._run("DELETE FROM sip_registrations WHERE sip_user=? AND sip_host=?", to.user, to.host)
        common = [
            ("from-user", to.user), ("from-host", to.host),
            ("contact", contact), ("call-id", request.get("call-id")), ("rpid", "unknown"),
        ]  # fmt: skip
        network = [("network-ip", source[0]), ("network-port", str(source[1]))]
        agent = request.get("user-agent") or "unknown"
        if expires_s:
            self._insert(request, source, to, contact, expires_s, agent)
            head, rest = common[:2], common[2:]
            self._fire("sofia::register", _REGISTERED, [
                ("profile-name", self._name), *head, ("presence-hosts", "n/a"), *rest,
                ("status", "Registered(UDP)"), ("expires", str(expires_s)),
                ("to-user", sender.user), ("to-host", sender.host), *network,
                ("username", "unknown"), ("realm", to.host), ("user-agent", agent),
            ])  # fmt: skip
            self._answer(request, source, [("Contact", f"{header};expires={expires_s}")])
        else:
            self._answer(request, source, [])
            self._fire("sofia::unregister", _UNREGISTERED, [
                ("profile-name", self._name), ("username", "unknown"), *common,
                ("realm", "unknown"), *network, ("user-agent", agent), ("expires", "0"),
            ])  # fmt: skip

    def expire(self, now_s: int) -> None:
        """Announce what ran out, of whatever host; delete, a little later, what is of this one."""
        for row in self._run(_EXPIRED, now_s):
            self._fire("sofia::expire", _GONE, [
                ("profile-name", row["profile_name"]), ("call-id", row["call_id"]),
                ("user", row["sip_user"]), ("username", row["sip_user"]),
                ("host", row["sip_host"]), ("contact", row["contact"]),
                ("expires", str(row["expires"])), ("user-agent", row["user_agent"]),
                ("realm", row["sip_realm"]), ("network-ip", row["network_ip"]),
                ("network-port", row["network_port"]),
            ])  # fmt: skip
        sql = "DELETE FROM sip_registrations WHERE expires > 0 AND expires <= ? AND hostname=?"
        loop = asyncio.get_running_loop()
        loop.call_later(_DELETE_LATER_S, lambda: self._run(sql, now_s, self._host))

    def flush(self) -> None:
        """`sofia profile P flush_inbound_reg`: as if all had run out."""
        self.expire(1 << 40)

    # -- parts of it --

    @property
    def _name(self) -> str:
        return self._profile.name

    @property
    def _host(self) -> str:
        return self._profile.switch.config.switchname

    def _insert(
        self, request: SipMessage, source: Address, to: Uri, contact: str, expires_s: int,
        agent: str,
    ) -> None:  # fmt: skip
        values = {
            "call_id": request.get("call-id"), "sip_user": to.user, "sip_host": to.host,
            "presence_hosts": "", "contact": contact, "status": "Registered(UDP)",
            "ping_status": "Reachable", "rpid": "unknown", "user_agent": agent,
            "server_user": to.user, "server_host": "127.0.0.1", "profile_name": self._name,
            "hostname": self._host, "network_ip": source[0], "network_port": str(source[1]),
            "sip_username": "unknown", "sip_realm": to.host, "mwi_user": to.user,
            "mwi_host": to.host, "orig_server_host": "127.0.0.1", "orig_hostname": self._host,
            "sub_host": to.host, "ping_count": 0, "ping_time": 0, "force_ping": 0,
            "expires": int(time.time()) + expires_s + self._profile.config.expires_late_margin_s,
            "ping_expires": int(time.time()),
        }  # fmt: skip
        marks = ", ".join("?" * len(values))
        names = ", ".join(values)
        self._run(f"INSERT INTO sip_registrations({names}) VALUES ({marks})", *values.values())

    def _answer(self, request: SipMessage, source: Address, extra: list[tuple[str, str]]) -> None:
        self._profile.answer(request, source, 200, "OK", extra=extra)

    def _fire(self, subclass: str, source: Source, headers: Sequence[tuple[str, str]]) -> None:
        self._profile.switch.bus.fire_custom(subclass, source, headers)

    def _schedule(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(self._profile.config.ireg_seconds, self._tick)

    def _tick(self) -> None:
        if not self._profile.standby:
            self.expire(int(time.time()))
        self._schedule()

    def _run(self, sql: str, *arguments: object) -> list[sqlite3.Row]:
        if self._connection is None:
            return []
        with closing(self._connection.execute(sql, arguments)) as cursor:
            return list(cursor.fetchall())


def _expires_s(request: SipMessage, contact: str) -> int:
    text = request.get("expires")
    if not text:
        text = contact.rpartition(">")[2].lower().partition("expires=")[2].partition(";")[0]
    if not text:
        return 3600
    if not (text.isascii() and text.isdigit()):
        raise SipParseError("expires is no number")
    return min(int(text), _EXPIRES_MAX)


def sofia_contact(switch: Switch, argument: str) -> str:
    """`sofia_contact [PROFILE/]USER@DOMAIN`; PROFILE `*`: all of them, each contact once."""
    name, slash, rest = argument.partition("/")
    user, _, domain = (rest if slash else argument).partition("@")
    running = [p for p in switch.profiles.values() if p.running]
    chosen = [p for p in running if p.name == name] if slash and name != "*" else running
    found = [c for profile in chosen for c in profile.registrar.contacts(user, domain)]
    return ",".join(dict.fromkeys(found)) or "error/user_not_registered"
