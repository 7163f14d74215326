"""Commands of a transcript that play what an agent tells its heart.

health n0 40                  (its sensors' word from now on, ready for everything)
recovery-fails n0 s0 | recovery-works n0 s0
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from haclusterd.core import inputs as inp

if TYPE_CHECKING:
    from tests.scenarios.player import Player


def health(player: Player, words: list[str]) -> None:
    services = (inp.ServiceReport(True, "", 0),) * player.masters
    report = inp.LocalReport(True, 1, int(words[1]), 0, 0, False, services)
    player.host(words[0]).give(player.cluster_world.now, report)


def recovery_fails(player: Player, words: list[str]) -> None:
    _recovery_ended(player, words, "the profile does not start")


def recovery_works(player: Player, words: list[str]) -> None:
    _recovery_ended(player, words, "")


def _recovery_ended(player: Player, words: list[str], reason: str) -> None:
    host, k = player.host(words[0]), int(words[1].removeprefix("s"))
    if host.node is not None:
        identity = host.node.services[k].recovering
        host.give(player.cluster_world.now, inp.RecoveryEnded(k, identity, not reason, reason))
