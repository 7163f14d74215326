"""One node's part in a rotation of the cluster's keys: what lies on its disk in each phase.

    0  old    as before
    1  known  beats sealed with the old key, both opened; the old certificate, both CAs trusted
    2  used   beats sealed with the new key, both opened; the new certificate, both CAs trusted
    3  done   the new ones only

Two nodes understand each other as long as they are at most one phase apart, so no node goes on
before all have come after (`agent.rotation`). `rotation.json` beside the keys is written first in
each step and holds both generations; every other file follows from it, so that a start after a
crash finishes what was begun. When the rotation is done it keeps its id and no secret.

Errors are KeysErrors that name the file and the fix.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path

import msgspec

from haclusterd.config.model import Config
from haclusterd.files import write_atomically
from haclusterd.keys import FILE_BYTES_MAX, FORMAT_LINE, KeysError, load_cluster_key, paths
from haclusterd.wire import KEY_BYTES, ClusterKey, KeyRing

FILE_NAME = "rotation.json"
FORMAT = 1
OLD, KNOWN, USED, DONE = range(4)
NAMES = ("old keys", "new keys known", "new keys used", "done")


class Key(msgspec.Struct, frozen=True):
    """A key of the beats; `secret` is hex."""

    id: int
    secret: str

    def __repr__(self) -> str:
        return f"Key({self.id})"


class Generation(msgspec.Struct, frozen=True):
    """All key material of one node, PEM texts as in the files."""

    ring: tuple[Key, ...] = ()
    ca: str = ""
    certificate: str = ""
    private_key: str = ""

    def __repr__(self) -> str:
        return f"Generation({self.ring})"


class Kept(msgspec.Struct, frozen=True):
    """`rotation.json`. `origin` is the node that made the new keys; only there are `ca_key` and
    `issued`, the generations of the others."""

    id: str
    cluster: str
    node: str
    phase: int
    by: str
    origin: str
    format: int = FORMAT
    old: Generation = Generation()
    new: Generation = Generation()
    ca_key: str = ""
    issued: dict[str, Generation] = {}


def begin(config: Config, by: str) -> Kept:
    """New keys for every node; nothing is written yet. KeysError where the old are not whole."""
    from haclusterd import certificates  # as in keys: not for heart

    old = _present(config)
    used = {key.id for key in old.ring}
    number = next(n for n in range(1, 256) if n not in used)
    ca = certificates.Authority.create(config.name)
    ring = (Key(number, secrets.token_bytes(KEY_BYTES).hex()),)
    issued = {}
    for node in config.nodes:
        certificate, key = ca.issue(node)
        issued[node.id] = Generation(
            ring, ca.certificate_pem.decode(), certificate.decode(), key.decode()
        )
    me = config.node.id
    return Kept(
        secrets.token_hex(8), config.name, me, OLD, by, me, old=old, new=issued[me],
        ca_key=ca.key_pem.decode(), issued=issued,
    )  # fmt: skip


def joined(config: Config, number: str, by: str, origin: str, new: Generation) -> Kept:
    """This node's part in a rotation that another one began. KeysError."""
    read(config)  # refuses a folder that is another node's, too
    return Kept(number, config.name, config.node.id, OLD, by, origin, old=_present(config), new=new)


def read(config: Config) -> Kept | None:
    """The rotation that this node takes part in, or the last one; in a configuration bound to no
    node, whosever it is. KeysError."""
    path = _path(config)
    fix = "Fix: restore it from a backup, or move it away once all nodes have the same keys"
    try:
        with path.open("rb") as file:
            content = file.read(16 * FILE_BYTES_MAX)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise KeysError(f"{path}: {error.strerror}. {fix}") from None
    try:
        found = msgspec.json.decode(content, type=Kept)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise KeysError(f"{path}: is damaged. {fix}") from None
    if found.format != FORMAT or found.cluster != config.name or not OLD <= found.phase <= DONE:
        raise KeysError(f"{path}: is not of this cluster and version. {fix}")
    if config.me >= 0 and found.node != config.node.id:
        if found.phase == DONE:
            return None  # it came with the folder of a node that had finished
        raise KeysError(
            f"{path}: is of node {found.node}. Fix: give every node a folder of its own, copied "
            "while no rotation is under way"
        )
    return found


def is_under_way(kept: Kept | None) -> bool:
    return kept is not None and OLD < kept.phase < DONE


def enter(config: Config, kept: Kept, phase: int) -> Kept:
    """Bring this node's files into `phase`, on disk when it returns. KeysError, and then a repeat
    or a start goes on from there."""
    kept = msgspec.structs.replace(kept, phase=phase)
    path = _path(config)
    try:
        if phase != OLD:
            write_atomically(path, msgspec.json.encode(kept))
        _write_files(config, kept)
        if phase == OLD:
            path.unlink(missing_ok=True)
        elif phase == DONE:
            last = Kept(kept.id, kept.cluster, kept.node, DONE, kept.by, kept.origin)
            write_atomically(path, msgspec.json.encode(last))
            return last
    except OSError as error:
        raise KeysError(
            f"{path.parent}: key material cannot be written: {error.strerror}. Fix: make the "
            "folder writable for haclusterd's user (and its unit: ReadWritePaths=)"
        ) from None
    return kept


def settle(config: Config) -> Kept | None:
    """At a start: finish what was begun before a crash. KeysError."""
    kept = read(config)
    if kept is not None and kept.new.ring:
        return enter(config, kept, kept.phase)
    return kept


def ring_of(kept: Kept) -> KeyRing:
    """The ring of its phase."""
    return KeyRing(tuple(ClusterKey(k.id, bytes.fromhex(k.secret)) for k in _ring(kept)))


def _ring(kept: Kept) -> tuple[Key, ...]:
    old, new = kept.old.ring, kept.new.ring
    return {OLD: old, KNOWN: (*old, *new), USED: (*new, *old), DONE: new}[kept.phase]


def _write_files(config: Config, kept: Kept) -> None:
    """Certificate and key are two files: a crash between them is mended by `settle`."""
    files = paths(config, kept.node)
    old, new = kept.old, kept.new
    own = old if kept.phase in (OLD, KNOWN) else new
    trusted = {OLD: old.ca, KNOWN: old.ca + new.ca, USED: new.ca + old.ca, DONE: new.ca}
    lines = [FORMAT_LINE, *(f"key {key.id} {key.secret}" for key in _ring(kept))]
    contents = {
        files.cluster_key: "\n".join(lines) + "\n",
        files.ca_certificate: trusted[kept.phase],
        files.private_key: own.private_key,
        files.certificate: own.certificate,
    }
    if kept.phase == DONE and kept.ca_key:
        contents[files.ca_key] = kept.ca_key
        for node, theirs in kept.issued.items():  # the folder stays one that can be copied whole
            if node != kept.node and os.path.lexists(paths(config, node).certificate):
                contents[paths(config, node).private_key] = theirs.private_key
                contents[paths(config, node).certificate] = theirs.certificate
    for path, text in contents.items():
        if not path.exists() or path.read_bytes() != text.encode():
            write_atomically(path, text.encode())


def _present(config: Config) -> Generation:
    """What this node uses now. KeysError."""
    files = paths(config, config.node.id)
    ring = load_cluster_key(files.cluster_key)
    try:
        ca, certificate, key = (
            path.read_text(encoding="ascii")
            for path in (files.ca_certificate, files.certificate, files.private_key)
        )
    except (OSError, UnicodeDecodeError) as error:
        raise KeysError(
            f"{config.key_file.parent}: {error}. Fix: copy the folder that `haclusterctl keys "
            "create` wrote, before the keys are rotated"
        ) from None
    return Generation(tuple(Key(k.id, k.secret.hex()) for k in ring.keys), ca, certificate, key)


def _path(config: Config) -> Path:
    return config.key_file.parent / FILE_NAME
