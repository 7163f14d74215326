"""Hooks against programs and servers on this host: delivery, retries, bounds, secrets."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import hmac
import json
import os
import re
import shutil
import socketserver
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from haclusterd.agent import child, courier, hooks
from haclusterd.agent.hooks import Deliveries
from haclusterd.config.model import Hook

pytestmark = pytest.mark.timeout(60)

HOOK = Hook(
    name="pager", events=(), exec=(), webhook="", email=(), secret_file=None, ca_file=None,
    smtp_host="127.0.0.1", smtp_port=25, smtp_tls="none", smtp_user="", smtp_password_file=None,
    sender="ha@example.org", timeout_ms=20_000, retries=2, every_node=False,
)  # fmt: skip
MESSAGE: dict[str, Any] = {
    "id": "fs-a/x/1", "cluster": "voice1", "event": "service_owned", "text": "east is on fs-c",
    "service": "east", "node": "fs-c",
}  # fmt: skip


async def through(hook: Hook, *messages: dict[str, Any], mine: bool = True) -> Deliveries:
    """Deliveries that are done with these messages."""
    deliveries = Deliveries([hook], lambda: None, backoff_first_s=0.01)
    deliveries.start()
    for message in messages:
        deliveries.give(message, mine)
    wanted = sum(not hook.events or m["event"] in hook.events for m in messages) * mine
    for _ in range(3000):
        counts = deliveries.counts
        if counts["pager", "sent"] + counts["pager", "failed"] >= wanted:
            break
        await asyncio.sleep(0.01)
    await deliveries.stop()
    return deliveries


# -- programs --


def script(folder: Path, text: str) -> str:
    path = folder / "hook.sh"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


async def test_a_program_gets_its_words_the_event_and_json(tmp_path: Path) -> None:
    out = tmp_path / "out"
    text = f'{{ echo "$1|$HACLUSTERD_EVENT|$HACLUSTERD_SERVICE"; cat; }} > {out}'
    hook = dataclasses.replace(HOOK, exec=(script(tmp_path, text), "a b; rm -rf x"))
    done = await through(hook, MESSAGE)
    first, rest = out.read_text().split("\n", 1)
    assert first == "a b; rm -rf x|service_owned|east"
    assert json.loads(rest) == MESSAGE
    assert done.counts["pager", "sent"] == 1
    assert done.problems == {}


async def test_a_program_that_hangs_is_ended_with_its_children(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    hook = dataclasses.replace(
        HOOK, exec=(script(tmp_path, f"sleep 60 & echo $! > {pid}; wait"),),
        timeout_ms=300, retries=0,
    )  # fmt: skip
    began = time.monotonic()
    done = await through(hook, MESSAGE)
    assert time.monotonic() - began < 5
    assert "did not end within 0.3 s" in done.problems["pager"]
    await asyncio.sleep(0.1)
    stat = Path(f"/proc/{pid.read_text().strip()}/stat")
    assert not stat.exists() or stat.read_text().split()[2] == "Z"


async def test_failures_are_tried_again_and_then_said(tmp_path: Path) -> None:
    tries = tmp_path / "tries"
    hook = dataclasses.replace(
        HOOK, exec=(script(tmp_path, f"echo x >> {tries}; echo no pager here >&2; exit 3"),)
    )
    done = await through(hook, MESSAGE)
    assert tries.read_text().count("x") == 3
    assert done.problems["pager"] == "status 3: no pager here"
    assert done.counts == {("pager", "sent"): 0, ("pager", "retried"): 2, ("pager", "failed"): 1,
                           ("pager", "dropped"): 0}  # fmt: skip
    hook = dataclasses.replace(HOOK, exec=("/does/not/exist",), retries=0)
    assert "No such file" in (await through(hook, MESSAGE)).problems["pager"]


async def test_a_program_that_reads_nothing_is_no_problem() -> None:
    large = MESSAGE | {"report": "x" * 500_000}
    assert (await through(dataclasses.replace(HOOK, exec=("true",)), large)).problems == {}


async def test_the_queue_is_bounded_and_the_newest_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hooks, "QUEUE_MAX", 3)
    deliveries = Deliveries([dataclasses.replace(HOOK, exec=("true",))], lambda: None)
    for number in range(10):  # nobody works on it yet
        deliveries.give(MESSAGE | {"id": str(number)}, True)
    assert deliveries.counts["pager", "dropped"] == 7
    assert [m["id"] for m in deliveries._lines[0].waiting] == ["7", "8", "9"]


async def test_a_hook_gets_what_it_asked_for_and_only_from_the_teller() -> None:
    line = dataclasses.replace(HOOK, exec=("true",), events=("takeover",))
    deliveries = Deliveries([line, dataclasses.replace(HOOK, exec=("true",), every_node=True)],
                            lambda: None)  # fmt: skip
    deliveries.give(MESSAGE, True)
    deliveries.give(MESSAGE | {"event": "takeover"}, False)
    deliveries.give(MESSAGE | {"event": "takeover"}, True)
    waiting = [[m["event"] for m in line.waiting] for line in deliveries._lines]
    assert waiting == [["takeover"], ["service_owned", "takeover", "takeover"]]


async def test_an_agent_that_stops_leaves_no_program_behind(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    hook = dataclasses.replace(HOOK, exec=(script(tmp_path, f"echo $$ > {pid}; exec sleep 60"),))
    deliveries = Deliveries([hook], lambda: None)
    deliveries.start()
    deliveries.give(MESSAGE, True)
    while not pid.exists() or not pid.read_text().strip():
        await asyncio.sleep(0.01)
    began = time.monotonic()
    await deliveries.stop()
    assert time.monotonic() - began < 1
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)


async def test_a_program_gets_nothing_of_what_the_daemon_may_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", "/run/systemd/notify")
    monkeypatch.setenv("WATCHDOG_USEC", "5000000")
    ended = await child.run(["sh", "-c", "env >&2; exit 1"], b"", 5.0, {"HACLUSTERD_EVENT": "x"})
    assert "HACLUSTERD_EVENT=x" in ended.said or len(ended.said) > 300
    assert "NOTIFY_SOCKET" not in ended.said
    assert "WATCHDOG" not in ended.said
    if os.geteuid() or shutil.which("setpriv") is None:
        pytest.skip("not root, or no setpriv: capabilities cannot be handed on here")
    code = (
        "import asyncio; from haclusterd.agent import child;"
        "say = ['sh', '-c', 'grep Cap /proc/self/status >&2; exit 1'];"
        "print(asyncio.run(child.run(say, b'', 5.0, {})).said)"
    )
    daemon = ["setpriv", "--securebits=+noroot", "--inh-caps=-all,+net_admin,+kill",
              "--ambient-caps=+net_admin,+kill", "--", sys.executable, "-c", code]  # fmt: skip
    said = subprocess.run(daemon, capture_output=True, text=True, check=True).stdout
    sets = dict(re.findall(r"(Cap\w+):\s*([0-9a-f]+)", said))
    assert {key: int(sets[key], 16) for key in ("CapPrm", "CapEff", "CapAmb")} == {
        "CapPrm": 0, "CapEff": 0, "CapAmb": 0
    }  # fmt: skip


# -- webhooks --


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
    """Just enough of SMTP. `refuse`: what it answers to RCPT."""

    allow_reuse_address = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), MailSession)
        self.mails: list[str] = []
        self.recipients: list[str] = []
        self.refuse = ""


class MailSession(socketserver.StreamRequestHandler):
    server: MailServer

    def handle(self) -> None:
        self.say("220 mail.example.org")
        while line := self.rfile.readline().decode().strip():
            verb = line[:4].upper()
            if verb == "DATA":
                self.say("354 go on")
                text = b""
                while not text.endswith(b"\r\n.\r\n"):
                    text += self.rfile.readline()
                self.server.mails.append(text.decode())
            if verb == "RCPT":
                self.server.recipients.append(line)
                if self.server.refuse:
                    self.say(self.server.refuse)
                    continue
            self.say("221 bye" if verb == "QUIT" else "250 fine")
            if verb == "QUIT":
                return

    def say(self, text: str) -> None:
        self.wfile.write(text.encode() + b"\r\n")


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


def test_a_hostile_text_adds_no_header_to_a_mail() -> None:
    job = {"message": MESSAGE | {"text": "x\r\nBcc: all@example.org"}, "sender": "a@b.c",
           "to": ["d@e.f"]}  # fmt: skip
    mail = courier.letter(job)
    assert mail["Bcc"] is None
    assert mail["Subject"] == "[voice1] x Bcc: all@example.org"


async def test_what_cannot_be_started_is_said() -> None:
    ended = await child.run(["x\0y"], b"", 1.0, {})
    assert ended.status is None
    assert "null byte" in ended.said
