"""One node's backup: configuration, key material, promises, the set of nodes, orders; in one file.

The file is JSON, mode 0600, and holds secrets. A restore never makes a node forget: of promises the
higher epoch stays, of the set of nodes the higher revision, and what is on the disk already is
newer than any backup of it. Calls and registrations are not in it, they are the other nodes' to
tell. `BackupError`s name the file and the fix.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from haclusterd import __version__, rotation
from haclusterd.config import Config, ConfigError, load, load_cluster, revisions
from haclusterd.core import promises
from haclusterd.files import write_atomically
from haclusterd.keys import KeysError, paths, undisturbed

FORMAT = 1
BYTES_MAX = 32 << 20
FILE_MAX = 4 << 20
ORDERS = "orders.json"
CONFIG, KEYS, STATE, ESL = "config", "keys", "state", "esl"


class BackupError(Exception):
    """The backup cannot be made or put back; the text names the file and the fix."""


class Item(msgspec.Struct, frozen=True):
    """One file: where it belongs (not a path: that is the configuration's to say), its content."""

    place: str
    name: str
    content: bytes
    sha256: str


class Backup(msgspec.Struct, frozen=True):
    """The whole. `at` is wall clock text, for people; `epochs` too."""

    format: int
    version: str
    cluster: str
    node: str
    at: str
    items: list[Item]
    epochs: dict[str, int] = {}


@dataclass(frozen=True, slots=True)
class Done:
    """What a restore did: file by file, and what it kept because the disk knew more."""

    written: tuple[Path, ...]
    kept: tuple[str, ...]


def make(config: Config, file: Path, at: str) -> Backup:
    """Write a backup of this node to `file`, which must not be there. The daemon may run."""
    if os.path.lexists(file):
        raise BackupError(f"{file}: is there already. Fix: name a new file")
    items = []
    for place, path in _places(config):
        try:
            with path.open("rb") as opened:
                content = opened.read(FILE_MAX + 1)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise BackupError(
                f"{path}: {error.strerror}. Fix: run this as root, or as haclusterd's user"
            ) from None
        if len(content) > FILE_MAX:
            raise BackupError(f"{path}: is larger than {FILE_MAX} bytes. Fix: name the right file")
        items.append(Item(place, path.name, content, hashlib.sha256(content).hexdigest()))
    if not any(item.place == KEYS for item in items):
        raise BackupError(
            f"{config.key_file}: is missing, so this would be a backup of nothing. Fix: name the "
            "configuration in use with --config"
        )
    made = Backup(FORMAT, __version__, config.name, config.node.id, at, items, _epochs(items))
    try:
        write_atomically(file, msgspec.json.encode(made), 0o600)
    except OSError as error:
        raise BackupError(
            f"{file}: {error.strerror}. Fix: name a file in a folder that can be written to"
        ) from None
    return made


def read(file: Path) -> Backup:
    """A backup, whole and unharmed."""
    try:
        with file.open("rb") as opened:
            mode = stat.S_IMODE(os.fstat(opened.fileno()).st_mode)
            content = opened.read(BYTES_MAX + 1)
    except OSError as error:
        raise BackupError(f"{file}: {error.strerror}. Fix: name the file of a backup") from None
    try:
        found = msgspec.json.decode(content, type=Backup)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise BackupError(f"{file}: is no backup, or a damaged one. Fix: name another") from None
    if mode & 0o077:
        raise BackupError(f"{file}: mode {mode:04o} lets others read keys. Fix: chmod 600 {file}")
    if found.format != FORMAT:
        raise BackupError(f"{file}: has format {found.format}. Fix: use {found.version} for it")
    for item in found.items:
        if hashlib.sha256(item.content).hexdigest() != item.sha256:
            raise BackupError(f"{file}: {item.name} in it is damaged. Fix: name another backup")
    return found


def restore(path: Path, node: str | None, run_dir: Path | None, file: Path) -> Done:
    """Put a backup back, all of it or nothing. `path`: where the configuration belongs."""
    found = read(file)
    config = _config_of(found, path, node, run_dir, file)
    with _alone(config):
        contents, kept = _wanted(config, found, path, file)
        return Done(_write_all(config, contents), tuple(kept))


def _places(config: Config) -> Iterator[tuple[str, Path]]:
    """Every file that belongs into a backup, in the order in which it is restored."""
    for name in (promises.FILE_NAME, revisions.FILE_NAME, ORDERS):
        yield STATE, config.state_dir / name
    files = paths(config, "")
    yield KEYS, files.cluster_key
    yield KEYS, files.ca_certificate
    yield KEYS, files.ca_key
    for one in config.nodes:
        yield KEYS, paths(config, one.id).certificate
        yield KEYS, paths(config, one.id).private_key
    yield KEYS, config.key_file.parent / rotation.FILE_NAME
    if config.freeswitch is not None:
        yield ESL, config.freeswitch.esl_password_file
    yield CONFIG, config.path


def _epochs(items: list[Item]) -> dict[str, int]:
    content = next((i.content for i in items if i.name == promises.FILE_NAME), b"")
    with contextlib.suppress(msgspec.DecodeError, KeyError, TypeError):
        found = msgspec.json.decode(content)
        return {p["service"]: p["epoch"] for p in found["promises"]}
    return {}


def _config_of(
    found: Backup, path: Path, node: str | None, run_dir: Path | None, file: Path
) -> Config:
    """The configuration in the backup, as this node; refused where it is another's."""
    text = next((i.content for i in found.items if i.place == CONFIG), b"")
    if node is not None and node != found.node:
        raise BackupError(f"{file}: is of node {found.node}, not {node}. Fix: name its own backup")
    try:
        config = load(path, node=found.node, run_dir=run_dir, text=text.decode())
    except (ConfigError, UnicodeDecodeError) as error:
        raise BackupError(f"{file}: the configuration in it cannot be used: {error}") from None
    if not path.exists():
        return config
    try:
        here = load_cluster(path)
    except ConfigError:
        return config  # it is what is to be mended
    if here.name != found.cluster:
        raise BackupError(
            f"{file}: is of cluster {found.cluster}, and {path} of {here.name}. Fix: name a backup "
            "of this cluster"
        )
    with contextlib.suppress(ConfigError):
        mine = load(path).node.id
        if node is None and mine != found.node:
            raise BackupError(
                f"{file}: is of node {found.node}, and this host is {mine}. Fix: name a backup of "
                f"{mine}, or restore it on {found.node}"
            )
    return config


@contextlib.contextmanager
def _alone(config: Config) -> Iterator[None]:
    """The daemon does not run, and does not start meanwhile: its own lock says so."""
    lock = config.run_dir / f"{config.node.id}.pid"
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise BackupError(f"{lock}: {error.strerror}. Fix: run this as root") from None
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise BackupError(
                f"haclusterd of {config.node.id} runs ({lock}). Fix: move what it serves away and "
                "stop it first (`systemctl stop haclusterd` does both)"
            ) from None
        yield
        lock.unlink(missing_ok=True)
    finally:
        os.close(descriptor)


def _wanted(
    config: Config, found: Backup, path: Path, file: Path
) -> tuple[dict[Path, bytes], list[str]]:
    """(content by path, what is kept as it is and why)."""
    known = {(place, one.name): one for place, one in _places(config) if place != CONFIG}
    contents: dict[Path, bytes] = {}
    kept: list[str] = []
    rotated = _was_rotated(config, found)
    for item in found.items:
        target = path if item.place == CONFIG else known.get((item.place, item.name))
        if target is None:
            raise BackupError(f"{file}: {item.name} in it belongs nowhere. Fix: name another")
        content: bytes | None = item.content
        if item.place == STATE:
            content, why = _STATE[item.name](config, target, item.content)
        elif item.place == KEYS and rotated:
            content, why = None, "the keys were rotated since"
        elif item.place == CONFIG and _is_newer(path, config):
            content, why = None, "the file here is of a later revision"
        if content is None:
            kept.append(f"{target}: {why}")
        else:
            contents[target] = content
    return contents, kept


def _was_rotated(config: Config, found: Backup) -> bool:
    try:
        here = rotation.read(config)
    except KeysError:
        return False
    saved = next((i.content for i in found.items if i.name == rotation.FILE_NAME), b"{}")
    return here is not None and msgspec.json.decode(saved).get("id") != here.id


def _is_newer(path: Path, config: Config) -> bool:
    try:
        return path.exists() and load_cluster(path).revision > config.revision
    except ConfigError:
        return False


Merged = tuple[bytes | None, str]


def _promises(config: Config, target: Path, saved: bytes) -> Merged:
    """Per service the higher epoch, of the promise and of what was owned: it never goes back."""
    if not target.exists():
        return saved, ""
    try:
        here: dict[str, Any] = msgspec.json.decode(target.read_bytes())
        there: dict[str, Any] = msgspec.json.decode(saved)
        merged = {p["service"]: p for p in there["promises"]}
        for mine in here["promises"]:
            theirs = merged.get(mine["service"], mine)
            best = mine if mine["epoch"] >= theirs["epoch"] else theirs
            owned = max(mine.get("owned", 0), theirs.get("owned", 0))
            merged[mine["service"]] = {**best, "owned": owned}
    except (msgspec.DecodeError, UnicodeDecodeError, KeyError, TypeError):
        return saved, ""  # damaged here: what is saved is better than nothing
    content = {**here, "promises": list(merged.values())}
    return msgspec.json.format(msgspec.json.encode(content), indent=1) + b"\n", ""


def _voters(config: Config, target: Path, saved: bytes) -> Merged:
    try:
        here = revisions.read(target.parent)
        there = msgspec.json.decode(saved, type=revisions.Content)
    except (revisions.RevisionsError, msgspec.DecodeError, UnicodeDecodeError):
        return saved, ""
    if here is not None and here.active.revision >= there.active.revision:
        return None, f"revision {here.active.revision} is known here"
    return saved, ""


def _orders(config: Config, target: Path, saved: bytes) -> Merged:
    """Of a node that has lost them: what was ordered for all, but not its own maintenance."""
    if target.exists():
        return None, "orders are kept as they are here"
    content: dict[str, Any] = msgspec.json.decode(saved)
    content.pop("maintenance", None)
    content.pop("standing_by", None)
    return msgspec.json.encode(content), ""


_STATE = {promises.FILE_NAME: _promises, revisions.FILE_NAME: _voters, ORDERS: _orders}


def _write_all(config: Config, contents: dict[Path, bytes]) -> tuple[Path, ...]:
    """All complete beside their places first; then each is moved in."""
    shared = None if config.freeswitch is None else config.freeswitch.esl_password_file
    beside: list[tuple[Path, Path]] = []
    try:
        for target, content in contents.items():
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary = target.with_name(f".{target.name}.restored")
            write_atomically(temporary, content, _mode(target, target == shared))
            beside.append((temporary, target))
            if os.geteuid() == 0:
                owner = target.parent.stat()
                group = _group_of_freeswitch(config, target) if target == shared else owner.st_gid
                os.chown(temporary, owner.st_uid, group)
        with undisturbed():
            for temporary, target in beside:
                temporary.replace(target)
            beside.clear()
    except OSError as error:
        raise BackupError(
            f"{error.filename}: {error.strerror}. Fix: run this as root; then it can be repeated"
        ) from None
    finally:
        for temporary, _ in beside:
            with contextlib.suppress(OSError):
                temporary.unlink()
    return tuple(contents)


def _mode(target: Path, shared: bool) -> int:
    """The configuration, which holds no secret, as it was, or for all; FreeSWITCH's group reads
    the password of its event socket; the rest is secret."""
    if target.suffix == ".toml":
        return stat.S_IMODE(target.stat().st_mode) if target.exists() else 0o644
    return 0o640 if shared else 0o600


def _group_of_freeswitch(config: Config, target: Path) -> int:
    """Of the password that was there; else that of the state, which the unit gives to it."""
    known = (target, config.state_dir, target.parent)
    return next(path for path in known if path.exists()).stat().st_gid
