"""The FreeSWITCH process itself: identity, channels, tracking in core.db, hang-ups, shutdown."""

from __future__ import annotations

import asyncio
import socket
import sys
import time
import uuid
from collections.abc import Callable
from typing import Final

from haclusterd.lab.emulator.call_events import Q850, CallEvents
from haclusterd.lab.emulator.channel import Channel, Pairs
from haclusterd.lab.emulator.config import CODECS, MODULES, EmulatorConfig
from haclusterd.lab.emulator.coredb import CoreDb
from haclusterd.lab.emulator.events import VERSION, EventBus, Source
from haclusterd.lab.emulator.media import MediaEngine, PortPool
from haclusterd.lab.emulator.metadata import write
from haclusterd.lab.emulator.profile import SofiaProfile

_HEARTBEAT: Final = Source("switch_core.c", "send_heartbeat", 95)
_SCHEDULED: Final = Source("switch_scheduler.c", "switch_scheduler_execute", 73)
_SHUTDOWN: Final = Source("switch_core.c", "switch_core_destroy", 3080)


class Switch:
    def __init__(self, config: EmulatorConfig) -> None:
        self.config = config
        self.core_uuid = str(uuid.uuid4())
        self.bus = EventBus(self.core_uuid, socket.gethostname(), config.switchname)
        self.events = CallEvents(self.bus)
        self.db = CoreDb(
            config.path(config.core_db),
            self.core_uuid,
            config.switchname,
            config.sql_flush_ms / 1000,
        )
        self.media = MediaEngine(config.media_pps)
        self.ports = PortPool(
            config.rtp_port_min,
            config.rtp_port_max,
            config.rtp_port_usage_robustness,
            config.freebind,
        )
        self.profiles = {p.name: SofiaProfile(p, self) for p in config.profiles}
        self.channels: dict[str, Channel] = {}
        self.dialogs: dict[tuple[str, str], Channel] = {}
        self.variables = {
            "hostname": socket.gethostname(),
            "local_ip_v4": "127.0.0.1",
            "core_uuid": self.core_uuid,
        }
        self.shown: list[Channel] = []  # what `show channels` knows: behind by the SQL queue
        self.limits: dict[str, set[str]] = {}  # by realm_resource: uuids that count against it
        self.loaded = {name: kind for name, kind in MODULES.items() if name not in config.lacks}
        self.codecs = [name for name in CODECS if name not in config.lacks]
        self.paused = {"inbound": False, "outbound": False}
        self.sessions = 0
        self.peak = 0
        self.stopping = asyncio.Event()
        self._started = time.monotonic()
        self._heartbeat: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """
        :raises OSError, sqlite3.Error: core.db cannot be used.
        """
        self.db.start()
        for profile in self.profiles.values():
            if profile.config.auto_start:
                profile.start()
        self._beat()
        self._refresh_shown()

    def uptime_us(self) -> int:
        return int((time.monotonic() - self._started) * 1_000_000)

    def uptime_text(self) -> str:
        rest, microseconds = divmod(self.uptime_us(), 1000)
        parts = []
        for size, name in ((1000, "milliseconds"), (60, "seconds"), (60, "minutes")):
            rest, value = divmod(rest, size)
            parts.append(f"{value} {name}")
        days, hours = divmod(rest, 24)
        years, days = divmod(days, 365)
        parts += [f"{hours} hours", f"{days} days", f"{years} years"]
        return ", ".join(reversed(parts)) + f", {microseconds} microseconds"

    def _beat(self) -> None:
        self.bus.fire("HEARTBEAT", _HEARTBEAT, self._heartbeat_headers)
        interval = self.config.heartbeat_s
        task = [
            ("Task-ID", "1"),
            ("Task-Desc", "heartbeat"),
            ("Task-Group", "core"),
            ("Task-Runtime", str(int(time.time() + interval))),
        ]
        self.bus.fire("RE_SCHEDULE", _SCHEDULED, lambda: task)
        self._heartbeat = asyncio.get_running_loop().call_later(interval, self._beat)

    def _refresh_shown(self) -> None:
        self.shown = list(self.channels.values())
        asyncio.get_running_loop().call_later(self.config.sql_flush_ms / 1000, self._refresh_shown)

    def _heartbeat_headers(self) -> Pairs:
        return [
            ("Event-Info", "System Ready"),
            ("Up-Time", self.uptime_text()),
            ("FreeSWITCH-Version", VERSION),
            ("Uptime-msec", str(self.uptime_us() // 1000)),
            ("Session-Count", str(len(self.channels))),
            ("Max-Sessions", str(self.config.max_sessions)),
            ("Session-Per-Sec", "500"),
            ("Session-Per-Sec-Last", "0"),
            ("Session-Per-Sec-Max", "1"),
            ("Session-Per-Sec-FiveMin", "1"),
            ("Session-Since-Startup", str(self.sessions)),
            ("Session-Peak-Max", str(self.peak)),
            ("Session-Peak-FiveMin", str(self.peak)),
            ("Idle-CPU", "99.000000"),
        ]

    def register(self, channel: Channel) -> None:
        self.channels[channel.uuid] = channel
        self.dialogs[channel.dialog.key] = channel
        self.peak = max(self.peak, len(self.channels))

    def next_session_id(self) -> int:
        self.sessions += 1
        return self.sessions

    def track(self, channel: Channel) -> None:
        """Write the call to table recovery (FREESWITCH.md 1.2); the row shows up later."""
        profile = self.profiles[channel.profile_name]
        if not (channel.answered and profile.config.track_calls) or channel.recovering:
            return
        if channel.hangup_cause:
            return
        text = write(channel, self.core_uuid, self.config.switchname)
        if channel.tracked:
            self.db.update(channel.uuid, text)
        else:
            channel.tracked = True
            self.db.insert(channel.profile_name, channel.uuid, text)

    def untrack(self, channel: Channel) -> None:
        profile = self.profiles[channel.profile_name]
        if channel.answered and profile.config.track_calls and not channel.recovering:
            channel.tracked = False
            self.db.delete(channel.uuid)

    def hangup(self, channel: Channel, cause: str, disposition: str = "send_bye") -> None:
        """End a call: CHANNEL_HANGUP at once, BYE and the rest in the next turn of the loop."""
        if channel.hangup_cause:
            return
        self.events.hangup(channel, cause)
        asyncio.get_running_loop().call_soon(self._end, channel, disposition)

    def _end(self, channel: Channel, disposition: str) -> None:
        if channel.uuid not in self.channels:
            return
        if disposition != "send_bye":
            channel.set("sip_hangup_disposition", disposition)
        profile = self.profiles[channel.profile_name]
        if disposition == "send_bye":
            profile.send_bye(channel)
        self.untrack(channel)
        self.events.end(channel, disposition)
        profile.forget(channel)
        if channel.stream is not None:
            self.ports.give_back(channel.stream.local)
            self.media.remove(channel.stream)
        del self.channels[channel.uuid]
        for users in self.limits.values():
            users.discard(channel.uuid)
        if self.dialogs.get(channel.dialog.key) is channel:
            del self.dialogs[channel.dialog.key]

    def hupall(self, cause: str, wanted: Callable[[Channel], bool] = lambda _: True) -> int:
        ended = [c for c in self.channels.values() if wanted(c)]
        for channel in ended:
            self.hangup(channel, cause)
        return len(ended)

    async def shutdown(self) -> None:
        """The graceful end: every call gets its BYE and is untracked (FREESWITCH.md 7, 12)."""
        self.paused = {"inbound": True, "outbound": True}
        if self._heartbeat is not None:
            self._heartbeat.cancel()
        self.hupall("SYSTEM_SHUTDOWN")
        await asyncio.sleep(0.009)
        self.bus.fire("SHUTDOWN", _SHUTDOWN, lambda: [("Event-Info", "System Shutting Down")])
        await asyncio.sleep(self.config.shutdown_ms / 1000)
        for profile in self.profiles.values():
            profile.stop()
        self.media.stop()
        await asyncio.to_thread(self.db.stop)

    def log(self, text: str) -> None:
        """What FreeSWITCH would log at WARNING and above."""
        sys.stderr.write(text + "\n")
        sys.stderr.flush()


def known_cause(text: str) -> str:
    """A hang-up cause by name; NORMAL_CLEARING where FreeSWITCH does not know the word."""
    return text.upper() if text.upper() in Q850 else "NORMAL_CLEARING"
