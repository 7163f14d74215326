"""Command line and start of `haclusterd`: read the configuration, open everything, run the loop.

`haclusterd --config FILE [--node ID] [--run-dir DIR]`. SIGTERM is a planned stop, SIGHUP an
upgrade. Exit status: 0 after a planned end, 1 refused or failed (the reason on stderr), 2 usage.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from haclusterd import __version__
from haclusterd.config import Config, ConfigError, agents_shape, revisions
from haclusterd.config.revisions import Start
from haclusterd.core.inputs import Tick
from haclusterd.core.node import step
from haclusterd.core.state import Node, start
from haclusterd.core.view import view
from haclusterd.heart.addresses import ServiceAddresses, remove_from_host
from haclusterd.heart.agent_link import AgentLink
from haclusterd.heart.clock import jiffy_us, now_us
from haclusterd.heart.errors import HeartError
from haclusterd.heart.fallback import RuleFence, load_fence
from haclusterd.heart.fence import Fence, FencedService, KernelLease, least_life_us
from haclusterd.heart.freeswitch_process import FreeswitchProcess
from haclusterd.heart.journal import ERROR, WARNING, Journal
from haclusterd.heart.links import Links
from haclusterd.heart.lock import NodeLock, refuse_beside_another, refuse_on_the_wrong_host
from haclusterd.heart.loop import new_incarnation
from haclusterd.heart.netlink import Netlink, NetlinkEvents
from haclusterd.heart.nft import table_name
from haclusterd.heart.parts import Parts
from haclusterd.heart.pidfd import WatchedProcess
from haclusterd.heart.process import Heart
from haclusterd.heart.promised import read_promises
from haclusterd.heart.realtime import RR_PRIORITY, become_realtime
from haclusterd.heart.ruleset import RulesetEvents
from haclusterd.heart.sdnotify import ServiceNotifier
from haclusterd.heart.upgrade import HandOver, Predecessor, fenced_by, same_links
from haclusterd.heart.voters import Voters
from haclusterd.keys import KeysError, load_cluster_key
from haclusterd.trace import folder
from haclusterd.trace.recorder import Recorder
from haclusterd.wire import KeyRing, Wire

DEFAULT_CONFIG = Path("/etc/haclusterd/haclusterd.toml")
_VALID_S = 2  # lifetime of a service address; behind the fence it only cleans up
_RENEW_US = 500_000
_VALID_UNFENCED_S = 1  # without nf_tables the lifetime is what ends a frozen owner
_RENEW_UNFENCED_US = 250_000


def main(
    argv: Sequence[str] | None = None,
    agent_command: Sequence[str] | None = None,
    heart_command: Sequence[str] | None = None,
) -> int:
    """Entry point. Tests replace the agent, and the command that an upgrade starts."""
    arguments = command_line().parse_args(argv)
    journal = Journal()
    try:
        python = sys.executable
        agent = list(agent_command or (python, "-m", "haclusterd.agent"))
        heart = list(heart_command or (python, "-m", "haclusterd"))
        return _run(arguments, journal, agent, heart)
    except (ConfigError, KeysError, HeartError) as error:
        for line in str(error).splitlines():
            journal.say(f"haclusterd: {line}", ERROR)
        return 1
    finally:
        journal.close()


def command_line() -> argparse.ArgumentParser:
    """Options of the daemon; the manual page is made of it."""
    parser = argparse.ArgumentParser(
        prog="haclusterd", description="High-availability controller beside a FreeSWITCH."
    )
    parser.add_argument(
        "--config", type=Path, default=os.environ.get("HACLUSTERD_CONFIG") or DEFAULT_CONFIG,
        metavar="FILE", help=f"the configuration ({DEFAULT_CONFIG}, or $HACLUSTERD_CONFIG)",
    )  # fmt: skip
    parser.add_argument("--node", metavar="ID", help="this node, where addresses do not tell")
    parser.add_argument(
        "--run-dir", type=Path, metavar="DIR", help="socket, state and trace go here"
    )
    parser.add_argument("--version", action="version", version=f"haclusterd {__version__}")
    parser.add_argument("--revision", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--takeover-fd", type=int, default=-1, help=argparse.SUPPRESS)
    return parser


def _run(
    arguments: argparse.Namespace, journal: Journal, agent: list[str], heart_command: list[str]
) -> int:
    predecessor = Predecessor(arguments.takeover_fd) if arguments.takeover_fd >= 0 else None
    try:
        begun = revisions.begin(
            arguments.config, node=arguments.node, run_dir=arguments.run_dir,
            revision=arguments.revision,
        )  # fmt: skip
        config = begun.config
        ring = load_cluster_key(config.key_file)
        options = _options(arguments, config)
        counted = ("--revision", str(config.revision), "--shape", str(agents_shape(config)))
        agent_command = [*agent, *options, *counted]
        opening = _Opening(begun, ring, journal, AgentLink(agent_command, journal.say))
        successor = [*heart_command, *options]
        if predecessor is None:
            heart = opening.fresh(successor)
        else:
            heart = opening.take_over(predecessor, successor)
    except (ConfigError, KeysError, HeartError) as error:
        if predecessor is not None:
            predecessor.refuse(str(error))
        raise
    return _live(heart, opening, journal)


def _live(heart: Heart, opening: _Opening, journal: Journal) -> int:
    try:
        status = heart.run()
    except BaseException:
        # Whatever it was: nothing may leave from addresses that nobody looks after any more.
        for line in traceback.format_exc().splitlines():
            journal.say(line, ERROR)
        opening.abandon()
        opening.keep_last_words(heart.loop.recorder)
        raise
    if not heart.handed_over:
        opening.unlock()
    return status


def _options(arguments: argparse.Namespace, config: Config) -> list[str]:
    options = ["--config", str(arguments.config.absolute()), "--node", config.node.id]
    if arguments.run_dir is not None:
        options += ["--run-dir", str(arguments.run_dir.absolute())]
    return options


class _Opening:
    """Opens what a heart needs; plain messages where the host refuses something."""

    def __init__(self, begun: Start, ring: KeyRing, journal: Journal, agent: AgentLink) -> None:
        self._config, self._ring = begun.config, ring
        self._ran_addresses = begun.ran_addresses
        self._voters = Voters(begun)
        self._journal, self._agent = journal, agent
        self._spec = self._voters.spec
        self._complaints: list[str] = []
        self._lock: NodeLock | None = None
        self._fence: Fence | None = None
        self._addresses: ServiceAddresses | None = None
        for warning in begun.config.warnings:
            self._complain(warning)
        if begun.complaint:  # an alarm of the agent's, which sees it mended, too
            journal.say(begun.complaint, WARNING)

    def _complain(self, text: str) -> None:
        self._complaints.append(text)
        self._journal.say(text, WARNING)

    def fresh(self, successor_command: Sequence[str]) -> Heart:
        """A heart that starts anew: fence closed, left-overs removed, hold-down ahead."""
        self._lock = NodeLock(self._config)
        try:
            return self._fresh(self._lock, successor_command)
        except HeartError:
            self._withdraw()
            raise

    def _fresh(self, lock: NodeLock, successor_command: Sequence[str]) -> Heart:
        refuse_beside_another(self._config)
        netlink = Netlink()
        refuse_on_the_wrong_host(self._config, {a.address for a in netlink.addresses()})
        # Of the file that ran last: the table that is loaded now does not know them all.
        removed = remove_from_host(netlink, self._ran_addresses)
        services, devices = self._fenced(netlink)
        timing = self._spec.timing
        fence, lesser = load_fence(
            self._table(), services, timing.fence_us // 1000, timing.arm_us // 1000, devices
        )
        self._fence = fence
        if lesser:
            self._complain(lesser)
        else:
            self._judge_tick()
        addresses = self._service_addresses(netlink, fence)
        removed += addresses.remove_leftovers()
        if removed:
            self._journal.say(f"removed left-over service addresses: {', '.join(removed)}")
        incarnation = new_incarnation()
        node = self._voters.node(now_us(), incarnation)
        wire = self._voters.wire(self._ring, incarnation, node.dialect)
        heart = self._heart(node, wire, fence, addresses, lock, successor_command)
        folders = (self._config.state_dir, self._config.run_dir)
        restored, complaint = read_promises(folders, self._spec)
        if complaint:
            self._complain(complaint)
        heart.begin([*self._voters.staged(), *([restored] if restored else [])])
        return heart

    def take_over(self, predecessor: Predecessor, successor_command: Sequence[str]) -> Heart:
        """A heart that goes on where another one stops, under the same incarnation."""
        netlink = Netlink()
        services, devices = self._fenced(netlink)
        fence = self._standing_fence(services, devices)
        addresses = self._service_addresses(netlink, fence)
        self._warm_up()
        self._realtime()
        predecessor.ready(self._spec.config_hash)
        state, descriptors = predecessor.receive()
        before = state.node.spec
        node, wire, orders, held = self._voters.taken_over(state, self._ring, now_us())
        self._lock = lock = NodeLock(self._config, descriptors[-1])
        heart = self._heart(
            node, wire, fence, addresses, lock, successor_command, last_us=state.last_us,
            sockets=same_links(before, self._spec, zip(state.links, descriptors, strict=False)),
        )  # fmt: skip
        for k in held:
            addresses.keep(k, True, now_us())
        predecessor.take()
        if isinstance(fence, RuleFence):
            fence.adopt(held)
        lock.write_pid()
        self._agent.take_up(orders)
        heart.go_on(
            _gone(state), state.freeswitch,
            joined=node.roll.proven and not self._voters.proven,
            refenced=fenced_by(before) != fenced_by(self._spec),
        )  # fmt: skip
        return heart

    def _heart(
        self, node: Node, wire: Wire, fence: Fence, addresses: ServiceAddresses, lock: NodeLock,
        successor_command: Sequence[str], *, last_us: int = 0,
        sockets: dict[int, int] | None = None,
    ) -> Heart:  # fmt: skip
        me = self._spec.nodes[self._spec.me]
        links = Links(self._config.heartbeat_port, [n.links for n in self._spec.nodes],
                      self._spec.me, self._voters.former())  # fmt: skip
        for link, descriptor in (sockets or {}).items():
            links.adopt(link, descriptor)
        if not last_us:
            self._realtime()
        parts = Parts(
            wire=wire,
            links=links,
            fence=fence,
            addresses=addresses,
            freeswitch=FreeswitchProcess(),
            agent=self._agent,
            events=NetlinkEvents(),
            ruleset=RulesetEvents(self._table()) if fence.mode == "nftables" else None,
            journal=self._journal,
            notifier=ServiceNotifier(),
            complaints=tuple(self._complaints),
        )
        self._journal.say(f"node {me.id} of cluster {self._spec.name}, pid {os.getpid()}")
        heart = Heart(
            node,
            parts,
            successor_command=successor_command,
            lock=lock.descriptor,
            last_us=last_us,
        )
        heart.watch_signals()
        return heart

    def _realtime(self) -> None:
        granted = become_realtime()
        if self._config.preset == "fast" and not granted.realtime:
            raise HeartError(
                'preset "fast" needs real-time scheduling, which was refused',
                f"grant CAP_SYS_NICE or LimitRTPRIO={RR_PRIORITY}, or use preset lan",
            )
        for refusal in granted.refusals:
            self._complain(refusal)

    def _fenced(self, netlink: Netlink) -> tuple[dict[int, FencedService], set[str]]:
        """Per service the fence's view of it; and the NICs of this node's heartbeat links."""
        services = {}
        for k, service in enumerate(self._spec.services):
            nics = sorted({a.nic for a in service.addresses})
            services[k] = FencedService(tuple(nics), tuple(a.ip for a in service.addresses))
        own = set(self._spec.nodes[self._spec.me].links)
        names = {link.index: link.name for link in netlink.links() if not link.loopback}
        return services, {
            names[a.index] for a in netlink.addresses() if a.address in own and a.index in names
        }

    def _judge_tick(self) -> None:
        timing, jiffy = self._spec.timing, jiffy_us()
        life_us = least_life_us(timing.fence_us // 1000, jiffy)
        if life_us <= timing.heartbeat_us:
            self._complain(
                f"this kernel counts in ticks of {jiffy / 1000:g} ms, so a fence_ms of "
                f"{timing.fence_us // 1000} may end after {life_us / 1000:g} ms, before the next "
                f"beat ({timing.heartbeat_us / 1000:g} ms): addresses fall silent for some "
                "milliseconds again and again; use preset lan, or a kernel with CONFIG_HZ=1000"
            )

    def _standing_fence(self, services: dict[int, FencedService], devices: set[str]) -> Fence:
        """The fence that the predecessor loaded, driven by this process from now on."""
        timing = self._spec.timing
        lease = KernelLease(
            self._table(), services, timing.fence_us // 1000, timing.arm_us // 1000, devices
        )
        if lease.arm():
            return lease
        rules = RuleFence(services, timing.fence_us // 1000)
        rules.arm()  # starts its watchdog, which takes longer than a hand-over may
        self._complain(f"no kernel fence (apt-get install nftables); {rules.sentence()}")
        return rules

    def _table(self) -> str:
        return table_name(self._spec.name, self._spec.nodes[self._spec.me].id)

    def _service_addresses(self, netlink: Netlink, fence: Fence) -> ServiceAddresses:
        fenced = fence.mode == "nftables"
        addresses = ServiceAddresses(
            self._spec.services,
            netlink,
            valid_s=_VALID_S if fenced else _VALID_UNFENCED_S,
            renew_us=_RENEW_US if fenced else _RENEW_UNFENCED_US,
        )
        addresses.refresh_links()
        for fault in addresses.faults.values():
            self._journal.say(fault, WARNING)
        self._fence, self._addresses = fence, addresses
        return addresses

    def _warm_up(self) -> None:
        """Run the code once, so that the first turns after a hand-over are not its slowest."""
        now = now_us()
        scratch = start(self._spec, now, 1)
        for _again in range(3):
            step(scratch, Tick(), now)
        view(scratch, now)
        Wire(self._spec, self._ring, 1)

    def _withdraw(self) -> None:
        """A start that is refused leaves the host as it was."""
        if self._fence is not None:
            with contextlib.suppress(HeartError):
                self._fence.unload()
        self.unlock()

    def unlock(self) -> None:
        """This node may be started again; not for a heart that has handed over."""
        if self._lock is not None:
            self._lock.release()

    def abandon(self) -> None:
        """After a fault of this program: close the fence, take the addresses off, end the agent."""
        services = range(len(self._spec.services))
        if self._fence is not None:
            self._fence.close(services)
        if self._addresses is not None:
            for k in services:
                self._addresses.remove(k)
        self._agent.stop(1.0)
        self.unlock()

    def keep_last_words(self, recorder: Recorder) -> None:
        """The recording that led to a fault of this program: heart's only write, after its end."""
        try:
            content = folder.content_of(self._spec, recorder.last_words(), folder.FAULT)
            saved = folder.save(self._config.state_dir / folder.NAME, content, folder.FAULT)
        except OSError as error:
            self._journal.say(f"the recording of this fault was not saved: {error}", ERROR)
        else:
            self._journal.say(f"the recording of this fault is in {saved.path}", ERROR)


def _gone(state: HandOver) -> Callable[[], bool]:
    """Whether the predecessor's agent has ended."""
    if not state.agent_pid:
        return lambda: True
    try:
        return WatchedProcess(state.agent_pid).ended
    except HeartError:
        return lambda: True
