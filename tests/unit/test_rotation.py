"""`keys rotate`: at every moment all nodes open each other's beats and trust each other (scen. 25).

Three nodes with folders of their own and a mesh that can lose any of them at any request.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec
import pytest

from haclusterd import certificates, keys, rotation
from haclusterd.agent import rotation as module
from haclusterd.agent.history import History
from haclusterd.agent.operators import OperatorError, Operators
from haclusterd.agent.rotation import Rotation
from haclusterd.agent.rotation_words import OVER, TELL, Task
from haclusterd.agent.voters import Voters
from haclusterd.config import Config, cluster_spec, load
from haclusterd.config.revisions import Start
from haclusterd.core.actions import Answered
from haclusterd.core.inputs import FromAgent, KeysGiven
from haclusterd.core.model import Beat
from haclusterd.core.view import MarkView, PeerTally, RevisionView, View
from haclusterd.heart.keys_given import use_keys
from haclusterd.keys import KeysError
from haclusterd.rotation import KNOWN, OLD, USED
from haclusterd.sync.rpc import RequestFailed
from haclusterd.wire import Wire
from tests.fixtures.agent_parts import view
from tests.unit.config_example import GOOD
from tests.unit.test_wire import beat as beat_of

pytestmark = pytest.mark.timeout(60)


class Host:
    """One node: its folder, its heart's wire, its agent's part in the rotation."""

    def __init__(self, cluster: Cluster, config: Config) -> None:
        self.cluster, self.config = cluster, config
        self.view: View = view({"east": ("fs-a", 7)}, me=config.node.id)
        self.spec = cluster_spec(config)
        self.wire = Wire(self.spec, keys.load_cluster_key(config.key_file), 1)
        self.seq = 0
        self.answer = Answered(0, True, "")
        self.start()

    def start(self) -> None:
        """As after a crash: heart reads the ring, the agent finishes what was begun."""
        self.wire.set_keys(keys.load_cluster_key(self.config.key_file))
        self.operators = Operators(self.spec, History(), lambda: self.view, self.send)
        self.methods: dict[str, Callable[[str, bytes], Awaitable[bytes]]] = {}
        self.rotation = Rotation(self.config, self.operators, History(), lambda: self.view)
        self.rotation.join(self)
        self.load()
        if (given := self.rotation.tell_heart()) is not None:
            use_keys(self.wire, given)

    def send(self, message: FromAgent) -> None:
        assert isinstance(message, KeysGiven)
        if self.answer.ok:
            use_keys(self.wire, message)
        self.cluster.check()
        answer = msgspec.structs.replace(self.answer, request=message.request)
        self.operators.answered(answer)

    def register(self, method: str, answer: Callable[[str, bytes], Awaitable[bytes]]) -> None:
        self.methods[method] = answer

    def reload_certificates(self) -> None:
        self.load()
        self.cluster.check()

    def load(self) -> None:
        """CA, certificate and key, as the mesh has them until it reads them again."""
        keys.check_readable(self.config, self.config.node.id)
        files = keys.paths(self.config, self.config.node.id)
        self.tls = tuple(
            path.read_bytes() for path in (files.ca_certificate, files.certificate,
                                           files.private_key)
        )  # fmt: skip

    async def request(self, node: str, method: str, payload: bytes, timeout_ms: int) -> bytes:
        self.cluster.asked += 1
        if self.cluster.asked == self.cluster.dies_at:
            await asyncio.sleep(60)
        if node in self.cluster.away or self.cluster.asked == self.cluster.fails_at:
            raise RequestFailed("the connection was lost")
        return await self.cluster.hosts[node].methods[method](self.config.node.id, payload)

    def beat(self) -> bytes:
        self.seq += 1
        mine = beat_of(self.seq, sender=self.spec.me, incarnation=1)
        return self.wire.seal(msgspec.structs.replace(mine, config_hash=self.spec.config_hash))

    def wire_ring(self) -> list[int]:
        return list(self.wire._ring)

    @property
    def ring(self) -> list[int]:
        return [key.id for key in keys.load_cluster_key(self.config.key_file).keys]


class Cluster:
    def __init__(self, folder: Path) -> None:
        self.hosts: dict[str, Host] = {}
        self.away: set[str] = set()
        self.asked, self.fails_at, self.dies_at = 0, -1, -1
        first = folder / "fs-a"
        first.mkdir()
        west = '[[service]]\nname = "west"\naddresses = ["203.0.113.11/24 dev eth0"]\n'
        (first / "haclusterd.toml").write_text(GOOD + west)
        keys.create(load(first / "haclusterd.toml", node="fs-a"))
        for name in ("fs-a", "fs-b", "fs-c"):
            if name != "fs-a":
                shutil.copytree(first, folder / name)
            config = load(folder / name / "haclusterd.toml", node=name, run_dir=folder / name)
            self.hosts[name] = Host(self, config)

    def check(self) -> None:
        """Everybody opens everybody's beat and trusts everybody's certificate."""
        for sender in self.hosts.values():
            datagram = sender.beat()
            me = sender.config.node.id
            for other in self.hosts.values():
                if other is sender:
                    continue
                opened = other.wire.open(datagram, 0, sender.config.node.links[0])
                assert isinstance(opened, Beat), (me, other.config.node.id, opened)
                problem = certificates.misfit(
                    ca_pem=other.tls[0], certificate_pem=sender.tls[1], key_pem=sender.tls[2]
                )
                assert not problem, (me, other.config.node.id, problem)

    def rings(self) -> set[tuple[int, ...]]:
        return {tuple(host.ring) for host in self.hosts.values()}

    def __getitem__(self, letter: str) -> Rotation:
        return self.hosts[f"fs-{letter}"].rotation


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    monkeypatch.setattr(module, "CONDUCTED_S", 0.2)
    monkeypatch.setattr(module, "SETTLE_DEADS", 0)
    return Cluster(tmp_path)


async def refused(work: Awaitable[str]) -> OperatorError:
    with pytest.raises(OperatorError) as caught:
        await work
    return caught.value


async def test_25_all_nodes_have_new_keys_and_never_lose_touch(cluster: Cluster) -> None:
    before = (cluster.hosts["fs-a"].config.key_file.parent / "ca.crt").read_text()
    assert "3 nodes have new keys" in await cluster["b"].rotate("anna")
    assert cluster.rings() == {(2,)}
    assert {host.rotation.under_way for host in cluster.hosts.values()} == {""}
    trusted = {(h.config.key_file.parent / "ca.crt").read_text() for h in cluster.hosts.values()}
    assert len(trusted) == 1
    assert before not in trusted
    folder = cluster.hosts["fs-b"].config.key_file.parent
    assert {p.stat().st_mode & 0o777 for p in folder.glob("*.key")} == {0o600}
    assert '"secret"' not in (folder / rotation.FILE_NAME).read_text()
    assert "3 nodes" in await cluster["a"].rotate("ben")  # and once more, from another node
    assert cluster.rings() == {(1,)}
    told = await cluster["c"].status()
    assert [(k.node, k.phase, k.ring, k.by) for k in told] == [
        (f"fs-{n}", "done", [1], "ben on fs-a") for n in "abc"
    ]


async def test_25_the_ca_goes_on_signing_where_the_keys_were_made(cluster: Cluster) -> None:
    await cluster["a"].rotate("anna")
    config = cluster.hosts["fs-a"].config
    (config.key_file.parent / "fs-c.crt").unlink()
    (config.key_file.parent / "fs-c.key").unlink()
    assert keys.create(config).nodes == ("fs-c",)
    keys.check_readable(config, "fs-c")


@pytest.mark.parametrize("back", [False, True])
@pytest.mark.parametrize("fails_at", range(1, 17))
async def test_25_whatever_is_lost_on_the_way_it_goes_on_or_back(
    cluster: Cluster, fails_at: int, back: bool
) -> None:
    """The connection is lost once, at any request; then the operator goes on, or back."""
    cluster.fails_at = fails_at
    try:
        await cluster["a"].rotate("anna")
    except OperatorError as error:
        assert "fs-b" in str(error) or "fs-c" in str(error)  # noqa: PT017
    cluster.check()
    cluster.fails_at = -1
    for host in cluster.hosts.values():
        host.start()  # and all agents are killed
        cluster.check()
    try:
        await (cluster["a"].abort("ben") if back else cluster["a"].rotate("ben"))
    except OperatorError as error:
        text = str(error)
        assert back
        assert "nothing to abort" in text or "gave the old keys up" in text
        if "gave" in text:
            await cluster["a"].rotate("ben")
    cluster.check()
    assert len(cluster.rings()) == 1
    assert {host.rotation.under_way for host in cluster.hosts.values()} == {""}


async def test_25_a_node_that_is_away_is_named_and_nothing_changes(cluster: Cluster) -> None:
    cluster.away = {"fs-c"}
    error = await refused(cluster["a"].rotate("anna"))
    assert "cannot be rotated without fs-c" in str(error)
    assert "nothing was changed" in str(error)
    assert cluster.rings() == {(1,)}
    host = cluster.hosts["fs-a"]
    host.view = msgspec.structs.replace(host.view, marks=(MarkView("fs-c", 1, "ben", False),))
    cluster.hosts.pop("fs-c")  # verified dead: it needs the folder anyway
    assert "2 nodes" in await cluster["a"].rotate("anna")


async def test_25_a_laggard_stops_it_where_all_understand_each_other(cluster: Cluster) -> None:
    host = cluster.hosts["fs-c"]
    await cluster["a"].status()
    real = host.rotation._write

    async def deaf_after_used(kept: rotation.Kept, phase: int) -> str:
        return "its disk is full" if phase == USED else await real(kept, phase)

    host.rotation._write = deaf_after_used  # type: ignore[method-assign]
    error = await refused(cluster["a"].rotate("anna"))
    assert error.code == "partly"
    assert "fs-c: its disk is full" in str(error)
    assert "--abort" in str(error)
    assert cluster.hosts["fs-a"].ring == [2, 1]
    assert host.ring == [1, 2]
    assert [a.name for a in cluster["b"].alarms()] == ["keys_rotating"]
    cluster.check()
    host.rotation._write = real  # type: ignore[method-assign]
    assert "old keys, as before" in await cluster["b"].abort("ben")
    assert cluster.rings() == {(1,)}
    assert not (host.config.key_file.parent / rotation.FILE_NAME).exists()
    assert cluster["b"].alarms() == []


async def test_25_one_that_a_lost_node_only_began_is_begun_anew(cluster: Cluster) -> None:
    config = cluster.hosts["fs-c"].config
    rotation.enter(config, rotation.begin(config, "carl"), KNOWN)
    cluster.hosts["fs-c"].start()
    kept = rotation.settle(config)
    assert kept is not None
    cluster.hosts["fs-c"].rotation._kept = msgspec.structs.replace(kept, issued={})
    assert "3 nodes have new keys" in await cluster["a"].rotate("anna")
    assert cluster.rings() == {(2,)}


async def test_25_who_cannot_read_a_beat_stops_it(cluster: Cluster) -> None:
    host = cluster.hosts["fs-b"]
    tally = PeerTally("fs-c", "10.1.0.3", 5, 5, "unknown key")
    host.view = msgspec.structs.replace(host.view, peer_tallies=(tally,))
    error = await refused(cluster["a"].rotate("anna"))
    assert "fs-b: it cannot read the beats of fs-c" in str(error)


async def test_25_one_conductor_at_a_time(cluster: Cluster) -> None:
    task = Task("fs-b/1234", TELL)
    assert (await cluster["c"]._take(task)).problem == ""
    error = await refused(cluster["a"].rotate("anna"))
    assert "fs-b is rotating the keys just now" in str(error)
    assert cluster.rings() == {(1,)}
    with pytest.raises(ValueError, match="speaks for itself"):
        await cluster["c"]._asked("fs-a", msgspec.json.encode(task))
    await cluster["c"]._take(Task("fs-b/1234", OVER))
    await cluster["a"].rotate("anna")


async def test_25_the_set_of_nodes_and_the_keys_change_one_after_the_other(
    cluster: Cluster,
) -> None:
    host = cluster.hosts["fs-c"]
    host.view = msgspec.structs.replace(host.view, revision=RevisionView(1, staged=2))
    error = await refused(cluster["a"].rotate("anna"))
    assert "fs-c: the set of nodes is being changed" in str(error)
    assert "as before" in str(error)
    assert cluster.rings() == {(1,)}
    voters = Voters(Start(host.config), lambda: host.view, host.operators.ask, {})
    voters.forbidden = lambda: cluster["a"].under_way
    kept = rotation.begin(cluster.hosts["fs-a"].config, "anna")
    cluster["a"]._kept = rotation.enter(cluster.hosts["fs-a"].config, kept, KNOWN)
    path = host.config.path
    path.write_text(path.read_text().replace("[timing]", "revision = 2\n[timing]"))
    assert "keys rotate --abort" in str(await refused(voters.reload()))


async def test_25_a_folder_that_nodes_share_is_refused(cluster: Cluster) -> None:
    shared = cluster.hosts["fs-a"].config
    host = cluster.hosts["fs-b"]
    host.config = load(shared.path, node="fs-b", run_dir=shared.run_dir)
    host.start()
    error = await refused(cluster["a"].rotate("anna"))
    assert "fs-b" in str(error)
    assert "a folder of its own" in str(error)
    assert cluster.rings() == {(1,)}


async def test_25_hearts_refusal_is_told(cluster: Cluster) -> None:
    host = cluster.hosts["fs-b"]
    host.answer = Answered(0, False, "heart does not take the keys")
    error = await refused(cluster["a"].rotate("anna"))
    assert "fs-b: heart does not take the keys" in str(error)


async def test_25_nothing_to_abort(cluster: Cluster) -> None:
    assert "nothing to abort" in str(await refused(cluster["a"].abort("anna")))


async def test_25_a_node_without_a_mesh_conducts_nothing(cluster: Cluster) -> None:
    host = cluster.hosts["fs-a"]
    alone = Rotation(host.config, host.operators, History(), lambda: host.view)
    assert "replication does not run here" in str(await refused(alone.rotate("anna")))


# the files --------------------------------------------------------------------------------------


def test_25_a_crash_between_two_files_is_mended_at_the_start(cluster: Cluster) -> None:
    config = cluster.hosts["fs-a"].config
    kept = rotation.enter(config, rotation.begin(config, "anna"), KNOWN)
    rotation.enter(config, kept, USED)
    files = keys.paths(config, "fs-a")
    files.certificate.write_text(kept.old.certificate)  # as it was before the crash
    with pytest.raises(KeysError):
        keys.check_readable(config, "fs-a")
    found = rotation.settle(config)
    assert found is not None
    assert (found.phase, found.by) == (USED, "anna")
    keys.check_readable(config, "fs-a")
    assert rotation.is_under_way(found)


@pytest.mark.parametrize(
    ("content", "text"),
    [("{", "is damaged"), ('{"id":"x"}', "is damaged"), (None, "not of this cluster")],
)
def test_25_a_bad_rotation_file_names_the_fix(
    cluster: Cluster, content: str | None, text: str
) -> None:
    host = cluster.hosts["fs-a"]
    path = host.config.key_file.parent / rotation.FILE_NAME
    if content is None:
        kept = rotation.Kept("x", "another", "fs-a", KNOWN, "anna", "fs-a")
        content = msgspec.json.encode(kept).decode()
    path.write_text(content)
    with pytest.raises(KeysError, match=text) as caught:
        rotation.read(host.config)
    assert str(path) in str(caught.value)
    assert "Fix:" in str(caught.value)
    host.start()
    assert [a.name for a in host.rotation.alarms()] == ["keys"]
    assert host.rotation.tell_heart() is None
    assert host.rotation.under_way == ""


def test_25_what_cannot_be_written_names_the_folder(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = cluster.hosts["fs-a"].config
    kept = rotation.begin(config, "anna")

    def full(*_args: object, **_more: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(rotation, "write_atomically", full)
    with pytest.raises(KeysError, match=r"No space left on device.*ReadWritePaths"):
        rotation.enter(config, kept, KNOWN)
    assert rotation.read(config) is None
    assert keys.load_cluster_key(config.key_file).keys[0].id == 1


def test_25_the_last_rotation_of_another_node_came_with_its_folder(cluster: Cluster) -> None:
    config = cluster.hosts["fs-a"].config
    path = config.key_file.parent / rotation.FILE_NAME
    done = rotation.Kept("x", "voice1", "fs-b", rotation.DONE, "anna", "fs-b")
    path.write_bytes(msgspec.json.encode(done))
    assert rotation.read(config) is None


def test_25_secrets_are_not_shown(cluster: Cluster) -> None:
    kept = rotation.begin(cluster.hosts["fs-a"].config, "anna")
    assert kept.new.ring[0].secret not in repr(kept.new)
    assert "PRIVATE" not in repr(kept.new)
    assert kept.phase == OLD
