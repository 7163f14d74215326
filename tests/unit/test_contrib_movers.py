"""The movers that are shipped, with stand-ins for the providers' programs: no cloud was asked."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "contrib" / "movers"
# What each provider's program does, as its documentation has it: `state` holds who has it.
STANDINS = {
    "aws": """case "$2 $*" in
*--dry-run*) [ "$DENIED" = 1 ] && echo UnauthorizedOperation >&2 && exit 254
    echo "An error occurred (DryRunOperation)" >&2; exit 254 ;;
assign*) [ "$DENIED" = 1 ] && exit 254; echo "$*" > "$STATE" ;;
describe*) [ "$DENIED" = 1 ] && exit 254
    echo "10.0.0.4 $(grep -q "$4" "$STATE" 2>/dev/null && echo 203.0.113.10)" ;;
esac
""",
    "curl": """cat > "$STATE.config"
[ "$DENIED" = 1 ] && echo "HTTP 401" >&2 && exit 22
case "$*" in
*assign*) echo "$*" | sed 's/.*"server": \\([0-9]*\\).*/\\1/' > "$STATE" ;;
*) server=$(cat "$STATE" 2>/dev/null || echo null)
   echo "{\\"floating_ip\\": {\\"id\\": 456, \\"server\\": $server}}" ;;
esac
""",
    "openstack": """[ "$DENIED" = 1 ] && echo "HTTP 401" >&2 && exit 1
case "$*" in
"floating ip set --port "*) echo "$5" > "$STATE" ;;
*) cat "$STATE" 2>/dev/null || echo None ;;
esac
""",
}
FILES = {
    "aws": "eni-{n}",
    "hetzner": 'SERVER=12{n}\nFLOATING="456"\nTOKEN=secret\n',
    "openstack": 'PORT=port-{n}\nFLOATING="198.51.100.7"\nOS_CLOUD=voice\n',
}
_ABSENT = {"hetzner": () if shutil.which("jq") else ("jq",)}


@pytest.fixture(params=sorted(FILES))
def mover(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    name = str(request.param)
    if missing := _ABSENT.get(name):
        pytest.skip(f"no {missing[0]}: apt-get install {missing[0]}")
    for program, text in STANDINS.items():
        path = tmp_path / program
        path.write_text(f"#!/bin/sh\n{text}")
        path.chmod(0o755)
    for n in (1, 2):
        (tmp_path / f"node{n}").write_text(FILES[name].format(n=n))
    return name


def run(mover: str, folder: Path, node: int, verb: str, denied: bool = False) -> int:
    environment = {
        "PATH": f"{folder}:/usr/bin:/bin", "STATE": str(folder / "state"),
        "DENIED": "1" if denied else "0", "HACLUSTERD_VERB": verb, "HACLUSTERD_EPOCH": "7",
        "HACLUSTERD_ADDRESSES": "203.0.113.10", "HACLUSTERD_NODE": f"node{node}",
    }  # fmt: skip
    words = [str(FOLDER / mover), str(folder / f"node{node}")]
    return subprocess.run(words, env=environment, check=False, capture_output=True).returncode


def test_what_is_added_here_is_here_and_nowhere_else(mover: str, tmp_path: Path) -> None:
    """E19."""
    assert run(mover, tmp_path, 1, "check") == 1
    assert run(mover, tmp_path, 1, "add") == 0
    assert [run(mover, tmp_path, n, "check") for n in (1, 2)] == [0, 1]
    assert run(mover, tmp_path, 2, "add") == 0
    assert [run(mover, tmp_path, n, "check") for n in (1, 2)] == [1, 0]


def test_a_dry_run_moves_nothing(mover: str, tmp_path: Path) -> None:
    run(mover, tmp_path, 1, "add")
    assert run(mover, tmp_path, 2, "dry-run") == 0
    assert run(mover, tmp_path, 1, "check") == 0


def test_a_provider_that_refuses_is_an_error_and_no_word_on_where_it_is(
    mover: str, tmp_path: Path
) -> None:
    assert run(mover, tmp_path, 1, "add", denied=True) != 0
    assert run(mover, tmp_path, 1, "dry-run", denied=True) != 0
    assert run(mover, tmp_path, 1, "check", denied=True) not in (0, 1)


def test_secrets_are_no_arguments(tmp_path: Path) -> None:
    assert "Bearer %s" in (FOLDER / "hetzner").read_text()
    assert "--config -" in (FOLDER / "hetzner").read_text()
