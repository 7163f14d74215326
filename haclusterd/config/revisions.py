"""What a node keeps of its sets of voters: the file in force, the one staged, the one before.

`configuration.json` in the state folder is written by the agent alone, atomically, and read at
every start. A file on the host that names other voters than the one in force does not count by
itself: it has to be staged (`haclusterctl reload`) and decided by a majority, or be in force on
other nodes. Without `configuration.json` the host's file counts: revision 1 at once, a later one as
soon as a node is heard that has it in force.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from haclusterd.config.load import FILE_BYTES_MAX, load, load_cluster
from haclusterd.config.model import (
    STATE_DIR,
    Config,
    ConfigError,
    Problem,
    agents_shape,
    config_hash,
    shape,
)
from haclusterd.files import write_atomically

FILE_NAME = "configuration.json"
FORMAT = 1


class Kept(msgspec.Struct, frozen=True):
    """One configuration file as it was read."""

    revision: int
    toml: str


class Content(msgspec.Struct, frozen=True):
    """`configuration.json`. `proven`: the active set is known to be in force."""

    active: Kept
    format: int = FORMAT
    staged: Kept | None = None
    previous: Kept | None = None
    proven: bool = True


class RevisionsError(Exception):
    """`configuration.json` cannot be used; the message names the file and the fix."""


@dataclass(frozen=True, slots=True)
class Start:
    """What a process starts with. `newer`: the host's file, to be taken up once it is in force;
    of the file this node ran with last, where one is known: `hold_down_us`, and `ran_addresses`
    of its services."""

    config: Config
    staged: Config | None = None
    newer: Config | None = None
    previous: Config | None = None
    proven: bool = True
    complaint: str = ""
    hold_down_us: int = 0
    ran_addresses: frozenset[str] = frozenset()


def keep(config: Config) -> Kept:
    """To be written down."""
    return Kept(config.revision, config.text)


def read(folder: Path) -> Content | None:
    """What is kept, None if nothing is. Raises RevisionsError."""
    path = folder / FILE_NAME
    try:
        with path.open("rb") as file:
            content = file.read(4 * FILE_BYTES_MAX + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise RevisionsError(f"{path}: {error.strerror}: make it readable") from None
    try:
        found = msgspec.json.decode(content, type=Content)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RevisionsError(f"{path}: is damaged ({error}): move it away") from None
    if found.format != FORMAT:
        raise RevisionsError(f"{path}: has format {found.format}: use the version that wrote it")
    return found


def write(folder: Path, content: Content) -> None:
    """Raises OSError; then the old content is still there."""
    folder.mkdir(parents=True, exist_ok=True)
    packed = msgspec.json.format(msgspec.json.encode(content), indent=1) + b"\n"
    write_atomically(folder / FILE_NAME, packed)


def begin(
    path: Path, *, node: str | None = None, run_dir: Path | None = None, revision: int = 0,
    counts_by: int = 0,
) -> Start:  # fmt: skip
    """The configuration a process starts with. Raises ConfigError.

    `revision` is what heart counts by, where it starts an agent or its successor; 0 at a start.
    `counts_by`: `agents_shape` of heart's file, where it starts an agent. The file on the host may
    be another one by then, and the two speak of services by number.
    """
    file = load(path, node=node, run_dir=run_dir)
    try:
        kept = read(run_dir or STATE_DIR)
    except RevisionsError as error:
        # As with promises that are lost: whoever cannot know what it said does not vote until
        # others tell what is in force.
        return Start(file, proven=False, complaint=str(error))
    if kept is None:
        start = Start(file, proven=file.revision == 1)
    else:
        start = _chosen(file, kept, run_dir, revision)
        if (ran := _other(path, kept.active)) is not None:
            start = replace(
                start,
                hold_down_us=ran.timing.hold_down_us,
                ran_addresses=frozenset(a.ip for s in ran.services for a in s.addresses),
            )
    # A heart of the version before tells the shape alone.
    places = shape(start.config.nodes, start.config.services)
    if counts_by in (0, agents_shape(start.config), places):
        return start
    return _as_heart_counts(start, kept, run_dir, counts_by)


def _as_heart_counts(
    start: Start, kept: Content | None, run_dir: Path | None, counts_by: int
) -> Start:
    """With heart's file, which the agent before this one has kept."""
    path, node = start.config.path, start.config.node.id
    text = "has other nodes, services or times than haclusterd runs with, or in another order"
    if kept is not None:
        config = load(path, node=node, run_dir=run_dir, text=kept.active.toml)
        if agents_shape(config) == counts_by:
            complaint = f"{path} {text}: restart haclusterd to apply it"
            return replace(start, config=config, complaint=complaint)
    raise ConfigError((Problem(str(path), "", text, "restart haclusterd"),))


def _chosen(file: Config, kept: Content, run_dir: Path | None, revision: int) -> Start:
    def bound(one: Kept) -> Config:
        return load(file.path, node=file.node.id, run_dir=run_dir, text=one.toml)

    _refuse_removed(file, kept, run_dir)
    # A staged set that this version cannot read is no reason to forget that it was agreed to.
    staged = load_cluster(file.path, kept.staged.toml) if kept.staged else None
    if staged is not None and revision == staged.revision != kept.active.revision:
        assumed = bound(kept.staged) if kept.staged else file
        previous = _other(file.path, kept.active)
        return Start(assumed, previous=previous, complaint=_complaint(file, assumed, 0))
    if revision and revision == file.revision > kept.active.revision:
        return Start(file, previous=_other(file.path, kept.active))
    active = bound(kept.active)
    previous = _other(file.path, kept.previous)
    staged_revision = staged.revision if staged is not None else 0
    complaint = _complaint(file, active, staged_revision)
    if file.revision == active.revision and _voters(file) == _voters(active):
        active = file  # anything but the voters changes by a restart
    newer = file if file.revision > max(active.revision, staged_revision) else None
    return Start(active, staged, newer, previous, kept.proven, complaint)


def _complaint(file: Config, active: Config, staged_revision: int) -> str:
    """What is to be done about the host's file beside the set in force; empty if nothing."""
    known = f"revision {active.revision} is in force"
    if file.revision == active.revision and _voters(file) != _voters(active):
        return (
            f"{file.path} names other nodes than revision {active.revision}, which is in force: "
            f"set cluster.revision to {active.revision + 1} in it and run `haclusterctl reload`"
        )
    if file.revision < active.revision:
        return f"{file.path} is of revision {file.revision}, {known}: install the newest file"
    if file.revision > max(active.revision, staged_revision):
        return (
            f"{file.path} is of revision {file.revision}, {known}: "
            "run `haclusterctl reload` on every node"
        )
    if file.revision < staged_revision:
        return (
            f"{file.path} is of revision {file.revision} again, {staged_revision} is staged on "
            "this node: install the newest file"
        )
    return ""


def standing(active: Config, kept: Content | None) -> str:
    """What is wrong with the file on this host now, while `active` is in force; empty if nothing.

    A running daemon does not read it again by itself: the next start or `reload` would find out.
    """
    staged_revision = kept.staged.revision if kept is not None and kept.staged is not None else 0
    try:
        return _complaint(load_cluster(active.path), active, staged_revision)
    except ConfigError as error:
        more = len(error.problems) - 1
        return (
            f"the next start of this node would fail: {error.problems[0]}"
            f"{f' ({more} more: `haclusterctl config check`)' if more else ''}"
        )


def _refuse_removed(file: Config, kept: Content, run_dir: Path | None) -> None:
    active = _other(file.path, kept.active)
    if active is None or file.node.id in {node.id for node in active.nodes}:
        return
    where = str((run_dir or STATE_DIR) / FILE_NAME)
    message = f"{file.node.id} was removed from the cluster by revision {active.revision}"
    fix = f"to make it a node again, add it by a new revision and delete {where} here"
    raise ConfigError((Problem(where, "", message, fix),))


def _other(path: Path, kept: Kept | None) -> Config | None:
    """A kept file that need not name this node; None if this version cannot read it any more."""
    if kept is None:
        return None
    try:
        return load_cluster(path, kept.toml)
    except ConfigError:
        return None


def _voters(config: Config) -> set[str]:
    return {node.id for node in config.nodes}


def after_start(kept: Content | None, start: Start) -> Content:
    """What is to be kept by a process that has started so. It never goes back: what another
    process has taken up since stays."""
    active = keep(start.config)
    if kept is None:
        return Content(active, proven=start.proven)
    if kept.active.revision > active.revision:
        return kept
    if kept.active.revision == active.revision:
        return Content(active, FORMAT, kept.staged, kept.previous, kept.proven and start.proven)
    staged = kept.staged if kept.staged and kept.staged.revision > active.revision else None
    return Content(active, FORMAT, staged, kept.active)


def differences(present: Config, wanted: Config) -> list[str]:
    """What a reload may not change, beside what `core.reconfigure.objections` says."""
    found = []
    for section in ("freeswitch", "sync", "heartbeat", "api"):
        if present.document[section] != wanted.document[section]:
            found.append(f"[{section}] has changed: change it by a restart, and apart")
    for key in ("key_file", "last_resort"):
        if present.document["cluster"][key] != wanted.document["cluster"][key]:
            found.append(f"cluster.{key} has changed: change it by a restart, and apart")
    return found


def is_same(one: Config, other: Config) -> bool:
    """They mean the same."""
    return config_hash(one) == config_hash(other)
