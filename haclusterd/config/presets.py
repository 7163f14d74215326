"""Protocol times: the presets of DESIGN section 6, and the rules between the times.

The file speaks milliseconds, the core microseconds. How the two values that the table of the
design leaves open are chosen:

* `fence_ms` is the kernel lease. A regular beat may renew it only while
  `now + fence_ms <= s0 + lease_ms`, and s0 is at that moment one beat old, so
  `fence_ms <= lease_ms - heartbeat_ms` less the round trip; and it has to outlive the next beat,
  so `fence_ms > heartbeat_ms`. `lan` 60 is measured (DESIGN 3); `fast` 10 of at most 11 leaves
  1 ms for the round trip; `wan` 700 of at most 1000 leaves 300 ms for it.
* `arm_ms` bounds how stale a decision to renew may be. Timeouts are rounded to jiffies (4 ms at
  250 Hz), so `fast` takes one jiffy; `wan` can afford 40, because a renewal that misses the arm
  costs it a whole beat of 200 ms.

`rank_delay_ms` keeps the secondary slave from claiming in the same instant as the primary one
after a RELEASE: one round trip and a little scheduling.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType

from haclusterd.core.model import Timing

# Every key that [timing] may hold, in ms.
KEYS = ("heartbeat", "lease", "stop", "dead", "arm", "fence", "rank_delay", "discovery")

PRESETS: Mapping[str, Mapping[str, int]] = MappingProxyType(
    {
        "lan": {
            "heartbeat_ms": 25,
            "lease_ms": 100,
            "stop_ms": 40,
            "dead_ms": 150,
            "arm_ms": 10,
            "fence_ms": 60,
            "rank_delay_ms": 15,
            "discovery_ms": 5000,
        },
        "fast": {
            "heartbeat_ms": 5,
            "lease_ms": 16,
            "stop_ms": 7,
            "dead_ms": 24,
            "arm_ms": 4,
            "fence_ms": 10,
            "rank_delay_ms": 5,
            "discovery_ms": 5000,
        },
        "wan": {
            "heartbeat_ms": 200,
            "lease_ms": 1200,
            "stop_ms": 200,
            "dead_ms": 1500,
            "arm_ms": 40,
            "fence_ms": 700,
            "rank_delay_ms": 100,
            "discovery_ms": 10_000,
        },
    }
)

# A minute is far more than any link needs; a cold start may wait for ten.
MS_MAX = {**{f"{stem}_ms": 60_000 for stem in KEYS}, "discovery_ms": 600_000}


def to_timing(times: Mapping[str, int]) -> Timing:
    """Milliseconds as in the file to the core's microseconds."""
    return Timing(
        heartbeat_us=times["heartbeat_ms"] * 1000,
        lease_us=times["lease_ms"] * 1000,
        stop_us=times["stop_ms"] * 1000,
        dead_us=times["dead_ms"] * 1000,
        arm_us=times["arm_ms"] * 1000,
        fence_us=times["fence_ms"] * 1000,
        rank_delay_us=times["rank_delay_ms"] * 1000,
        discovery_us=times["discovery_ms"] * 1000,
        # 4, 15 and 40 ms for `lan` (DESIGN 6, Claim); elsewhere the same parts of the lease.
        resend_us=tuple(times["lease_ms"] * part * 10 for part in (4, 15, 40)),
    )


def broken_rules(t: Mapping[str, int]) -> Iterator[tuple[str, str, str]]:
    """(key, what is wrong with the numbers, fix) for each rule that these times break."""
    heartbeat, lease, dead = t["heartbeat_ms"], t["lease_ms"], t["dead_ms"]
    stop, arm, fence = t["stop_ms"], t["arm_ms"], t["fence_ms"]
    gone = lease + max(stop, arm)
    if gone * 100 > dead * 99:
        # In integers: 0.99 covers clocks whose rates differ by up to 1 %.
        yield (
            "dead_ms",
            f"lease_ms + max(stop_ms, arm_ms) = {lease} + max({stop}, {arm}) = {gone} is more "
            f"than 0.99 * dead_ms = {dead * 99 / 100:g}: an owner could still be sending when "
            "another takes over",
            f"raise dead_ms to at least {-(-gone * 100 // 99)}, or lower lease_ms or stop_ms",
        )
    if fence >= lease:
        yield (
            "fence_ms",
            f"{fence} is not below lease_ms = {lease}: the kernel would keep the addresses open "
            "longer than the lease",
            f"set fence_ms to at most {max(1, lease - heartbeat)} (lease_ms - heartbeat_ms)",
        )
    elif fence + heartbeat > lease:
        yield (
            "fence_ms",
            f"fence_ms + heartbeat_ms = {fence} + {heartbeat} is more than lease_ms = {lease}: "
            "no regular beat could ever renew the fence",
            f"lower fence_ms to at most {max(1, lease - heartbeat)}, or raise lease_ms",
        )
    if fence <= heartbeat:
        yield (
            "fence_ms",
            f"{fence} is not above heartbeat_ms = {heartbeat}: the fence would close between "
            "two beats",
            f"raise fence_ms above {heartbeat}, or lower heartbeat_ms",
        )
    if heartbeat >= lease:
        yield (
            "heartbeat_ms",
            f"{heartbeat} is not below lease_ms = {lease}: the lease would run out between beats",
            f"set heartbeat_ms to {max(1, lease // 4)} (a quarter of lease_ms)",
        )
    if t["discovery_ms"] < dead:
        yield (
            "discovery_ms",
            f"{t['discovery_ms']} is less than dead_ms = {dead}: a cold start would not wait for "
            "nodes that live",
            f"set discovery_ms to at least {dead}",
        )
