"""What a FreeSWITCH has, compared with the owner's (MS26), and again when it changes (MS27)."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from haclusterd.agent.alarms import differing
from haclusterd.agent.comparison import SENTENCES_MAX, Comparison, Differences
from haclusterd.agent.history import History
from haclusterd.agent.local_switch import LocalSwitch
from haclusterd.agent.peers import CAPABILITIES, METHOD, Peers, Word
from haclusterd.agent.schema import Sync
from haclusterd.agent.standing import judge
from haclusterd.agent.switch import SwitchEvents
from haclusterd.config import FreeSwitch
from haclusterd.freeswitch import capabilities as caps
from haclusterd.freeswitch.capabilities import Capabilities, ProfileFacts
from haclusterd.freeswitch.capability_watch import CapabilityWatch
from haclusterd.freeswitch.esl import EslConnection, EslSettings
from haclusterd.freeswitch.profiles import parse_profile_params, parse_profile_states
from haclusterd.sync.rpc import RequestFailed
from tests.fixtures.agent_parts import spec
from tests.fixtures.freeswitch.fake_esl import FakeEsl
from tests.unit.emulator_lab import Emulator
from tests.unit.test_agent_standing import SLAVE

# As 1.11.3-dev prints them, shortened.
MODULES = """{"row_count":391,"rows":[
{"type":"api","name":"acl","ikey":"mod_commands","filename":"/x/mod_commands.so"},
{"type":"application","name":"answer","ikey":"mod_dptools","filename":"/x/mod_dptools.so"},
{"type":"application","name":"bridge","ikey":"mod_dptools","filename":"/x/mod_dptools.so"},
{"type":"api","name":"snmp","ikey":"mod_snmp","filename":"/x/mod_snmp.so"},
{"type":"codec","name":"G.711 alaw","ikey":"CORE_PCM_MODULE","filename":""},
{"type":"limit","name":"hash","ikey":"mod_hash","filename":"/x/mod_hash.so"}]}"""
CODECS = """{"row_count":2,"rows":[
{"type":"codec","name":"G.711 alaw","ikey":"CORE_PCM_MODULE"},
{"type":"codec","name":"Speex","ikey":"CORE_SPEEX_MODULE"}]}"""
PROFILE = (
    f"{'=' * 97}\nName             \teast\nDomain Name      \tN/A\nContext          \tpublic\n"
    "CODECS IN        \tOPUS@48000h@20i,PCMU,PCMA\nCODECS OUT       \tPCMU,G729\n"
    "CALLS-IN         \t0\n"
)

EAST = ProfileFacts("public", ("PCMA", "PCMU"), {"dtmf-type": "aa", "nonce-ttl": "bb"})
FULL = Capabilities(
    ("mod_dptools", "mod_hash"), ("G.711 alaw", "Speex"), {"east": EAST}, {"public": "d1"}
)


def with_east(**changed: object) -> Capabilities:
    facts = msgspec.structs.replace(EAST, **changed)
    return msgspec.structs.replace(FULL, profiles={"east": facts})


def test_what_freeswitch_prints() -> None:
    assert caps.parse_modules(MODULES) == ("mod_dptools", "mod_hash")  # no API, no SNMP
    assert caps.parse_codecs(CODECS) == ("G.711 alaw", "Speex")
    params = {"sip-ip": "10.0.0.1", "dtmf-type": "rfc2833"}
    found = caps.parse_profile(PROFILE, params)
    assert found is not None
    assert (found.context, found.codecs) == ("public", ("G729", "OPUS", "PCMA", "PCMU"))
    assert list(found.settings) == ["dtmf-type"]  # addresses differ on purpose
    assert "rfc2833" not in str(found)  # a value may be a secret
    assert caps.parse_profile("Invalid Profile!\n", params) is None
    assert caps.context_digest("can't find anything\n") == ""
    one = '<context name="a">\n  <extension/>\n</context>'
    assert caps.context_digest(one) == caps.context_digest(one.replace("\n  ", "\n")) != ""


@pytest.mark.parametrize(
    "text", ["", "-ERR no reply\n", "[1]", '{"rows":[7]}', "\udcff", "{" * 9999]
)
def test_nonsense_is_nothing(text: str) -> None:
    assert caps.parse_modules(text) == caps.parse_codecs(text) == ()
    assert caps.parse_profile(text, {}) is None
    assert caps.context_digest(text) == ""


def test_names_are_bounded_and_clean() -> None:
    rows = [{"type": "application", "name": "x", "ikey": f"mod_{n}"} for n in range(5000)]
    rows += [{"type": "codec", "name": f"\x1b[2J{n}", "ikey": "mod_\n"} for n in range(9)]
    text = json.dumps({"rows": rows})
    assert len(caps.parse_modules(text)) == caps.NAMES_MAX
    assert caps.parse_codecs(text) == ()


LACKING = [
    (Capabilities(("mod_dptools",), FULL.codecs, FULL.profiles, FULL.contexts),
     ["module mod_hash", "which fs-a has", "load mod_hash", "modules.conf.xml"]),
    (Capabilities(FULL.modules, ("Speex",), FULL.profiles, FULL.contexts),
     ["codec G.711 alaw", "load its module"]),
    (with_east(codecs=("PCMA",)), ["'east' does not offer codec PCMU", "rescan"]),
    (Capabilities(FULL.modules, FULL.codecs, FULL.profiles, {"public": ""}),
     ["no context 'public'", "reloadxml"]),
]  # fmt: skip


@pytest.mark.parametrize(("mine", "words"), LACKING)
def test_ms26_what_the_owner_has_and_we_have_not(mine: Capabilities, words: list[str]) -> None:
    reason = caps.lacking(FULL, mine, ["east"], "fs-a")
    for word in words:
        assert word in reason
    assert caps.lacking(mine, FULL, ["east"], "fs-a") == "", "more than the owner has is no fault"


def test_what_is_not_told_is_not_compared() -> None:
    assert caps.lacking(FULL, FULL, ["east"], "fs-a") == ""
    assert caps.lacking(FULL, Capabilities(), ["east"], "fs-a") == ""
    assert caps.lacking(Capabilities(), FULL, ["east"], "fs-a") == ""
    unknown = msgspec.structs.replace(FULL, contexts={"public": ""})  # mod_xml_curl: nobody knows
    assert caps.lacking(unknown, unknown, ["east"], "fs-a") == ""
    assert caps.lacking(FULL, with_east(codecs=()), ["west"], "fs-a") == ""


def test_ms26_drift_is_named_and_keeps_nobody_from_anything() -> None:
    other = msgspec.structs.replace(FULL, contexts={"public": "d2"})
    changed = with_east(settings={"dtmf-type": "zz", "x": "y", "nonce-ttl": "bb"})
    elsewhere = with_east(context="test")
    for mine, words in (
        (other, "dialplan context 'public' is not the same as on fs-a"),
        (changed, "settings dtmf-type, x not as on fs-a"),
        (elsewhere, "has context 'test', on fs-a 'public'"),
    ):
        assert caps.lacking(FULL, mine, ["east"], "fs-a") == ""
        (text,) = caps.drift(FULL, mine, ["east"], "fs-a")
        assert words in text
    assert caps.drift(FULL, FULL, ["east", "west"], "fs-a") == []
    many = with_east(settings={f"s{n}": "v" for n in range(9)})
    assert "and 8 more" in caps.drift(FULL, many, ["east"], "fs-a")[0]


def test_it_travels_and_lies_are_refused() -> None:
    assert caps.decode(caps.encode(FULL)) == FULL
    assert FULL.digest == caps.decode(caps.encode(FULL)).digest
    assert FULL.digest != with_east(context="x").digest
    for content in (b"", b"[]", b"\xff", b'{"modules":[3]}', b'{"modules":["\\u001b[2J"]}',
                    b'{"profiles":{"a\\n":{}}}', b"x" * (caps.ENCODED_BYTES_MAX + 1)):  # fmt: skip
        with pytest.raises(ValueError):
            caps.decode(content)


# -- the agent --


def comparison(history: History) -> Comparison:
    made = Comparison("fs-b", spec().services, history, lambda: None)
    made.read(LACKING[0][0])
    made.heard("fs-a", FULL)
    return made


def test_ms27_the_reason_comes_and_goes_and_outlives_the_owner() -> None:
    history = History()
    compared = comparison(history)
    assert compared.differences({"east": ("", 0)}) == Differences()
    found = compared.differences({"east": ("fs-a", 3)})
    assert "mod_hash" in found.lacking["east"]
    assert found is compared.differences({"east": ("", 3)}), "the owner died: its heirs need it too"
    compared.read(FULL)
    assert compared.differences({"east": ("", 3)}) == Differences()
    assert compared.differences({"east": ("fs-b", 4)}) == Differences()
    told = [decision.text for decision in history.last()]
    assert "no candidate for east: FreeSWITCH lacks module mod_hash" in told[0]
    assert "has all again" in told[1]
    assert len(told) == 2


def test_ms26_a_node_that_lacks_something_is_no_candidate_unless_nobody_else_is() -> None:
    lacks = replace(SLAVE, lacking={"east": "FreeSWITCH lacks module mod_hash"})
    east, west = judge(spec(), lacks).services
    assert (east.ready, east.reason) == (False, "FreeSWITCH lacks module mod_hash")
    assert west.ready
    orphan = replace(lacks, owners={"east": ("", 7), "west": ("fs-c", 2)})
    assert not judge(spec(), replace(orphan, orphaned_s={"east": 2.9})).services[0].ready
    assert judge(spec(), replace(orphan, orphaned_s={"east": 3.1})).services[0].ready
    owner = replace(lacks, owners={"east": ("fs-a", 7), "west": ("fs-c", 2)})
    assert judge(spec(), owner).services[0].ready


def test_every_nodes_differences_are_alarms_and_bounded() -> None:
    sync = Sync("in-sync", 0)
    many = Differences({f"s{n}": "r" * 9999 for n in range(99)}, ("d" * 9999,) * 99)
    found = differing(
        {
            "fs-b": Word("1", sync, differences=many),
            "fs-a": Word("1", sync, differences=Differences({"east": "x"})),
        }
    )
    assert (found[0].name, found[0].text) == ("lacking", "fs-a is no candidate for east: x")
    assert len(found) == 1 + 2 * SENTENCES_MAX
    assert max(len(alarm.text) for alarm in found) < 400


class Mesh:
    """The mesh as one other node sees it."""

    def __init__(self, word: bytes, content: bytes) -> None:
        self.answers = {METHOD: word, CAPABILITIES: content}
        self.asked: list[str] = []
        self.served: dict[str, Callable[[str, bytes], Awaitable[bytes]]] = {}

    async def request(self, node: str, method: str, payload: bytes, timeout_ms: int) -> bytes:
        self.asked.append(method)
        if not self.answers[method]:
            raise RequestFailed("no")
        return self.answers[method]

    def register(self, method: str, answer: Callable[[str, bytes], Awaitable[bytes]]) -> None:
        self.served[method] = answer


async def test_the_whole_is_fetched_once_and_again_when_it_changes() -> None:
    word = Word("1", Sync("in-sync", 0), capabilities=FULL.digest)
    mesh = Mesh(msgspec.json.encode(word), b"")
    changes: list[int] = []
    compared = Comparison("fs-b", spec().services, History(), lambda: changes.append(1))

    async def heard(_: object) -> None: ...

    peers = Peers(["fs-a"], mesh, lambda: word, heard, compared)
    with pytest.raises(ValueError, match="not told"):
        await mesh.served[CAPABILITIES]("fs-a", b"")
    await peers._ask("fs-a")
    assert peers.words["fs-a"] == word, "what it says of itself counts all the same"
    mesh.answers[CAPABILITIES] = b"\xff"
    await peers._ask("fs-a")
    assert compared.known("fs-a") == ""
    mesh.answers[CAPABILITIES] = caps.encode(FULL)
    for _ in range(3):
        await peers._ask("fs-a")
    assert mesh.asked.count(CAPABILITIES) == 3
    assert (compared.known("fs-a"), changes) == (FULL.digest, [1])
    mesh.answers[METHOD] = b""
    await peers._ask("fs-a")
    assert peers.words == {}
    assert compared.known("fs-a") == FULL.digest, "what it had counts after its death"
    compared.read(FULL)
    assert caps.decode(await mesh.served[CAPABILITIES]("fs-a", b"")) == FULL
    old = msgspec.json.decode(b'{"version":"0","sync":{"state":"none","lag_ms":0}}', type=Word)
    assert old.capabilities == ""


# -- the emulator --


@pytest.fixture
async def emulator(tmp_path: Path) -> AsyncIterator[Emulator]:
    made = Emulator(tmp_path, lacks=["mod_hash"], extensions={"9197": "tone"})
    made.start()
    yield made
    made.kill()


async def test_ms27_it_is_read_again_when_a_module_comes_or_goes(emulator: Emulator) -> None:
    settings = EslSettings("127.0.0.1", emulator.port, "ClueCon")
    seen = asyncio.Event()
    watch = CapabilityWatch(
        lambda **options: EslConnection(settings, **options), ["pa", "nosuch"],
        lambda _: seen.set(), pause_s=0.05,
    )  # fmt: skip

    async def change() -> Capabilities:
        await asyncio.wait_for(seen.wait(), 5)
        seen.clear()
        assert watch.found is not None
        return watch.found

    await watch.start()
    first = await change()
    assert "mod_sofia" in first.modules
    assert "mod_hash" not in first.modules
    assert list(first.profiles) == ["pa"]
    assert first.profiles["pa"].codecs == ("PCMA", "PCMU")
    assert first.contexts["public"]
    await asyncio.to_thread(emulator.api, "load mod_hash")
    second = await change()
    assert set(second.modules) - set(first.modules) == {"mod_hash"}
    await asyncio.to_thread(emulator.api, "unload mod_hash")
    assert (await change()) == first
    emulator.kill()
    emulator.start(contexts_missing=["public"])
    assert (await change()).contexts == {"public": ""}
    await watch.stop()


async def test_what_comes_late_into_the_list_of_modules_is_seen_soon() -> None:
    """The list lags behind login and events, and nothing tells when it is whole."""
    async with FakeEsl() as server:
        answers = ['{"rows":[]}', '{"rows":[]}', MODULES]
        server.api["show modules as json"] = lambda _: answers.pop(0) if answers[1:] else MODULES
        settings = EslSettings("127.0.0.1", server.port, "ClueCon")
        changes: list[int] = []
        watch = CapabilityWatch(
            lambda **options: EslConnection(settings, **options), [], lambda _: changes.append(1),
            pause_s=0.05,
        )  # fmt: skip
        await watch.start()
        for _ in range(100):
            await asyncio.sleep(0.02)
            if watch.found is not None and watch.found.modules:
                break
        assert len(changes) == 2
        asked = server.received.count("api show modules as json")
        await asyncio.sleep(0.5)
        assert server.received.count("api show modules as json") - asked <= 3, "ever more seldom"
        await watch.stop()


def test_a_value_in_another_character_set_hides_no_other() -> None:
    """`B\xfcro` in Latin-1: it ended the task that compares, and the look at the profiles."""
    odd = "B\udcfcro"
    conf = f"""<configuration name="sofia.conf"><profiles><profile name="east"><settings>
<param name="user-agent-string" value="{odd}"/><param name="track-calls" value="true"/>
</settings></profile></profiles></configuration>"""
    assert parse_profile_params(conf)["east"]["track-calls"] == "true"
    assert caps.parse_profile(PROFILE, parse_profile_params(conf)["east"]) is not None
    listed = f"<profiles><profile><name>{odd}</name><type>gateway</type></profile>"
    east = "<profile><name>east</name><type>profile</type><state>RUNNING (0)</state></profile>"
    assert parse_profile_states(f"{listed}{east}</profiles>") == {"east": "RUNNING (0)"}


async def test_it_stops_also_in_the_moment_of_an_event() -> None:
    """`wait_for` of Python 3.11 took the event and lost the cancellation: no stop ever ended."""
    async with FakeEsl() as server:
        settings = EslSettings("127.0.0.1", server.port, "ClueCon")
        watch = CapabilityWatch(
            lambda **options: EslConnection(settings, **options), [], lambda _: None, pause_s=0.01
        )
        await watch.start()
        async with asyncio.timeout(5):
            while watch.found is None or watch._look.is_set():
                await asyncio.sleep(0.05)
        await asyncio.sleep(0.1)
        watch._look.set()
        await asyncio.sleep(0)
        async with asyncio.timeout(5):
            await watch.stop()


async def test_what_cannot_be_read_stays_as_it_was() -> None:
    class Broken:
        def __init__(self, **options: object) -> None:
            self.sink = options["on_event"]

        async def start(self) -> None: ...
        async def stop(self) -> None: ...
        async def api(self, line: str, timeout_ms: int | None = None) -> str:
            from haclusterd.freeswitch.esl_errors import EslDown

            raise EslDown("no")

    watch = CapabilityWatch(
        Broken,  # type: ignore[arg-type]
        [], lambda _: None, every_s=0.01, pause_s=0.01,
    )  # fmt: skip
    await watch.start()
    await asyncio.sleep(0.05)
    assert watch.found is None
    assert not watch._task.done()  # type: ignore[union-attr]
    await watch.stop()


async def test_nothing_is_asked_where_it_is_turned_off(tmp_path: Path) -> None:
    (tmp_path / "esl.password").write_text("ClueCon")

    async def nothing(*_: object) -> None: ...

    events = SwitchEvents(nothing, nothing, lambda: None, lambda _: None, lambda _: None,
                          lambda: None, lambda _: None)  # fmt: skip
    async with FakeEsl() as server:
        for compare, wanted in ((True, True), (False, False)):
            section = FreeSwitch(
                "127.0.0.1", server.port, tmp_path / "esl.password", tmp_path / "core.db",
                tmp_path / "pid", (), compare=compare,
            )  # fmt: skip
            server.received.clear()
            switch = LocalSwitch(section, {"east": "east"}, events, tmp_path / "sock")
            await switch.start()
            await asyncio.sleep(0.4)
            await switch.stop()
            assert ("api show modules as json" in server.received) == wanted
            assert (switch.capabilities is not None) == wanted
