"""`[[sensor]]` and `[health]`: what a node watches of itself, and what follows from it."""

from __future__ import annotations

import dataclasses
import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from haclusterd.config.reading import NAME, NAME_RULE, Problems, Section
from haclusterd.config.watching import HealthSection, Sensor

Document = dict[str, Any]

SENSORS_MAX = 64
WORDS_MAX = 64
CONDITIONS_MAX = 8
NO_THRESHOLD = 0
_NIC = re.compile(r"(?!\.{1,2}$)[A-Za-z0-9._@+-]{1,15}")
_EVENT = re.compile(
    r"(?!(?:ALL|CUSTOM)$)[A-Z][A-Z0-9_]{0,62}|CUSTOM [A-Za-z0-9_.-]{1,60}::[A-Za-z0-9_:.-]{1,60}"
)
_HEADER = re.compile(r"[A-Za-z0-9_-]{1,64}")
_VALUE_CHARS_MAX = 256


@dataclass(frozen=True, slots=True)
class Kind:
    """What a kind of sensor needs and may have. `measures` names the unit of its thresholds."""

    needs: tuple[str, ...] = ()
    may: tuple[str, ...] = ()
    measures: str = ""
    warn: int = NO_THRESHOLD
    critical: int = NO_THRESHOLD
    most: int = 0


KINDS = {
    "disk": Kind(("path",), measures="percent used", warn=85, critical=95, most=100),
    "mount": Kind(("path",), ("write",)),
    "load": Kind(measures="percent of the CPUs", warn=200, critical=400, most=100_000),
    "nic": Kind(("nic",)),
    "ping": Kind(("host",), measures="ms", most=60_000),
    "gateway": Kind(("gateway",)),
    "options": Kind(("target",), ("port",), measures="ms", most=60_000),
    "event": Kind(("event", "raise_if"), ("clear_if", "clear_after_s")),
    "exec": Kind(("exec",)),
}
_OWN = ("path", "write", "nic", "host", "gateway", "target", "port", "event", "raise_if",
        "clear_if", "clear_after_s", "exec", "warn", "critical")  # fmt: skip


def read_health(section: Section) -> tuple[HealthSection, Document]:
    """The second part is what differs from the defaults."""
    found = HealthSection(
        hand_over=section.flag("hand_over", False),
        better_by=section.integer("better_by", 30, 10, 100),
        after_s=section.integer("after_s", 30, 1, 3600),
        every_s=section.integer("every_s", 600, 60, 86_400),
    )
    section.finish()
    usual = HealthSection()
    keys = ("hand_over", "better_by", "after_s", "every_s")
    changed = {k: getattr(found, k) for k in keys if getattr(found, k) != getattr(usual, k)}
    return found, changed


def read_sensor(section: Section) -> tuple[Sensor, Document]:
    name = section.named("name")
    kind = section.choice("kind", list(KINDS), None)
    meant = KINDS.get(kind, Kind())
    interval_ms = section.integer("interval_ms", 5000, 500, 3_600_000)
    found = Sensor(
        name=name,
        kind=kind,
        interval_ms=interval_ms,
        timeout_ms=section.integer("timeout_ms", min(2000, interval_ms), 50, 120_000),
        fails=section.integer("fails", 3, 1, 100),
        passes=section.integer("passes", 3, 1, 100),
        weight=section.integer("weight", 60, 0, 100),
        required=section.flag("required", False),
        nodes=tuple(section.texts("nodes", [], "ids of nodes")),
        path=section.text("path", "", "an absolute path"),
        write=section.flag("write", False),
        nic=section.text("nic", "", "the name of a NIC"),
        host=section.text("host", "", "an IP address"),
        gateway=section.text("gateway", "", "its name in FreeSWITCH"),
        target=section.text("target", "", '"self", "peers" or ADDRESS:PORT'),
        port=section.integer("port", 5060, 1, 65535),
        event=section.text("event", "", 'a name, or "CUSTOM subclass"'),
        raise_if=_conditions(section, "raise_if"),
        clear_if=_conditions(section, "clear_if"),
        clear_after_s=section.integer("clear_after_s", 0, 0, 86_400),
        exec=tuple(section.texts("exec", [], "a command and its words")),
        warn=section.integer("warn", meant.warn, NO_THRESHOLD, meant.most or 100_000),
        critical=section.integer("critical", meant.critical, NO_THRESHOLD, meant.most or 100_000),
    )
    section.finish()
    if kind:
        _judge_keys(section, found, meant)
        _judge_times(section, found)
        _judge_values(section, found)
    if found.target == "peers":
        found = dataclasses.replace(found, weight=0)
    return found, _document(found, meant)


def _document(found: Sensor, meant: Kind) -> Document:
    keys = ["name", "kind", "interval_ms", "timeout_ms", "fails", "passes", "weight", "required",
            "nodes", *meant.needs, *meant.may]  # fmt: skip
    if meant.measures:
        keys += ["warn", "critical"]
    document = {key: getattr(found, key) for key in keys}
    return {k: _plain(v) for k, v in document.items()}


def _plain(value: Any) -> Any:
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def _conditions(section: Section, key: str) -> tuple[tuple[str, str], ...]:
    found = []
    for text in section.texts(key, [], '"Header=value"'):
        header, equals, value = text.partition("=")
        if not equals or not _HEADER.fullmatch(header) or len(value) > _VALUE_CHARS_MAX:
            fix = f'write it like "State=DOWN", with at most {_VALUE_CHARS_MAX} characters'
            section.note(key, f'"{text[:80]}" is not Header=value', fix)
            continue
        found.append((header, value))
    if len(found) > CONDITIONS_MAX:
        section.note(key, f"{len(found)} are too many", f"use at most {CONDITIONS_MAX}")
    return tuple(found)


def _judge_keys(section: Section, sensor: Sensor, meant: Kind) -> None:
    """Each kind has its own keys; another one's would silently do nothing."""
    for key in meant.needs:
        if not getattr(sensor, key):
            section.note(key, "is missing", f'kind = "{sensor.kind}" needs it')
    known = {*meant.needs, *meant.may, *(("warn", "critical") if meant.measures else ())}
    for key in _OWN:
        if section.has(key) and key not in known:
            of = " and ".join(f'"{k}"' for k, v in KINDS.items() if key in (*v.needs, *v.may)) or (
                " and ".join(f'"{k}"' for k, v in KINDS.items() if v.measures)
            )
            message = f'has no meaning with kind = "{sensor.kind}"'
            section.note(key, message, f"remove it; it belongs to {of}")
    both = sensor.warn and sensor.critical
    if meant.measures and both and sensor.warn >= sensor.critical:
        fix = f"raise critical ({meant.measures}) above it, or set one of them to 0 for never"
        section.note("warn", f"{sensor.warn} is not below critical = {sensor.critical}", fix)


def _judge_times(section: Section, sensor: Sensor) -> None:
    if sensor.timeout_ms > sensor.interval_ms:
        message = f"{sensor.timeout_ms} is longer than interval_ms = {sensor.interval_ms}"
        section.note("timeout_ms", message, "a probe ends before the next one: lower it")
    for key in ("interval_ms", "timeout_ms", "fails", "passes"):
        if sensor.kind == "event" and section.has(key):
            section.note(key, "an event counts at once and is not asked for", "remove it")
    if sensor.required and not sensor.weight:
        fix = "give it a weight, or leave required out"
        section.note("required", "a sensor with weight = 0 only raises an alarm", fix)


def _judge_values(section: Section, sensor: Sensor) -> None:
    if sensor.path and not Path(sensor.path).is_absolute():
        section.note("path", f'"{sensor.path}" is relative', "write it from the root: /var/...")
    if sensor.nic and not _NIC.fullmatch(sensor.nic):
        fix = "write it as `ip link` shows it"
        section.note("nic", f'"{sensor.nic}" cannot be the name of a NIC', fix)
    if sensor.host and not is_address(sensor.host):
        fix = "write its IP address: a probe waits for no DNS server"
        section.note("host", f'"{sensor.host}" is not an IP address', fix)
    if sensor.gateway and not NAME.fullmatch(sensor.gateway):
        section.note("gateway", f'"{sensor.gateway}" cannot be its name', NAME_RULE)
    if sensor.target and sensor.target not in ("self", "peers") and not split(sensor.target)[1]:
        fix = 'use "self", "peers", or write it like "192.0.2.7:5060"'
        section.note("target", f'"{sensor.target}" is not known', fix)
    if sensor.target == "peers" and sensor.weight and section.has("weight"):
        message = "what is wrong with another node must not make this one ill"
        section.note("weight", message, 'leave it out: with target = "peers" it is 0')
    if sensor.event and not _EVENT.fullmatch(sensor.event):
        fix = 'write it like "HEARTBEAT" or "CUSTOM sofia::gateway_state"'
        section.note("event", f'"{sensor.event}" is not the name of an event', fix)
    if sensor.kind == "event" and not sensor.clear_if and not sensor.clear_after_s:
        fix = "say what ends it: clear_if, or clear_after_s"
        section.note("clear_if", "without it the condition would stand for ever", fix)
    if len(sensor.exec) > WORDS_MAX:
        section.note("exec", f"{len(sensor.exec)} words are too many", f"at most {WORDS_MAX}")


def is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def split(target: str) -> tuple[str, int]:
    """ "192.0.2.7:5060" or "[2001:db8::7]:5060"; port 0 where it is neither."""
    host, _, digits = target.rpartition(":")
    bare = host.removeprefix("[").removesuffix("]")
    good = digits.isascii() and digits.isdigit() and len(digits) <= 5 and is_address(bare)
    bracketed = host.startswith("[") == (":" in bare)
    return (bare, int(digits)) if good and bracketed and 0 < int(digits) < 65536 else ("", 0)


def check(
    sensors: Sequence[Sensor],
    health: HealthSection,
    nodes: Sequence[str],
    freeswitch: bool,
    problems: Problems,
) -> None:
    """What must hold among several of them. `freeswitch`: there is ESL."""
    if len(sensors) > SENSORS_MAX:
        problems.note("sensor", f"{len(sensors)} are too many", f"use at most {SENSORS_MAX}")
    seen: set[str] = set()
    for sensor in sensors:
        key = f"sensor[{sensor.name}]"
        if sensor.name in seen:
            problems.note(f"{key}.name", "the name is used twice", "rename one sensor")
        seen.add(sensor.name)
        for node in sensor.nodes:
            if node not in nodes:
                fix = f"use some of {', '.join(nodes)}, or leave it out for all"
                problems.note(f"{key}.nodes", f'"{node}" is no node', fix)
        if sensor.kind in ("gateway", "event") and not freeswitch:
            fix = "give [freeswitch] an esl_port, or remove the sensor"
            problems.note(f"{key}.kind", f'"{sensor.kind}" needs ESL', fix)
    slowest = max((s for s in sensors if s.weight), key=lambda s: s.notices_ms, default=None)
    if health.hand_over and slowest is not None and health.after_s * 1000 < slowest.notices_ms:
        least = -(-slowest.notices_ms // 1000)
        problems.note(
            "health.after_s",
            f"{health.after_s} s is less than sensor {slowest.name} may need to notice a fault "
            f"({slowest.notices_ms} ms): of a fault of all nodes the first would run from itself",
            f"set after_s = {least} or more, or lower its interval_ms or fails",
        )
    if health.hand_over and not any(s.weight for s in sensors):
        fix = "add a [[sensor]], or remove hand_over"
        problems.note("health.hand_over", "there is no sensor that counts", fix)
