"""The content of `state.json`: the promises that must outlive a restart (DESIGN 6, Epochs).

The agent writes the file when heart asks, heart reads it at its start; the format is here, so that
both mean the same. Names, not positions, so that a changed configuration does not give one service
the promise of another. `boot_id` tells people whether the kernel has restarted since.
"""

from __future__ import annotations

import msgspec

from haclusterd.core.actions import Persist
from haclusterd.core.inputs import Restored
from haclusterd.core.model import NOBODY, NOBODY_NODE, ClusterSpec, Identity

FILE_NAME = "state.json"
FILE_BYTES_MAX = 1 << 20
FORMAT = 1


class PromisesError(Exception):
    """The content is not this cluster's, or is damaged; the message says which."""


class _Promise(msgspec.Struct, frozen=True):
    """`node` supported for `service` at `epoch`; `nonce` is the claim's."""

    service: str
    epoch: int
    node: str
    nonce: int
    owned: int = 0  # the highest epoch at which anybody is known to have owned it


class _File(msgspec.Struct, frozen=True):
    format: int
    cluster: str
    promises: list[_Promise]
    node: str = ""
    boot_id: str = ""


def encode(spec: ClusterSpec, boot_id: str, known: Persist) -> bytes:
    """The file for what heart wants to be kept."""
    owned = known.owned or (0,) * len(known.promises)
    kept = [
        _Promise(service.name, promise.epoch, _id(spec, promise.node), promise.nonce, epoch)
        for service, promise, epoch in zip(spec.services, known.promises, owned, strict=False)
        if promise.epoch > 0 and promise.node < len(spec.nodes)
    ]
    content = _File(FORMAT, spec.name, kept, spec.nodes[spec.me].id, boot_id)
    return msgspec.json.format(msgspec.json.encode(content), indent=1) + b"\n"


def _id(spec: ClusterSpec, n: int) -> str:
    """Empty for a node that is no voter any more: epoch and nonce stay what they are."""
    return spec.nodes[n].id if n >= 0 else ""


def decode(content: bytes, spec: ClusterSpec) -> Restored:
    """What heart is told at its start: NOBODY where the file names none. Raises PromisesError."""
    if len(content) > FILE_BYTES_MAX:
        raise PromisesError(f"is larger than {FILE_BYTES_MAX} bytes")
    try:
        found = msgspec.json.decode(content, type=_File)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise PromisesError(f"is damaged ({error})") from None
    if found.format != FORMAT or found.cluster != spec.name:
        raise PromisesError(f"belongs to cluster {found.cluster!r}, format {found.format}")
    nodes = {node.id: number for number, node in enumerate(spec.nodes)}
    known = {
        promise.service: Identity(
            promise.epoch, nodes.get(promise.node, NOBODY_NODE), promise.nonce
        )
        for promise in found.promises
    }
    owned = {promise.service: promise.owned for promise in found.promises}
    names = [service.name for service in spec.services]
    return Restored(
        tuple(known.get(name, NOBODY) for name in names),
        tuple(owned.get(name, 0) for name in names),
    )
