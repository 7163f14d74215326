"""Live calls from the client's namespace: SIPp, which knows nothing of takeovers.

One SIPp per service. Calls stay until `hang_up` (the caller says BYE) or until FreeSWITCH ends
them. SIPp sends every RTP packet back; all calls of one SIPp share its RTP port, and the port of
FreeSWITCH tells them apart.
"""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
from contextlib import suppress
from importlib import resources
from pathlib import Path

from haclusterd.lab import netns
from haclusterd.lab.clock import preferred
from haclusterd.lab.netns import LabError
from haclusterd.lab.plan import SIP_PORT, LabPlan, ServicePlan
from haclusterd.lab.switches import EXTENSION

CALLS_PER_S = 50
_FIRST_SIP_PORT = 5100
_FIRST_RTP_PORT = 40_000
_RTP_STEP = 10
# All re-INVITEs of a takeover wait in it while SIPp has no CPU; its own 64 KiB lost some of 100.
_BUFFER_BYTES = 1 << 20

_LEAVE = (
    "INFO sip:caller@{host}:{port} SIP/2.0\r\n"
    "Via: SIP/2.0/UDP {host}:9;branch=z9hG4bK-leave-{call_id}\r\n"
    "From: <sip:laboratory@{host}>;tag=laboratory\r\n"
    "To: <sip:caller@{host}>\r\n"
    "Call-ID: {call_id}\r\n"
    "CSeq: 1 INFO\r\n"
    "Content-Length: 0\r\n\r\n"
)


class Callers:
    """`count` calls to one service. `tag` keeps Call-IDs of several rounds apart."""

    def __init__(
        self,
        plan: LabPlan,
        service: ServicePlan,
        namespace: str,
        directory: Path,
        count: int,
        tag: str = "1",
        extension: str = EXTENSION,
    ) -> None:
        if shutil.which("sipp") is None:
            raise LabError("sipp is missing: apt-get install sip-tester")
        self.service = service
        self.count = count
        self._host = plan.client_ip
        self._nice = plan.nice
        self._extension = extension
        self._namespace = namespace
        number = plan.services.index(service) + len(plan.services) * (int(tag) - 1)
        self._port = _FIRST_SIP_PORT + number
        self._suffix = f".{service.name}.{tag}@lab"
        self._log = directory / f"sipp-{service.name}-{tag}.log"
        rtp_port = _FIRST_RTP_PORT + _RTP_STEP * number
        scenario = resources.files("haclusterd.lab").joinpath("scenarios", "caller.xml")
        with resources.as_file(scenario) as path, netns.inside(namespace):
            with self._log.open("ab") as log:
                self._process = subprocess.Popen(
                    self._command(path, rtp_port),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    cwd=directory,
                    env={"TERM": "dumb", "PATH": "/usr/local/bin:/usr/bin:/bin"},
                    start_new_session=True,
                )
            netns.wait_for(self._read_scenario, 5, f"SIPp to start ({self._log})")

    @property
    def call_ids(self) -> list[str]:
        return [f"{number}{self._suffix}" for number in range(1, self.count + 1)]

    def hang_up(self, call_ids: list[str]) -> None:
        """Make these callers say BYE."""
        with netns.inside(self._namespace):
            messenger = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        with messenger:
            for call_id in call_ids:
                text = _LEAVE.format(host=self._host, port=self._port, call_id=call_id)
                messenger.sendto(text.encode(), (self._host, self._port))

    def finished(self) -> bool:
        return self._process.poll() is not None

    def wait(self, timeout_s: float) -> bool:
        """Until every call is over; whether SIPp says that all of them succeeded."""
        try:
            return self._process.wait(timeout_s) == 0
        except subprocess.TimeoutExpired:
            return False

    def stop(self) -> None:
        """End SIPp, whatever its calls do."""
        with suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    def _read_scenario(self) -> bool:
        if self._process.poll() is not None:
            text = self._log.read_text(errors="replace").strip()
            raise LabError(f"SIPp ended: {text[-400:]}")
        # It has opened its sockets, so it has read the file, which may be a temporary one.
        table = Path(f"/proc/{self._process.pid}/net/udp").read_text()
        return f":{self._port:04X} " in table

    def _command(self, scenario: Path, rtp_port: int) -> list[str]:
        return [
            *preferred(self._nice), "sipp", f"{self.service.ip}:{SIP_PORT}",
            "-sf", str(scenario), "-s", self._extension, "-cid_str", f"%u{self._suffix}",
            "-i", self._host, "-p", str(self._port),
            "-rtp_echo", "-mi", self._host, "-mp", str(rtp_port),
            "-m", str(self.count), "-l", str(self.count), "-r", str(CALLS_PER_S),
            "-buff_size", str(_BUFFER_BYTES), "-nostdin",
            "-trace_err", "-error_file", str(self._log.with_suffix(".errors")),
            "-f", "10",
        ]  # fmt: skip
