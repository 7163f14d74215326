"""Options of haclusterctl that only change how much or how something is shown or built."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import Any

import pytest

from haclusterd.cli import completion
from haclusterd.cli.main import main
from haclusterd.lab import cli as lab
from haclusterd.lab.plan import LabPlan
from tests.unit.test_cli import FakeDaemon, Printed, daemon

pytestmark = pytest.mark.timeout(20)
__all__ = ["daemon"]


def test_completion_is_printed_for_both_shells(capsys: Printed) -> None:
    found = completion.haclusterctl()
    assert main(["completion", "bash"]) == 0
    assert capsys.readouterr().out == completion.bash("haclusterctl", found)
    assert main(["completion", "zsh"]) == 0
    assert capsys.readouterr().out == completion.zsh("haclusterctl", found)
    assert "maintenance" in completion.bash("haclusterctl", found)
    assert "--drain" in completion.zsh("haclusterctl", found)


def test_an_export_is_written_as_it_is_wanted(daemon: FakeDaemon, capsys: Printed) -> None:
    words = ["export", "upstream", "--format", "dns", "--transport", "tcp", "--order", "priority"]
    assert main(words) == 2
    assert "--domain voice.example.org" in capsys.readouterr().err
    assert main([*words, "--domain", "voice.example.org", "--port", "5070"]) == 0
    assert "_sip._tcp.voice.example.org. 300 IN SRV 10 10 5070 east" in capsys.readouterr().out
    assert main(["export", "upstream", "--format", "kamailio", "--group", "7"]) == 0
    assert "\n7 sip:203.0.113.10:5060;transport=udp" in capsys.readouterr().out


def test_the_lab_is_built_as_the_words_say(monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[tuple[LabPlan, str | None]] = []

    class Outcome:
        problems: tuple[str, ...] = ()

        def as_json(self) -> dict[str, Any]:
            return {}

        def line(self) -> str:
            return "well"

    @contextlib.contextmanager
    def cluster(plan: LabPlan, prefix: str | None, say: Any) -> Iterator[None]:
        built.append((plan, prefix))
        yield None

    monkeypatch.setattr(lab, "ready_cluster", cluster)
    monkeypatch.setattr(lab, "measure", lambda *_, **__: Outcome())
    monkeypatch.setattr(lab, "backend_name", lambda plan, prefix: "1.11")
    words = ["lab", "run", "--masters", "2", "--slaves", "3", "--nics", "1", "--preset", "wan"]
    assert main([*words, "--no-nftables", "--repeat", "2", "--fault", "node"]) == 0
    assert [(p.masters, p.slaves, p.nics, p.preset, p.kernel_fence) for p, _ in built] == [
        (2, 3, 1, "wan", False)
    ] * 2
    assert main(["lab", "run", "--fault", "node", "--freeswitch", "/opt/x"]) == 0
    assert (built[-1][0].freeswitch, built[-1][1]) == ("real", "/opt/x")
    assert main(["lab", "run", "--fault", "node", "--repeat", "0"]) == 2
    assert main(["lab", "run", "--fault", "node", "--json", "/nonexistent/x.json"]) == 2


def test_the_demo_gets_its_words(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[int, str | None]] = []

    def demo(calls: int, prefix: str | None, say: Any) -> bool:
        told.append((calls, prefix))
        return calls > 1

    monkeypatch.setattr(lab, "demo", demo)
    assert main(["lab", "demo", "--calls", "5", "--freeswitch", "/opt/x"]) == 0
    assert main(["lab", "demo", "--calls", "1"]) == 1
    assert told == [(5, "/opt/x"), (1, None)]


def test_json_of_an_export_is_its_targets(daemon: FakeDaemon, capsys: Printed) -> None:
    assert main(["export", "upstream", "--format", "cube", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == [
        {"service": "east", "ip": "203.0.113.10", "place": 0}
    ]
