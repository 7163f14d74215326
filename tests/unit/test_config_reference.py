"""docs/configuration.md names every key, and every key that it names is used for something."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from haclusterd.config import reference
from haclusterd.config.presets import PRESETS
from tests.unit.config_example import GOOD

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "docs" / "configuration.md"
KEYS = {f"{key.section}.{key.name}" for key in reference.asked()}

# Under which name the rest of haclusterd reads a key, where that is not the key's own.
READ_AS = {
    "sync.port": "sync_port",
    "heartbeat.port": "heartbeat_port",
    "api.http": "http_port",
    "hook.smtp": "smtp_host",
    "dns.server": "server_host",
    "service.mover": "movers",
    **{f"timing.{name}": name.replace("_ms", "_us") for name in PRESETS["lan"]},
}


def test_document_is_current(request: pytest.FixtureRequest) -> None:
    if request.config.getoption("--rewrite"):
        DOCUMENT.write_text(reference.render())
    assert DOCUMENT.read_text() == reference.render()


def test_every_key_has_a_meaning_and_every_meaning_a_key() -> None:
    assert set(reference.MEANINGS) == KEYS
    named = set(re.findall(r"^\| `(\w+)` ", DOCUMENT.read_text(), re.M))
    assert named == {key.partition(".")[2] for key in KEYS}


def test_the_contracts_keys_are_all_there() -> None:
    section, found = "", set[str]()
    for line in GOOD.splitlines():
        if line.startswith("["):
            section = line.strip("[]")
        else:
            found.add(f"{section}.{line.partition(' =')[0]}")
    assert found <= KEYS


def test_every_key_is_read_by_the_code() -> None:
    """A key that only the reader of the file knows would do nothing."""
    package = ROOT / "haclusterd"
    used = {
        node.attr
        for path in package.rglob("*.py")
        if path.relative_to(package).parts[0] not in ("config", "lab")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute)
    }
    # The core's own derived times count as a use: they are attributes of the same class.
    unread = {key for key in KEYS if READ_AS.get(key, key.partition(".")[2]) not in used}
    assert not unread
