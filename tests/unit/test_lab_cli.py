"""`haclusterctl lab`: what no machine could carry is refused before anything is brought up."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from haclusterd.lab import cli
from haclusterd.lab.holders import Span
from haclusterd.lab.outcome import Outcome
from haclusterd.lab.overlap import judge_overlap

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


def test_calls_without_a_fault_are_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: Printed
) -> None:
    """They end with the command, so a laboratory that is left up had none, and nothing was said."""

    def begun(*_arguments: object) -> None:
        raise AssertionError("it was begun")

    monkeypatch.setattr(cli, "ready_cluster", begun)
    assert cli.main(["run", "--nodes-up", "--calls", "10"]) == 2
    assert "lab run: --calls needs a --fault" in capsys.readouterr().err


@pytest.mark.parametrize(("end_ms", "code"), [(4_900, 0), (5_100, 1)])
def test_two_holders_within_the_bound_of_the_fallback_fence_are_no_failure(
    end_ms: int, code: int, monkeypatch: pytest.MonkeyPatch, capsys: Printed
) -> None:
    """As `lab run --help` and docs/figures.md say."""
    thawed_at, new = end_ms * 10**6, 10**9
    spans = [Span(bytes(4), b"old---", -new, thawed_at), Span(bytes(4), b"new---", new, 9 * new)]
    overlap = judge_overlap(spans, fault_ns=0, thawed_ns=0, bound_ms=5_000)
    seen = Outcome("freeze-node", "lan", {}, {}, 140.0, None, 2, overlap, 5_000, 0.0)

    @contextlib.contextmanager
    def cluster(*_arguments: object) -> Iterator[None]:
        yield None

    monkeypatch.setattr(cli, "ready_cluster", cluster)
    monkeypatch.setattr(cli, "measure", lambda *_, **__: seen)
    words = ["run", "--fault", "freeze-node", "--address-only", "--no-nftables"]
    assert cli.main(words) == code
    said = capsys.readouterr().err
    assert "holders 2" in said
    assert ("2 nodes held an address at once" in said) is bool(code)


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
