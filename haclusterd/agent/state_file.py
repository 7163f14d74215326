"""`state.json` in the run directory: the promises that must outlive a restart (DESIGN 6, Epochs).

Written by the agent when heart asks, read by heart at its start. Names, not positions, so that a
changed configuration does not give one service the promise of another. `boot_id` tells whether
the kernel has restarted since: times of another boot mean nothing, promises do.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from haclusterd.core.model import NOBODY, Identity, NodeSpec, ServiceSpec

NAME = "state.json"
FORMAT = 1
FILE_BYTES_MAX = 1 << 20
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class Promise(msgspec.Struct, frozen=True):
    """`node` supported for `service` at `epoch`; `nonce` is the claim's."""

    service: str
    epoch: int
    node: str
    nonce: int


class StateFile(msgspec.Struct, frozen=True):
    """The whole file."""

    format: int
    cluster: str
    node: str
    boot_id: str
    promises: list[Promise]


class StateFileError(Exception):
    """The file cannot be read or written; the message names it and the fix."""


def boot_id() -> str:
    """The kernel's id of this boot, empty where /proc does not say."""
    try:
        return _BOOT_ID.read_text(encoding="ascii").strip()
    except OSError:
        return ""


def encode(
    cluster: str,
    node: str,
    nodes: Sequence[NodeSpec],
    services: Sequence[ServiceSpec],
    promises: Sequence[Identity],
) -> bytes:
    """The file's content for heart's `Persist`."""
    kept = [
        Promise(service.name, promise.epoch, nodes[promise.node].id, promise.nonce)
        for service, promise in zip(services, promises, strict=False)
        if promise.epoch > 0 and 0 <= promise.node < len(nodes)
    ]
    state = StateFile(FORMAT, cluster, node, boot_id(), kept)
    return msgspec.json.format(msgspec.json.encode(state), indent=1) + b"\n"


def read(path: Path, cluster: str) -> StateFile | None:
    """The file, None if there is none. Raises StateFileError if it is not this cluster's."""
    try:
        with path.open("rb") as file:
            content = file.read(FILE_BYTES_MAX + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StateFileError(f"{path}: cannot be read: {error.strerror}") from None
    fix = "move it away; the node then learns the epochs from the others before it votes"
    if len(content) > FILE_BYTES_MAX:
        raise StateFileError(f"{path}: is larger than {FILE_BYTES_MAX} bytes. Fix: {fix}")
    try:
        state = msgspec.json.decode(content, type=StateFile)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise StateFileError(f"{path}: is damaged ({error}). Fix: {fix}") from None
    if state.format != FORMAT or state.cluster != cluster:
        raise StateFileError(
            f"{path}: belongs to cluster {state.cluster!r}, format {state.format}. Fix: {fix}"
        )
    return state


def promises(
    state: StateFile, nodes: Sequence[NodeSpec], services: Sequence[ServiceSpec]
) -> tuple[Identity, ...]:
    """By service for `core.inputs.Restored`: NOBODY where the file names none."""
    index = {node.id: n for n, node in enumerate(nodes)}
    known = {
        p.service: Identity(p.epoch, index[p.node], p.nonce)
        for p in state.promises
        if p.node in index
    }
    return tuple(known.get(service.name, NOBODY) for service in services)
