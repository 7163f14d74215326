"""`haclusterctl`: exit codes, where options may stand, JSON and tables."""

from __future__ import annotations

import io
import json
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from haclusterd.cli import tables
from haclusterd.cli.main import main
from haclusterd.cli.show import Table, plain, show, style_of
from haclusterd.config import load_cluster

pytestmark = pytest.mark.timeout(20)

STATUS: dict[str, Any] = {
    "cluster": "voice1", "node": "fs-a",
    "quorum": {"policy": "majority", "voters": 3, "reachable": 2, "ok": True},
    "rank_hash": "0000abcd",
    "nodes": [
        {"id": "fs-a", "role": "master", "services": ["east"], "rank": None, "health": 100,
         "links": [{"address": "10.1.0.1", "up": True, "rtt_ms": 0.4, "loss": 0.0},
                   {"address": "10.2.0.1", "up": False, "rtt_ms": None, "loss": 0.2}],
         "calls": 12, "capacity": 1000, "sync": {"state": "in-sync", "lag_ms": 3},
         "version": "0.1.0"},
    ],
    "services": [{"name": "east", "owner": "fs-a", "epoch": 7, "state": "owned",
                  "addresses": ["203.0.113.10/24 dev eth0"], "successors": []}],
    "alarms": [{"name": "unprotected", "text": "no node is ready to take east over"}],
}  # fmt: skip
DECISION = {"at": "2026-11-22T18:00:00.000Z", "at_us": 5, "row": "T201", "text": "fs-a won east",
            "service": "east", "epoch": 7}  # fmt: skip
EVENTS = [
    {**DECISION, **said, "kind": kind, "id": f"fs-a:9:{number}"}
    for number, (kind, said) in enumerate([
        ("decision", {}), ("keepalive", {}), ("call", {"uuid": "u1", "state": "live"}),
        ("verdict", {"uuid": "u1", "verdict": "lost", "text": "481"}),
        ("gap", {"text": "events of fs-b are not to be had here: 3 to 9"})], 4)
]  # fmt: skip
REPORT: dict[str, Any] = {
    "number": 3, "at": "2026-11-22T18:00:00.000Z", "service": "east", "from": "fs-b", "to": "fs-a",
    "epoch": 7, "cause": "fs-b is silent", "done": True, "outage_ms": 151.2,
    "newer": "east moved to fs-c at 2026-11-22T18:01:00.000Z: `haclusterctl report 4` on fs-c",
    "timeline": [{"at_ms": 0.0, "event": "last_heartbeat"}, {"at_ms": 151.2, "event": "claimed"}],
    "calls": {"replicated": 30, "recovered": 29, "partial": 0, "lost": 1, "verdicts": [
        *({"uuid": f"u{n}", "verdict": "recovered", "reason": "", "gap_ms": 160}
          for n in range(29)),
        {"uuid": "lost-one", "verdict": "lost", "reason": "no answer", "gap_ms": None}]},
}  # fmt: skip
ANSWERS: dict[str, Any] = {
    "status": STATUS,
    "rank": {"rank_hash": "0000abcd", "slaves": ["fs-b"], "successors": {"east": ["fs-b"]},
             "why": ["fs-b: place 0"], "not_ready": {"west": "FreeSWITCH hangs"}},
    "history": [DECISION],
    "report": REPORT,
    "reports": [REPORT],
    "calls": {"total": 3, "at_risk": 1, "calls": [
        {"uuid": "u1", "service": "east", "here": "own", "direction": "inbound", "partner": None,
         "answered": None, "version": 4, "at_risk": True}]},
    "registrations": {"total": 2, "at_risk": 1, "registrations": [
        {"user": "1000@lab.test", "contact": "\"\" <sip:1000@10.0.0.9\x1b[2J>", "node": "fs-b",
         "service": "east", "profile": "east", "here": "copy", "expires": "2026-11-28T22:00:00Z",
         "expires_s": 3599, "replicated": False, "user_agent": "phone/1.0",
         "network": "10.0.0.9:5060"}]},
    "sync": {"node": "fs-a", "waiting": 0, "at_risk": 0, "ack_ms_p50": 2, "ack_ms_p99": 9,
             "store": [], "counters": {}, "incoming": [],
             "peers": [{"node": "fs-b", "connected": True, "address": "10.1.0.2", "rtt_ms": 0.5,
                        "state": "in-sync", "lag_ms": 0, "outgoing": [
                            {"service": "east", "epoch": 7, "state": "in-sync", "acked": 4,
                             "head": 4, "lag_ms": 0, "snapshots": 1, "data": "calls", "have": 3,
                             "want": 9, "percent": 33, "eta_ms": 1240, "overflow": False}]}]},
    "capacity": {"fail": 2, "cases": 3, "bad": 4, "fits": False, "misfits": [
        {"lost": ["fs-a"], "moves": {}, "unserved": ["west"], "majority": True,
         "overloaded": [{"node": "fs-c", "calls": 130, "capacity": 100}]},
        {"lost": ["fs-a"], "moves": {}, "unserved": [], "overloaded": [], "majority": True},
        {"lost": ["fs-b"], "moves": {}, "unserved": [], "overloaded": [], "majority": False}]},
    "best_node": [{"node": "fs-b", "services": ["west"], "addresses": ["203.0.113.11"], "calls": 2,
                   "capacity": 100, "load_class": 0, "impaired": False}],
    "switchover": {"text": "east moved from fs-a to fs-b at epoch 8"},
    "maintenance": {"text": "fs-a is in maintenance"},
}  # fmt: skip


class FakeDaemon(threading.Thread):
    """Answers like the agent; `refuse` makes every command fail with that error."""

    def __init__(self, path: Path) -> None:
        super().__init__(daemon=True)
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(path))
        self.listener.listen()
        self.requests: list[dict[str, Any]] = []
        self.refuse: dict[str, str] | None = None
        self.raw: bytes | None = None

    def run(self) -> None:
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            with client, client.makefile("rb") as lines:
                for line in lines:
                    request = json.loads(line)
                    self.requests.append(request)
                    client.sendall(self.answer(request["method"]))
                    if request["method"] == "events":
                        for event in EVENTS:
                            news = {"ok": True, "result": event}
                            client.sendall(json.dumps(news).encode() + b"\n")
                        break

    def answer(self, method: str) -> bytes:
        if self.raw is not None:
            return self.raw
        if self.refuse is not None:
            return json.dumps({"ok": False, "error": self.refuse}).encode() + b"\n"
        return json.dumps({"ok": True, "result": ANSWERS.get(method)}).encode() + b"\n"


@pytest.fixture
def daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeDaemon]:
    made = FakeDaemon(tmp_path / "s.sock")
    made.start()
    monkeypatch.setenv("HACLUSTERD_SOCKET", str(tmp_path / "s.sock"))
    yield made
    made.listener.close()


Printed = pytest.CaptureFixture[str]


@pytest.mark.parametrize("method", ["status", "rank", "history", "report", "calls", "sync",
                                    "registrations"])  # fmt: skip
def test_json_is_what_the_daemon_said_wherever_the_option_stands(
    daemon: FakeDaemon, capsys: Printed, method: str
) -> None:
    assert main(["--json", method]) == 0
    before = capsys.readouterr().out
    assert main([method, "--json"]) == 0
    assert json.loads(before) == json.loads(capsys.readouterr().out) == ANSWERS[method]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["status"], ["2 of 3 voters", "ALARM unprotected", "master", "1 of 2 up, 0.40 ms"]),
        (["rank"], ["primary", "fs-b"]),
        (["rank", "--why"], ["fs-b: place 0", "cannot take west: FreeSWITCH hangs"]),
        (["history"], ["T201", "fs-a won east"]),
        (["report"], ["from fs-b to fs-a", "151.2", "lost-one", "and 10 more", "moved to fs-c"]),
        (["report", "all"], ["fs-b is silent", "29"]),
        (["calls"], ["3 call legs", "at risk", "and 2 more"]),
        (["registrations"], ["2 registrations, 1 at risk", "1000@lab.test", "3599", "and 1 more"]),
        (["sync"], ["10.1.0.2", "east", "33", "1.2", "held: services of others: none"]),
        (
            ["capacity", "--fail", "2"],
            [
                "in 4 of 3 cases",
                "fs-c would carry 130 of 100",
                "nobody could serve west",
                "no majority",
                "and 1 more",
            ],
        ),
        (["best-node"], ["fs-b 203.0.113.11\n"]),
        (["switchover", "east", "--to", "fs-b"], ["east moved"]),
        (["maintenance", "on"], ["in maintenance"]),
    ],
)
def test_people_get_text(
    daemon: FakeDaemon, capsys: Printed, words: list[str], expected: list[str]
) -> None:
    assert main(words) == (words[0] == "capacity")
    out = capsys.readouterr().out
    for text in expected:
        assert text in out
    assert all(line == line.rstrip() for line in out.splitlines())


def test_parameters_reach_the_daemon(
    daemon: FakeDaemon, capsys: Printed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("haclusterd.cli.ordered.user", lambda: "anna")
    main(["switchover", "east"])
    main(["maintenance", "off", "fs-c"])
    main(["calls", "--at-risk", "--limit", "5"])
    main(["report", "7"])
    assert [(r["method"], r["params"]) for r in daemon.requests] == [
        ("switchover", {"service": "east", "to": ""}),
        ("maintenance", {"on": False, "node": "fs-c", "by": "anna"}),
        ("calls", {"at_risk": True, "limit": 5}),
        ("report", {"which": "7"}),
    ]


@pytest.mark.parametrize(("code", "exit_code"), [("refused", 1), ("usage", 2), ("partly", 4)])
def test_refusals(daemon: FakeDaemon, capsys: Printed, code: str, exit_code: int) -> None:
    daemon.refuse = {"code": code, "message": "fs-b is not ready"}
    assert main(["switchover", "east"]) == exit_code
    printed = capsys.readouterr()
    assert printed.err == "haclusterctl: fs-b is not ready\n"
    assert printed.out == ""


def test_what_answers_may_be_no_haclusterd(daemon: FakeDaemon, capsys: Printed) -> None:
    daemon.raw = b"HTTP/1.1 400 Bad Request\n"
    assert main(["status"]) == 3
    assert "no haclusterd of this version" in capsys.readouterr().err


def test_without_a_daemon_the_exit_code_is_3(tmp_path: Path, capsys: Printed) -> None:
    path = tmp_path / "none.sock"
    assert main(["--socket", str(path), "status"]) == 3
    assert main(["status", "--socket", str(path)]) == 3
    err = capsys.readouterr().err
    assert str(path) in err
    assert "is haclusterd running?" in err


@pytest.mark.parametrize(
    "words",
    [[], ["nonsense"], ["maintenance"], ["maintenance", "maybe"], ["switchover"],
     ["history", "-n", "0"], ["calls", "--limit", "x"], ["watch", "--interval", "0"],
     ["keys", "renew"], ["config"], ["drain"], ["failover"], ["backup"], ["restore"],
     ["drain", "east", "--for", "soon"], ["maintenance", "on", "--drain", "0m"]],
)  # fmt: skip
def test_usage_is_2(words: list[str], capsys: Printed) -> None:
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 2
    assert "usage: haclusterctl" in capsys.readouterr().err


CONFIG = """
[cluster]
name = "voice1"
[api]
socket = "{node}.sock"
[[node]]
id = "fs-a"
links = ["10.99.0.1"]
[[node]]
id = "fs-b"
links = ["10.99.0.2"]
[[node]]
id = "fs-c"
links = ["10.99.0.3"]
[[service]]
name = "east"
addresses = ["203.0.113.10/24 dev eth0"]
"""


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("HACLUSTERD_SOCKET", raising=False)
    path = tmp_path / "c.toml"
    path.write_text(CONFIG)
    return path


def test_config_check_says_what_is_in_it(config: Path, capsys: Printed) -> None:
    assert main(["config", "check", "--config", str(config)]) == 0
    out = capsys.readouterr().out
    assert "cluster voice1" in out
    assert "none of them" in out
    assert main(["--json", "--config", str(config), "--node", "fs-b", "config", "check"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["ok"], found["node_id"]) == (True, "fs-b")


def test_config_check_shows_all_errors_with_their_fixes(config: Path, capsys: Printed) -> None:
    config.write_text(CONFIG.replace("10.99.0.2", "x").replace("/24", ""))
    assert main(["config", "check", "--config", str(config)]) == 1
    err = capsys.readouterr().err
    assert err.count("Fix:") == 2
    assert main(["--json", "config", "check", "--config", str(config)]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["ok"] is False
    assert set(found["problems"][0]) == {"file", "key", "message", "fix"}


def test_keys_are_created_once(config: Path, capsys: Printed) -> None:
    assert main(["--json", "keys", "create", "--config", str(config)]) == 0
    written = [Path(p) for p in json.loads(capsys.readouterr().out)["written"]]
    assert {p.name for p in written} >= {"cluster.key", "ca.crt", "fs-a.key", "fs-c.crt"}
    assert all(p.stat().st_mode & 0o777 == 0o600 for p in written)
    assert main(["keys", "create", "--config", str(config)]) == 0
    assert "nothing is missing" in capsys.readouterr().out


def test_a_node_more_is_told_what_to_copy(config: Path, capsys: Printed) -> None:
    main(["keys", "create", "--config", str(config)])
    assert "copy " in capsys.readouterr().out
    more = '[[node]]\nid = "fs-z"\nlinks = ["10.99.7.9"]\n[[service]]'
    links = len(load_cluster(config).nodes[0].links)
    more = more.replace('["10.99.7.9"]', json.dumps([f"10.9{k}.7.9" for k in range(links)]))
    config.write_text(config.read_text().replace("[[service]]", more, 1))
    assert main(["keys", "create", "--config", str(config)]) == 0
    told = capsys.readouterr().out
    assert "copy to fs-z, into the same folder: cluster.key, ca.crt, fs-z.crt, fs-z.key" in told
    assert f"the same {config.name} as fs-z" in told


def test_the_socket_is_found_by_the_configuration(config: Path, capsys: Printed) -> None:
    assert main(["status", "--config", str(config), "--node", "fs-b"]) == 3
    assert f"{config.parent}/fs-b.sock" in capsys.readouterr().err


def test_lab_gets_its_own_words(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []

    def lab(words: list[str]) -> int:
        seen.append(words)
        return 7

    monkeypatch.setattr("haclusterd.lab.cli.main", lab)
    assert main(["lab", "run", "--json", "x", "--calls", "3"]) == 7
    assert main(["--socket", "lab", "--json", "lab", "down"]) == 7
    assert seen == [["run", "--json", "x", "--calls", "3"], ["down"]]


def test_looking_loads_nothing_it_does_not_need(daemon: FakeDaemon) -> None:
    code = (
        "import sys; from haclusterd.cli.main import main; main(['status']);"
        "print([m for m in ('rich', 'cryptography', 'asyncio', 'haclusterd.lab',"
        " 'haclusterd.config', 'pyroute2') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_reader_that_goes_away_is_no_error(daemon: FakeDaemon) -> None:
    words = f"{sys.executable} -m haclusterd.cli.main status | true"
    done = subprocess.run(["sh", "-c", words], capture_output=True, text=True, check=False)
    assert done.stderr == ""


def test_tables_align_and_empty_ones_say_so() -> None:
    table = Table("t", ["name", "n"], [["a", "1"], ["long", "20"]], frozenset({"n"}))
    assert plain([table, Table("u", ["x"], [])]) == (
        "t:\n  name   n\n  a      1\n  long  20\n\nu: none\n"
    )
    assert (style_of("dead"), style_of("slave"), style_of("fs-a")) == ("red", "green", "")


class Terminal(io.StringIO):
    """A text stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_the_same_words_and_no_markup_of_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    found = json.loads(json.dumps(STATUS))
    found["alarms"][0]["text"] = "[red]not markup[/red]"
    out = Terminal()
    show(tables.status(found), out)
    assert "[red]not markup[/red]" in out.getvalue()
    assert "203.0.113.10 " in out.getvalue()


def test_words_of_others_never_command_the_terminal(
    daemon: FakeDaemon, capsys: Printed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Caller ids, reasons, versions: an escape is shown as its number, a line break makes none."""
    evil = "\x1b]0;x\x07\x9b2J\u202eslave\nfs-z  master"
    report = json.loads(json.dumps(REPORT))
    report["calls"]["verdicts"][-1]["reason"] = report["cause"] = evil
    monkeypatch.setitem(ANSWERS, "report", report)
    assert main(["report"]) == 0
    shown = capsys.readouterr().out
    assert r"\x1b]0;x\x07\x9b2J\u202eslave\x0afs-z  master" in shown
    assert all(line.isprintable() for line in shown.split("\n"))
    assert main(["--socket", f"/tmp/{evil}", "status"]) == 3
    assert all(line.isprintable() for line in capsys.readouterr().err.split("\n"))


def test_an_empty_target_is_no_target(daemon: FakeDaemon, capsys: Printed) -> None:
    """A script with an unset variable must not move anything."""
    assert main(["switchover", "east", "--to", ""]) == 2
    assert "--to is empty" in capsys.readouterr().err
    assert daemon.requests == []
