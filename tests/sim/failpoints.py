"""Failpoints: a process fails at every boundary between two actions of every row of the table.

A point is (row, effect, mode), made from `core.takeover.ROWS`, so that a new row has its points for
nothing. Each row is reached by a transcript of `tests/scenarios`; the process that goes through it
crashes, stands still, loses the result or has the action refused just there. Then everything is
mended, and the cluster has to come together (`liveness`) without a violation on the way.

`python -m tests.sim.failpoints` plays them all.
"""

from __future__ import annotations

import argparse
import functools
import random
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from haclusterd.core import actions as act
from haclusterd.core import inputs as inp
from haclusterd.core.takeover import ROWS
from tests.sim import liveness

if TYPE_CHECKING:
    from tests.sim.host import Host

CRASH_BEFORE, CRASH_AFTER = "crash before", "crash after"
FREEZE_BEFORE, FREEZE_AFTER = "freeze before", "freeze after"
LOST, FAILS = "result lost", "fails"
MODES = (CRASH_BEFORE, CRASH_AFTER, FREEZE_BEFORE, FREEZE_AFTER, LOST, FAILS)
FREEZE_US = 130_000
DOWN_US = 400_000
SETTLED_WITHIN_US = 14_000_000  # a node that failed to take over is no candidate for ten seconds

TRANSCRIPTS = Path(__file__).parents[1] / "scenarios"

# What an effect of `core.moves` asks the executor for; the others change memory alone, and their
# boundary is just before the row's sentence, the last that a step gives out.
ACTION_OF: dict[str, type] = {
    "open_fence": act.RenewFence,
    "close_fence": act.CloseFence,
    "add_addresses": act.AddAddresses,
    "remove_addresses": act.RemoveAddresses,
    "announce": act.Announce,
    "recover": act.Recover,
    "persist": act.Persist,
    "end_calls": act.EndCalls,
}
_REFUSED = "netlink: permission denied"


def _refusal(action: Any) -> inp.Input | None:
    """What the executor says of an action that the kernel refuses; None: it has no result."""
    if isinstance(action, act.CloseFence):
        return inp.FenceClosed(action.service, False)
    if isinstance(action, act.RemoveAddresses):
        return inp.AddressesRemoved(action.service, False, _REFUSED)
    if isinstance(action, act.AddAddresses | act.RenewFence):
        return inp.AddressesAdded(action.service, False, _REFUSED)
    return None


HAS_RESULT = (act.CloseFence, act.RemoveAddresses, act.AddAddresses, act.RenewFence)


class Strikes(Protocol):
    """What may be armed in a world (`World.failpoint`)."""

    def strikes(self, host: Host, t: int, action: Any) -> str: ...


@dataclass
class Failpoint:
    """Armed in a world, it strikes once."""

    row: str
    effect: str  # "" for a row without effects
    mode: str
    struck: bool = field(default=False, compare=False)

    def __str__(self) -> str:
        return f"{self.row} {self.effect or 'sentence'}: {self.mode}"

    def strikes(self, host: Host, t: int, action: Any) -> str:
        """What the host does about `action`: "" carry it out, "stop" end here, "next" go on."""
        if self.struck:
            return ""
        # An effect that had nothing to ask for fails where all of them end: at the sentence.
        wanted = ACTION_OF.get(self.effect, act.Decided)
        if type(action) is not wanted and not isinstance(action, act.Decided):
            return ""
        ahead = (action, *host.actions)
        decided = next((a for a in ahead if isinstance(a, act.Decided)), None)
        if decided is None or decided.row != self.row:
            return ""
        self.struck = True
        host.world.note(f"n{host.me} FAILPOINT {self}")
        return self._strike(host, t, action)

    def _strike(self, host: Host, t: int, action: Any) -> str:
        if self.mode == FREEZE_BEFORE:
            host.actions.appendleft(action)
            host.stop_here(t, FREEZE_US)
            return "stop"
        if self.mode == FAILS:
            result = _refusal(action)
            if result is not None:
                host.results.append(result)
            return "next"
        results = len(host.results)
        if self.mode != CRASH_BEFORE:
            host.carry_out(action)
        if self.mode == LOST:
            while len(host.results) > results:
                host.results.pop()
            return "next"
        if self.mode == FREEZE_AFTER:
            host.stop_here(t, FREEZE_US)
        else:
            host.kill(t, power=False)
            host.world.at(t + DOWN_US, host.world.boot, host)
        return "stop"


def points() -> list[Failpoint]:
    """Every failpoint there is."""
    found = []
    for row in ROWS:
        for effect in dict.fromkeys(row.effects or ("",)):
            modes = MODES if ACTION_OF.get(effect) in HAS_RESULT else MODES[:4]
            found += [Failpoint(row.number, effect, mode) for mode in modes]
    return found


@functools.cache
def transcripts_by_row() -> dict[str, Path]:
    """The shortest transcript that goes through each row."""
    from tests.scenarios.player import replay  # the player stands on this package

    found: dict[str, Path] = {}
    for path in sorted(TRANSCRIPTS.glob("*.txt"), key=lambda p: p.stat().st_size):
        for row in replay(path)[1].rows:
            found.setdefault(row, path)
    return found


def play(point: Failpoint, path: Path) -> list[str]:
    """Play a transcript with the failpoint armed, mend everything, and say what is wrong."""
    from tests.scenarios.player import Player, TranscriptError, blocks

    player = Player()
    commands = [c for _, lines, _ in blocks(path.read_text()) for c in lines]
    try:
        for command in commands:
            if command.split()[0] == "expect":
                continue
            try:
                player.play([command])
            except IndexError:
                continue  # the owner that it speaks to is gone
            player.cluster_world.failpoint = point
    except TranscriptError as error:
        return [str(error)]
    world = player.cluster_world
    if not point.struck:
        return [f"{point} was not reached by {path.name}"]
    liveness.prepare(world, random.Random(1))
    end = world.now + SETTLED_WITHIN_US
    wrong = ["not yet"]
    while wrong and world.now < end and not world.checkers.violations:
        world.play_until(world.now + 500_000)
        wrong = liveness.what_is_not_whole(world)
    return [*world.checkers.violations, *wrong]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.sim.failpoints", description=__doc__)
    parser.add_argument("--row", help="only this row")
    options = parser.parse_args()
    bad = played = 0
    by_row = transcripts_by_row()
    rows = sorted({point.row for point in points()} & set(by_row))
    if options.row is not None and options.row not in rows:
        parser.error(f"argument --row: {options.row!r} is no row with a failpoint and a "
                     f"transcript; there are {', '.join(rows)}")  # fmt: skip
    for point in points():
        if options.row not in (None, point.row) or point.row not in by_row:
            continue
        played += 1
        wrong = play(point, by_row[point.row])
        if wrong:
            bad += 1
            print(f"{point} ({by_row[point.row].name}): {wrong[0]}", flush=True)
    print(f"failpoints={played} bad={bad}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
