"""Who gets through first to a service whose calls are recovered: the kernel holds back the rest.

Calls that are up come before new ones, and those before registrations (E18). SIP over UDP repeats
what is not answered, first after 0.5 s, so what is dropped here comes again. An nf_tables table of
its own, loaded when it is first needed; the addresses in its sets run out by themselves, so that an
agent that dies holds nobody back for long. Without nf_tables everybody gets through.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterator

from haclusterd.core.model import ServiceSpec
from haclusterd.lasting import lasting

log = logging.getLogger(__name__)

TABLE = "haclusterd_admission"
FROM_LEGS = 50  # fewer are on their way before nft has run
FIRST_S = 10  # at most this long in the first phase
AFTER_S = 10
NFT_S = 5.0
# The first eight bytes of a datagram: enough to tell the two methods, and cheap in the kernel.
_REGISTER = f"0x{b'REGISTER'.hex()}"
_INVITE = f"0x{b'INVITE s'.hex()}"


def ruleset(invites_per_s: int, registers_per_s: int) -> str:
    """The table; 0 lets all of a kind through."""
    sets = "".join(
        f"  set {phase}{family} {{ type ipv{family}_addr; flags timeout; size 256; }}\n"
        for phase in ("first", "after")
        for family in (4, 6)
    )
    first = after = ""
    if registers_per_s:
        first = f"    @th,64,64 {_REGISTER} counter drop\n"
        after = (
            f"    @th,64,64 {_REGISTER} limit rate over {registers_per_s}/second"
            f" burst {registers_per_s} packets counter drop\n"
        )
    if invites_per_s:
        first += (
            f"    @th,64,64 {_INVITE} limit rate over {invites_per_s}/second"
            f" burst {invites_per_s} packets counter drop\n"
        )
    jumps = "".join(
        f"    {word} daddr @{phase}{family} jump {phase}\n"
        for phase in ("first", "after")
        for family, word in ((4, "ip"), (6, "ip6"))
    )
    return (
        f"table inet {TABLE}\ndelete table inet {TABLE}\ntable inet {TABLE} {{\n{sets}"
        f"  chain first {{\n{first}  }}\n  chain after {{\n{after}  }}\n"
        "  chain incoming {\n    type filter hook prerouting priority -310; policy accept;\n"
        f"    meta l4proto != udp return\n{jumps}  }}\n}}\n"
    )


class Admission:
    """Paces one node's services. Nothing here ever fails a recovery."""

    def __init__(self, invites_per_s: int, registers_per_s: int, command: str = "nft") -> None:
        self._rates = (invites_per_s, registers_per_s)
        self._command = command
        self._loaded = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._lock = asyncio.Lock()

    @contextlib.contextmanager
    def of(self, service: ServiceSpec, legs: int) -> Iterator[None]:
        """While the body runs, new calls are paced and registrations wait; then those are paced."""
        paced = legs >= FROM_LEGS and any(self._rates)
        if paced:
            self._start(service, "first", FIRST_S)
        try:
            yield
        finally:
            if paced:
                self._start(service, "after", AFTER_S)

    async def stop(self) -> None:
        """Let everybody through, and take the table away."""
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._loaded:
            await self._nft(f"delete table inet {TABLE}\n")

    def _start(self, service: ServiceSpec, phase: str, seconds: int) -> None:
        task = lasting(self._pace(service, phase, seconds), f"admission to {service.name}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _pace(self, service: ServiceSpec, phase: str, seconds: int) -> None:
        lines = []
        for address in service.addresses:
            family = 6 if ":" in address.ip else 4
            if phase == "after":
                # Added first, so that deleting it cannot fail when it has run out.
                first = f"inet {TABLE} first{family} {{ {address.ip} }}"
                lines.append(f"add element {first}\ndelete element {first}\n")
            element = f"{{ {address.ip} timeout {seconds}s }}"
            lines.append(f"add element inet {TABLE} {phase}{family} {element}\n")
        text = "".join(lines)
        async with self._lock:
            if not self._loaded or not await self._nft(text):
                # Not there yet, or gone: a firewall that is loaded anew flushes all rules.
                self._loaded = await self._nft(ruleset(*self._rates) + text)

    async def _nft(self, text: str) -> bool:
        try:
            process = await asyncio.create_subprocess_exec(
                self._command, "-f", "-", stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
            )  # fmt: skip
        except OSError as error:
            log.info("new calls are not held back: %s: %s", self._command, error.strerror)
            return False
        try:
            async with asyncio.timeout(NFT_S):
                _, said = await process.communicate(text.encode())
        except TimeoutError:
            process.kill()
            await process.wait()
            said = b"nft did not end"
        if process.returncode != 0:
            log.info("new calls are not held back: %s", said.decode(errors="replace")[:200])
        return process.returncode == 0
