"""Plays a transcript: commands above `----`, below it what the cluster said, in its own words.

The cluster is the simulator's (production core, virtual clock and network) with nothing left to
chance: every beat takes 100 us and arrives. Each block is commands, `----`, and the sentences
that these commands brought about, dated in ms since the block began. `expect` is judged whenever
the transcript is played, so that no rewrite can make a wrong outcome golden.

    cluster masters=2 slaves=1 [links=2] [last_resort=none] [quorum=availability]
            [relinquish=2000ms]      (quorum=witness: the last node is one)
    boot all | boot n0                 kill n0           (power off: process and kernel)
    run 150ms                          freeze n0 120ms   (the process; the kernel goes on)
    cut n0 n1 300ms | cut n0 all 3000ms | cut all all 3000ms    (both ways, every link)
    cut n0 all 300ms one-way           (what n0 sends is lost, and it hears the others)
    freeswitch-dies n0                 freeswitch-back n0
    switchover s0 n2 | switchover s0   maintenance n2 on     stop n0     calls n0 s0 500
    carrier n0 s0 down                 addresses-fail n2 s0  recovery-fails n2 s0
    addresses-slow n2 200ms            removal-fails n0 400ms   fence-fails n0 50ms
    when n2 T101 freeze n2 120ms       (the moment n2 says T101; once)      heal n0 n1 | heal n0 all
    expect owner s0 n2 | expect owner s0 nobody | expect kept s0 n0 | expect fenced s0 n0
    expect served s0 n2 within 180ms   (since the block began; or `any`)
    expect each s0 s1 n3 n4
    (see `ordering` for: pause, resume, mark-dead, unmark)
    expect recovered s0 n2 | expect recovered nothing | expect killed n0 | expect slaves n2
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import msgspec

from haclusterd.core import actions as act
from haclusterd.core import inputs as inp
from haclusterd.core.model import ClusterSpec, Identity, LastResort, Quorum, State
from haclusterd.core.state import owns
from tests.scenarios import agents, ordering
from tests.sim.checkers import Checkers
from tests.sim.dramas import calm
from tests.sim.host import Host
from tests.sim.world import World

RULE = "----"
QUIET = ("M1", "M2", "M3", "M37")  # links and peers that come and go say more than a reader wants


class TranscriptError(Exception):
    """A command that is not understood, or an expectation that does not hold."""


class Overlapping(Checkers):
    """For `quorum = "availability"`, which may have two owners in a partition (DESIGN 6)."""

    def may_emit(self, t_us: int, service: int, node: int, until_us: int) -> None:
        pass

    def won(self, t_us: int, service: int, identity: Identity, hosts: list[Host]) -> None:
        pass

    def recovered(
        self, t_us: int, node: int, service: int, identity: Identity, again: bool
    ) -> None:
        pass

    def serves(self, t_us: int, node: int, service: int, identity: Identity, here: bool) -> None:
        pass


class Player:
    """One transcript's cluster. `rows` are the table rows that it went through."""

    def __init__(self) -> None:
        self.world: World | None = None
        self.began_us = 0
        self.rows: set[str] = set()
        self.said: list[tuple[int, int, act.Decided]] = []
        self.killed: list[tuple[int, int]] = []
        self.masters = 0
        self.waiting: list[tuple[int, str, list[str]]] = []  # host, row, command

    def play(self, commands: list[str]) -> list[str]:
        """The sentences of one block."""
        first = len(self.said)
        self.began_us = self.world.now if self.world else 0
        for line in commands:
            word, *rest = line.split()
            command = COMMANDS.get(word)
            if command is None:
                raise TranscriptError(f"{line!r}: no command {word!r}")
            command(self, rest)
        self._check_invariants()
        return [self._sentence(x) for x in self.said[first:] if x[2].row not in QUIET]

    def _sentence(self, said: tuple[int, int, act.Decided]) -> str:
        t_us, _, what = said
        return f"{(t_us - self.began_us) / 1000:8.1f}  {what.row:4}  {what.text}"

    def _check_invariants(self) -> None:
        if self.world is not None and self.world.checkers.violations:
            raise TranscriptError("; ".join(self.world.checkers.violations))

    # the cluster ----------------------------------------------------------------------------

    @property
    def cluster_world(self) -> World:
        if self.world is None:
            raise TranscriptError("the first command has to be `cluster`")
        return self.world

    def cluster(self, words: list[str]) -> None:
        options = dict(word.split("=") for word in words)
        self.masters = int(options.get("masters", 1))
        nodes = self.masters + int(options.get("slaves", 1))
        world = World(1, calm(nodes, self.masters, int(options.get("links", 2))))
        self.world = world
        if options.get("quorum") == "availability":
            world.checkers = Overlapping(nodes, self.masters)
        world.tell = self._hear
        for host in world.hosts:
            host.rng = random.Random(host.me)
            host.configure(spec_with(host.spec, options))

    def _hear(self, host: int, what: act.Decided | act.KillFreeswitch) -> None:
        if isinstance(what, act.KillFreeswitch):
            self.killed.append((self.cluster_world.now, host))
        else:
            self.said.append((self.cluster_world.now, host, what))
            self.rows.add(what.row)
            for at in [w for w in self.waiting if w[:2] == (host, what.row)]:
                self.waiting.remove(at)
                self.cluster_world.at(self.cluster_world.now, self._now, at[2])

    def _now(self, t: int, words: list[str]) -> None:
        COMMANDS[words[0]](self, words[1:])

    def when(self, words: list[str]) -> None:
        """`when n2 T101 freeze n2 120ms`: what is to happen the moment n2 says T101."""
        if len(words) < 3 or words[2] not in COMMANDS:
            raise TranscriptError(f"when {' '.join(words)}: write `when NODE ROW COMMAND...`")
        self.waiting.append((self.host(words[0]).me, words[1], words[2:]))

    def host(self, name: str) -> Host:
        number = int(name.removeprefix("n"))
        return self.cluster_world.hosts[number]

    def hosts(self, name: str) -> list[Host]:
        return list(self.cluster_world.hosts) if name == "all" else [self.host(name)]

    def boot(self, words: list[str]) -> None:
        for i, host in enumerate(self.hosts(words[0])):
            self.cluster_world.at(self.cluster_world.now + 3_000 * i, self._boot, host)

    def _boot(self, t: int, host: Host) -> None:
        host.boot(t, remember=True)
        host.run(t, host.life)

    def run(self, words: list[str]) -> None:
        self.cluster_world.play_until(self.cluster_world.now + duration_us(words[0]))

    # faults ---------------------------------------------------------------------------------

    def kill(self, words: list[str]) -> None:
        for name in words:
            self.host(name).kill(self.cluster_world.now, power=True)

    def freeze(self, words: list[str]) -> None:
        self.host(words[0]).freeze(self.cluster_world.now, duration_us(words[1]))

    def cut(self, words: list[str]) -> None:
        world = self.cluster_world
        pairs = [(a.me, b.me) for a in self.hosts(words[0]) for b in self.hosts(words[1])]
        ends = {(): 2, ("one-way",): 1}[tuple(words[3:])]
        ways = {
            way
            for a, b in pairs
            for x in range(world.swarm.links)
            for way in ((a, b, x), (b, a, x))[:ends]
            if a != b
        }
        world.network.add_cut(sorted(ways), world.now, duration_us(words[2]))

    def heal(self, words: list[str]) -> None:
        """All cuts between these nodes end."""
        left, right = ({h.me for h in self.hosts(word)} for word in words)
        cut = self.cluster_world.network.cut
        for a, b, x in list(cut):
            if (a in left and b in right) or (a in right and b in left):
                del cut[a, b, x]

    def freeswitch_dies(self, words: list[str]) -> None:
        """It stays away until `freeswitch-back`."""
        host = self.host(words[0])
        host.telephony.up = False
        host.telephony.calls.clear()
        self._give(words[0], inp.FreeswitchExited("was killed"))

    def freeswitch_back(self, words: list[str]) -> None:
        self.host(words[0]).telephony.back(self.cluster_world.now)

    def carrier(self, words: list[str]) -> None:
        self._give(words[0], inp.CarrierChanged(service(words[1]), words[2] == "up"))

    def addresses_fail(self, words: list[str]) -> None:
        self.host(words[0]).kernel.refused.add(service(words[1]))

    def addresses_slow(self, words: list[str]) -> None:
        self.host(words[0]).kernel.adding_takes_us = duration_us(words[1])

    def removal_fails(self, words: list[str]) -> None:
        until = self.cluster_world.now + duration_us(words[1])
        self.host(words[0]).kernel.removal_fails_until = until

    def fence_fails(self, words: list[str]) -> None:
        until = self.cluster_world.now + duration_us(words[1])
        self.host(words[0]).kernel.fence_fails_until = until

    # operator -------------------------------------------------------------------------------

    def _give(self, name: str, event: inp.Input) -> None:
        self.host(name).give(self.cluster_world.now, event)

    def switchover(self, words: list[str]) -> None:
        k = service(words[0])
        to = int(words[1].removeprefix("n")) if len(words) > 1 else -1
        self._give(f"n{self.owners(k)[0]}", inp.SwitchoverRequested(1, k, to))

    def maintenance(self, words: list[str]) -> None:
        self._give(words[0], inp.MaintenanceRequested(1, words[1] == "on"))

    def stop(self, words: list[str]) -> None:
        self._give(words[0], inp.StopRequested())

    def calls(self, words: list[str]) -> None:
        """`calls n0 s0 500`: what that node's agent reports from now on."""
        host, k, count = self.host(words[0]), service(words[1]), int(words[2])
        services = tuple(
            inp.ServiceReport(True, "", count if k == other else 0)
            for other in range(len(host.spec.services))
        )
        self._give(words[0], inp.LocalReport(True, 1, 100, 0, count, False, services))

    # expectations ---------------------------------------------------------------------------

    def owners(self, k: int) -> list[int]:
        hosts = self.cluster_world.hosts
        return [h.me for h in hosts if h.alive and h.node and owns(h.node.services[k])]

    def expect(self, words: list[str]) -> None:
        what, *rest = words
        if not EXPECTATIONS[what](self, rest):
            owners = {f"s{k}": self.owners(k) for k in range(self.masters)}
            raise TranscriptError(f"expected {' '.join(words)}, but {owners}, {self.said[-5:]}")

    def expect_owner(self, words: list[str]) -> bool:
        wanted = [] if words[1] == "nobody" else [int(words[1].removeprefix("n"))]
        return self.owners(service(words[0])) == wanted

    def expect_kept(self, words: list[str]) -> bool:
        """The same owner, and its calls were never taken up anew."""
        return self.expect_owner(words) and not self._recovered(service(words[0]))

    def expect_fenced(self, words: list[str]) -> bool:
        node = self.host(words[1]).node
        return node is not None and node.services[service(words[0])].state is State.LAPSED

    def expect_served(self, words: list[str]) -> bool:
        k, who, limit_us = service(words[0]), words[1], duration_us(words[3])
        return any(
            who in (f"n{h}", "any")
            and what.row in ("T301",)
            and what.service == k
            and t - self.began_us <= limit_us
            for t, h, what in self.said
            if t >= self.began_us
        )

    def _recovered(self, k: int) -> list[int]:
        recoveries = self.cluster_world.recoveries
        return [h for t, h, what in recoveries if what.service == k and t >= self.began_us]

    def expect_recovered(self, words: list[str]) -> bool:
        if words[0] == "nothing":
            return not any(self._recovered(k) for k in range(self.masters))
        return self._recovered(service(words[0])) == [int(words[1][1:])]

    def expect_each(self, words: list[str]) -> bool:
        """`each s0 s1 n3 n4`: each node owns exactly one of the services, taken up once (EG25)."""
        services = [service(w) for w in words if w[0] == "s"]
        owners = sorted(n for k in services for n in self.owners(k))
        once = all(len(self._recovered(k)) == 1 for k in services)
        return once and owners == sorted(int(w[1:]) for w in words if w[0] == "n")

    def expect_killed(self, words: list[str]) -> bool:
        wanted = [] if words[0] == "nobody" else [int(w[1:]) for w in words]
        return [h for t, h in self.killed if t >= self.began_us] == wanted

    def expect_slaves(self, words: list[str]) -> bool:
        """Every living node ranks these slaves, in this order (EG16, EG20)."""
        wanted = tuple(int(w[1:]) for w in words)
        nodes = [h.node for h in self.cluster_world.hosts if h.alive and h.node]
        same = len({node.rank_hash for node in nodes}) == 1
        return same and all(node.slaves == wanted for node in nodes)


def spec_with(spec: ClusterSpec, options: dict[str, str]) -> ClusterSpec:
    """The configuration with what `cluster` was told beside masters, slaves and links."""
    quorum = Quorum(options.get("quorum", "majority"))
    *others, last = spec.nodes
    if quorum is Quorum.WITNESS:
        last = msgspec.structs.replace(last, witness=True)
    return msgspec.structs.replace(
        spec,
        nodes=(*others, last),
        quorum=quorum,
        last_resort=LastResort(options.get("last_resort", "masters")),
        relinquish_us=duration_us(options.get("relinquish", "0ms")),
    )


def service(name: str) -> int:
    return int(name.removeprefix("s"))


def duration_us(text: str) -> int:
    if not text.endswith("ms"):
        raise TranscriptError(f"{text!r}: write times as 120ms")
    return int(float(text[:-2]) * 1000)


COMMANDS: dict[str, Callable[[Player, list[str]], None]] = {
    "cluster": Player.cluster,
    "boot": Player.boot,
    "run": Player.run,
    "kill": Player.kill,
    "freeze": Player.freeze,
    "cut": Player.cut,
    "freeswitch-dies": Player.freeswitch_dies,
    "freeswitch-back": Player.freeswitch_back,
    "carrier": Player.carrier,
    "addresses-fail": Player.addresses_fail,
    "recovery-fails": agents.recovery_fails,
    "recovery-works": agents.recovery_works,
    "addresses-slow": Player.addresses_slow,
    "removal-fails": Player.removal_fails,
    "fence-fails": Player.fence_fails,
    "heal": Player.heal,
    "when": Player.when,
    "switchover": Player.switchover,
    "maintenance": Player.maintenance,
    "stop": Player.stop,
    "calls": Player.calls,
    "health": agents.health,
    "pause": ordering.pause,
    "resume": ordering.resume,
    "mark-dead": ordering.mark_dead,
    "unmark": ordering.unmark,
    "expect": Player.expect,
}

EXPECTATIONS: dict[str, Callable[[Player, list[str]], bool]] = {
    "owner": Player.expect_owner,
    "kept": Player.expect_kept,
    "fenced": Player.expect_fenced,
    "served": Player.expect_served,
    "recovered": Player.expect_recovered,
    "each": Player.expect_each,
    "killed": Player.expect_killed,
    "slaves": Player.expect_slaves,
    "paused": ordering.expect_paused,
    "marked": ordering.expect_marked,
}


def blocks(text: str) -> list[tuple[list[str], list[str], list[str]]]:
    """(comment lines, commands, golden lines) of each block; blank lines part the blocks."""
    found = []
    for part in text.strip().split("\n\n"):
        lines = part.splitlines()
        remarks = [line for line in lines if line.startswith("#")]
        lines = [line for line in lines if not line.startswith("#")]
        at = lines.index(RULE) if RULE in lines else len(lines)
        found.append((remarks, lines[:at], lines[at + 1 :]))
    return found


def replay(path: Path) -> tuple[str, Player]:
    """Play the transcript: its text as it would be written now, and the player."""
    player = Player()
    parts = []
    for remarks, commands, _ in blocks(path.read_text()):
        said = player.play(commands) if commands else []
        rule = [RULE] if commands else []
        parts.append("\n".join([*remarks, *commands, *rule, *said]))
    return "\n\n".join(parts) + "\n", player
