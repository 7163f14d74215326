"""Reading back what this node promised before it restarted (DESIGN 6, Epochs).

The agent writes `state.json`; heart reads it once, before its loop starts, because a promise has
to be known before the first grant. Nodes and services are stored by name: their numbers change
with the configuration.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from haclusterd.core.model import NOBODY, ClusterSpec, Identity

FILE_NAME = "state.json"
_FILE_BYTES_MAX = 1 << 20


class _Promise(msgspec.Struct, frozen=True):
    service: str
    epoch: int
    node: str
    nonce: int


class _StateFile(msgspec.Struct, frozen=True):
    format: int
    cluster: str
    promises: list[_Promise]


def read_promises(
    folders: Sequence[Path], spec: ClusterSpec
) -> tuple[tuple[Identity, ...] | None, str]:
    """(promises by service or None, "" or why a file could not be used); the first file counts.

    Without promises the hold-down after the start, and the epochs heard from the others, protect
    what this node may have promised.
    """
    for folder in folders:
        path = folder / FILE_NAME
        try:
            with path.open("rb") as file:
                content = file.read(_FILE_BYTES_MAX)
            stored = msgspec.json.decode(content, type=_StateFile)
        except FileNotFoundError:
            continue
        except OSError as error:
            return None, f"{path}: {error.strerror}; the promises of the last run are not known"
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            return None, f"{path}: {error}; the promises of the last run are not known"
        if stored.format != 1 or stored.cluster != spec.name:
            return None, f"{path}: is of another format or cluster and is not used"
        return _numbered(stored, spec), ""
    return None, ""


def _numbered(stored: _StateFile, spec: ClusterSpec) -> tuple[Identity, ...]:
    nodes = {node.id: number for number, node in enumerate(spec.nodes)}
    found = {
        promise.service: Identity(promise.epoch, nodes[promise.node], promise.nonce)
        for promise in stored.promises
        if promise.node in nodes
    }
    return tuple(found.get(service.name, NOBODY) for service in spec.services)
