"""Registrations in a takeover, and rows that nobody but a hostile phone would make."""

from __future__ import annotations

import asyncio

import pytest

from haclusterd.freeswitch.esl import EventsLost
from haclusterd.freeswitch.registration_db import database_of, read_all, write
from tests.unit import test_registration_keeper
from tests.unit.sync_cluster import until
from tests.unit.test_registration_keeper import FOREVER, Node, record, row, steady

node = test_registration_keeper.node


async def test_eg8_users_of_one_phone_with_one_call_id_are_all_handed_over(node: Node) -> None:
    """RFC 3261 10.2: all registrations of a phone have the same Call-ID."""
    for user in ("1000", "1001", "1002"):
        node.keeper.take(record(user, call_id="one-phone"))
    await node.own("west")
    await until(lambda: node.users("west") == ["1000", "1001", "1002"])
    await node.own("east")
    assert node.users("east") == ["1000", "1001", "1002"]
    assert node.told_users() == ["1000", "1001", "1002"]


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("how", ["contact", "call_id", "all"])
async def test_eg8_who_leaves_in_a_takeover_does_not_come_back(
    node: Node, when: str, how: str
) -> None:
    """mod_sofia's event comes up to 0.2 s after the phone had its answer."""
    for user in ("1000", "1001"):
        node.keeper.take(record(user))
    await until(lambda: node.users("east") == ["1000", "1001"])
    held = record("1000")
    node.sql("east", "DELETE FROM sip_registrations WHERE sip_user = '1000'")
    said = {"contact": held.contact if how == "contact" else "<sip:other@10.0.0.1>", "call_id": "x"}
    said |= {"call_id": held.call_id} if how == "call_id" else {}
    said |= {"contact": "*"} if how == "all" else {}
    if when == "before":
        await node.fire("unregister", "1000", **said)
    await node.own("east")
    if when == "after":
        assert node.users("east") == ["1000", "1001"]
        await node.fire("unregister", "1000", **said)
    await until(lambda: node.users("east") == ["1001"] and node.told_users() == ["1001"])
    node.insert(row("1000", expires=FOREVER + 9))  # and is there again
    await node.fire("unregister", "1000", **said)
    await node.fire("register", "1000")
    await until(lambda: node.told_users() == ["1000", "1001"])
    await steady(lambda: node.users("east") == ["1000", "1001"])


@pytest.mark.parametrize("several", ["false", "true", "contact", "call-id", "unset", "unknown"])
async def test_eg8_who_comes_anew_in_a_takeover_replaces_what_he_had(
    node: Node, several: str
) -> None:
    """As mod_sofia does it: where a user may have several phones, the old one stays."""
    param = f'<param name="multiple-registrations" value="{several}"/>' * (several != "unset")
    one = f'<profile name="east"><settings>{param}</settings></profile>' * (several != "unknown")
    node.esl.conf = f"<configuration><profiles>{one}</profiles></configuration>"
    await node.send(EventsLost("connected"))
    for user in ("1000", "1001"):
        node.keeper.take(record(user))
    await node.own("west")
    await until(lambda: node.users("west") == ["1000", "1001"])
    node.insert(row("1000")._replace(contact="<sip:1000@10.0.0.9>", call_id="another"))
    await node.own("east")
    replaced = several in ("false", "unset")
    assert node.users("east") == ["1000", "1001"] if replaced else ["1000", "1000", "1001"]


async def test_eg8_who_left_long_ago_is_handed_over_when_another_node_has_him(node: Node) -> None:
    held = record("1000")
    await node.own("east")
    await node.fire("unregister", "1000", contact=held.contact, call_id=held.call_id)
    node.keeper.disown("east")
    node.keeper.take(held)
    await until(lambda: node.users("east") == ["1000"])
    await node.own("east")
    await steady(lambda: node.users("east") == ["1000"])


async def test_a_text_of_megabytes_is_read_in_part_and_such_a_row_can_be_removed(
    node: Node,
) -> None:
    node.insert(row("1000", user_agent="u" * 2_000_000))
    node.insert(row("1001", call_id="c" * 500_000))
    await node.own("east")
    assert node.told_users() == ["1000"]
    assert node.keeper.counters["refused"] == 1
    assert {len(r.user_agent) for r in node.told.values()} == {255}
    rows = read_all(database_of(node.core_db, "east"))
    assert max(len(str(value)) for one in rows for value in one) < 300
    write(database_of(node.core_db, "east"), rows, [])
    assert node.users("east") == []


async def test_s_users_that_are_no_utf8_are_read_refused_and_removed(node: Node) -> None:
    """Any phone can send such a user or Call-ID. It stopped the upkeep of the whole table."""
    for column in ("sip_user", "call_id", "contact"):
        node.insert(row("1000"))
        node.sql("east", f"UPDATE sip_registrations SET {column} = CAST(? AS TEXT)"
                 " WHERE sip_user = '1000'", b"a\xff\xfe")  # fmt: skip
    node.insert(row("1001"))
    await node.own("east")
    assert node.told_users() == ["1001"]
    await node.fire("register", "a\udcff\udcfe")
    await asyncio.sleep(0.1)
    assert (node.keeper.problem, node.keeper.source.problem) == ("", "")
    node.keeper.disown("east")
    node.keeper.take(record("2000"))
    users = "SELECT CAST(sip_user AS BLOB) FROM sip_registrations"
    await until(lambda: node.sql("east", users) == [(b"2000",)])
    assert node.keeper.problem == ""
