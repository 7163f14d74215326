"""keepalived beside us, in the same run on the same machine, by a harness that is not ours.

The harness is a folder with `bench.py` (floating-IP systems in namespaces, one class per system);
`PEERS_DIR` says where. `peers_haclusterd.py` here is our class for it.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

VARIABLE = "PEERS_DIR"
SYSTEMS = ("haclusterd-lan", "keepalived-1s", "keepalived-100ms")
FAULTS = ("crash", "service", "freeze")
_OURS = Path(__file__).resolve().parent / "peers_haclusterd.py"

Say = Callable[[str], None]


def why_not() -> str:
    """Why this part cannot run here, empty if it can."""
    folder = os.environ.get(VARIABLE)
    if not folder:
        return f"{VARIABLE} is not set: the folder of the harness that runs keepalived"
    if not (Path(folder) / "bench.py").is_file():
        return f"{VARIABLE}={folder} has no bench.py"
    if shutil.which("keepalived") is None:
        return "keepalived is missing: apt-get install keepalived"
    return ""


def run(
    trials: int, entries: list[dict[str, Any]], say: Say, *, systems: tuple[str, ...] = SYSTEMS
) -> None:
    """Add one entry per fault and system: {fault, system, outage_ms, moved, ...}.

    The harness has its own words for faults: `crash` is our `node`, `service` our `freeswitch`,
    `freeze` our `freeze-both`. It refreshes a file of tables beside itself whenever it is done, so
    it runs as a copy.
    """
    with tempfile.TemporaryDirectory(prefix="haclusterd-peers-") as scratch:
        folder, results = Path(scratch) / "harness", Path(scratch) / "results"
        shutil.copytree(os.environ[VARIABLE], folder, ignore=shutil.ignore_patterns("results"))
        command = [
            sys.executable, str(folder / "bench.py"), "outage", "--systems", ",".join(systems),
            "--faults", ",".join(FAULTS), "--trials", str(trials),
        ]  # fmt: skip
        environment = {**os.environ, "PEERS_SYSTEM": str(_OURS), "PEERS_RESULTS": str(results)}
        say(f"{', '.join(systems)}: {', '.join(FAULTS)}, {trials} trials of each")
        harness = subprocess.Popen(command, cwd=folder, env=environment)
        try:
            code = harness.wait()
        except BaseException:
            # It removes its namespaces when it is interrupted.
            harness.send_signal(signal.SIGINT)
            harness.wait()
            raise
        if code:
            say(f"the harness ended with {code}")
        found = collect(results, systems)
        for entry in found:
            if entry["error"]:
                say(f"{entry['system']} {entry['fault']}: {entry['error']}")
        entries += found


def collect(results: Path, systems: tuple[str, ...]) -> list[dict[str, Any]]:
    """Entries from the result files, fault by fault; what was not measured is not there."""
    found = []
    for fault in FAULTS:
        for system in systems:
            path = results / f"outage.{system}.{fault}.json"
            if path.is_file():
                written = json.loads(path.read_text())
                trials = written["trials"]
                found.append(
                    {
                        "fault": fault,
                        "system": system,
                        "outage_ms": [trial["outage_ms"] for trial in trials],
                        "moved": sum(trial["moved"] for trial in trials),
                        "new_holder_ms": [
                            trial["fault_to_address_ms"]
                            for trial in trials
                            if "fault_to_address_ms" in trial
                        ],
                        "dual_holder_ms": [trial["dual_holder_ms"] for trial in trials],
                        "error": written["error"],
                    }
                )
    return found
