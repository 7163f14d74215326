"""What `keys status` says of where a node stands."""

from __future__ import annotations

from haclusterd.agent.rotation_words import Told, phase_word
from haclusterd.rotation import KNOWN


def test_who_does_not_tell_is_not_said_to_have_the_old_keys() -> None:
    assert phase_word(Told(ring=[1])) == "old keys"
    assert phase_word(Told(problem="fs-c does not answer")) == "unknown"
    unread = Told("77", KNOWN, problem="cluster.key: Permission denied")
    assert phase_word(unread) == "new keys known"
