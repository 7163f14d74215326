"""Another key ring while beats are flying (`keys rotate`): the agent read it, heart only uses it.

The file is written before heart is told, so that a heart that starts meanwhile reads the same.
"""

from __future__ import annotations

from haclusterd.core.inputs import KeysGiven
from haclusterd.wire import ClusterKey, KeyRing, Wire


def use_keys(wire: Wire, given: KeysGiven) -> tuple[bool, str]:
    """Seal and open with these from now on; (done, what is in use or why not)."""
    try:
        ring = KeyRing(tuple(ClusterKey(number, secret) for number, secret in given.keys))
    except ValueError as error:
        return False, f"heart does not take the keys: {error}"
    wire.set_keys(ring)
    return True, ",".join(str(key.id) for key in ring.keys)
