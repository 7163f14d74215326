"""The program that delivers one message and ends: `python -m haclusterd.agent.courier` < JOB.

A process of its own, because name look-ups, TLS, mail servers and DNS libraries block, fail and
take memory; the agent only waits for its exit status: 0 delivered, 65 never will be, 75 try again.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import socket
import ssl
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from email.message import EmailMessage

DELIVERED, NEVER, AGAIN = 0, 65, 75
SECRET_BYTES_MAX = 4096
SAID_BYTES_MAX = 200
NICENESS = 10  # calls come first


class Undeliverable(Exception):
    """No use in trying again before somebody mends something."""


def main() -> int:
    """Deliver the job on standard input; the reason of a failure goes to standard error."""
    os.nice(NICENESS)
    job = json.load(sys.stdin)
    try:
        {"webhook": _webhook, "email": _email, "dns": _dns}[job["kind"]](job)
    except Undeliverable as error:
        sys.stderr.write(f"{error}\n")
        return NEVER
    except OSError as error:
        sys.stderr.write(f"{error.strerror or error}\n")
        return AGAIN
    except ValueError as error:  # a name that DNS cannot hold, a password that SMTP cannot say
        sys.stderr.write(f"{error}\n")
        return NEVER
    return DELIVERED


def secret(path: str) -> bytes:
    """The first line of a secret's file. Raises Undeliverable."""
    try:
        with Path(path).open("rb") as file:
            found = file.read(SECRET_BYTES_MAX).partition(b"\n")[0].strip()
    except OSError as error:
        raise Undeliverable(f"{path}: {error.strerror}: create it, mode 0600") from None
    if not found:
        raise Undeliverable(f"{path}: its first line is empty: write the secret there")
    return found


def signature(key: bytes, timestamp: str, body: bytes) -> str:
    """What a receiver computes, too: HMAC-SHA256 over timestamp, a dot, and the body."""
    return "sha256=" + hmac.new(key, timestamp.encode() + b"." + body, hashlib.sha256).hexdigest()


def trust(ca_file: str | None) -> ssl.SSLContext:
    """Whom TLS trusts. Raises Undeliverable."""
    try:
        return ssl.create_default_context(cafile=ca_file)
    except (OSError, ssl.SSLError) as error:
        raise Undeliverable(f"{ca_file}: {error}: name a PEM file of CAs") from None


def _webhook(job: dict[str, Any]) -> None:
    import http.client

    url = urlsplit(job["url"])
    body = json.dumps(job["message"]).encode()
    timestamp = str(int(time.time()))
    headers = {
        "Content-Type": "application/json",
        "User-Agent": "haclusterd",
        "X-Haclusterd-Event": job["message"]["event"],
        "X-Haclusterd-Id": job["message"]["id"],
        "X-Haclusterd-Timestamp": timestamp,
    }
    if job["secret_file"]:
        key = secret(job["secret_file"])
        headers["X-Haclusterd-Signature"] = signature(key, timestamp, body)
    host, port, timeout_s = url.hostname or "", url.port, job["timeout_s"]
    # For many receivers the rest of the URL is the secret, and alarms are shown without a login.
    where = f"{url.scheme}://{url.netloc}"
    connection: http.client.HTTPConnection
    if url.scheme == "https":
        context = trust(job["ca_file"])
        connection = http.client.HTTPSConnection(host, port, timeout=timeout_s, context=context)
    else:
        connection = http.client.HTTPConnection(host, port, timeout=timeout_s)
    target = (url.path or "/") + (f"?{url.query}" if url.query else "")
    try:
        connection.request("POST", target, body, headers)
        answer = connection.getresponse()
        said = answer.read(SAID_BYTES_MAX).decode(errors="replace")
    except http.client.HTTPException as error:
        raise OSError(f"{where}: {error!r}") from None
    finally:
        connection.close()
    if 200 <= answer.status < 300:
        return
    text = f"{where} answered {answer.status} {answer.reason}: {said}"
    if 300 <= answer.status < 500 and answer.status not in (408, 425, 429):
        raise Undeliverable(text)
    raise OSError(text)


def letter(job: dict[str, Any]) -> EmailMessage:
    """The e-mail: a subject that says it all, the whole event below."""
    from email.message import EmailMessage  # not in the agent, which knows this module, too

    message = job["message"]
    mail = EmailMessage()
    subject = f"[{message['cluster']}] {message['text']}"
    mail["Subject"] = " ".join(subject.split())[:180]
    mail["From"] = job["sender"]
    mail["To"] = ", ".join(job["to"])
    mail["X-Haclusterd-Event"] = message["event"]
    mail["X-Haclusterd-Id"] = message["id"]
    mail["Auto-Submitted"] = "auto-generated"
    mail.set_content(f"{message['text']}\n\n{json.dumps(message, indent=2)}\n")
    return mail


def _email(job: dict[str, Any]) -> None:
    import smtplib

    host, port, timeout_s = job["host"], job["port"], job["timeout_s"]
    try:
        server = (
            smtplib.SMTP_SSL(host, port, timeout=timeout_s, context=trust(job["ca_file"]))
            if job["tls"] == "tls"
            else smtplib.SMTP(host, port, timeout=timeout_s)
        )
        with server:
            if job["tls"] == "starttls":
                server.starttls(context=trust(job["ca_file"]))
            if job["user"]:
                server.login(job["user"], secret(job["password_file"]).decode())
            server.send_message(letter(job))
    except smtplib.SMTPResponseException as error:
        text = f"{host}: {error.smtp_code} {error.smtp_error!r}"
        raise (Undeliverable if error.smtp_code >= 500 else OSError)(text) from None
    except smtplib.SMTPRecipientsRefused as error:
        later = any(code < 500 for code, _ in error.recipients.values())  # as greylisting does
        text = f"{host} refuses all recipients: {error.recipients}"
        raise (OSError if later else Undeliverable)(text) from None
    except smtplib.SMTPException as error:
        raise OSError(f"{host}: {error}") from None


def _dns(job: dict[str, Any]) -> None:
    """Replace all addresses of a name by the given ones, signed by TSIG (RFC 2136, 8945)."""
    import dns.exception
    import dns.name
    import dns.query
    import dns.rcode
    import dns.tsig
    import dns.update

    try:
        shared = base64.b64decode(secret(job["key_file"]), validate=True)
    except ValueError:
        raise Undeliverable(f"{job['key_file']}: its first line is not base64") from None
    key = dns.tsig.Key(job["key_name"], shared, job["algorithm"])
    update = dns.update.UpdateMessage(job["zone"], keyring=key)
    name = dns.name.from_text(job["name"])
    for kind in ("A", "AAAA"):
        update.delete(name, kind)
        for address in job["addresses"][kind]:
            update.add(name, job["ttl_s"], kind, address)
    where = f"{job['host']} port {job['port']}"
    try:
        address = socket.getaddrinfo(job["host"], job["port"], type=socket.SOCK_STREAM)[0][4][0]
        answer = dns.query.tcp(update, str(address), timeout=job["timeout_s"], port=job["port"])
    except dns.tsig.PeerError as error:
        raise Undeliverable(f"{where} refuses the TSIG key: {error}") from None
    except (dns.tsig.BadSignature, dns.tsig.BadKey) as error:
        raise Undeliverable(f"{where} signs with another key: {error}") from None
    except dns.exception.DNSException as error:
        raise OSError(f"{where}: {error}") from None
    if answer.rcode() != dns.rcode.NOERROR:
        text = f"{where} refuses the update of {job['name']}: {dns.rcode.to_text(answer.rcode())}"
        raise (OSError if answer.rcode() == dns.rcode.SERVFAIL else Undeliverable)(text)


if __name__ == "__main__":
    sys.exit(main())
