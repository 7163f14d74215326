"""`haclusterctl lab`: what no machine could carry is refused before anything is brought up."""

from __future__ import annotations

import pytest

from haclusterd.lab import cli

pytestmark = pytest.mark.timeout(20)
Printed = pytest.CaptureFixture[str]


@pytest.mark.parametrize("calls", ["-1", "2001", "100000000"])
@pytest.mark.parametrize("words", [["demo"], ["run", "--fault", "node"]])
def test_more_calls_than_a_laboratory_carries(
    words: list[str], calls: str, monkeypatch: pytest.MonkeyPatch, capsys: Printed
) -> None:
    def begun(*_arguments: object) -> None:
        raise AssertionError("it was begun")

    monkeypatch.setattr(cli, "demo", begun)
    monkeypatch.setattr(cli, "ready_cluster", begun)
    assert cli.main([*words, "--calls", calls]) == 2
    assert f"lab {words[0]}: --calls 0..2000" in capsys.readouterr().err


def test_a_demonstration_with_as_many_calls_as_are_allowed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[int] = []

    def demo(calls: int, *_: object) -> bool:
        asked.append(calls)
        return True

    monkeypatch.setattr(cli, "demo", demo)
    assert cli.main(["demo", "--calls", "2000"]) == 0
    assert asked == [2000]
