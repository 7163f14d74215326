"""Keeping heart on time and cheap: locked memory in huge pages, SCHED_RR, no garbage collector."""

from __future__ import annotations

import ctypes
import gc
import os
import resource
from dataclasses import dataclass
from pathlib import Path

_HUGE_BYTES = 2 << 20
_MADV_COLLAPSE = 25
_MCL_CURRENT, _MCL_FUTURE, _MCL_ONFAULT = 1, 2, 4
# Not below anything of FreeSWITCH, which is real-time itself: its unit asks for 89, its SQL, event
# and SIP threads for 99. Where those took all cores, heart at 10 missed its own lease (measured).
RR_PRIORITY = 99
HELPER_PRIORITY = 98  # programs that heart waits for, without ever having to wait its turn


@dataclass(frozen=True)
class Granted:
    """What the kernel allowed. `refusals` are sentences with the fix, empty when all is well."""

    memory_locked: bool
    realtime: bool
    refusals: tuple[str, ...] = ()


def lock_memory() -> str:
    """Lock present and future pages; the refusal as a sentence, or "".

    On-fault locking: only pages in use are locked, so a mapped but unused library costs nothing.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mlockall(_MCL_CURRENT | _MCL_FUTURE | _MCL_ONFAULT) == 0:
        return ""
    text = os.strerror(ctypes.get_errno())
    return f"memory not locked: {text}; grant CAP_IPC_LOCK or LimitMEMLOCK=infinity"


def raise_priority(priority: int = RR_PRIORITY, pid: int = 0) -> str:
    """SCHED_RR for this process or for `pid`, not inherited by children; what was refused as a
    sentence, or "". Where a limit allows only less, that is what it gets."""
    policy = os.SCHED_RR | os.SCHED_RESET_ON_FORK
    limit = resource.getrlimit(resource.RLIMIT_RTPRIO)[0]
    fix = f"grant CAP_SYS_NICE or LimitRTPRIO={priority}"
    reason = ""
    for wanted in (priority, min(priority, limit)):
        try:
            os.sched_setscheduler(pid, policy, os.sched_param(wanted))
        except OSError as error:
            reason = reason or (error.strerror or str(error))
        else:
            less = f"real-time priority {wanted}, below FreeSWITCH's own threads; {fix}"
            return less if wanted < priority else ""
    return f"real-time scheduling refused: {reason}; {fix}, preset `fast` needs it"


def freeze_collector() -> None:
    """No garbage collection from here on: a full collection can pause the loop for milliseconds.

    Heart's objects are acyclic Structs and tuples, so reference counting frees them all.
    """
    gc.collect()
    gc.freeze()
    gc.disable()


def use_huge_pages() -> int:
    """Gather this process's memory and code into huge pages; how many there are now.

    A heart wakes with cold caches forty times a second, and a good part of what that costs is
    looking up addresses: 5 to 7 % of its CPU time in the lab. Where the kernel cannot do it
    (before Linux 6.1, or for code on most file systems), nothing changes.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    gathered = 0
    for line in Path("/proc/self/maps").read_text(errors="replace").splitlines():
        bounds, permissions, *rest = line.split()
        name = rest[3] if len(rest) > 3 else ""
        if not (name in ("", "[heap]") and "w" in permissions) and "x" not in permissions:
            continue
        first, last = (int(bound, 16) for bound in bounds.split("-"))
        for start in range(-(-first // _HUGE_BYTES) * _HUGE_BYTES, last, _HUGE_BYTES):
            if start + _HUGE_BYTES <= last:
                gathered += libc.madvise(start, _HUGE_BYTES, _MADV_COLLAPSE) == 0
    return gathered


def become_realtime() -> Granted:
    """Do all of it, and report what was granted.

    Priority comes last: the rest takes milliseconds, which in an upgrade are FreeSWITCH's.
    """
    freeze_collector()
    use_huge_pages()
    refusals = [lock_memory(), raise_priority()]
    return Granted(
        memory_locked=not refusals[0],
        realtime=os.sched_getscheduler(0) & ~os.SCHED_RESET_ON_FORK == os.SCHED_RR,
        refusals=tuple(text for text in refusals if text),
    )
