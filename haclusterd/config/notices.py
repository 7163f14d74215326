"""`[[hook]]` and `[[dns]]`: whom haclusterd tells outside of the cluster, and how."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

from haclusterd.config.model import Dns, Hook
from haclusterd.config.reading import Problems, Section, one_of, suggestion
from haclusterd.config.sections import Document, is_host, read_path

HOOKS_MAX = 16
RECORDS_MAX = 16
RECIPIENTS_MAX = 16
WORDS_MAX = 64

# What a hook can be told of; docs/hooks.md has the meanings.
EVENTS = (
    "service_owned",
    "service_unserved",
    "takeover",
    "node_role",
    "primary_slave",
    "quorum_lost",
    "quorum_regained",
    "link_down",
    "link_up",
    "alarm_raised",
    "alarm_cleared",
)
SMTP_TLS = ["none", "starttls", "tls"]
ALGORITHMS = ["hmac-sha256", "hmac-sha384", "hmac-sha512"]
_MAIL = re.compile(r"[A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]{1,64}@[A-Za-z0-9]([A-Za-z0-9.-]{0,251})")
_LABEL = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9])?")


def read_hook(section: Section, base: Path) -> tuple[Hook, Document]:
    name = section.named("name")
    events = section.texts("events", [], "names, see docs/hooks.md")
    command = section.texts("exec", [], "a command and its words")
    webhook = section.text("webhook", "", "an http:// or https:// URL")
    email = section.texts("email", [], "addresses")
    files = {key: _file(section, key, base) for key in ("secret_file", "ca_file",
                                                        "smtp_password_file")}  # fmt: skip
    smtp = section.text("smtp", "127.0.0.1:25", "HOST:PORT")
    host, port = _host_port(section, "smtp", smtp, 25)
    tls = section.choice("smtp_tls", SMTP_TLS, "none")
    user = section.text("smtp_user", "")
    sender = section.text("sender", "", "an address")
    timeout_ms = section.integer("timeout_ms", 10_000, 100, 120_000)
    retries = section.integer("retries", 5, 0, 20)
    every_node = section.flag("every_node", False)
    section.finish()
    found = Hook(
        name, tuple(events), tuple(command), webhook, tuple(email), files["secret_file"][1],
        files["ca_file"][1], host, port, tls, user, files["smtp_password_file"][1], sender,
        timeout_ms, retries, every_node,
    )  # fmt: skip
    _judge(section, found)
    return found, {
        "name": name, "events": events, "exec": command, "webhook": webhook, "email": email,
        **{key: written for key, (written, _) in files.items()},
        "smtp": smtp, "smtp_tls": tls, "smtp_user": user, "sender": sender,
        "timeout_ms": timeout_ms, "retries": retries, "every_node": every_node,
    }  # fmt: skip


def _judge(section: Section, hook: Hook) -> None:
    """What is wrong with a hook as a whole."""
    for event in hook.events:
        if event not in EVENTS:
            near = suggestion(event, list(EVENTS))
            section.note("events", f'"{event}" is not known{near}', f"known: {', '.join(EVENTS)}")
    ways = [key for key, given in (("exec", hook.exec), ("webhook", hook.webhook),
                                   ("email", hook.email)) if given]  # fmt: skip
    if len(ways) != 1:
        said = f"has {' and '.join(ways)}" if ways else "has none of exec, webhook and email"
        section.note("", said, "give each [[hook]] exactly one of them")
    if len(hook.exec) > WORDS_MAX:
        section.note("exec", f"{len(hook.exec)} words are too many", f"at most {WORDS_MAX}")
    if hook.webhook and (reason := _bad_url(hook.webhook)):
        fix = 'write it like "https://alerts.example.org/haclusterd"'
        section.note("webhook", f'"{hook.webhook}" {reason}', fix)
    if len(hook.email) > RECIPIENTS_MAX:
        section.note("email", f"{len(hook.email)} are too many", f"at most {RECIPIENTS_MAX}")
    for key, addresses in (("email", hook.email), ("sender", [hook.sender] if hook.sender else [])):
        for address in addresses:
            if not _MAIL.fullmatch(address):
                fix = 'write it like "ops@example.org"'
                section.note(key, f'"{address}" is not an e-mail address', fix)
    if hook.email and not hook.sender:
        section.note("sender", "is missing", 'e-mail needs one: sender = "haclusterd@example.org"')
    if bool(hook.smtp_user) != (hook.smtp_password_file is not None):
        section.note("smtp_user", "and smtp_password_file go together", "give both, or neither")
    elif hook.smtp_user and hook.smtp_tls == "none":
        fix = 'set smtp_tls = "starttls" or "tls"'
        section.note("smtp_tls", "a password would be sent in the clear", fix)
    if hook.secret_file is not None and not hook.webhook:
        section.note("secret_file", "signs webhooks only", "remove it")


def _bad_url(text: str) -> str:
    try:
        url = urlsplit(text)
        port = url.port
    except ValueError as error:
        return f"is not a URL ({error})"
    if url.scheme not in ("http", "https"):
        return "is neither http:// nor https://"
    if not url.hostname or not is_host(url.hostname) or port == 0:
        return "names no host"
    if url.username is not None or url.password is not None:
        return "holds a password: sign with secret_file instead"
    if url.fragment or " " in text or not text.isascii():
        return "has parts that are never sent"
    return ""


def read_dns(section: Section, base: Path) -> tuple[Dns, Document]:
    name = section.text("name", None, "a DNS name")
    zone = section.text("zone", None, "a DNS name")
    server = section.text("server", None, "ADDRESS or ADDRESS:PORT")
    host, port = _host_port(section, "server", server, 53)
    key_name = section.text("key_name", None, "a DNS name")
    key_written, key_file = read_path(section, "key_file", base, "dns.key")
    algorithm = section.choice("algorithm", ALGORITHMS, "hmac-sha256")
    ttl_s = section.integer("ttl_s", 30, 1, 86_400)
    hold_ms = section.integer("hold_ms", 2000, 0, 600_000)
    services = section.texts("services", [], "names of services")
    section.finish()
    for key, text in (("name", name), ("zone", zone), ("key_name", key_name)):
        if text and not _is_domain(text):
            section.note(key, f'"{text}" is not a DNS name', 'write it like "sip.example.org"')
    if name and zone and not _inside(name, zone):
        section.note("name", f'"{name}" is not in the zone "{zone}"', "correct one of them")
    found = Dns(name, zone, host, port, key_name, key_file, algorithm, ttl_s, hold_ms,
                tuple(services))  # fmt: skip
    return found, {
        "name": name, "zone": zone, "server": server, "key_name": key_name,
        "key_file": key_written, "algorithm": algorithm, "ttl_s": ttl_s, "hold_ms": hold_ms,
        "services": services,
    }  # fmt: skip


def check(
    hooks: Sequence[Hook], records: Sequence[Dns], services: Sequence[str], problems: Problems
) -> None:
    """What must hold among several of them."""
    for key, count, most in (("hook", len(hooks), HOOKS_MAX), ("dns", len(records), RECORDS_MAX)):
        if count > most:
            problems.note(key, f"{count} are too many", f"use at most {most}")
    seen: set[str] = set()
    for hook in hooks:
        if hook.name in seen:
            problems.note(f"hook[{hook.name}].name", "the name is used twice", "rename one hook")
        seen.add(hook.name)
    published: set[str] = set()
    for record in records:
        lowered = record.name.lower().rstrip(".")
        if lowered in published:
            fix = "join them in one [[dns]]: each update replaces all addresses of the name"
            problems.note(f"dns[{record.name}].name", "the name is used twice", fix)
        published.add(lowered)
        for service in record.services:
            if service not in services:
                near = suggestion(service, list(services))
                fix = f"use some of {one_of(list(services))}, or leave it out for all"
                message = f'"{service}" is no service{near}'
                problems.note(f"dns[{record.name}].services", message, fix)


def _file(section: Section, key: str, base: Path) -> tuple[str, Path | None]:
    """(as written, as used); "" and None where it is left out."""
    if not section.has(key):
        section.text(key, "", "a path")
        return "", None
    return read_path(section, key, base, "hook.secret")


def _host_port(section: Section, key: str, text: str, default: int) -> tuple[str, int]:
    """ "HOST", "HOST:PORT", "[IPV6]:PORT" or a bare IPv6 address."""
    host, colon, digits = text.rpartition(":")
    if not colon or (":" in host and not host.endswith("]")):
        host, digits = text, str(default)
    host = host.removeprefix("[").removesuffix("]")
    good = digits.isascii() and digits.isdigit() and 0 < int(digits[:6]) < 65536
    if text and not (is_host(host) and good):
        section.note(key, f'"{text}" is not HOST:PORT', f'write it like "192.0.2.53:{default}"')
        return "", default
    return host, int(digits[:6]) if good else default


def _is_domain(text: str) -> bool:
    labels = text.removesuffix(".").split(".")
    return len(text) <= 253 and all(_LABEL.fullmatch(label) for label in labels)


def _inside(name: str, zone: str) -> bool:
    name, zone = (f".{text.lower().rstrip('.')}" for text in (name, zone))
    return name.endswith(zone)
