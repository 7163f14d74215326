"""Alarms come from what they tell of: each name with the fault that raises it, none without."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from haclusterd.agent import alarms
from haclusterd.agent.answers import VIEW_OLD_US, Answers
from haclusterd.agent.clock import now_us
from haclusterd.agent.comparison import SENTENCE_CHARS_MAX, Differences
from haclusterd.agent.peers import Word
from haclusterd.agent.schema import Sync
from haclusterd.agent.shared import Shared
from haclusterd.agent.starting import Starter
from haclusterd.heart.process import Heart
from tests.fixtures.agent_parts import FakeSwitch, spec, view
from tests.unit import test_audits
from tests.unit.test_runbook import raised


def life(**changed: Any) -> Any:
    """FreeSWITCH's life as `alarms` sees it: up and well, unless told otherwise."""
    starter = SimpleNamespace(problem="", attempts=0)
    whole = {"starter": starter, "process": object(), "pid_file": "/run/fs.pid", "profiles": {}}
    return SimpleNamespace(**{**whole, **changed})


def names(
    problems: dict[str, str], alive: Any = None, switch: FakeSwitch | None = None
) -> list[str]:
    return [alarm.name for alarm in alarms.alarms(problems, alive, switch)]


def test_a_well_freeswitch_raises_nothing() -> None:
    assert names({}, life(profiles={"east": ""}), FakeSwitch()) == []


def test_parts_that_do_not_run_have_the_names_of_the_runbook() -> None:
    problems = dict.fromkeys(("replication", "api", "http", "state", "revision"), "why")
    assert names(problems) == ["not_replicating", "api", "http", "state_file", "revision"]


async def test_a_start_command_that_fails_is_an_alarm_with_its_words() -> None:
    """With what the real starter says of a real command."""
    starter = Starter(["sh", "-c", "echo no licence >&2; exit 3"], lambda: False, lambda t: None)
    starter.problem = await starter._attempt()
    found = alarms.alarms({}, life(starter=starter), FakeSwitch())
    assert [alarm.name for alarm in found] == ["freeswitch_start"]
    assert "no licence" in found[0].text


def test_no_process_and_no_esl_is_down_and_esl_alone_is_not() -> None:
    gone = FakeSwitch()
    gone.up, gone.problem = False, "nothing listens"
    assert names({}, life(process=None), gone) == ["freeswitch_down"]
    assert names({}, life(process=None), FakeSwitch()) == []
    assert names({}, life(), gone) == ["freeswitch"]


def test_calls_and_profiles_that_cannot_be_taken_over() -> None:
    switch = FakeSwitch()
    switch.unprotected = "3 calls cannot be recovered elsewhere: a uuid with a quote"
    found = names({}, life(profiles={"east": "", "west": "profile west is not running"}), switch)
    assert found == ["unprotected_calls", "profiles"]


def test_differences_name_the_node_and_are_cut() -> None:
    apart = Differences({"east": "lacks mod_opus " * 100}, ("codec-prefs differ",))
    words = {
        "fs-b": Word("1", Sync("in-sync", 0), differences=apart),
        "fs-a": Word("1", Sync("", 0)),
    }
    lacking, drift = alarms.differing(words)
    assert (lacking.name, drift.name) == ("lacking", "drift")
    assert lacking.text.startswith("fs-b is no candidate for east: lacks mod_opus")
    assert len(lacking.text) < SENTENCE_CHARS_MAX + 60
    assert drift.text == "on fs-b, codec-prefs differ"


class Bare(SimpleNamespace):
    """An agent that has nothing but what it is given."""

    def __getattr__(self, name: str) -> None:
        return None


def answers(calls: int, orders_problem: str = "", silent_us: int = 0) -> list[str]:
    """Names of alarms of a whole answer: fs-a serves both, each node carries `calls` legs."""
    import msgspec

    word = view({"east": ("fs-a", 7), "west": ("fs-b", 3)})
    nodes = tuple(msgspec.structs.replace(node, calls=calls) for node in word.nodes)
    word = msgspec.structs.replace(word, nodes=nodes, at_us=now_us() - silent_us)
    agent = Bare(
        problems={}, me="fs-a", view=lambda: word, spec=spec(), config=Bare(),
        notices=Bare(alarms=[]), reports=Bare(under_way=dict),
        orders=Bare(problem=orders_problem, lost="", drains=list),
        upkeep=Bare(alarms=list, drains=Bare(closed=lambda view: {}, problems={})),
        health=Bare(alarms=[], sensors=Bare(words=list)), movers=Bare(alarms=[]),
    )  # fmt: skip
    one = Answers(cast(Any, agent))
    one.word = lambda: Word("1", Sync("in-sync", 0))  # type: ignore[method-assign]
    return [alarm.name for alarm in one.status().alarms]


def test_a_load_that_would_not_fit_without_one_node() -> None:
    assert answers(calls=10) == []
    assert answers(calls=900) == ["capacity_n1"]


def test_a_heart_that_stands_still() -> None:
    assert answers(10, silent_us=VIEW_OLD_US - 500_000) == []
    assert answers(10, silent_us=VIEW_OLD_US) == ["heart_silent"]


def test_orders_that_cannot_be_kept() -> None:
    assert answers(10, "/var/lib/haclusterd/orders: no space") == ["orders_file"]


def test_wall_clocks_that_are_apart() -> None:
    one = Shared(spec(1), cast(Any, Bare(registrations=Bare(), register=print)), lambda name: "")
    assert one.alarms() == []
    one.registrations.clocks._ahead_s["fs-b"] = -7.0
    assert [alarm.name for alarm in one.alarms()] == ["clocks"]


def test_what_heart_itself_finds() -> None:
    def heart(fence: str = "", nic: str = "", link: str = "", host: tuple[str, ...] = ()) -> Any:
        return SimpleNamespace(
            _parts=SimpleNamespace(complaints=host, fence=SimpleNamespace(fault="")),
            _link_faults={0: link}, _tallies=SimpleNamespace(alarms=lambda behind: []),
            loop=Bare(node=Bare(roll=Bare(known=1), spec=Bare(revision=1))),
            _addresses=SimpleNamespace(faults={"eth0": nic} if nic else {}),
            _executor=SimpleNamespace(fence_fault=fence),
        )  # fmt: skip

    def found(one: Any) -> list[str]:
        return [alarm.name for alarm in Heart._alarms(one)]

    assert found(heart()) == []
    assert found(heart(fence="the fence is not in force: no nft")) == ["fence_lost"]
    assert found(heart(nic="eth0: no such NIC")) == ["nic"]
    assert found(heart(link="link 10.1.0.1: closed")) == ["link_closed"]
    assert found(heart(host=("no real-time scheduling",))) == ["host"]


def test_every_alarm_is_raised_by_a_test() -> None:
    """By name, anywhere in the tests, the runbook's own list aside."""
    own = {"test_runbook.py", Path(test_audits.__file__).name}
    told = "".join(
        path.read_text()
        for path in (test_audits.ROOT / "tests").rglob("*.py")
        if path.name not in own
    )
    assert [name for name in raised() if f'"{name}"' not in told] == []
