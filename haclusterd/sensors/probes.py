"""From a `[[sensor]]` to what reads it: one function for each kind that needs no FreeSWITCH.

`gateway` and `event` are in `haclusterd.sensors.switch`.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from haclusterd.config.sensors import split
from haclusterd.config.watching import Sensor
from haclusterd.sensors import look
from haclusterd.sensors.network import NobodyListens, ProbeFailed, carrier, options, ping
from haclusterd.sensors.program import Program, Ran
from haclusterd.sensors.reading import (
    CRITICAL,
    IDLE,
    OK,
    UNKNOWN,
    WARN,
    Reading,
    by_thresholds,
)

Probe = Callable[[], Awaitable[Reading]]
Addresses = Callable[[], Sequence[tuple[str, str]]]
"""(service, address) of what is to be asked now."""

ASKED_MAX = 64  # addresses of one `options` sensor
_REFUSING = 500  # a SIP status from here on: it answers, but serves nobody
_BUSY = 503  # of a FreeSWITCH that has all the calls it may have, too: no fault of the node


def probe_of(sensor: Sensor, node: str, own: Addresses, others: Addresses) -> Probe:
    """What reads this sensor once. `own`, `others`: the service addresses to ask."""
    timeout_s = sensor.timeout_ms / 1000
    if sensor.kind in ("disk", "mount"):
        return _looking(sensor, node, timeout_s)
    if sensor.kind == "exec":
        return _running(sensor, node, timeout_s)
    if sensor.kind == "load":
        return lambda: _load(sensor)
    if sensor.kind == "nic":
        return lambda: _nic(sensor)
    if sensor.kind == "ping":
        return lambda: _ping(sensor, timeout_s)
    if sensor.kind == "options":
        asked = {"self": own, "peers": others}.get(sensor.target)
        return lambda: _options(sensor, timeout_s, asked)
    raise ValueError(f"{sensor.kind} is not read here")


def _looking(sensor: Sensor, node: str, timeout_s: float) -> Probe:
    words = [sys.executable, "-I", "-S", str(Path(look.__file__)), sensor.kind, sensor.path]
    if sensor.kind == "disk":
        words += [str(sensor.warn), str(sensor.critical)]
    elif sensor.write:
        words.append(f".haclusterd-{node}")
    program = Program(words, {})

    async def look_at() -> Reading:
        ran = await program.run(timeout_s)
        if ran.status is None:
            return Reading(CRITICAL, f"{sensor.path} hangs: {ran.said}")
        return _by_status(ran)

    return look_at


def _running(sensor: Sensor, node: str, timeout_s: float) -> Probe:
    environment = {"HACLUSTERD_NODE": node, "HACLUSTERD_SENSOR": sensor.name}
    program = Program(sensor.exec, environment)

    async def run() -> Reading:
        return _by_status(await program.run(timeout_s))

    return run


def _by_status(ran: Ran) -> Reading:
    """0, 1, 2 as every monitoring plugin means them; 3 is one's own doubt; the rest is broken."""
    if ran.status is None:
        return Reading(CRITICAL, ran.said)
    said = ran.said or f"exit status {ran.status}"
    level = {0: OK, 1: WARN, 2: CRITICAL, 3: UNKNOWN}.get(ran.status)
    if level is None:
        return Reading(CRITICAL, f"exit status {ran.status}: {ran.said or 'it said nothing'}")
    return Reading(level, said)


async def _load(sensor: Sensor) -> Reading:
    cpus = os.cpu_count() or 1
    try:
        load = os.getloadavg()[0]
    except OSError as error:
        return Reading(UNKNOWN, f"the load is not known: {error}")
    percent = round(100 * load / cpus)
    text = f"load {load:.1f} on {cpus} CPUs ({percent} %)"
    return by_thresholds(percent, sensor.warn, sensor.critical, text)


async def _nic(sensor: Sensor) -> Reading:
    reason = carrier(sensor.nic)
    return Reading(CRITICAL, reason) if reason else Reading(OK, f"{sensor.nic} has carrier")


async def _ping(sensor: Sensor, timeout_s: float) -> Reading:
    try:
        took_ms = await ping(sensor.host, timeout_s)
    except ProbeFailed as failed:
        return Reading(CRITICAL, f"{sensor.host}: {failed}")
    text = f"{sensor.host} answered after {took_ms:.0f} ms"
    return by_thresholds(took_ms, sensor.warn, sensor.critical, text)


async def _options(sensor: Sensor, timeout_s: float, asked: Addresses | None) -> Reading:
    """The worst of all that are asked, side by side."""
    if asked is None:
        host, port = split(sensor.target)
        wanted = [("", host, port)]
    else:
        wanted = [(service, host, sensor.port) for service, host in asked()][:ASKED_MAX]
    if not wanted:
        return Reading(IDLE, "there is no service to ask for")
    readings = await asyncio.gather(
        *(_option(sensor, name, host, port, timeout_s) for name, host, port in wanted)
    )
    # A service may have addresses on which no profile listens; those of it that answer will do.
    answering = {
        name for (name, _, _), found in zip(wanted, readings, strict=True) if found is not None
    }
    heard = [found for found in readings if found is not None]
    deaf = [
        Reading(CRITICAL, f"{_whom(*address)}: OPTIONS: nobody listens there")
        for address in wanted
        if address[0] not in answering
    ]
    order = (CRITICAL, WARN, OK)
    return min(heard + deaf, key=lambda reading: order.index(reading.level))


def _whom(name: str, host: str, port: int) -> str:
    return f"{name} ({host})" if name else f"{host}:{port}"


async def _option(
    sensor: Sensor, name: str, host: str, port: int, timeout_s: float
) -> Reading | None:
    """None where nobody listens at all."""
    whom = _whom(name, host, port)
    try:
        status, took_ms = await options(host, port, timeout_s)
    except NobodyListens:
        return None
    except ProbeFailed as failed:
        return Reading(CRITICAL, f"{whom}: OPTIONS: {failed}")
    if status == _BUSY:
        return Reading(WARN, f"{whom}: OPTIONS: 503, no new calls (full, paused or in standby)")
    if status >= _REFUSING:
        return Reading(CRITICAL, f"{whom}: OPTIONS: answered {status}")
    text = f"{whom}: OPTIONS: {status} after {took_ms:.0f} ms"
    return by_thresholds(took_ms, sensor.warn, sensor.critical, text)
