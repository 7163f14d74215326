"""Webhooks and e-mail against servers on this host: signatures, retries, secrets, TLS."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import hmac
import json
import socketserver
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from haclusterd.agent import courier
from haclusterd.config.model import Hook
from tests.fixtures.hooks import HOOK, MESSAGE, through

pytestmark = pytest.mark.timeout(60)


class Receiver(HTTPServer):
    """Answers with `codes` in turn, the last one for ever."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Post)
        self.codes = [200]
        self.got: list[tuple[str, dict[str, str], bytes]] = []
        self.slow_s = 0.0

    @property
    def port(self) -> int:
        return int(self.server_address[1])


class Post(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.got.append((self.path, dict(self.headers.items()), body))
        time.sleep(self.server.slow_s)
        codes = self.server.codes
        self.send_response(codes.pop(0) if len(codes) > 1 else codes[0])
        self.send_header("Location", f"http://127.0.0.1:{self.server.port}/elsewhere")
        self.end_headers()

    def log_message(self, *words: Any) -> None: ...


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    server = Receiver()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


async def test_a_webhook_is_signed_so_that_a_receiver_can_tell(
    receiver: Receiver, tmp_path: Path
) -> None:
    (tmp_path / "secret").write_text("s3cret\nsecond line\n")
    url = f"http://127.0.0.1:{receiver.port}/in?team=voice"
    hook = dataclasses.replace(HOOK, webhook=url, secret_file=tmp_path / "secret")
    done = await through(hook, MESSAGE)
    assert done.problems == {}
    ((path, headers, body),) = receiver.got
    assert path == "/in?team=voice"
    assert json.loads(body) == MESSAGE
    signed = headers["X-Haclusterd-Timestamp"].encode() + b"." + body
    expected = hmac.new(b"s3cret", signed, hashlib.sha256).hexdigest()
    assert headers["X-Haclusterd-Signature"] == f"sha256={expected}"
    assert headers["X-Haclusterd-Id"] == MESSAGE["id"]
    assert abs(int(headers["X-Haclusterd-Timestamp"]) - time.time()) < 60


async def test_the_secret_of_a_url_is_in_no_alarm(receiver: Receiver) -> None:
    """Status and its alarms are shown over HTTP to whoever asks."""
    receiver.codes = [403]
    url = f"http://127.0.0.1:{receiver.port}/services/T0/B0/t0ken?key=t0ken"
    done = await through(dataclasses.replace(HOOK, webhook=url, retries=0), MESSAGE)
    (problem,) = done.problems.values()
    assert f"http://127.0.0.1:{receiver.port} answered 403" in problem
    assert "t0ken" not in problem


async def test_what_can_never_be_sent_is_said_in_a_line() -> None:
    name = "x" * 64  # longer than a label of DNS
    done = await through(dataclasses.replace(HOOK, webhook=f"http://{name}.test/"), MESSAGE)
    (problem,) = done.problems.values()
    assert "Traceback" not in problem
    assert "label" in problem


@pytest.mark.parametrize(
    ("codes", "posts", "outcome"),
    [([503, 429, 200], 3, "sent"), ([404], 1, "failed"), ([302], 1, "failed"),
     ([500], 3, "failed")],
)  # fmt: skip
async def test_what_is_worth_another_attempt(
    receiver: Receiver, codes: list[int], posts: int, outcome: str
) -> None:
    receiver.codes = list(codes)
    hook = dataclasses.replace(HOOK, webhook=f"http://127.0.0.1:{receiver.port}/")
    done = await through(hook, MESSAGE)
    assert (len(receiver.got), done.counts["pager", outcome]) == (posts, 1)
    assert {path for path, _, _ in receiver.got} == {"/"}, "redirects are not followed"


async def test_a_receiver_that_never_answers_costs_its_time_limit(receiver: Receiver) -> None:
    receiver.slow_s = 3
    url = f"http://127.0.0.1:{receiver.port}/"
    hook = dataclasses.replace(HOOK, webhook=url, timeout_ms=1500, retries=0)
    began = time.monotonic()
    done = await through(hook, MESSAGE)
    assert time.monotonic() - began < 3
    assert done.counts["pager", "failed"] == 1


async def test_a_missing_secret_names_the_file_and_is_not_tried_again(tmp_path: Path) -> None:
    hook = dataclasses.replace(HOOK, webhook="http://127.0.0.1:9/", secret_file=tmp_path / "none")
    done = await through(hook, MESSAGE)
    assert str(tmp_path / "none") in done.problems["pager"]
    assert "create it" in done.problems["pager"]
    assert done.counts["pager", "retried"] == 0


async def test_https_asks_for_a_certificate_it_can_trust(
    receiver: Receiver, tmp_path: Path, certificate: Callable[[], tuple[Path, Path]]
) -> None:
    crt, key = certificate()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(crt, key)
    receiver.socket = context.wrap_socket(receiver.socket, server_side=True)
    url = f"https://localhost:{receiver.port}/"
    hook = dataclasses.replace(HOOK, webhook=url, ca_file=crt, retries=0)
    assert (await through(hook, MESSAGE)).problems == {}
    refused = await through(dataclasses.replace(hook, ca_file=None), MESSAGE)
    assert "CERTIFICATE_VERIFY_FAILED" in refused.problems["pager"].upper()
    assert len(receiver.got) == 1


@pytest.fixture
def certificate(tmp_path: Path) -> Callable[[], tuple[Path, Path]]:
    """A certificate of localhost that signs itself."""
    import datetime

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    def make() -> tuple[Path, Path]:
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
        now = datetime.datetime.now(datetime.UTC)
        made = (
            x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), False)
            .add_extension(x509.BasicConstraints(True, None), True)
            .sign(key, hashes.SHA256())
        )
        crt, path = tmp_path / "web.crt", tmp_path / "web.key"
        crt.write_bytes(made.public_bytes(serialization.Encoding.PEM))
        path.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )  # fmt: skip
        return crt, path

    return make


# -- e-mail --


class MailServer(socketserver.TCPServer):
    """Just enough of SMTP. `refuse`: what it answers to RCPT; `tls`: how it speaks TLS."""

    allow_reuse_address = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), MailSession)
        self.mails: list[str] = []
        self.recipients: list[str] = []
        self.passwords: list[str] = []
        self.refuse = ""
        self.tls: ssl.SSLContext | None = None


class MailSession(socketserver.StreamRequestHandler):
    server: MailServer

    def handle(self) -> None:
        self.say("220 mail.example.org")
        while line := self.rfile.readline().decode().strip():
            verb = line[:4].upper()
            if verb == "QUIT":
                self.say("221 bye")
                return
            getattr(self, f"on_{verb.lower()}", self.fine)(line)

    def say(self, text: str) -> None:
        self.wfile.write(text.encode() + b"\r\n")

    def fine(self, line: str) -> None:
        self.say("250 fine")

    def on_ehlo(self, line: str) -> None:
        offers = "AUTH PLAIN" if isinstance(self.connection, ssl.SSLSocket) else "HELP"
        self.say(f"250-mail.example.org\r\n250-STARTTLS\r\n250 {offers}")

    def on_star(self, line: str) -> None:
        if self.server.tls is None:
            self.say("454 not now")
            return
        self.say("220 go on")
        self.connection = self.server.tls.wrap_socket(self.connection, server_side=True)
        self.setup_files()

    def setup_files(self) -> None:
        self.rfile = self.connection.makefile("rb")
        self.wfile = self.connection.makefile("wb", 0)

    def on_auth(self, line: str) -> None:
        self.server.passwords.append(base64.b64decode(line.split()[-1]).decode())
        self.say("235 welcome" if "s3cret" in self.server.passwords[-1] else "535 who are you")

    def on_data(self, line: str) -> None:
        self.say("354 go on")
        text = b""
        while not text.endswith(b"\r\n.\r\n"):
            text += self.rfile.readline()
        self.server.mails.append(text.decode())
        self.say("250 fine")

    def on_rcpt(self, line: str) -> None:
        self.server.recipients.append(line)
        self.say(self.server.refuse or "250 fine")


@pytest.fixture
def mail_server() -> Iterator[MailServer]:
    server = MailServer()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def by_mail(server: MailServer) -> Hook:
    recipients = ("ops@example.org", "boss@example.org")
    port = int(server.server_address[1])
    return dataclasses.replace(HOOK, email=recipients, smtp_port=port)


async def test_an_e_mail_says_it_in_its_subject(mail_server: MailServer) -> None:
    done = await through(by_mail(mail_server), MESSAGE)
    assert done.problems == {}
    (mail,) = mail_server.mails
    assert "Subject: [voice1] east is on fs-c" in mail
    assert "From: ha@example.org" in mail
    assert '"event": "service_owned"' in mail
    assert [r.partition("<")[2] for r in mail_server.recipients] == [
        "ops@example.org>", "boss@example.org>"
    ]  # fmt: skip


@pytest.mark.parametrize(("answer", "attempts"), [("451 later", 3), ("550 nobody", 1)])
async def test_a_refused_recipient(mail_server: MailServer, answer: str, attempts: int) -> None:
    mail_server.refuse = answer
    hook = dataclasses.replace(by_mail(mail_server), email=("ops@example.org",))
    done = await through(hook, MESSAGE)
    assert answer[:3] in done.problems["pager"]
    assert len(mail_server.recipients) == attempts


@pytest.mark.parametrize(("password", "problem"), [("s3cret", ""), ("wrong", "535")])
async def test_a_login_goes_through_tls(
    mail_server: MailServer, tmp_path: Path, certificate: Callable[[], tuple[Path, Path]],
    password: str, problem: str,
) -> None:  # fmt: skip
    crt, key = certificate()
    mail_server.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    mail_server.tls.load_cert_chain(crt, key)
    (tmp_path / "smtp").write_text(password)
    hook = dataclasses.replace(
        by_mail(mail_server), smtp_host="localhost", smtp_tls="starttls", ca_file=crt,
        smtp_user="ha", smtp_password_file=tmp_path / "smtp",
    )  # fmt: skip
    done = await through(hook, MESSAGE)
    assert problem in done.problems.get("pager", "")
    assert bool(problem) == bool(done.problems)
    assert mail_server.passwords == [f"\0ha\0{password}"], "and a refused one is final"
    assert len(mail_server.mails) == (not problem)
    untrusted = await through(dataclasses.replace(hook, ca_file=None, retries=0), MESSAGE)
    assert "certificate" in untrusted.problems["pager"].lower()
    assert len(mail_server.passwords) == 1, "no password for a server that nobody vouches for"


def test_a_hostile_text_adds_no_header_to_a_mail() -> None:
    job = {"message": MESSAGE | {"text": "x\r\nBcc: all@example.org"}, "sender": "a@b.c",
           "to": ["d@e.f"]}  # fmt: skip
    mail = courier.letter(job)
    assert mail["Bcc"] is None
    assert mail["Subject"] == "[voice1] x Bcc: all@example.org"
