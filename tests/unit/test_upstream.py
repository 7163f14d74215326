"""`export upstream` and the drawn timeline: what others read, to the letter."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

from haclusterd.cli import upstream
from haclusterd.cli.drawing import timeline
from haclusterd.cli.main import main
from haclusterd.cli.show import Drawing, plain, show
from haclusterd.cli.upstream import Wanted, export
from tests.unit.test_cli import ANSWERS, FakeDaemon

STATUS: dict[str, Any] = {
    "cluster": "voice1",
    "services": [
        {"name": "east", "addresses": ["203.0.113.10/24 dev eth0", "2001:db8::a/64 dev eth0"]},
        {"name": "west.2", "addresses": ["203.0.113.11/24 dev eth0"]},
    ],
}  # fmt: skip
UDP = Wanted(5060, "udp", "weight", "voice.example.org", 7)
DOWN = UDP._replace(order="priority")


def lines(form: str, wanted: Wanted = UDP) -> list[str]:
    head, *rest = export(form, STATUS, wanted).splitlines()
    assert "cluster voice1" in head
    return rest


def test_kamailio_gets_a_dispatcher_list() -> None:
    """Fields as dispatcher.list has them; the higher priority is used first."""
    assert lines("kamailio") == [
        "7 sip:203.0.113.10:5060;transport=udp 0 0 weight=33;rweight=33;service=east",
        "7 sip:[2001:db8::a]:5060;transport=udp 0 0 weight=33;rweight=33;service=east",
        "7 sip:203.0.113.11:5060;transport=udp 0 0 weight=33;rweight=33;service=west.2",
    ]
    assert [line.split()[3] for line in lines("kamailio", DOWN)] == ["1", "1", "0"]


def test_opensips_gets_rows_of_its_table() -> None:
    first, _, last = lines("opensips", DOWN)
    assert first == (
        "INSERT INTO dispatcher (setid, destination, state, weight, priority, description) "
        "VALUES (7, 'sip:203.0.113.10:5060;transport=udp', 0, 1, 1, 'east');"
    )
    assert last.endswith("0, 1, 0, 'west.2');")


def test_cube_gets_server_groups_of_one_family_and_at_most_five() -> None:
    text = "\n".join(lines("cube", DOWN))
    assert "voice class server-group 7\n ipv4 203.0.113.10 port 5060 preference 1\n" in text
    assert " ipv4 203.0.113.11 port 5060 preference 2" in text
    assert "voice class server-group 57\n ipv6 [2001:db8::a] port 5060 preference 1" in text
    assert "hunt-scheme" not in text
    assert "hunt-scheme round-robin" in "\n".join(lines("cube"))
    many = {"cluster": "x", "services": [
        {"name": f"s{n}", "addresses": [f"203.0.113.{n}/24 dev e"]} for n in range(12)
    ]}  # fmt: skip
    groups = export("cube", many, UDP).split("voice class server-group")[1:]
    assert [group.count(" ipv4 ") for group in groups] == [5, 5, 2]


def test_dns_gets_srv_records_with_weights_or_priorities() -> None:
    assert lines("dns", DOWN._replace(transport="tcp", port=5080)) == [
        "_sip._tcp.voice.example.org. 300 IN SRV 10 10 5080 east.voice.example.org.",
        "_sip._tcp.voice.example.org. 300 IN SRV 20 10 5080 west-2.voice.example.org.",
        "east.voice.example.org. 300 IN A 203.0.113.10",
        "east.voice.example.org. 300 IN AAAA 2001:db8::a",
        "west-2.voice.example.org. 300 IN A 203.0.113.11",
    ]
    assert lines("dns")[1].split()[4:6] == ["10", "10"]
    assert lines("dns", UDP._replace(transport="tls"))[0].startswith("_sips._tcp.")


def test_dns_records_can_be_read_back() -> None:
    import dns.rdatatype
    import dns.zone

    soa = "@ 60 IN SOA ns ops 1 60 60 60 60\n@ 60 IN NS ns\nns 60 IN A 192.0.2.1\n"
    text = soa + export("dns", STATUS, DOWN)
    zone = dns.zone.from_text(text, "voice.example.org.", relativize=False)
    srv = zone.find_rdataset("_sip._udp.voice.example.org.", "SRV")
    for record in srv:
        assert zone.get_rdataset(record.target, "A") is not None


def test_hostile_names_stay_what_they_are() -> None:
    name = "x';DROP\n7 sip:evil 0 0"
    status = {"cluster": "c\nevil", "services": [{"name": name, "addresses": ["192.0.2.1/24 d"]}]}
    for form in upstream.FORMATS:
        text = export(form, status, UDP)
        assert not any(line.startswith(("7 sip:evil", "evil")) for line in text.splitlines())
    assert "'x'';DROP\\\\x0a7 sip:evil 0 0'" in export("opensips", status, UDP)


@pytest.fixture
def daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeDaemon:
    made = FakeDaemon(tmp_path / "s.sock")
    made.start()
    monkeypatch.setenv("HACLUSTERD_SOCKET", str(tmp_path / "s.sock"))
    return made


def test_the_command(daemon: FakeDaemon, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "upstream", "--format", "kamailio", "--port", "5070"]) == 0
    assert "1 sip:203.0.113.10:5070;transport=udp 0 0 " in capsys.readouterr().out
    assert main(["export", "upstream", "--format", "dns"]) == 2
    assert "--domain" in capsys.readouterr().err
    assert main(["--json", "export", "upstream", "--format", "cube"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["ip"] == "203.0.113.10"
    for words in (["--port", "0"], ["--format", "asterisk"], ["--group", "x"]):
        with pytest.raises(SystemExit) as ended:
            main(["export", "upstream", "--format", "dns", *words])
        assert ended.value.code == 2


# -- the drawn timeline --


class Terminal(io.StringIO):
    def __init__(self, encoding: str) -> None:
        super().__init__()
        self._encoding = encoding

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._encoding

    def isatty(self) -> bool:
        return True


MOMENTS = [{"at_ms": 0.0, "event": "last_heartbeat"}, {"at_ms": 150.0, "event": "address_up"},
           {"at_ms": 300.0, "event": "recovered"}]  # fmt: skip


def test_bars_are_as_long_as_it_took(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "74")
    drawn = timeline(MOMENTS, 150.0)
    bars = ["".join(text for text, _ in line[2:]) for line in drawn.lines]
    assert bars == ["●", "━" * 20 + "●", "━" * 20 + "─" * 20 + "●"]
    assert [line[-1][1] for line in drawn.lines] == ["red", "green", "green"]
    assert all(len(line) <= 74 for line in plain([drawn]).splitlines())


@pytest.mark.parametrize("moments", [[], [{"at_ms": 0.0, "event": "dead"}],
                                     [{"at_ms": -5.0, "event": "x"}]])  # fmt: skip
def test_short_timelines_are_no_error(moments: list[dict[str, Any]]) -> None:
    assert len(timeline(moments, None).lines) == len(moments)


def test_colour_only_on_a_terminal_that_wants_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    drawn = Drawing("t", timeline(MOMENTS, 150.0).lines)
    coloured = Terminal("utf-8")
    show([drawn], coloured)
    assert "\x1b[31m" in coloured.getvalue()
    monkeypatch.setenv("NO_COLOR", "1")
    grey = Terminal("utf-8")
    show([drawn], grey)
    assert "\x1b[31m" not in grey.getvalue()
    ascii_only = Terminal("ascii")
    show([drawn], ascii_only)
    assert "====" in ascii_only.getvalue()
    assert ascii_only.getvalue().isascii()
    assert "\x1b" not in plain([drawn])


def test_status_can_be_watched(daemon: FakeDaemon, capsys: pytest.CaptureFixture[str]) -> None:
    daemon.listener.close()  # the second time nobody answers
    assert main(["status", "--watch", "--interval", "0.1"]) == 3
    assert "status" in ANSWERS
