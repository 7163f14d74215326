"""Values of the API about drains and keys; `schema` says what holds for all of them."""

from __future__ import annotations

import msgspec


class Drain(msgspec.Struct, frozen=True):
    """A service or node (`kind`) that takes no new calls. `left_s`: until it does again, null for
    only by `drain off`. `moves_s`: until what the node still serves is moved away, null for never.
    `services` it is about now, `calls` their legs as this node knows them. `problem`: why it does
    not go on, as the node that serves them says."""

    kind: str
    name: str
    by: str
    left_s: int | None
    moves_s: int | None
    services: list[str]
    calls: int
    problem: str = ""


class KeysAt(msgspec.Struct, frozen=True):
    """Where a node stands in a rotation of the keys: its phase in words, the ids of its ring, the
    one that seals first, and who began it. `problem`: why it did not tell."""

    node: str
    phase: str
    ring: list[int]
    by: str | None
    problem: str = ""
