"""What would play nothing, or make no sense, is a usage error of every entry point here."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest

from tests.sim import __main__ as sim
from tests.sim import calm, drills, exhaustive, failpoints, two_losses, words

pytestmark = pytest.mark.timeout(20)
Printed = pytest.CaptureFixture[str]

SEEDS = [["--seeds", text] for text in ("5:2", "5:5", "a:b", "0:1:2", "", ":", "3:", "-1", "x")]
TIMES = ("nan", "-1", "0", "inf", "x")
COUNTS = ("0", "-1", "1.5", "x")
JOBS = [["--jobs", text] for text in COUNTS]
MINUTES = [["--minutes", text] for text in TIMES]
WRONG: dict[str, tuple[Callable[[], int], list[list[str]]]] = {
    "tests.sim": (sim.main, [*SEEDS, *MINUTES, *JOBS]),
    "tests.sim.calm": (
        calm.main,
        [*JOBS, *(["--hours", text] for text in TIMES), ["--seed", "-1"], ["--loss", "1.1"],
         ["--loss", "nan"], ["--jitter-ms", "-1"], ["--jitter-ms", "nan"],
         *([option, "0"] for option in ("--nodes", "--services", "--links"))],
    ),
    "tests.sim.drills": (
        drills.main, [*JOBS, *MINUTES, *(["--seeds", text] for text in COUNTS)]
    ),
    "tests.sim.exhaustive": (
        exhaustive.main,
        [*JOBS, *(["--events", text] for text in COUNTS), *(["--gap-ms", text] for text in TIMES)],
    ),
    "tests.sim.failpoints": (failpoints.main, [["--row", "T999"], ["--row", ""]]),
    "tests.sim.two_losses": (two_losses.main, [["--runs", text] for text in COUNTS]),
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "given"),
    [(name, given) for name, (_, several) in WRONG.items() for given in several],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_a_usage_error(
    name: str, given: list[str], monkeypatch: pytest.MonkeyPatch, capsys: Printed
) -> None:
    monkeypatch.setattr(sys, "argv", ["x", *(f"{option}={text}" for option, text in [given])])
    with pytest.raises(SystemExit) as ended:
        WRONG[name][0]()
    assert ended.value.code == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith(f"python -m {name}: error: argument {given[0]}: {given[1]!r} is no ")


def test_what_makes_sense_is_taken() -> None:
    assert (words.seeds("7"), words.seeds("0:3")) == (range(7, 8), range(3))
    assert (words.count("1"), words.seed("0"), words.span("0.5")) == (1, 0, 0.5)
    assert (words.jitter("0"), words.share("0"), words.share("1")) == (0, 0, 1)
