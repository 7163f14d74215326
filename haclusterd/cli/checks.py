"""What a check of `doctor` is, and the host's side of it: kernel, rights, files, links, clock.

Each check looks and changes nothing, and names the fix of what it finds. `HostProbe` is all that
touches the host, so that tests can put another one in its place.
"""

from __future__ import annotations

import ctypes
import datetime
import os
import shutil
import socket
import stat
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from haclusterd.config import Config
from haclusterd.expiry import FIX, Validity, validities
from haclusterd.keys import KeysError, check_readable, paths

OK, WARNING, FAILED, SKIPPED = "ok", "warning", "failed", "skipped"
COMMAND_S = 5.0
CONNECT_S = 1.0
# Bits of CapEff (linux/capability.h) and what heart needs them for.
_CAPABILITIES = {
    5: ("CAP_KILL", "ending a FreeSWITCH of another user"),
    12: ("CAP_NET_ADMIN", "addresses and the fence"),
    13: ("CAP_NET_RAW", "ARP and neighbour announcements"),
    14: ("CAP_IPC_LOCK", "staying in memory"),
    23: ("CAP_SYS_NICE", "real-time scheduling"),
}
_NEEDED = frozenset({12, 13})
_TIME_ERROR = 5  # adjtimex: the clock is not synchronised
_EGRESS = """table netdev haclusterd_doctor {
  chain look { type filter hook egress device "lo" priority 0; policy accept; }
}
"""


@dataclass(frozen=True)
class Check:
    """One finding. `fix` is empty where there is nothing to do."""

    name: str
    state: str
    text: str
    fix: str = ""


class HostProbe:
    """What is asked of the host."""

    def read(self, path: str) -> str:
        """A small file of /proc or /sys, stripped; OSError if it is not there."""
        return Path(path).read_text(encoding="utf-8", errors="replace").strip()

    def exists(self, path: str) -> bool:
        return Path(path).exists()

    def mode(self, path: Path) -> int:
        return stat.S_IMODE(path.stat().st_mode)

    def command(self, name: str) -> str | None:
        return shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")

    def run(self, words: list[str], stdin: str = "") -> tuple[int, str]:
        """(exit status, what it said); -1 where it could not be run."""
        try:
            done = subprocess.run(
                words, input=stdin, capture_output=True, text=True, timeout=COMMAND_S, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            return -1, str(error)
        return done.returncode, (done.stderr or done.stdout).strip()

    def addresses(self) -> list[str]:
        from haclusterd.config.identity import local_addresses

        return list(local_addresses())

    def connect(self, own: str, peer: str, port: int) -> str:
        """ "up", "refused" (the host answers, nothing listens) or "silent"."""
        family = socket.AF_INET6 if ":" in peer else socket.AF_INET
        probe = socket.socket(family, socket.SOCK_STREAM)
        probe.settimeout(CONNECT_S)
        try:
            probe.bind((own, 0))
            probe.connect((peer, port))
        except ConnectionRefusedError:
            return "refused"
        except OSError:
            return "silent"
        finally:
            probe.close()
        return "up"

    def clock_synchronised(self) -> bool | None:
        """What the kernel says; None where it cannot be asked."""
        try:
            libc = ctypes.CDLL(None, use_errno=True)
            buffer = ctypes.create_string_buffer(512)  # struct timex, modes 0: only read
            return int(libc.adjtimex(buffer)) != _TIME_ERROR
        except (OSError, AttributeError):
            return None


def host_checks(config: Config, host: HostProbe, heart_pid: int | None) -> Iterator[Check]:
    """Everything that needs neither FreeSWITCH nor the daemon."""
    yield from _keys(config)
    yield _links(config, host)
    yield from _service_nics(config, host)
    yield _fence(host)
    yield _capabilities(host, heart_pid)
    yield _clock(host)
    if config.freeswitch is not None:
        yield from _nonlocal_bind(config, host)
        yield from _password(config.freeswitch.esl_password_file, host)


def _keys(config: Config) -> Iterator[Check]:
    try:
        check_readable(config, config.node.id)
        found = validities(config, config.node.id)
    except KeysError as error:
        text, _, fix = str(error).partition(" Fix: ")
        yield Check("keys", FAILED, text, fix)
        return
    folder = paths(config, config.node.id).cluster_key.parent
    yield Check("keys", OK, f"complete and private in {folder}")
    yield from _certificates(found)


def _certificates(found: list[Validity]) -> Iterator[Check]:
    now = datetime.datetime.now(datetime.UTC)
    problems = [(one, one.problem(now)) for one in found]
    for one, problem in problems:
        if problem:
            yield Check("certificates", FAILED if now >= one.ends else WARNING, problem, FIX)
    if not any(problem for _, problem in problems):
        first = min(found, key=lambda one: one.ends)
        yield Check(
            "certificates", OK, f"the first to end is {first.file} on {first.ends:%Y-%m-%d}"
        )


def _links(config: Config, host: HostProbe) -> Check:
    here = set(host.addresses())
    missing = [address for address in config.node.links if address not in here]
    if missing:
        text = f"{', '.join(missing)} is on no NIC of this host"
        return Check("links", FAILED, text, "bring the NIC up, or correct links in [[node]]")
    return Check("links", OK, f"{', '.join(config.node.links)} present")


def _service_nics(config: Config, host: HostProbe) -> Iterator[Check]:
    nics = sorted({a.nic for service in config.services for a in service.addresses})
    missing = [nic for nic in nics if not host.exists(f"/sys/class/net/{nic}")]
    if missing:
        fix = "correct addresses in [[service]] or create the NIC"
        yield Check("service NICs", FAILED, f"{', '.join(missing)} does not exist here", fix)
    elif nics:
        yield Check("service NICs", OK, f"{', '.join(nics)} present")


def _fence(host: HostProbe) -> Check:
    bound = "a frozen owner may overlap with its successor for up to 5000 ms"
    nft = host.command("nft")
    if nft is None:
        return Check("nf_tables", WARNING, f"nft is not installed: {bound}", "apt install nftables")
    if os.geteuid() != 0:
        return Check("nf_tables", SKIPPED, "only root can ask the kernel", "run doctor as root")
    status, said = host.run([nft, "--check", "--file", "-"], _EGRESS)
    if status != 0:
        why = next(iter(said.splitlines()), f"nft ended with status {status}")[:120]
        text = f"the kernel refuses a netdev egress chain ({why}): {bound}"
        fix = "use a kernel with CONFIG_NFT_FWD_NETDEV / netdev egress (5.16 or newer)"
        return Check("nf_tables", WARNING, text, fix)
    return Check("nf_tables", OK, "netdev egress chains work: the fence is a kernel lease")


def _capabilities(host: HostProbe, heart_pid: int | None) -> Check:
    whose = "self" if heart_pid is None else str(heart_pid)
    who = "this process" if heart_pid is None else f"haclusterd (pid {heart_pid})"
    try:
        text = host.read(f"/proc/{whose}/status")
        line = next(line for line in text.splitlines() if line.startswith("CapEff:"))
        held = int(line.split()[1], 16)
    except (OSError, StopIteration, ValueError, IndexError):
        return Check("capabilities", SKIPPED, f"{who}: not readable", "run doctor as root")
    lacking = {bit for bit in _CAPABILITIES if not held >> bit & 1}
    if not lacking:
        return Check("capabilities", OK, f"{who} has all that heart uses")
    names = ", ".join(f"{_CAPABILITIES[bit][0]} ({_CAPABILITIES[bit][1]})" for bit in lacking)
    fix = "add them to AmbientCapabilities of the unit, or run as root"
    state = FAILED if lacking & _NEEDED else WARNING
    return Check("capabilities", state, f"{who} lacks {names}", fix)


def _clock(host: HostProbe) -> Check:
    fix = "run chrony or systemd-timesyncd: re-INVITEs of taken over calls number by the clock"
    synchronised = host.clock_synchronised()
    if synchronised is None:
        return Check("clock", SKIPPED, "the kernel cannot be asked")
    if not synchronised:
        return Check("clock", WARNING, "the clock is not synchronised", fix)
    return Check("clock", OK, "synchronised")


def _nonlocal_bind(config: Config, host: HostProbe) -> Iterator[Check]:
    families = {"ipv6" if ":" in a.ip else "ipv4" for s in config.services for a in s.addresses}
    for family in sorted(families):
        name = f"net.{family}.ip_nonlocal_bind"
        try:
            value = host.read(f"/proc/sys/net/{family}/ip_nonlocal_bind")
        except OSError:
            yield Check(name, SKIPPED, "not readable here")
            continue
        if value == "1":
            yield Check(name, OK, "1")
        else:
            text = f"{value}: standby profiles cannot bind to addresses of other nodes"
            fix = f"sysctl -w {name}=1, and keep it in /etc/sysctl.d/haclusterd.conf"
            yield Check(name, FAILED, text, fix)


def _password(path: Path, host: HostProbe) -> Iterator[Check]:
    try:
        mode = host.mode(path)
    except OSError as error:
        fix = "write the password of event_socket.conf.xml into it, mode 0600"
        yield Check("ESL password", FAILED, f"{path}: {error.strerror}", fix)
        return
    if mode & 0o027:  # its group may be FreeSWITCH's, which has to read it too
        text = f"{path}: mode {mode:04o} lets others read it"
        yield Check("ESL password", FAILED, text, f"chmod 640 {path}")
    else:
        yield Check("ESL password", OK, f"{path} is private")
