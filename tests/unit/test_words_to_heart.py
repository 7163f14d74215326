"""What the agent tells heart gets there, whatever text FreeSWITCH put into it."""

from __future__ import annotations

import socket

import msgspec

from haclusterd.agent.heart_link import HeartLink
from haclusterd.core.inputs import FromAgent, LocalReport, RecoveryEnded, ServiceReport
from haclusterd.core.model import Identity


async def test_m9_a_reason_that_is_no_utf8_keeps_no_later_word_from_heart() -> None:
    """It stayed first in the queue: heart heard nothing any more, and killed the agent."""
    ours, heart = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    link = HeartLink(ours.detach(), lambda message: None)
    said = "SIP profile 'east' is not rescanned: </na\udcefve>"
    report = LocalReport(True, 1, 100, 0, 0, False, (ServiceReport(False, said, 2),))
    link.send(report)
    link.send(RecoveryEnded(0, Identity(7, 0, 99), False, said))
    link.send(RecoveryEnded(1, Identity(8, 0, 99), True, ""))
    told = [msgspec.msgpack.decode(heart.recv(65536), type=FromAgent) for _ in range(3)]
    shown = said.replace("\udcef", "?")
    services = (ServiceReport(False, shown, 2),)
    assert told == [
        msgspec.structs.replace(report, services=services),
        RecoveryEnded(0, Identity(7, 0, 99), False, shown),
        RecoveryEnded(1, Identity(8, 0, 99), True, ""),
    ]
    link.close()
    heart.close()
