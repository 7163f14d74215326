"""Heart takes another key ring while it runs, and says which keys are in use (scenario 25)."""

from __future__ import annotations

import msgspec
import pytest

from haclusterd.core.inputs import FromAgent, KeysGiven
from haclusterd.core.model import Beat
from haclusterd.heart.keys_given import use_keys
from haclusterd.wire import Outcome
from tests.unit.test_wire import ALICE, BOB, KEY_1, KEY_2, address, beat, wire


def given(*keys: object) -> KeysGiven:
    return KeysGiven(7, tuple((key.id, key.secret) for key in keys))  # type: ignore[attr-defined]


def test_25_keys_given_by_the_agent_are_used_without_a_gap() -> None:
    alice, bob = wire(ALICE, KEY_1), wire(BOB, KEY_1)
    assert use_keys(bob, given(KEY_1, KEY_2)) == (True, "1,2")
    assert use_keys(alice, given(KEY_2, KEY_1)) == (True, "2,1")
    assert isinstance(bob.open(alice.seal(beat(1)), 0, address(ALICE)), Beat)
    assert use_keys(bob, given(KEY_2)) == (True, "2")
    assert isinstance(bob.open(alice.seal(beat(2)), 0, address(ALICE)), Beat)
    use_keys(alice, given(KEY_1))
    assert bob.open(alice.seal(beat(3)), 0, address(ALICE)) is Outcome.UNKNOWN_KEY


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        ((), "at least one key"),
        (((1, b"short"),), "has 5 bytes"),
        (((300, b"x" * 32),), "not in 0..255"),
        (((1, b"x" * 32), (1, b"y" * 32)), "the same id"),
    ],
)
def test_25_bad_keys_change_nothing(keys: tuple[tuple[int, bytes], ...], reason: str) -> None:
    alice, bob = wire(ALICE, KEY_1), wire(BOB, KEY_1)
    done, text = use_keys(bob, KeysGiven(1, keys))
    assert not done
    assert reason in text
    assert isinstance(bob.open(alice.seal(beat(1)), 0, address(ALICE)), Beat)


def test_25_secrets_cross_the_socketpair_and_are_never_shown() -> None:
    message = given(KEY_1, KEY_2)
    decoded = msgspec.msgpack.Decoder(FromAgent).decode(msgspec.msgpack.encode(message))
    assert decoded == message
    assert repr(message) == "KeysGiven(request=7, ids=[1, 2])"
