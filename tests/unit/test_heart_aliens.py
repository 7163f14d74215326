"""What strangers on the wire can make heart do is bounded, whatever they send."""

from __future__ import annotations

from haclusterd.heart.aliens import MACS_MAX, TOLD_MAX, Aliens

SECOND = 1_000_000


def test_a_new_mac_is_told_at_once_and_then_once_a_second() -> None:
    aliens = Aliens()
    told = [aliens.worth_telling("10.0.0.1", "aa", ms * 1000) for ms in range(0, 3000, 10)]
    assert told[0] == "aa"
    assert [n * 10 for n, mac in enumerate(told) if mac] == [0, 1000, 2000]


def test_two_that_take_turns_are_told_of_once_each() -> None:
    aliens = Aliens()
    told = [
        mac
        for ms in range(0, 10_000, 10)
        if (mac := aliens.worth_telling("10.0.0.1", "ab"[ms // 10 % 2], ms * 1000))
    ]
    assert told[:2] == ["a", "b"]
    assert set(told[1:]) == {"b"}, "each change would be a line in the log"
    assert len(told) <= 11


def test_the_other_one_is_told_of_once_the_first_is_silent() -> None:
    aliens = Aliens()
    assert aliens.worth_telling("10.0.0.1", "a", 0) == "a"
    assert aliens.worth_telling("10.0.0.1", "b", SECOND) == "b"
    told = {aliens.worth_telling("10.0.0.1", "a", n * SECOND) for n in range(2, 20)}
    assert told == {"b", "a"}


def test_random_macs_and_many_addresses_are_bounded() -> None:
    aliens = Aliens()
    told = sum(bool(aliens.worth_telling("10.0.0.1", f"{n:x}", n * 1000)) for n in range(9000))
    assert told <= MACS_MAX
    aliens = Aliens()
    told = sum(bool(aliens.worth_telling(f"10.0.0.{n}", "a", 5 * SECOND)) for n in range(200))
    assert told == TOLD_MAX


def test_an_address_is_announced_against_it_every_ten_seconds() -> None:
    aliens = Aliens()
    times = [n for n in range(300) if aliens.may_announce("10.0.0.1", n * SECOND // 10)]
    assert times == [0, 100, 200]
    assert aliens.may_announce("10.0.0.2", 5 * SECOND)
