"""Bridged calls in a laboratory: a caller who plays a tone, and the telephone it is bridged to.

The caller is the laboratory's own, so everything that ends and judges calls works for these too;
each call is two dialogues on the wire, each with media of its own from FreeSWITCH.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from haclusterd.lab import netns, traffic
from haclusterd.lab.laboratory import Laboratory
from haclusterd.lab.plan import LabPlan, ServicePlan
from haclusterd.lab.tone import write_tone
from haclusterd.lab.traffic import Callers

CALLEE_PORT = 5070
_CALLEE_RTP_PORT = 30_000
_HOLD_MS = 120_000
_EXTENSION = "4100"
_SCENARIOS = Path(traffic.__file__).parent / "scenarios"
_TALKING = '  <label id="talking"/>'
_PLAY = """  <nop>
    <action>
      <exec rtp_stream="tone.pcmu,-1,0,PCMU/8000"/>
    </action>
  </nop>

"""


def bridge_target(plan: LabPlan) -> str:
    """What to give `LabPlan.bridge_target`."""
    return f"{plan.client_ip}:{CALLEE_PORT}"


class BridgedCallers(Callers):
    """Callers of an extension that bridges to the other telephone; they play a tone to it."""

    def __init__(
        self,
        plan: LabPlan,
        service: ServicePlan,
        namespace: str,
        directory: Path,
        count: int,
        extension: str = _EXTENSION,
    ) -> None:
        write_tone(directory)
        text = (_SCENARIOS / "caller.xml").read_text()
        if text.count(_TALKING) != 1:
            raise ValueError(f"caller.xml has not one line {_TALKING.strip()}")
        self._scenario = directory / "caller_with_tone.xml"
        self._scenario.write_text(text.replace(_TALKING, _PLAY + _TALKING))
        self._bridged = extension
        super().__init__(plan, service, namespace, directory, count)

    def _command(self, scenario: Path, rtp_port: int) -> list[str]:
        words = [word for word in super()._command(scenario, rtp_port) if word != "-rtp_echo"]
        words[words.index(str(scenario))] = str(self._scenario)
        words[words.index("-s") + 1] = self._bridged
        return words


@contextmanager
def telephone(lab: Laboratory, count: int) -> Iterator[None]:
    """The other telephone, at `bridge_target`, for `count` calls; it sends back what it hears."""
    with (
        netns.inside(lab.topology.client),
        (lab.directory / "telephone.log").open("wb") as log,
    ):
        process = subprocess.Popen(
            [
                "sipp", "-sf", str(_SCENARIOS / "uas.xml"), "-rtp_echo",
                "-i", lab.plan.client_ip, "-mi", lab.plan.client_ip, "-p", str(CALLEE_PORT),
                "-mp", str(_CALLEE_RTP_PORT), "-m", str(count), "-l", str(count),
                "-recv_timeout", str(_HOLD_MS), "-nostdin",
            ],
            cwd=lab.directory, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        )  # fmt: skip
    try:
        yield
    finally:
        process.kill()
        process.wait()
