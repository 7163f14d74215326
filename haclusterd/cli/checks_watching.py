"""`doctor`: every sensor read once here, and every mover's commands looked at, as a dry run.

Nothing is moved: of a mover only `mover_check` and `mover_dry_run` are run.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from haclusterd.cli.checks import FAILED, OK, SKIPPED, WARNING, Check
from haclusterd.config import Config
from haclusterd.config.watching import Mover, Sensor
from haclusterd.sensors import reading
from haclusterd.sensors.movers import environment_of
from haclusterd.sensors.probes import probe_of
from haclusterd.sensors.program import PATH, Program

_STATES = {
    reading.OK: OK,
    reading.WARN: WARNING,
    reading.CRITICAL: WARNING,  # the host is ill, but no worse a node for what doctor asks
    reading.UNKNOWN: SKIPPED,
    reading.IDLE: SKIPPED,
}
_ESL_KINDS = ("gateway", "event")


async def watching_checks(config: Config) -> list[Check]:
    """All of this node, side by side: they wait for others most of the time."""
    node = config.node.id
    mine = [s for s in config.sensors if not s.nodes or node in s.nodes]
    found = [_sensor(sensor, node) for sensor in mine]
    found += [_mover(config, mover) for mover in config.movers]
    return [check for checks in await asyncio.gather(*found) for check in checks]


async def _sensor(sensor: Sensor, node: str) -> list[Check]:
    name = f"sensor {sensor.name}"
    if sensor.kind in _ESL_KINDS or sensor.target in ("self", "peers"):
        text = "only the running daemon can tell: haclusterctl status"
        return [Check(name, SKIPPED, text)]
    found = await probe_of(sensor, node, list, list)()
    fix = "" if found.level == reading.OK else "mend it, or correct the [[sensor]]"
    return [Check(name, _STATES[found.level], reading.plain(found.text), fix)]


async def _mover(config: Config, mover: Mover) -> list[Check]:
    name = f"mover {mover.service}"
    checks = [
        Check(name, FAILED, f"{key}: {reason}", "make it executable, or correct the path")
        for key, words in (
            ("mover_add", mover.mover_add),
            ("mover_remove", mover.mover_remove),
            ("mover_check", mover.mover_check),
            ("mover_dry_run", mover.mover_dry_run),
        )
        if words and (reason := _not_runnable(words))
    ]
    if checks:
        return checks
    if mover.mover_dry_run:
        checks.append(await _run(config, mover, "dry-run", mover.mover_dry_run, (0,)))
    if mover.mover_check:
        checks.append(await _run(config, mover, "check", mover.mover_check, (0, 1)))
    text = "its commands are there; mover_dry_run would tell whether they may do their work"
    return checks or [Check(name, SKIPPED, text)]


async def _run(
    config: Config, mover: Mover, verb: str, words: Sequence[str], good: Sequence[int]
) -> Check:
    program = Program(words, environment_of(config, mover))
    more = {"HACLUSTERD_VERB": verb, "HACLUSTERD_EPOCH": "0"}
    ran = await program.run(mover.mover_deadline_ms / 1000, more)
    name = f"mover {mover.service} {verb}"
    if ran.status in good:
        return Check(name, OK, ran.said or f"exit status {ran.status}")
    said = ran.said if ran.status is None else f"exit status {ran.status}: {ran.said}"
    return Check(name, FAILED, said, "run it by hand as the daemon's user, see docs/movers.md")


def _not_runnable(words: Sequence[str]) -> str:
    program = words[0]
    if "/" not in program:
        return "" if shutil.which(program, path=PATH) else f"{program} is not on the PATH"
    path = Path(program)
    if not path.is_file():
        return f"{program} is not there"
    return "" if os.access(path, os.X_OK) else f"{program} is not executable"
