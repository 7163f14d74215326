"""The whole agent process against a heart played by the test, without FreeSWITCH."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import pytest

from haclusterd import config as configuration
from haclusterd import keys
from haclusterd.core.actions import Answered, Decided, Persist, Published, Recover, ToAgent
from haclusterd.core.inputs import (
    FromAgent,
    LocalReport,
    MaintenanceRequested,
    RecoveryEnded,
    SwitchoverRequested,
    UpgradeRequested,
)
from haclusterd.core.model import Identity
from haclusterd.core.view import View
from tests.fixtures.agent_parts import view

pytestmark = pytest.mark.timeout(40)

CONFIG = """
[cluster]
name = "voice1"
[api]
http = ""
[sync]
port = {port}
{freeswitch}
[[node]]
id = "fs-a"
links = ["127.0.0.1"]
[[node]]
id = "fs-b"
links = ["127.0.0.2"]
[[node]]
id = "fs-c"
links = ["127.0.0.3"]
[[service]]
name = "east"
addresses = ["203.0.113.10/24 dev eth0"]
profiles = ["east"]
[[service]]
name = "west"
addresses = ["203.0.113.11/24 dev eth0"]
profiles = ["west"]
"""
# These agents need no root and meet nobody; a configuration refuses loopback links.
_ON_LOOPBACK = """
import sys
from haclusterd.config import sections
sections._unfit = lambda address: ""
from haclusterd.agent.__main__ import main
sys.exit(main())
"""
T = TypeVar("T")
_decoder: msgspec.msgpack.Decoder[FromAgent] = msgspec.msgpack.Decoder(FromAgent)


class Heart:
    """The other end of the socketpair, and the process."""

    def __init__(self, folder: Path, freeswitch: str = "") -> None:
        self.folder = folder
        self.run_dir = folder / "run"
        path = folder / "c.toml"
        if not path.exists():
            path.write_text(CONFIG.format(freeswitch=freeswitch, port=20_000 + os.getpid() % 9999))
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("haclusterd.config.sections._unfit", lambda address: "")
                keys.create(configuration.load_cluster(path))
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        words = ["--config", str(path), "--node", "fs-a", "--run-dir", str(self.run_dir)]
        self.process = subprocess.Popen(
            [sys.executable, "-c", _ON_LOOPBACK, *words, "--heart-fd", str(theirs.fileno())],
            pass_fds=[theirs.fileno()], stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        theirs.close()
        self.socket = ours
        self.socket.settimeout(10)

    def tell(self, message: ToAgent) -> None:
        self.socket.send(msgspec.msgpack.encode(message))

    def show(self, word: View) -> None:
        self.tell(Published(msgspec.msgpack.encode(word)))

    def hear(self, kind: type[T], wanted: Callable[[T], bool] = lambda _: True) -> T:
        """The next message of this kind."""
        until = time.monotonic() + 10
        while time.monotonic() < until:
            message: Any = _decoder.decode(self.socket.recv(65536))
            if isinstance(message, kind) and wanted(message):
                return message
        raise AssertionError(f"no {kind.__name__} came")

    def ask(self, method: str, **params: Any) -> Any:
        """One request to the API, waiting for the socket to appear."""
        until = time.monotonic() + 10
        while True:
            client = socket.socket(socket.AF_UNIX)
            client.settimeout(10)
            try:
                client.connect(str(self.run_dir / "haclusterd.sock"))
                break
            except OSError:
                client.close()
                if time.monotonic() > until:
                    raise
                time.sleep(0.02)
        client.sendall(json.dumps({"method": method, "params": params}).encode() + b"\n")
        answer = json.loads(client.makefile().readline())
        client.close()
        return answer

    def send_later(self, method: str, **params: Any) -> socket.socket:
        """Send a request whose answer needs heart."""
        client = socket.socket(socket.AF_UNIX)
        client.settimeout(10)
        client.connect(str(self.run_dir / "haclusterd.sock"))
        client.sendall(json.dumps({"method": method, "params": params}).encode() + b"\n")
        return client

    def end(self) -> str:
        self.socket.close()
        _, said = self.process.communicate(timeout=10)
        return said


@pytest.fixture
def heart(tmp_path: Path) -> Iterator[Heart]:
    made = Heart(tmp_path)
    yield made
    if made.process.poll() is None:
        made.end()


def boottime_us() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1000


def test_a_life_with_heart(heart: Heart) -> None:
    report = heart.hear(LocalReport)
    assert report.freeswitch_up
    assert [s.ready for s in report.services] == [True, True]
    heart.show(view({"east": ("fs-b", 6)}))
    now = boottime_us()
    heart.tell(Decided(now, "T201", "fs-a won east", 0, 7))
    heart.tell(Persist((Identity(7, 0, 99), Identity(0, -1, 0))))
    times = {"dead": now - 4000, "claimed": now - 3000, "address_up": now - 1000}
    heart.tell(Recover(0, Identity(7, 0, 99), 1, "fs-b is silent", times))
    ended = heart.hear(RecoveryEnded)
    assert (ended.service, ended.identity, ended.ok) == (0, Identity(7, 0, 99), True)
    assert heart.ask("status")["result"]["services"][0]["owner"] == "fs-b"
    assert heart.ask("history")["result"][0]["text"] == "fs-a won east"
    report_json = heart.ask("report", which="last")["result"]
    assert (report_json["from"], report_json["to"], report_json["epoch"]) == ("fs-b", "fs-a", 7)
    state = heart.run_dir / "state.json"  # is written when there is time
    while not state.exists():
        assert heart.process.poll() is None
        time.sleep(0.01)
    stored = json.loads(state.read_text())
    assert [(p["service"], p["epoch"], p["node"], p["nonce"]) for p in stored["promises"]] == [
        ("east", 7, "fs-a", 99)
    ]
    assert heart.end() is not None
    assert heart.process.returncode == 0
    assert not (heart.run_dir / "haclusterd.sock").exists()


def test_an_unchanged_report_is_repeated_however_busy_heart_is(heart: Heart) -> None:
    """Heart takes three silent seconds for a dead agent, also where views come all the time."""
    heart.hear(LocalReport)
    seen = 0
    until = time.monotonic() + 2.2
    heart.socket.settimeout(0.1)
    while time.monotonic() < until:
        heart.show(view({"east": ("fs-b", 6)}, at_us=boottime_us()))
        try:
            seen += isinstance(_decoder.decode(heart.socket.recv(65536)), LocalReport)
        except TimeoutError:
            continue
    assert 3 <= seen <= 12


def test_orders_go_to_heart_and_come_back(heart: Heart) -> None:
    heart.hear(LocalReport)
    heart.show(view({"east": ("fs-a", 7), "west": ("fs-b", 2)}))
    assert "nobody serves" not in heart.ask("rank")["result"]["why"]
    client = heart.send_later("maintenance", on=True)
    request = heart.hear(MaintenanceRequested)
    heart.tell(Answered(request.request, True, "in maintenance"))
    assert json.loads(client.makefile().readline())["result"] == {"text": "fs-a is in maintenance"}
    client = heart.send_later("switchover", service="east", to="fs-c")
    order = heart.hear(SwitchoverRequested)
    assert (order.service, order.to) == (0, 2)
    heart.tell(Answered(order.request, False, "fs-c is not ready"))
    answer = json.loads(client.makefile().readline())
    assert answer["error"] == {"code": "refused", "message": "fs-c is not ready"}
    client = heart.send_later("upgrade")
    upgrade = heart.hear(UpgradeRequested)
    heart.tell(Answered(upgrade.request, True, "the new heart takes over now"))
    assert json.loads(client.makefile().readline())["ok"]
    # A service of another node: there is no connection to that node here.
    answer = heart.ask("switchover", service="west")
    assert "fs-b could not be asked" in answer["error"]["message"]


def test_garbage_from_heart_is_counted_and_survived(heart: Heart) -> None:
    heart.hear(LocalReport)
    for packet in (b"\xc1", b"\x81\xa4type\xa3Foo", msgspec.msgpack.encode({"type": "Persist"})):
        heart.socket.send(packet)
    heart.tell(Published(b"not a view"))
    heart.show(view({}))
    assert heart.ask("status")["ok"]
    heart.hear(LocalReport)


def test_a_killed_agent_resumes_at_once(heart: Heart, tmp_path: Path) -> None:
    heart.hear(LocalReport)
    heart.show(view({"east": ("fs-a", 7)}))
    heart.ask("status")
    heart.process.send_signal(signal.SIGKILL)
    heart.process.wait()
    began = time.monotonic()
    again = Heart(tmp_path)
    again.hear(LocalReport)
    again.show(view({"east": ("fs-a", 7)}))
    assert again.ask("status")["ok"]
    assert time.monotonic() - began < 15  # nothing of it waits for a deadline of 30 s
    texts = [d["text"] for d in again.ask("history")["result"]]
    assert "fs-a goes on replicating east" in texts
    again.process.send_signal(signal.SIGTERM)
    assert again.process.wait(5) == 0
    again.end()


FREESWITCH = """
[freeswitch]
esl_port = {port}
esl_password_file = "esl.password"
core_db = "core.db"
pid_file = "freeswitch.pid"
start_command = ["sh", "-c", "echo started >> {mark}"]
"""


def test_an_absent_freeswitch_is_said_started_and_does_not_stop_the_rest(tmp_path: Path) -> None:
    """Nothing listens, no core.db, no process: heartbeats must go on, so must the agent."""
    mark = tmp_path / "mark"
    (tmp_path / "esl.password").write_text("ClueCon\n")
    (tmp_path / "freeswitch.pid").write_text("99999999")
    heart = Heart(tmp_path, FREESWITCH.format(port=9, mark=mark))
    try:
        report = heart.hear(LocalReport)
        assert (report.freeswitch_up, report.health) == (False, 0)
        assert "FreeSWITCH does not run here" in report.services[0].reason
        heart.show(view({}))
        deadline = time.monotonic() + 5
        while not mark.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert mark.exists(), "start_command has to run"
        names = {a["name"] for a in heart.ask("status")["result"]["alarms"]}
        assert "freeswitch_down" in names
        heart.tell(Recover(0, Identity(7, 0, 99), 1, "fs-b is silent", {"dead": boottime_us()}))
        ended = heart.hear(RecoveryEnded)
        assert not ended.ok
        assert "nothing listens on 127.0.0.1:9" in ended.reason
    finally:
        heart.end()


def test_a_node_without_its_certificate_says_why_it_holds_no_copies(tmp_path: Path) -> None:
    """Heart needs the cluster's key only, so the node is heard and looks like the others."""
    Heart(tmp_path).end()
    (tmp_path / "fs-a.crt").unlink()
    heart = Heart(tmp_path)
    heart.hear(LocalReport)
    heart.show(view({"east": ("fs-b", 6)}))
    time.sleep(1.5)  # also after it has tried to start it again
    alarms = {a["name"]: a["text"] for a in heart.ask("status")["result"]["alarms"]}
    assert "fs-a.crt is missing" in alarms["not_replicating"]
    assert "haclusterctl upgrade" in alarms["not_replicating"]
    assert "fs-a.crt is missing" in heart.ask("sync")["error"]["message"]
    heart.end()


def test_a_missing_password_file_names_the_fix(tmp_path: Path) -> None:
    (tmp_path / "freeswitch.pid").write_text(str(os.getpid()))
    heart = Heart(tmp_path, FREESWITCH.format(port=9, mark=tmp_path / "m"))
    try:
        report = heart.hear(LocalReport, lambda r: "esl.password" in r.services[0].reason)
        assert report.freeswitch_up
        assert report.pid == os.getpid()
        heart.show(view({}))
        alarms = heart.ask("status")["result"]["alarms"]
        assert any("write the password" in a["text"] for a in alarms)
    finally:
        heart.end()
