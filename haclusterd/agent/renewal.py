"""What an agent leaves to the next one of this node when the daemon is renewed: its copies."""

from __future__ import annotations

import logging
from pathlib import Path

from haclusterd.config import Config
from haclusterd.files import boot_id
from haclusterd.sync import handover
from haclusterd.sync.lane import REGISTRATIONS
from haclusterd.sync.replicator import Replicator

log = logging.getLogger(__name__)


def _place(config: Config) -> tuple[Path, handover.Whose]:
    whose = handover.Whose(config.name, config.node.id, boot_id())
    return config.run_dir / handover.NAME, whose


def leave_copies(config: Config, replicator: Replicator) -> None:
    """Write the file; the agent has to be at its end: what comes after this is not in it."""
    path, whose = _place(config)
    calls, registrations = replicator.calls, replicator.registrations
    try:
        told = handover.write(
            path, whose, (calls.store, registrations.store), calls.change_log.logs.values()
        )
    except OSError as error:
        log.warning("%s: the next agent gets no copies from this one: %s", path, error.strerror)
        return
    if told.problem:
        log.warning("%s: %s", path, told.problem)
    log.info("left %d copies with %d items to the next agent", told.copies, told.items)


def take_copies(config: Config, replicator: Replicator) -> str:
    """Take what the agent before this one left, and remove the file; a sentence, if it was."""
    path, whose = _place(config)
    stores = handover.StoreOf(
        {REGISTRATIONS: replicator.registrations.store, "": replicator.calls.store}
    )
    told = handover.take(path, whose, stores, replicator.calls.store.limits)
    if told is None:
        return ""
    if told.problem:
        log.warning("%s is not used: it %s", path, told.problem)
        return ""
    replicator.calls.notify()
    return f"took {told.items} items in {told.copies} copies over from the agent before"
