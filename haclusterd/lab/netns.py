"""Network namespaces of the laboratory: names, entering, processes inside, left-overs.

A laboratory is called `hacl-PID-START-N`, PID and START being the process that made it (START is
its start time in clock ticks, so that a reused PID is told apart), its namespaces NAME-WHAT.
Whatever belongs to a process that lives no more is a left-over, unless its laboratory is marked
as kept.
"""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PREFIX = "hacl"
NETNS_DIR = Path("/run/netns")
KEPT = "kept"  # a file of this name in a laboratory's directory: it outlives its process

_CLONE_NEWNET = 0x40000000
_NAME = re.compile(rf"({PREFIX}-(\d+)-(\d+)-\d+)(?:-[\w-]+)?")
_libc = ctypes.CDLL(None, use_errno=True)


class LabError(Exception):
    """The laboratory cannot do what was asked; the text says what to do about it."""


def base_dir() -> Path:
    """Where laboratories keep their files: a tmpfs where there is one, so no disk stalls a node."""
    run = Path("/run")
    parent = run if os.access(run, os.W_OK) else Path(tempfile.gettempdir())
    return parent / "haclusterd-lab"


def why_not() -> str:
    """Why no laboratory can run here, empty if it can."""
    if os.geteuid() != 0:
        return "network namespaces need root: run as root"
    for tool, package in (("ip", "iproute2"), ("nft", "nftables")):
        if shutil.which(tool) is None:
            return f"{tool} is missing: apt-get install {package}"
    done = subprocess.run(["unshare", "--net", "true"], capture_output=True, text=True, check=False)
    if done.returncode:
        return f"this system allows no network namespaces: {done.stderr.strip()}"
    return ""


def own_name() -> str:
    """The name of this process's laboratories, without their number."""
    return f"{PREFIX}-{os.getpid()}-{_start_ticks(os.getpid())}"


def ip(*words: str, batch: Iterable[str] = (), namespace: str = "") -> str:
    """Run `ip`, its batch lines on stdin. LabError with its own words if it refuses."""
    lines = "\n".join(batch)
    command = ["ip", *(["-n", namespace] if namespace else []), *words]
    if lines:
        command += ["-batch", "-"]
    done = subprocess.run(command, input=lines, capture_output=True, text=True, check=False)
    if done.returncode:
        raise LabError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout


@contextmanager
def inside(namespace: str) -> Iterator[None]:
    """This thread in `namespace`: sockets and processes made here belong there."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    target = os.open(NETNS_DIR / namespace, os.O_RDONLY)
    try:
        if _libc.setns(target, _CLONE_NEWNET):
            raise LabError(f"setns {namespace}: {os.strerror(ctypes.get_errno())}")
        try:
            yield
        finally:
            if _libc.setns(home, _CLONE_NEWNET):
                os._exit(70)  # nothing that runs on would be where it believes to be
    finally:
        os.close(home)
        os.close(target)


def sysctl(namespace: str, settings: dict[str, int]) -> None:
    """Write /proc/sys/net/... of `namespace`; keys are relative to /proc/sys/net."""
    with inside(namespace):
        for key, value in settings.items():
            path = Path("/proc/sys/net") / key
            if path.exists():
                path.write_text(f"{value}\n")


def pids_inside(namespaces: Iterable[str]) -> dict[str, list[int]]:
    """Processes by namespace. A process that ends meanwhile is left out."""
    inodes = {}
    for namespace in namespaces:
        with suppress(OSError):
            inodes[(NETNS_DIR / namespace).stat().st_ino] = namespace
    found: dict[str, list[int]] = {namespace: [] for namespace in inodes.values()}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with suppress(OSError):
                inode = os.stat(f"/proc/{entry}/ns/net").st_ino
                if inode in inodes:
                    found[inodes[inode]].append(int(entry))
    return found


def kill_inside(namespaces: Iterable[str], *, timeout_s: float = 5.0) -> None:
    """SIGKILL everything in the namespaces, again until nothing is left."""
    names = list(namespaces)
    end = time.monotonic() + timeout_s
    while True:
        pids = [pid for members in pids_inside(names).values() for pid in members]
        pids = [pid for pid in pids if pid != os.getpid() and not _is_zombie(pid)]
        if not pids:
            return
        if time.monotonic() > end:
            raise LabError(f"processes {pids} do not die")
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)


def delete(namespaces: Iterable[str]) -> None:
    """Remove namespaces that exist; their devices go with them."""
    present = [name for name in namespaces if (NETNS_DIR / name).exists()]
    if present:
        ip(batch=[f"netns del {name}" for name in present])


def laboratories() -> dict[str, list[str]]:
    """All laboratories on this host, of whichever process: name -> its namespaces."""
    found: dict[str, list[str]] = {}
    entries = sorted(os.listdir(NETNS_DIR)) if NETNS_DIR.is_dir() else []
    for entry in entries:
        match = _NAME.fullmatch(entry)
        if match:
            found.setdefault(match[1], []).append(entry)
    if base_dir().is_dir():
        for directory in base_dir().iterdir():
            if _NAME.fullmatch(directory.name):
                found.setdefault(directory.name, [])
    return found


def remove(name: str) -> None:
    """End a laboratory: its processes, namespaces and files."""
    namespaces = laboratories().get(name, [])
    kill_inside(namespaces)
    delete(namespaces)
    shutil.rmtree(base_dir() / name, ignore_errors=True)


def remove_left_overs() -> list[str]:
    """Remove the laboratories of dead processes that nobody asked to keep; their names."""
    found = [name for name in laboratories() if not _is_alive(name) and not is_kept(name)]
    for name in found:
        remove(name)
    return found


def is_kept(name: str) -> bool:
    return (base_dir() / name / KEPT).exists()


def wait_for(
    condition: Callable[[], bool], timeout_s: float, what: str, *, step_s: float = 0.02
) -> None:
    """Poll until `condition()`; LabError that names `what` after `timeout_s`."""
    end = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > end:
            raise LabError(f"waited {timeout_s:g} s in vain for: {what}")
        time.sleep(step_s)


def _is_alive(name: str) -> bool:
    match = _NAME.fullmatch(name)
    return match is not None and _start_ticks(int(match[2])) == int(match[3])


def _start_ticks(pid: int) -> int:
    """Start time of a process in clock ticks after boot, 0 if there is none."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return 0
    return int(text.rpartition(")")[2].split()[19])


def _is_zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True
