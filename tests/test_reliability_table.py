"""docs/reliability.md names tests, faults and drills: each of them has to be there."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

from haclusterd.lab.faults import FAULTS
from tests.sim import changes, exhaustive
from tests.sim.drills import DRILLS
from tests.sim.swarm import Swarm

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "reliability.md"
SCENARIOS = 52
TESTS = {path: path.read_text() for path in sorted((ROOT / "tests").rglob("test_*.py"))}
# What else a row may name: options of a world, how it ends, presets.
OTHERS = {*Swarm.__dataclass_fields__, "ambush", "whole", "core", "minority", "lan", "wan"}


def rows(page: str) -> list[list[str]]:
    """Cells of the tables under "Scenarios" and "Policies and orders"."""
    part = page.partition("## Scenarios")[2].partition("## Guards")[0]
    found = [[cell.strip() for cell in line.strip("|").split("|")] for line in part.splitlines()
             if line.startswith("|")]  # fmt: skip
    return [cells for cells in found if not set(cells[0]) <= {"-", " ", "#"} and cells[0] != "what"]


def where(cells: list[str]) -> str:
    return cells[2] if cells[0].isdigit() else cells[1]


def is_there(name: str) -> bool:
    """Whether what a row calls `name` exists."""
    if name.endswith(".txt"):
        return any((ROOT / "tests" / "scenarios").glob(name))
    if name.startswith("make "):
        return bool(re.search(rf"^{re.escape(name[5:])}:", (ROOT / "Makefile").read_text(), re.M))
    if name.startswith("python -m "):
        return importlib.util.find_spec(name.split()[2]) is not None
    file, _, test = name.partition("::")
    if file.endswith(".py"):
        texts = [text for path, text in TESTS.items() if path.as_posix().endswith(f"/{file}")]
        return any(test in text for text in texts) or (not test and (ROOT / file).is_file())
    if name.startswith("test_"):
        return any(re.search(rf"def {name}\b", text) for text in TESTS.values())
    known = {*changes.ALL, *FAULTS, *DRILLS, *OTHERS, *exhaustive.__dict__}
    return name in known or _is_a_result(name)


def _is_a_result(name: str) -> bool:
    return f'"{name}"' in (ROOT / "haclusterd" / "lab" / "outcome.py").read_text()


def test_every_scenario_has_its_row() -> None:
    numbers = [int(cells[0]) for cells in rows(PAGE.read_text()) if cells[0].isdigit()]
    assert numbers == list(range(1, SCENARIOS + 1))


def test_what_passes_says_where_and_what_does_not_says_why() -> None:
    for cells in rows(PAGE.read_text()):
        result = cells[-1]
        assert re.match(r"(pass\b|part: |no: |not run: |yields )", result), cells
        assert re.search(r"`[^`]+`", where(cells)) or result.startswith(("no: ", "not run: ")), (
            cells
        )


@pytest.mark.parametrize(
    "name",
    sorted({n for cells in rows(PAGE.read_text()) for n in re.findall(r"`([^`]+)`", where(cells))}),
)
def test_what_a_row_names_is_there(name: str) -> None:
    assert is_there(name), f"docs/reliability.md: `{name}` is no test, fault, drill or target"


def test_what_is_not_there_is_found() -> None:
    for name in ("no_such_fault", "no_such.txt", "test_wire.py::test_no_such", "test_no_such",
                 "make no-such", "python -m tests.no_such", "tests/no_such.py"):  # fmt: skip
        assert not is_there(name), name


def test_the_number_of_drills_is_the_present_one() -> None:
    assert f"{len(DRILLS)} drills" in PAGE.read_text()
