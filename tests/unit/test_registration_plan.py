"""Where the rows of other nodes' registrations belong, and that each phone has one at most."""

from __future__ import annotations

import random
from typing import Any

import pytest

from haclusterd.core.records import Registration
from haclusterd.freeswitch.registration_plan import Change, RegistrationPlan
from haclusterd.freeswitch.registrations import BY_US, Row
from tests.unit.test_registrations import record as made

NOW_S = 1_000_000_000.0
ADDRESSES = {
    "east": "sip:10.77.0.101:5060", "west": "sip:10.77.0.102:5060",
    "south": "sip:10.77.0.103:5060", "east6": "sip:[fd00::101]:5060",
}  # fmt: skip


def record(user: str, profile: str = "east", **other: Any) -> Registration:
    return made(user, profile_name=profile, contact=f'"" <sip:{user}@10.77.0.21:5090>', **other)


class Tables:
    """The tables of one node, as the changes leave them."""

    def __init__(self, plan: RegistrationPlan) -> None:
        self.plan = plan
        self.rows: dict[str, list[Row]] = {name: [] for name in ADDRESSES}

    def apply(self, changes: dict[str, Change]) -> None:
        for profile, change in changes.items():
            gone = {row.key for row in change.gone}
            self.rows[profile] = [r for r in self.rows[profile] if r.key not in gone]
            self.rows[profile] += change.added

    def users(self, profile: str) -> list[str]:
        return sorted(row.sip_user for row in self.rows[profile])


@pytest.fixture
def plan() -> RegistrationPlan:
    made = RegistrationPlan()
    made.switchname, made.addresses = "fs-c", dict(ADDRESSES)
    return made


@pytest.fixture
def tables(plan: RegistrationPlan) -> Tables:
    return Tables(plan)


def take(tables: Tables, *records: Registration) -> None:
    for one in records:
        tables.apply(tables.plan.changes(tables.plan.take(one), NOW_S))


def own(tables: Tables, *profiles: str) -> None:
    tables.plan.owned = frozenset(profiles)
    tables.apply(tables.plan.changes(tables.plan.everything(), NOW_S))


def test_a_slave_has_them_in_their_own_profile_ready_to_take_over(tables: Tables) -> None:
    take(tables, record("1000"), record("2000", "west"))
    assert (tables.users("east"), tables.users("west")) == (["1000"], ["2000"])
    ready = tables.plan.hand_over("east", NOW_S, [])
    assert [row.contact for row in ready.added] == ['"" <sip:1000@10.77.0.21:5090>']
    own(tables, "east")
    assert tables.users("east") == ["1000", "2000"], "its own, and the way to the other one"
    assert tables.users("west") == []
    assert [r.orig_hostname for r in tables.rows["east"]] == ["fs-c", BY_US]


def test_a_master_leads_to_the_service_and_drops_what_it_takes_over(tables: Tables) -> None:
    own(tables, "west")
    take(tables, record("1000"), record("1001"))
    assert {r.contact.partition(";")[2] for r in tables.rows["west"]} == {
        "ha_to=-;fs_path=sip%3A10.77.0.101%3A5060>"
    }
    assert tables.users("east") == []
    assert len(tables.plan.hand_over("east", NOW_S, []).added) == 2
    own(tables, "west", "east")
    assert tables.users("west") == [], "they are registered here now"


def test_what_was_registered_before_in_a_freeswitch_that_is_gone_is_handed_over_too(
    plan: RegistrationPlan,
) -> None:
    expired = record("1001", expires=1)
    rows = plan.hand_over("east", NOW_S, [record("1000"), expired])
    assert [row.sip_user for row in rows.added] == ["1000"]


def test_what_ran_out_before_a_takeover_goes_with_it(tables: Tables) -> None:
    take(tables, record("1000"), record("1001", expires=int(NOW_S) + 5))
    assert tables.users("east") == ["1000", "1001"]
    found = tables.plan.hand_over("east", NOW_S + 6, [])
    assert [row.sip_user for row in found.gone] == ["1001"]
    assert [row.sip_user for row in found.added] == ["1000"]


def test_ipv6_leads_through_ipv6_only(tables: Tables) -> None:
    take(tables, record("1000", "east6"))
    own(tables, "west")
    assert tables.users("west") == []
    own(tables, "west", "east6")
    take(tables, record("1001"))
    assert tables.users("west") == ["1001"]


def test_a_phone_that_went_elsewhere_rings_once(tables: Tables) -> None:
    own(tables, "south")
    take(tables, record("1000", "east", expires=4_000_000_000))
    take(tables, record("1000", "west", expires=4_000_000_100))
    assert len(tables.rows["south"]) == 1
    assert "10.77.0.102" in tables.rows["south"][0].contact, "not where it was last"
    tables.apply(tables.plan.changes(tables.plan.drop(record("1000", "west").uuid), NOW_S))
    assert "10.77.0.101" in tables.rows["south"][0].contact
    here = record("1000", "south")
    tables.apply(tables.plan.changes(tables.plan.local("south", [here]), NOW_S))
    assert tables.rows["south"] == [], "it is registered here"
    tables.apply(tables.plan.changes(tables.plan.local("south", []), NOW_S))
    assert len(tables.rows["south"]) == 1


def test_what_ran_out_or_has_no_owner_for_long_is_not_dialled(tables: Tables) -> None:
    own(tables, "west")
    take(tables, record("1000"), record("1001", expires=1_000_000_010))
    tables.apply(tables.plan.changes(tables.plan.everything(), NOW_S + 11))
    assert tables.users("west") == ["1000"]
    tables.plan.lost = frozenset({"east"})
    tables.apply(tables.plan.changes(tables.plan.everything(), NOW_S))
    assert tables.users("west") == []


def test_verify_finds_what_is_missing_wrong_doubled_or_strange(tables: Tables) -> None:
    own(tables, "west")
    take(tables, *(record(str(n)) for n in range(5)))
    rows = sorted(tables.rows["west"])
    verify = tables.plan.verify
    assert verify("west", rows, None) == Change([], [])
    assert verify("west", rows[1:], None) == Change([], rows[:1])
    changed = rows[0]._replace(expires=1)
    assert verify("west", [changed, *rows[1:]], None) == Change([changed], rows[:1])
    doubled = verify("west", [rows[0], *rows], None)
    assert doubled == Change(rows[:1], rows[:1]), "deleted by its key, so put back"
    strange = rows[0]._replace(call_id="other")
    assert verify("west", [*rows, strange], None) == Change([strange], [])
    assert verify("west", [rows[0]], frozenset({("0", "lab.test")})) == Change([], [])
    assert verify("west", [], frozenset({("0", "lab.test")})) == Change([], rows[:1])
    assert verify("east", [rows[0]], None) == Change([], []), "no row of that profile"


def test_eg8_whatever_happens_no_phone_has_two_rows_and_tables_are_as_planned() -> None:
    for seed in range(60):
        rng = random.Random(seed)
        plan = RegistrationPlan()
        plan.switchname, plan.addresses = "fs-c", dict(ADDRESSES)
        tables = Tables(plan)
        for _ in range(60):
            one = record(
                str(rng.randrange(6)), rng.choice(("east", "west", "south")),
                expires=1_000_000_000 + rng.randrange(1, 50),
            )  # fmt: skip
            match rng.randrange(5):
                case 0 | 1:
                    take(tables, one)
                case 2:
                    tables.apply(plan.changes(plan.drop(one.uuid), NOW_S))
                case 3:
                    wanted = {p for p in ADDRESSES if rng.random() < 0.3}
                    for profile in wanted - plan.owned:
                        plan.hand_over(profile, NOW_S, [])
                        # the rows are mod_sofia's from now on
                        tables.rows[profile] = []
                    for profile in plan.owned - wanted:
                        plan.forget_local(profile)
                    own(tables, *wanted)
                case _:
                    for profile in plan.owned:
                        keys = plan.local(profile, [one] if rng.random() < 0.5 else [])
                        tables.apply(plan.changes(keys, NOW_S))
            for profile, rows in tables.rows.items():
                assert plan.verify(profile, rows, None) == Change([], []), seed
            served = [(r.sip_user, r.contact.partition(";")[0]) for p in plan.owned
                      for r in tables.rows[p]]  # fmt: skip
            assert len(set(served)) == len(served), seed
            if plan.owned:
                assert not any(tables.rows[p] for p in ADDRESSES if p not in plan.owned), seed
