"""How long calls are unprotected: counted once each, from the answer to the last thing needed."""

from __future__ import annotations

from pathlib import Path

import pytest

from haclusterd.agent import protection
from haclusterd.agent.protection import Protection
from haclusterd.core.records import CallRecord, Tombstone
from haclusterd.freeswitch import metadata

TONE = (
    Path(__file__).parents[1] / "fixtures" / "freeswitch" / "recovery_metadata_tone.xml"
).read_text()
BARE = metadata.set_variable(TONE, "sip_full_to", "<sip:9197@h>")


class Bench:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_ms = 1_000_000
        self.held: set[tuple[str, int]] = set()
        monkeypatch.setattr(protection, "_now_ms", lambda: self.now_ms)
        self.lags = Protection(lambda uuid, version: (uuid, version) in self.held)

    def logged(self, uuid: str, answered_ms: int, version: int = 1, text: str = TONE) -> None:
        self.lags.logged([CallRecord("east", uuid, version, "pa", "c", text,
                                     answered_ms=answered_ms)])  # fmt: skip

    def acked(self, uuid: str, version: int = 1) -> None:
        self.held.add((uuid, version))
        self.lags.acknowledged()


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(monkeypatch)


def test_s6_from_the_answer_to_the_acknowledgement(bench: Bench) -> None:
    for n in range(100):
        bench.logged(f"u{n}", bench.now_ms - 100 - n)
    bench.lags.acknowledged()
    assert bench.lags.quantiles_ms() == (0, 0)
    bench.now_ms += 20
    for n in range(100):
        bench.acked(f"u{n}")
    assert bench.lags.quantiles_ms() == (170, 219)
    assert bench.lags.total == 100
    bench.logged("u5", bench.now_ms - 1000, version=2)
    bench.acked("u5", 2)
    assert bench.lags.total == 100, "a later change is no answer"


def test_s6_a_call_without_its_tags_is_not_protected_yet(bench: Bench) -> None:
    answered = bench.now_ms
    bench.logged("u", answered, 1, BARE)
    bench.acked("u", 1)
    assert bench.lags.total == 0
    bench.now_ms += 200
    bench.logged("u", answered, 2)
    bench.acked("u", 2)
    assert bench.lags.quantiles_ms() == (200, 200)


def test_what_is_no_answer_now_is_not_counted(bench: Bench) -> None:
    bench.logged("old", bench.now_ms - protection.STALE_MS)
    bench.logged("future", bench.now_ms + 5)
    bench.logged("ended", bench.now_ms)
    bench.lags.logged([Tombstone("east", "ended", 2)])
    bench.logged("forgotten", bench.now_ms)
    for uuid in ("old", "future", "ended"):
        bench.acked(uuid)
    bench.now_ms += protection.STALE_MS + 1
    bench.acked("forgotten")
    assert bench.lags.total == 0


def test_it_is_bounded(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    for n in range(3 * protection.SAMPLES):
        bench.logged(f"u{n}", bench.now_ms)
        bench.acked(f"u{n}")
    assert len(bench.lags._known) <= protection.SAMPLES
    assert bench.lags.total == 3 * protection.SAMPLES
    monkeypatch.setattr(protection, "PENDING_MAX", 2)
    for n in range(5):
        bench.logged(f"v{n}", bench.now_ms)
    assert len(bench.lags._pending) == 2
