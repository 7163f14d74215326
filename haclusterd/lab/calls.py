"""What became of each call, judged from the wire alone.

Pure: from what the observer saw (`sip_watch`) to one verdict per call.
"""

from __future__ import annotations

import statistics
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from haclusterd.lab.sip_watch import Call, Message, Stream

MEDIA_ALIVE_MS = 200.0  # packets come every 20 ms; a call without any for this long has no media


@dataclass(frozen=True)
class CallVerdict:
    """One call as its caller lived it. `lost` is why it did not stay up, empty if it did."""

    call_id: str
    service_ip: str
    gap_ms: float
    reinvites: int
    first_reinvite_ms: float | None  # after the fault
    lost: str
    rtp_lost: int = 0  # packets numbered by their sender that never came
    rtp_restarts: int = 0  # how often another sender took the stream over

    @property
    def touched(self) -> bool:
        """Whether anybody did something to it between the fault and its end."""
        return bool(self.reinvites or self.lost)


def was_up(call: Call, at_ns: int) -> bool:
    """Answered, acknowledged and not ended at `at_ns`."""
    seen = [m.what for m in call.messages if m.at_ns <= at_ns]
    return "200 INVITE" in seen and "ACK" in seen and "BYE" not in seen


def has_media(call: Call, streams: dict[str, Stream], at_ns: int) -> bool:
    stream = streams.get(call.media)
    return stream is not None and at_ns - stream.last_ns < MEDIA_ALIVE_MS * 1e6


def judge(
    calls: dict[str, Call], streams: dict[str, Stream], fault_ns: int, until_ns: int
) -> list[CallVerdict]:
    """A verdict on the time from `fault_ns` to `until_ns` for every call that was up at the fault.

    `streams` are as they were at `until_ns`, with gaps counted from about the fault on.
    """
    return [
        _judge_one(call_id, call, streams, fault_ns, until_ns)
        for call_id, call in sorted(calls.items())
        if was_up(call, fault_ns)
    ]


def badly_ended(
    calls: dict[str, Call], ending_ns: int, by_switch: Collection[str] = ()
) -> dict[str, str]:
    """Calls that were up at `ending_ns`, when all were told to end, and did not end well: why.

    `by_switch`: Call-IDs that FreeSWITCH was told to end; for those its own BYE has to be seen.
    """
    found = {}
    for call_id, call in calls.items():
        if was_up(call, ending_ns):
            after = [m for m in call.messages if m.at_ns > ending_ns]
            if reason := _bad_end(after, call_id in by_switch):
                found[call_id] = reason
    return found


def _bad_end(after: list[Message], by_switch: bool) -> str:
    byes = [m for m in after if m.what == "BYE"]
    if not byes:
        return "never ended"
    if by_switch and not byes[0].sent_by_service:
        return "FreeSWITCH was told to end it, and its caller did"
    if not any(m.what == "200 BYE" and m.sent_by_service != byes[0].sent_by_service for m in after):
        return "BYE not answered"
    return ""


def _judge_one(
    call_id: str, call: Call, streams: dict[str, Stream], fault_ns: int, until_ns: int
) -> CallVerdict:
    during = [m for m in call.messages if fault_ns < m.at_ns <= until_ns]
    reinvites = [m for m in during if m.what == "INVITE" and m.sent_by_service]
    ends = [m for m in during if m.what == "BYE"]
    lost = ""
    if ends:
        after_ms = (ends[0].at_ns - fault_ns) / 1e6
        who = "FreeSWITCH" if ends[0].sent_by_service else "the caller"
        lost = f"ended by {who} after {after_ms:.0f} ms"
    elif not has_media(call, streams, until_ns):
        lost = "no media any more"
    stream = streams.get(call.media)
    return CallVerdict(
        call_id,
        call.service_ip,
        _gap_ms(stream, until_ns),
        len(reinvites),
        (reinvites[0].at_ns - fault_ns) / 1e6 if reinvites else None,
        lost,
        stream.lost if stream is not None else 0,
        stream.restarts if stream is not None else 0,
    )


def _gap_ms(stream: Stream | None, until_ns: int) -> float:
    if stream is None:
        return 0.0
    return max(stream.gap_ns, until_ns - stream.last_ns) / 1e6


def gaps(verdicts: Iterable[CallVerdict]) -> dict[str, float | None]:
    """`media_gap_ms` of the contract; None where there are no calls."""
    found = sorted(verdict.gap_ms for verdict in verdicts)
    if not found:
        return {"p50": None, "max": None}
    return {"p50": round(statistics.median(found), 1), "max": round(found[-1], 1)}
