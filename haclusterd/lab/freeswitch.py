"""A real FreeSWITCH of a laboratory node: its directory, its configuration, its life and death.

The configuration is `fs_conf/`, byte for byte what a production node gets, plus the test dialplan
and one file of variables (`node/lab.xml`). Any number of instances share a host: each has its own
directory and its own network namespace.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from xml.sax.saxutils import quoteattr

from haclusterd.freeswitch import conf
from haclusterd.lab import netns
from haclusterd.lab.esl_blocking import BlockingEsl, EslRefused
from haclusterd.lab.netns import LabError

PREFIX_VARIABLE: Final = "FREESWITCH_PREFIX"
_VERSION: Final = re.compile(r"version: (\S+)")
_NONLOCAL_BIND: Final = {"ipv4/ip_nonlocal_bind": 1, "ipv6/ip_nonlocal_bind": 1}


@dataclass(frozen=True)
class ServiceProfile:
    """A SIP profile bound to a service address (IPv4 or IPv6); the same on every node."""

    name: str
    address: str


@dataclass(frozen=True)
class FreeswitchOptions:
    """What a laboratory may want to vary; every value reaches fs_conf as a variable.

    `bridge_target` is HOST:PORT of the telephone that extension 41xx calls; `profile_params` are
    set in every SIP profile, instead of what fs_conf has there.
    """

    switchname: str = "lab"
    rtp_start_port: int = 16384
    rtp_end_port: int = 32768
    log_level: str = "notice"
    bridge_target: str = ""
    codecs: str = "PCMU,PCMA"
    profile_params: tuple[tuple[str, str], ...] = ()


def find_binary(prefix: str | Path | None = None) -> Path:
    """The freeswitch program under `prefix`, else `$FREESWITCH_PREFIX`, else on PATH.

    LabError that says where it looked.
    """
    root = prefix or os.environ.get(PREFIX_VARIABLE)
    if root:
        binary = Path(root) / "bin" / "freeswitch"
        if not os.access(binary, os.X_OK):
            raise LabError(f"{binary} is no program: give the prefix FreeSWITCH is installed under")
        return binary
    found = shutil.which("freeswitch")
    if found is None:
        raise LabError(f"no FreeSWITCH: install it, or set --freeswitch or ${PREFIX_VARIABLE}")
    return Path(found)


def write_conf(target: Path, services: Sequence[ServiceProfile], variables: dict[str, str]) -> None:
    """Fill the configuration directory `target` (replaced if it exists) from `fs_conf/`."""
    source = conf.source()
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target)
    shutil.copy(source / "test" / "dialplan.xml", target / "dialplan" / "public" / "test.xml")
    shutil.copy(source / "test" / "acl.xml", target / "acl" / "test.xml")
    shutil.copy(source / "test" / "directory.xml", target / "directory" / "test.xml")
    listed = target / conf.CLUSTER_LIST
    listed.write_text(conf.cluster_list(listed.read_text(), [s.address for s in services]))
    template = (source / "services" / "service.xml.template").read_text()
    for service in services:
        port = int(variables["sip_port"])
        profile = conf.Profile(service.name, service.name, service.address, port)
        try:
            text = conf.service_file(template, profile)
        except conf.ConfError as error:
            raise LabError(str(error)) from None
        (target / "services" / f"{service.name}.xml").write_text(text)
        (target / "gateways" / service.name).mkdir()
    lines = (
        f'  <X-PRE-PROCESS cmd="set" data={quoteattr(f"{name}={value}")}/>'
        for name, value in variables.items()
    )
    (target / "node" / "lab.xml").write_text("<include>\n" + "\n".join(lines) + "\n</include>\n")


def vary_profile(path: Path, params: Sequence[tuple[str, str]]) -> None:
    """Give the profile of all services these parameters, and no others of their names."""
    text = path.read_text()
    for name in {name for name, _ in params}:
        text = re.sub(rf'\s*<param name="{re.escape(name)}" value="[^"]*"/>', "", text)
    lines = [f"<param name={quoteattr(name)} value={quoteattr(value)}/>" for name, value in params]
    path.write_text(text.replace("</settings>", "\n    ".join([*lines, "</settings>"])))


class FreeswitchInstance:
    """One FreeSWITCH, in one directory and one network namespace. Synchronous.

    `start()` (again) after a death; whoever else starts it with `start_command` is found by the
    pid file. LabError for everything that goes wrong here.
    """

    def __init__(
        self,
        prefix: str | Path | None,
        directory: Path,
        namespace: str,
        services: Sequence[ServiceProfile],
        esl_port: int = 8021,
        esl_password: str = "lab",
        sip_port: int = 5060,
        options: FreeswitchOptions | None = None,
    ) -> None:
        self.binary = find_binary(prefix)
        self.directory = directory
        self.namespace = namespace
        self.services = tuple(services)
        self.esl_port = esl_port
        self.esl_password = esl_password
        self.sip_port = sip_port
        self.options = options or FreeswitchOptions()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def core_db(self) -> Path:
        return self.directory / "db" / "core.db"

    @property
    def pid_file(self) -> Path:
        return self.directory / "run" / "freeswitch.pid"

    @property
    def log_file(self) -> Path:
        return self.directory / "log" / "freeswitch.log"

    @property
    def start_command(self) -> list[str]:
        """Starts it in the background, as `freeswitch.start_command` of a node's configuration.

        To be run inside the namespace, after `prepare()`. Returns when FreeSWITCH is up.
        """
        return [str(self.binary), "-ncwait", *self._arguments()]

    @property
    def pid(self) -> int | None:
        """The process that runs on this directory, None if there is none. Zombies do not run."""
        if self._process is not None:
            self._process.poll()
        try:
            pid = int(self.pid_file.read_text())
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except (OSError, ValueError):
            return None
        return pid if str(self.directory / "conf").encode() in words else None

    def version(self) -> str:
        """As `freeswitch -version` says, for example `1.11.3-dev~64bit`."""
        done = subprocess.run(
            [str(self.binary), "-version"], capture_output=True, text=True, check=False, timeout=10
        )
        found = _VERSION.search(done.stdout)
        if found is None:
            raise LabError(f"{self.binary} -version: {done.stdout.strip() or done.stderr.strip()}")
        return found[1]

    def prepare(self) -> None:
        """Directories and configuration; data of an earlier life stays where it is."""
        for name in ("db", "log", "run", "tmp"):
            (self.directory / name).mkdir(parents=True, exist_ok=True)
        options = self.options
        variables = {
            "switchname": options.switchname,
            "esl_password": self.esl_password,
            "esl_port": str(self.esl_port),
            "sip_port": str(self.sip_port),
            "sip_auth_calls": "false",
            "sip_inbound_acl": "test",
            "rtp_start_port": str(options.rtp_start_port),
            "rtp_end_port": str(options.rtp_end_port),
            "log_level": options.log_level,
            "global_codec_prefs": options.codecs,
            "test_bridge_target": options.bridge_target,
        }
        write_conf(self.directory / "conf", self.services, variables)
        vary_profile(self.directory / "conf" / "service_profile.xml", options.profile_params)

    def start(self) -> None:
        """Start it in the namespace; `wait_ready` tells when it can be used."""
        if self.pid is not None:
            raise LabError(f"FreeSWITCH in {self.directory} runs already (pid {self.pid})")
        self.prepare()
        self.pid_file.unlink(missing_ok=True)
        if self.namespace:
            netns.sysctl(self.namespace, _NONLOCAL_BIND)
        with (
            netns.inside(self.namespace) if self.namespace else contextlib.nullcontext(),
            open(self.directory / "log" / "console.log", "ab") as console,
        ):
            self._process = subprocess.Popen(
                [str(self.binary), "-nc", "-nf", *self._arguments()],
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def wait_ready(self, timeout_s: float = 20.0) -> None:
        """Until ESL answers and every profile runs; LabError with the end of the log if not."""
        self._wait(timeout_s, self._is_ready, "is not ready")

    def esl(self, timeout_s: float = 5.0) -> BlockingEsl:
        """A new connection to it."""
        return BlockingEsl(
            self.esl_port, self.esl_password, namespace=self.namespace, timeout_s=timeout_s
        )

    def api(self, command: str, timeout_s: float = 5.0) -> str:
        """One `api` command on a connection of its own."""
        with self.esl(timeout_s) as connection:
            return connection.api(command)

    def kill(self, signal_number: int = signal.SIGKILL) -> None:
        """Send it a signal; after SIGKILL it is gone when this returns."""
        pid = self.pid
        if pid is None:
            raise LabError(f"no FreeSWITCH runs in {self.directory}")
        os.kill(pid, signal_number)
        if signal_number == signal.SIGKILL:
            self._wait(10.0, lambda: self.pid is None, "does not die of SIGKILL")

    def stop(self, timeout_s: float = 10.0) -> None:
        """End it if it runs: politely (it says BYE to all), then by SIGKILL."""
        if self.pid is None:
            return
        self.kill(signal.SIGCONT)
        self.kill(signal.SIGTERM)
        try:
            self._wait(timeout_s, lambda: self.pid is None, "does not stop")
        except LabError:
            self.kill(signal.SIGKILL)

    def _arguments(self) -> list[str]:
        places = {"-conf": "conf", "-db": "db", "-log": "log", "-run": "run", "-temp": "tmp"}
        named = [word for key, name in places.items() for word in (key, str(self.directory / name))]
        return ["-nonat", *named]

    def _is_ready(self) -> bool:
        process = self._process
        if process is not None and process.poll() is not None and self.pid is None:
            raise LabError(f"FreeSWITCH exited with {process.returncode}: {self._log_end()}")
        try:
            status = self.api("sofia status", timeout_s=1.0)
        except (OSError, EslRefused):
            return False
        up = {line.split()[0] for line in status.splitlines() if "RUNNING" in line}
        return all(service.name in up for service in self.services)

    def _wait(self, timeout_s: float, condition: Callable[[], bool], complaint: str) -> None:
        end = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > end:
                raise LabError(
                    f"FreeSWITCH in {self.directory} {complaint} after {timeout_s:g} s: "
                    f"{self._log_end()}"
                )
            time.sleep(0.01)

    def _log_end(self) -> str:
        for path in (self.log_file, self.directory / "log" / "console.log"):
            with contextlib.suppress(OSError):
                text = path.read_text(errors="replace").strip()
                if text:
                    return text[-600:]
        return "no log"
