"""Key material on disk: the cluster key of the heartbeats, the CA and node certificates of sync.

All of it lies beside `[cluster] key_file`, mode 0600, and the folder is copied to every node. Made
by root, the files get the folder's owner, which is the user that the daemon runs as:

    cluster.key (the name is `key_file`'s)  the key ring of `wire`
    ca.crt, ca.key                          the CA that signs the nodes' certificates
    NODE.crt, NODE.key                      one pair per node: mTLS between the agents

A key file is text. The first line names the format; each further line is one key, `key ID HEX`,
ID 0..255 and HEX 64 digits; the first key seals, all of them open; `#` begins a comment:

    haclusterd cluster key 1
    key 1 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08

Every error is a `KeysError` that names the file and the fix. Secrets never appear in one.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import signal
import stat
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from haclusterd.config.model import Config
from haclusterd.core.model import NodeSpec
from haclusterd.wire import KEY_BYTES, ClusterKey, KeyRing

if TYPE_CHECKING:
    from haclusterd.certificates import Authority

FORMAT_LINE = "haclusterd cluster key 1"
KEYS_MAX = 8  # a rotation needs two; more than a few is a file that nobody tidies
FILE_BYTES_MAX = 64 * 1024


class KeysError(Exception):
    """Key material is missing, unsafe or wrong; the text names the file and the fix."""


@dataclass(frozen=True, slots=True)
class KeyPaths:
    """Where the key material of one node lies."""

    cluster_key: Path
    ca_certificate: Path
    ca_key: Path
    certificate: Path
    private_key: Path


def paths(config: Config, node_id: str) -> KeyPaths:
    """The files of node `node_id`, derived from `[cluster] key_file`."""
    folder = config.key_file.parent
    return KeyPaths(
        cluster_key=config.key_file,
        ca_certificate=folder / "ca.crt",
        ca_key=folder / "ca.key",
        certificate=folder / f"{node_id}.crt",
        private_key=folder / f"{node_id}.key",
    )


@dataclass(frozen=True, slots=True)
class Created:
    """What `create` did. `nodes`: the ids whose certificates are new."""

    written: tuple[Path, ...]
    kept: tuple[Path, ...]
    nodes: tuple[str, ...]


def create(config: Config) -> Created:
    """Write the key material that the config needs and the folder lacks; nothing is replaced.

    The first time that is everything. Later it is a certificate for each node that was added to
    the config, signed by the CA that is there. Refuses with KeysError where what is there is not
    one cluster's, or lacks what cannot be made again. Nothing half-done stays behind: the files
    appear only when all of them are complete.
    """
    needed = _needed(config)
    present = tuple(path for path in needed if os.path.lexists(path))
    if not present:
        contents = _fresh(config)
        nodes = tuple(node.id for node in config.nodes)
    else:
        added = _without_certificate(config, present)
        contents = _added(config, added) if added else {}
        nodes = tuple(node.id for node in added)
    if contents:
        _write_all(config.key_file.parent, contents)
    return Created(tuple(contents), present, nodes)


def to_copy(config: Config, node_id: str) -> tuple[Path, ...]:
    """The files that node `node_id` has to have."""
    files = paths(config, node_id)
    return (files.cluster_key, files.ca_certificate, files.certificate, files.private_key)


def load_cluster_key(path: Path) -> KeyRing:
    """The key ring in `path`. KeysError if it is missing, readable by others, or malformed."""
    text = _read_private(path)
    lines = [line.partition("#")[0].strip() for line in text.splitlines()]
    lines = [line for line in lines if line]
    if not lines or lines[0] != FORMAT_LINE:
        raise KeysError(
            f'{path}: does not begin with "{FORMAT_LINE}". Fix: copy the file that '
            '"haclusterctl keys create" wrote, or name the right one in cluster.key_file'
        )
    found = [_parse_key(path, number, line) for number, line in enumerate(lines[1:], start=1)]
    if not 1 <= len(found) <= KEYS_MAX:
        raise KeysError(
            f"{path}: holds {len(found)} keys. Fix: keep 1 to {KEYS_MAX}, the one in use first"
        )
    try:
        return KeyRing(tuple(found))
    except ValueError as error:
        raise KeysError(f"{path}: {error}. Fix: give every key its own id") from None


def check_readable(config: Config, node_id: str) -> None:
    """KeysError unless all files that node `node_id` needs at run time are there and fit together.

    The CA's private key is not among them: it may be kept elsewhere.
    """
    from haclusterd import certificates  # as in _fresh

    files = paths(config, node_id)
    load_cluster_key(files.cluster_key)
    problem = certificates.misfit(
        ca_pem=read_file(files.ca_certificate),
        certificate_pem=read_file(files.certificate),
        key_pem=_read_private(files.private_key).encode(),
    )
    if problem:
        raise KeysError(
            f"{files.certificate} with {files.private_key.name} and {files.ca_certificate.name}: "
            f'{problem}. Fix: copy the whole folder that one "haclusterctl keys create" wrote'
        )


def _parse_key(path: Path, number: int, line: str) -> ClusterKey:
    words = line.split()
    where = f"{path}: key {number}"
    fix = f"Fix: write it as: key ID HEX, with ID 0..255 and {2 * KEY_BYTES} hex digits"
    if len(words) != 3 or words[0] != "key":
        raise KeysError(f"{where}: is not a key line. {fix}")
    if not (words[1].isascii() and words[1].isdigit() and int(words[1]) <= 255):
        raise KeysError(f"{where}: has no id in 0..255. {fix}")
    try:
        secret = bytes.fromhex(words[2])
    except ValueError:
        raise KeysError(f"{where}: is not hexadecimal. {fix}") from None
    if len(secret) != KEY_BYTES:
        raise KeysError(f"{where}: has {len(secret)} bytes, not {KEY_BYTES}. {fix}")
    return ClusterKey(int(words[1]), secret)


def _read_private(path: Path) -> str:
    """Text of a file that must not be open to group or others."""
    content = read_file(path, private=True)
    try:
        return content.decode("ascii")
    except UnicodeDecodeError:
        raise KeysError(
            f'{path}: is not text. Fix: copy the file that "haclusterctl keys create" wrote'
        ) from None


def read_file(path: Path, *, private: bool = False) -> bytes:
    """Its content; KeysError where it cannot be read, is too large, or is open to others."""
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            if private and mode & 0o077:
                raise KeysError(
                    f"{path}: mode {mode:04o} lets others read a secret. Fix: chmod 600 {path}"
                )
            content = file.read(FILE_BYTES_MAX + 1)
    except FileNotFoundError:
        raise KeysError(
            f'{path}: is missing. Fix: run "haclusterctl keys create --config FILE" once, on '
            "one node, and copy the folder to every node"
        ) from None
    except OSError as error:
        raise KeysError(
            f"{path}: cannot be read: {error.strerror}. Fix: make it a file that the user of "
            "haclusterd owns, mode 0600"
        ) from None
    if len(content) > FILE_BYTES_MAX:
        raise KeysError(f"{path}: is larger than {FILE_BYTES_MAX} bytes. Fix: name the right file")
    return content


def _needed(config: Config) -> list[Path]:
    """Every file of the cluster, in the order in which they are written and shown."""
    files = paths(config, "")
    found = [files.cluster_key, files.ca_certificate, files.ca_key]
    for node in config.nodes:
        files = paths(config, node.id)
        found += [files.certificate, files.private_key]
    return found


def _without_certificate(config: Config, present: Sequence[Path]) -> list[NodeSpec]:
    """The nodes to make a certificate for. KeysError naming all that stands in the way."""
    problems, added = [], []
    files = paths(config, "")
    for path in (files.cluster_key, files.ca_certificate):
        if path not in present:
            problems.append(
                f"{path}: is missing beside {present[0].name}, so this is not the whole of one "
                "cluster's key material. Fix: copy it from another node; or, to give all nodes new "
                "keys, move the other files away"
            )
    for node in config.nodes:
        pair = paths(config, node.id)
        missing = [path for path in _pair(pair) if path not in present]
        there = [path.name for path in _pair(pair) if path in present]
        if missing and there:
            problems.append(
                f"{missing[0]}: is missing beside {there[0]}, which is not overwritten. Fix: copy "
                f"it from where it was created; or move {there[0]} away to get a new pair"
            )
        elif missing:
            added.append(node)
    if added and files.ca_key not in present and files.ca_certificate in present:
        names = ", ".join(node.id for node in added)
        problems.append(
            f"{files.ca_key}: is missing, and without it no certificate can be signed for {names}. "
            "Fix: run this where the keys were created, or bring ca.key here for the moment"
        )
    if problems:
        raise KeysError("\n".join(problems))
    load_cluster_key(files.cluster_key)
    return added


def _pair(files: KeyPaths) -> tuple[Path, Path]:
    """Certificate and private key."""
    return files.certificate, files.private_key


def _fresh(config: Config) -> dict[Path, bytes]:
    """New content for every file."""
    # Imported here, because heart loads keys too and would pay 3 MB of locked memory for it.
    from haclusterd import certificates

    secret = secrets.token_bytes(KEY_BYTES)
    ca = certificates.Authority.create(config.name)
    files = paths(config, "")
    return {
        files.cluster_key: f"{FORMAT_LINE}\nkey 1 {secret.hex()}\n".encode(),
        files.ca_certificate: ca.certificate_pem,
        files.ca_key: ca.key_pem,
        **_issued(config, ca, config.nodes),
    }


def _added(config: Config, nodes: Sequence[NodeSpec]) -> dict[Path, bytes]:
    """Certificates for `nodes` by the CA that is there. KeysError if it is not whole."""
    from haclusterd import certificates  # as in _fresh

    files = paths(config, "")
    try:
        ca = certificates.Authority.load(
            read_file(files.ca_certificate), _read_private(files.ca_key).encode()
        )
    except ValueError as error:
        raise KeysError(
            f"{files.ca_key} with {files.ca_certificate.name}: {error}. Fix: bring both from where "
            "the keys were created"
        ) from None
    return _issued(config, ca, nodes)


def _issued(config: Config, ca: Authority, nodes: Sequence[NodeSpec]) -> dict[Path, bytes]:
    contents = {}
    for node in nodes:
        certificate, key = _pair(paths(config, node.id))
        contents[certificate], contents[key] = ca.issue(node)
    return contents


def _write_all(folder: Path, contents: Mapping[Path, bytes]) -> None:
    """All files or none: complete in a private folder first, then moved into place."""
    try:
        owner = folder.stat()
        with tempfile.TemporaryDirectory(prefix=".keys-", dir=folder) as temporary:
            for path, content in contents.items():
                _write_synced(Path(temporary) / path.name, content, owner)
            with undisturbed():
                _place_all(Path(temporary), list(contents), folder)
    except OSError as error:
        raise KeysError(
            f"{folder}: cannot write key material: {error.strerror}. Fix: create the folder and "
            "run this as a user who may write there"
        ) from None


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Ctrl-C and its like wait until the end of this."""
    signals = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _place_all(source: Path, targets: Sequence[Path], folder: Path) -> None:
    placed: list[Path] = []
    try:
        for target in targets:
            _place(source / target.name, target)
            placed.append(target)
        _sync_folder(folder)
    except BaseException:
        for path in placed:
            path.unlink(missing_ok=True)
        raise


def _place(source: Path, target: Path) -> None:
    """Move without replacing: two runs at once must not mix their keys."""
    try:
        os.link(source, target)
    except FileExistsError:
        raise
    except OSError:
        # No hard links here (folders shared into virtual machines): nearly as good.
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST)) from None
        source.rename(target)


def _write_synced(path: Path, content: bytes, owner: os.stat_result) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        os.fchmod(descriptor, 0o600)
        if os.geteuid() == 0:
            os.fchown(descriptor, owner.st_uid, owner.st_gid)
        file.write(content)
        file.flush()
        os.fsync(descriptor)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
