"""docs/runbook.md has an entry for every alarm that the code can raise, and for no other.

The names are read from the source: the first argument of every `AlarmView(...)` and `Alarm(...)`.
Where that is no literal, the table below says where the names come from.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from haclusterd.agent import alarms

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "haclusterd"
RUNBOOK = ROOT / "docs" / "runbook.md"


def tree_of(place: str) -> ast.Module:
    return ast.parse((PACKAGE / place).read_text())


def parts_of_the_agent() -> Iterator[str]:
    """Keys of `problems`: parts that are tried again, and modules that name theirs `_PART`."""
    for node in ast.walk(tree_of("agent/daemon.py")):
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "_keep_trying":
            first = node.args[0]
            assert isinstance(first, ast.Constant)
            yield str(first.value)
    for path in sorted((PACKAGE / "agent").glob("*.py")):
        yield from re.findall(r'^_PART = "(\w+)"', path.read_text(), re.M)


def names_of_parts() -> set[str]:
    return {alarms._NAMES.get(part, part) for part in parts_of_the_agent()}


def parts_that_are_shared() -> set[str]:
    found = re.search(r"parts = \{(.*?)\}", (PACKAGE / "agent/shared.py").read_text(), re.S)
    assert found is not None
    return set(re.findall(r'"(\w+)":', found[1]))


# File and source of the argument -> the names it can have.
COMPUTED: dict[tuple[str, str], Callable[[], set[str]]] = {
    ("agent/alarms.py", "_NAMES.get(part, part)"): names_of_parts,
    ("agent/shared.py", "name"): parts_that_are_shared,
    ("agent/status.py", "a.name"): set,  # heart's alarms, passed on
}


def raised() -> dict[str, str]:
    """Every alarm's name, and a place where it is raised."""
    found: dict[str, str] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        place = path.relative_to(PACKAGE).as_posix()
        for node in ast.walk(ast.parse(path.read_text())):
            name = getattr(node, "func", None)
            called = getattr(name, "attr", getattr(name, "id", ""))
            if not isinstance(node, ast.Call) or called not in ("Alarm", "AlarmView"):
                continue
            first = node.args[0]
            if isinstance(first, ast.Constant):
                found[str(first.value)] = place
            else:
                source = ast.unparse(first)
                assert (place, source) in COMPUTED, (
                    f"{place}: the alarm {source} has no literal name: say in COMPUTED which it has"
                )
                found |= dict.fromkeys(COMPUTED[place, source](), place)
    return found


def entries() -> dict[str, str]:
    """Text of the runbook by alarm."""
    return dict(re.findall(r"^### (\w+)\n\n(.*?)(?=^##|\Z)", RUNBOOK.read_text(), re.M | re.S))


def test_every_alarm_has_an_entry_and_every_entry_an_alarm() -> None:
    assert set(entries()) == set(raised())


def test_the_names_are_found_where_they_are_computed() -> None:
    found = raised()
    assert {"not_replicating", "state_file", "api", "http", "revision", "limits"} <= set(found)
    assert {"no_quorum", "fence_lost", "hook"} <= set(found)


def test_every_entry_says_what_to_do() -> None:
    for name, text in entries().items():
        meaning, do, action = text.partition("\n\nDo: ")
        assert do, f"{name}: nothing to do?"
        assert len(meaning) > 20, name
        assert len(action) > 20, name


def test_commands_of_the_runbook_are_commands() -> None:
    from haclusterd.cli.completion import haclusterctl

    known = {command.path[0] for command in haclusterctl() if command.path}
    named = set(re.findall(r"haclusterctl ([a-z-]+)", RUNBOOK.read_text()))
    assert named <= known
