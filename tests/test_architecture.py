"""Imports point one way (DESIGN section 5), and the core stays pure: checked by reading imports.

`cli -> api schema`; `agent -> sync, freeswitch -> core.model`; `heart -> core, wire`; `core`
imports only itself; adapters never import each other. `lab` may import anything.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "haclusterd"

# What each part may import of haclusterd besides itself. A part is the first name below the
# package; `haclusterd` itself stands for __init__.py with the version, open to all.
ALLOWED: dict[str, set[str]] = {
    "__main__": {"heart", "config", "keys", "core", "wire", "agent"},
    "agent": {
        "core",
        "config",
        "expiry",
        "keys",
        "rotation",
        "certificates",
        "wire",
        "sync",
        "freeswitch",
        "trace",
        "files",
        "lasting",
        "sensors",
    },
    "backup": {"config", "core", "files", "keys", "rotation"},
    "certificates": {"core"},
    "cli": {
        "agent.schema",
        "backup",
        "config",
        "expiry",
        "keys",
        "rotation",
        "lab",
        "core",
        "freeswitch",
        "trace",
        "whatif",
        "files",
        "sensors",
    },
    "config": {"core", "datagram", "files"},
    "core": set(),
    "datagram": {"core"},
    "expiry": {"config", "keys"},
    "files": set(),
    "freeswitch": {"core", "config", "lasting"},
    "heart": {"core", "wire", "replay", "config", "keys", "trace"},
    "keys": {"config", "core", "wire", "certificates"},
    "lasting": set(),
    "replay": set(),
    "rotation": {"certificates", "config", "files", "keys", "wire"},
    "sensors": {"config", "freeswitch"},
    "sync": {"core", "config", "keys", "lasting"},
    "trace": {"core", "files"},
    "unserved": {"core"},
    "whatif": {"core", "unserved"},
    "wire": {"core", "datagram", "replay"},
}

# Reasons to know the time, the network, the disk or chance. `core` has none of them.
IMPURE = {
    "asyncio",
    "concurrent",
    "io",
    "logging",
    "multiprocessing",
    "os",
    "pathlib",
    "random",
    "secrets",
    "select",
    "selectors",
    "shutil",
    "signal",
    "socket",
    "ssl",
    "subprocess",
    "sys",
    "tempfile",
    "threading",
    "time",
    "urllib",
    "uuid",
}
CORE_THIRD_PARTY = {"msgspec"}
CORE_STANDARD = {
    "__future__",
    "abc",
    "bisect",
    "collections",
    "copy",
    "dataclasses",
    "enum",
    "functools",
    "hashlib",
    "heapq",
    "itertools",
    "math",
    "operator",
    "re",
    "string",
    "struct",
    "typing",
    "zlib",
}
# Costs 27 MB in each daemon (docs: the lab and doctor only).
DAEMONS = {"heart", "sensors", "sync", "freeswitch", "core", "wire", "config", "keys"}
# Heart is mlocked and must not block: none of these belongs into its process.
HEART_BANNED = {"asyncio", "sqlite3", "ssl", "logging", "http", "prometheus_client", "dns", "h11"}


def python_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*.py") if "__pycache__" not in path.parts)


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """(line, dotted module) of every import, those inside functions too. Imports for type
    checkers count as well: a type is knowledge of the other part."""
    yield from imports_of(path.read_text(), path.relative_to(ROOT).parts[:-1])


def imports_of(source: str, package: tuple[str, ...]) -> Iterator[tuple[int, str]]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(filter(None, (base, node.module)))
            for alias in node.names:
                # `from haclusterd import wire` imports haclusterd.wire.
                yield node.lineno, f"{module}.{alias.name}"


def own_imports(path: Path) -> Iterator[tuple[int, str]]:
    """(line, dotted module without `haclusterd.`) of imports from this package."""
    for line, module in imports(path):
        if module.startswith("haclusterd."):
            yield line, module.removeprefix("haclusterd.")


def may_import(part: str, module: str) -> bool:
    first = module.split(".")[0]
    if first in (part, "__version__"):
        return True
    return any(
        module == allowed or module.startswith(allowed + ".") for allowed in ALLOWED.get(part, ())
    )


def test_parts_are_known() -> None:
    """A new part of the package has to say here what it may import."""
    parts = {part_of(path) for path in python_files(PACKAGE)}
    assert parts - set(ALLOWED) - {"__init__", "lab"} == set()


def test_imports_point_one_way() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line}: {part_of(path)} may not import haclusterd.{module}"
        for path in python_files(PACKAGE)
        if part_of(path) not in ("lab", "__init__")
        for line, module in own_imports(path)
        if not may_import(part_of(path), module)
    ]
    assert wrong == []


def test_core_is_pure() -> None:
    wrong = []
    for path in python_files(PACKAGE / "core"):
        for line, module in imports(path):
            first = module.split(".")[0]
            if first == "haclusterd":
                continue
            if first not in CORE_STANDARD | CORE_THIRD_PARTY:
                wrong.append(f"{path.relative_to(ROOT)}:{line}: core may not import {first}")
    assert wrong == []
    assert not CORE_STANDARD & IMPURE


def test_core_has_no_await() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{node.lineno}: no async in core"
        for path in python_files(PACKAGE / "core")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.AsyncFunctionDef | ast.Await | ast.AsyncFor | ast.AsyncWith)
    ]
    assert wrong == []


def test_wire_has_no_clock_and_no_io() -> None:
    wrong = [
        f"{file}:{line}: {module}"
        for file in ("wire.py", "datagram.py", "replay.py")
        for line, module in imports(PACKAGE / file)
        if module.split(".")[0] in IMPURE
    ]
    assert wrong == []


def test_daemons_do_not_load_what_is_the_labs() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line}: {module}"
        for path in python_files(PACKAGE)
        if part_of(path) in DAEMONS
        for line, module in imports(path)
        if module.split(".")[0] in ("pyroute2", "rich")
    ]
    assert wrong == []


def test_heart_loads_nothing_that_can_block() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line}: {module}"
        for path in python_files(PACKAGE / "heart")
        for line, module in imports(path)
        if module.split(".")[0] in HEART_BANNED
    ]
    assert wrong == []


@pytest.mark.parametrize(
    ("part", "module", "allowed"),
    [
        ("core", "wire.Wire", False),
        ("core", "core.model.Beat", True),
        ("heart", "core.node.step", True),
        ("heart", "sync.log.Log", False),
        ("heart", "agent.main", False),
        ("freeswitch", "sync.store.Store", False),
        ("sync", "freeswitch.calls.Calls", False),
        ("cli", "agent.schema.Status", True),
        ("cli", "agent.daemon.run", False),
        ("cli", "agent.schematic", False),
        ("agent", "sync.store.Store", True),
    ],
)
def test_the_rule_itself(part: str, module: str, allowed: bool) -> None:
    assert may_import(part, module) is allowed


def test_imports_are_found_wherever_they_hide() -> None:
    """The reader sees plain, nested, relative and aliased imports: else the rules hold nothing."""
    source = (
        "import os.path as p\n"
        "from haclusterd import wire\n"
        "from ..core import model\n"
        "from . import fence\n"
        "def f():\n    from haclusterd.sync.log import Log\n"
    )
    assert {module for _, module in imports_of(source, ("haclusterd", "heart"))} == {
        "os.path",
        "haclusterd.wire",
        "haclusterd.core.model",
        "haclusterd.heart.fence",
        "haclusterd.sync.log.Log",
    }
