"""`haclusterctl lab`: its words are checked before anything is made, and `lab down` ends one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from haclusterd.lab import cli, netns

_REASON = netns.why_not()
pytestmark = [pytest.mark.lab, pytest.mark.skipif(bool(_REASON), reason=_REASON)]


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[str]]:
    """Two laboratories that were left up: a namespace each, and the mark. The only ones here."""
    monkeypatch.setattr(netns, "base_dir", lambda: tmp_path)
    names = [f"{netns.own_name()}-{number}" for number in (800, 801)]
    monkeypatch.setattr(netns, "laboratories", lambda: {n: found(n) for n in names if found(n)})
    for name in names:
        netns.ip("netns", "add", f"{name}-sw")
        (tmp_path / name).mkdir()
        (tmp_path / name / netns.KEPT).touch()
    yield names
    netns.delete([f"{name}-sw" for name in names])


def found(name: str) -> list[str]:
    return [f"{name}-sw"] if (netns.NETNS_DIR / f"{name}-sw").exists() else []


def test_down_ends_the_one_that_is_named(kept: list[str]) -> None:
    assert cli.main(["down", kept[1]]) == cli.DONE
    assert [bool(found(name)) for name in kept] == [True, False]


def test_down_without_a_name_ends_the_only_one(kept: list[str]) -> None:
    assert cli.main(["down", kept[0]]) == cli.DONE
    assert cli.main(["down"]) == cli.DONE
    assert [bool(found(name)) for name in kept] == [False, False]
    assert cli.main(["down"]) == cli.DONE


def test_down_does_not_choose_among_several(
    kept: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["down"]) == cli.FAILED
    said = capsys.readouterr().err
    assert all(name in said for name in (*kept, "--all"))
    assert cli.main(["down", "nobody"]) == cli.FAILED
    said = capsys.readouterr().err
    assert all(name in said for name in kept)
    assert cli.main(["down", kept[0], "--all"]) == cli.USAGE
    assert [bool(found(name)) for name in kept] == [True, True]
    assert cli.main(["down", "--all"]) == cli.DONE
    assert [bool(found(name)) for name in kept] == [False, False]


def test_a_laboratory_that_is_in_use_is_not_ended(kept: list[str]) -> None:
    (netns.base_dir() / kept[0] / netns.KEPT).unlink()
    assert cli.main(["down", kept[0]]) == cli.FAILED
    assert cli.main(["down", "--all"]) == cli.DONE
    assert [bool(found(name)) for name in kept] == [True, False]


@pytest.mark.timeout(90)
def test_a_cluster_that_is_left_up_says_its_name_and_how_to_end_it(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    results = tmp_path / "results.json"
    words = ["--slaves", "2", "--address-only", "--nodes-up", "--nice", "0", "--json", str(results)]
    assert cli.main(["run", *words, "--fault", "stun-heart", "--stun-ms", "30"]) == cli.DONE
    said = capsys.readouterr().err
    name = next(w for w in said.split() if w.startswith(f"{netns.PREFIX}-") and w.endswith("-0"))
    try:
        assert f"lab down {name} ends it" in said
        assert netns.pids_inside([f"{name}-fs-a"])[f"{name}-fs-a"]
        written = json.loads(results.read_text())
        assert (written["nice"], written["freeswitch"]) == (0, None)
        assert written["runs"][0]["owner_kept"] is True
        assert written["runs"][0]["stun_ms"] >= 30
    finally:
        assert cli.main(["down", name]) == cli.DONE
    assert name not in netns.laboratories()


@pytest.mark.parametrize("words", [["--stun-ms", "0"], ["--stun-ms", "1e9"], ["--nice", "40"]])
def test_numbers_that_make_no_sense_are_refused(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["run", "--fault", "stun-heart", *words]) in (cli.USAGE, cli.FAILED)
    assert words[0] in capsys.readouterr().err
