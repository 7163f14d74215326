"""Which socket is asked where the configuration does not tell: the file is broken, or the node is
not in it any more."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from haclusterd.cli import local
from haclusterd.cli.main import main
from tests.unit.config_example import GOOD, changed
from tests.unit.test_cli import ANSWERS, FakeDaemon, Printed

pytestmark = pytest.mark.timeout(20)
Listening = Callable[[str], FakeDaemon]


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("HACLUSTERD_SOCKET", raising=False)
    path = tmp_path / "haclusterd.toml"
    monkeypatch.setenv("HACLUSTERD_CONFIG", str(path))
    monkeypatch.setattr(local, "DEFAULT_SOCKET", tmp_path / "default.sock")
    monkeypatch.setitem(ANSWERS, "reload", {"text": "agreed"})
    return path


@pytest.fixture
def listening(tmp_path: Path, request: pytest.FixtureRequest) -> Listening:
    """A daemon at a socket of that name."""

    def listen(name: str) -> FakeDaemon:
        made = FakeDaemon(tmp_path / name)
        made.start()
        request.addfinalizer(made.listener.close)
        return made

    return listen


BROKEN = {
    "half of it": (GOOD[:40].encode(), "is not TOML"),
    "no UTF-8": (GOOD.encode() + b"# \xff\n", "is not UTF-8"),
    "a removed node": (changed('preferred = "fs-a"', 'preferred = "fs-x"').encode(), "preferred"),
}


@pytest.mark.parametrize(("content", "reason"), BROKEN.values(), ids=BROKEN)
def test_a_broken_file_is_no_dead_daemon(
    config: Path, capsys: Printed, content: bytes, reason: str
) -> None:
    config.write_bytes(content)
    for words in (["reload"], ["explain"]):
        assert main(words) == 1
        err = capsys.readouterr().err
        assert str(config) in err
        assert reason in err
        assert "--socket" in err
        assert "is haclusterd running?" not in err


@pytest.mark.parametrize(("content", "_reason"), BROKEN.values(), ids=BROKEN)
def test_a_broken_file_keeps_nobody_from_the_daemon_at_the_default_socket(
    config: Path, listening: Listening, content: bytes, _reason: str
) -> None:
    daemon = listening("default.sock")
    config.write_bytes(content)
    assert main(["reload"]) == 0
    assert [request["method"] for request in daemon.requests] == ["reload"]


def test_a_default_socket_that_one_may_not_see_is_asked_all_the_same(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that the rights are what is told."""
    config.write_text("[cluster")

    def closed(_path: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "lstat", closed)
    assert local.api_socket(config, None) == config.with_name("default.sock")


def test_a_removed_node_is_named_for_its_socket(
    config: Path, listening: Listening, capsys: Printed, tmp_path: Path
) -> None:
    """Its daemon runs until a `reload` has told it."""
    config.write_text(GOOD.replace("/run/haclusterd/haclusterd.sock", f"{tmp_path}/{{node}}.sock"))
    daemon = listening("fs-gone.sock")
    assert main(["--node", "fs-gone", "reload"]) == 0
    assert [request["method"] for request in daemon.requests] == ["reload"]
    for words in (["reload"], ["--node", "fs-other", "reload"]):
        assert main(words) == 1
        assert "--socket" in capsys.readouterr().err


def test_a_node_that_is_none_is_no_name_for_the_one_socket_of_all(
    config: Path, listening: Listening, capsys: Printed, tmp_path: Path
) -> None:
    config.write_text(GOOD.replace("/run/haclusterd/haclusterd.sock", f"{tmp_path}/s.sock"))
    daemon = listening("s.sock")
    assert main(["--node", "fs-gone", "reload"]) == 1
    err = capsys.readouterr().err
    assert "is no node of this file" in err
    assert "leave --node out" in err
    assert daemon.requests == []
    assert main(["reload"]) == 0
