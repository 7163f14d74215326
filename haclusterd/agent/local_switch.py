"""The adapter behind the port of `switch`: the local FreeSWITCH over its event socket.

What FreeSWITCH's answers mean is `haclusterd.freeswitch`'s knowledge; only the few commands that
put a profile into and out of service are spoken here.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from haclusterd.agent.pid import pid_of
from haclusterd.agent.switch import SwitchError, SwitchEvents
from haclusterd.config import FreeSwitch, RecoverySection
from haclusterd.core.records import CallRecord, CallVerdict
from haclusterd.freeswitch import console
from haclusterd.freeswitch.aftercare import tell_verdicts
from haclusterd.freeswitch.calls import CallSource, Change
from haclusterd.freeswitch.capabilities import Capabilities
from haclusterd.freeswitch.capability_watch import CapabilityWatch
from haclusterd.freeswitch.changelog import CoreDbError
from haclusterd.freeswitch.cpu_wait import CpuWait
from haclusterd.freeswitch.esl import Esl, EslConnection, EslSettings, EventItem, EventsLost
from haclusterd.freeswitch.esl_errors import EslError
from haclusterd.freeswitch.esl_source import EslCallSource
from haclusterd.freeswitch.health import Health, HealthProbe
from haclusterd.freeswitch.mends import Mends
from haclusterd.freeswitch.options import RecoveryOptions
from haclusterd.freeswitch.profiles import (
    ProfileError,
    ProfileKeeper,
    ProfileState,
    end_calls,
    lift_standby,
    stand_by,
)
from haclusterd.freeswitch.proving import Progress
from haclusterd.freeswitch.recovery import Recovery, RecoveryInterrupted
from haclusterd.freeswitch.rest import Rest
from haclusterd.freeswitch.risks import Ringing, ringing
from haclusterd.lasting import lasting

log = logging.getLogger(__name__)

PASSWORD_BYTES_MAX = 4096


def read_password(section: FreeSwitch) -> str:
    """The ESL password. Raises SwitchError."""
    path = section.esl_password_file
    try:
        with path.open("rb") as file:
            text = file.read(PASSWORD_BYTES_MAX).decode()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "is not text"
        raise SwitchError(
            f"{path}: {reason}: write the password of event_socket.conf.xml into it, mode 0600, "
            "or correct esl_password_file in [freeswitch]"
        ) from None
    lines = text.splitlines()
    if not lines or not lines[0].strip():
        raise SwitchError(f"{path}: is empty: write the password of event_socket.conf.xml into it")
    return lines[0].strip()


def esl_settings(section: FreeSwitch) -> EslSettings:
    """How to log in. Raises SwitchError."""
    password = read_password(section)
    return EslSettings(section.esl_host, section.esl_port, password, backend=section.esl_backend)


def recovery_options(section: RecoverySection) -> RecoveryOptions:
    """Section [recovery] as `freeswitch.recovery` wants it."""
    endless_ms = 3_600_000  # FreeSWITCH itself gives up after 32 s
    return RecoveryOptions(
        source=section.source,
        streams=section.streams,
        deadline_ms=section.deadline_ms,
        orphan_timeout_ms=section.orphan_timeout_ms if section.orphans == "recycle" else endless_ms,
        urgent_variable=section.urgent_variable,
        end_halves=section.half_calls == "recycle",
        mends=Mends(
            cseq=section.mend_cseq,
            profile=section.mend_profile,
            position=section.mend_position,
            limits=section.limits == "recover",
            announcements=section.skip_announcements,
            addresses=section.mend_addresses,
            transport=section.mend_transport,
            session_timeout_s=section.session_timeout_s,
        ),
    )


def _core_db_said(problem: str) -> None:
    if problem:
        log.warning("core.db: %s", problem)
    else:
        log.info("core.db can be used again")


class LocalSwitch:
    """The real one. `services` maps each SIP profile to its service; `nodes` are for fs_cli."""

    def __init__(
        self,
        section: FreeSwitch,
        services: dict[str, str],
        events: SwitchEvents,
        api_socket: Path,
        nodes: Sequence[str] = (),
        options: RecoveryOptions | None = None,
    ) -> None:
        self._settings = esl_settings(section)
        self._events = events
        self._api_socket = api_socket
        self._names = sorted(set(services.values())), list(nodes)
        self._profiles = ProfileKeeper()
        self._console: asyncio.Task[None] | None = None
        self._connections: list[EslConnection] = []
        try:
            self._control = self.connection(
                name="control",
                events=("SHUTDOWN", "sofia::profile_start"),
                on_event=self._on_event,
                on_up=self._connected,
                on_down=events.disconnected,
            )
        except EslError as error:
            raise SwitchError(str(error)) from error  # the library of esl_backend is not there
        cpu_wait = CpuWait(lambda: pid_of(section.pid_file))
        self._probe = HealthProbe(self.connection, events.health, cpu_wait=cpu_wait)
        chosen = replace(options or RecoveryOptions(), profiles=tuple(services))
        self._recovery = Recovery(
            self.connection,
            section.core_db,
            options=chosen,
            settled=self._settled,
            ended=lambda service, uuid, version: self._source.ended(service, uuid, version),
        )
        self._source = self._make_source(section, services, chosen)
        self._watch = (
            CapabilityWatch(self.connection, sorted(services), events.compared)
            if section.compare
            else None
        )

    def _make_source(
        self, section: FreeSwitch, services: dict[str, str], chosen: RecoveryOptions
    ) -> CallSource | EslCallSource:
        events = self._events
        if chosen.source == "esl":
            return EslCallSource(
                services, events.changed, esl_factory=self.connection, on_reset=events.reset
            )
        return CallSource(
            section.core_db,
            services,
            self._changed,
            esl_factory=self.connection,
            on_reset=events.reset,
            on_problem=_core_db_said,
            positions=chosen.mends.position,
        )

    async def _changed(self, changes: list[Change]) -> None:
        self._recovery.tracked(changes)
        await self._events.changed(changes)

    def _settled(self, service: str, verdict: CallVerdict) -> None:
        self._events.settled(service, verdict)
        if isinstance(self._source, EslCallSource) and verdict.verdict != "lost":
            self._source.look_again(verdict.uuid)

    def _inherited(self, records: Sequence[CallRecord]) -> Sequence[CallRecord]:
        """About to be injected; versions made of core.db are raised with the rows themselves."""
        if isinstance(self._source, EslCallSource):
            self._source.begin_above(max((record.version for record in records), default=0))
        return records

    def connection(self, **wanted: object) -> Esl:
        """One more connection to this FreeSWITCH, not started: an `EslFactory`."""
        made = EslConnection(self._settings, **wanted)  # type: ignore[arg-type]
        self._connections.append(made)
        return made

    async def _on_event(self, item: EventItem) -> None:
        if isinstance(item, EventsLost):
            self._events.profile_started("")
        elif item.name == "SHUTDOWN":
            self._events.shut_down()
        elif item.subclass == "sofia::profile_start":
            self._events.profile_started(item.get("profile_name"))

    def _connected(self) -> None:
        self._profiles.logged_in()
        self._events.connected()
        if self._console is not None:
            self._console.cancel()
        self._console = lasting(self._install_console(), "ha_cluster alias")

    async def _install_console(self) -> None:
        beside = Path(sys.executable).with_name("haclusterctl")
        program = str(beside) if beside.exists() else shutil.which("haclusterctl")
        try:
            if program is not None:
                await console.install(self._control, program, str(self._api_socket), *self._names)
        except (console.ConsoleError, EslError) as error:
            log.info("no ha_cluster in fs_cli: %s", error)

    @property
    def health(self) -> Health:
        return self._probe.health

    @property
    def up(self) -> bool:
        return self._control.up

    @property
    def problem(self) -> str:
        return self._control.problem or self._recovery.problem or self._source.problem

    @property
    def calls(self) -> int:
        return self._source.calls

    @property
    def unprotected(self) -> str:
        return self._source.unprotected

    def counters(self) -> dict[str, int]:
        made = self._connections
        return {
            "esl_events_dropped": sum(one.events_dropped for one in made),
            "esl_logins": sum(one.logins for one in made),
            "calls_refused": self._source.refused,
        }

    @property
    def capabilities(self) -> Capabilities | None:
        return self._watch.found if self._watch is not None else None

    @property
    def core_uuid(self) -> str:
        return self._source.core_uuid

    async def start(self) -> None:
        await self._control.start()
        await self._probe.start()
        await self._recovery.start()
        await self._source.start()
        if self._watch is not None:
            await self._watch.start()

    async def stop(self) -> None:
        if self._console is not None:
            self._console.cancel()
            await asyncio.gather(self._console, return_exceptions=True)
        if self._watch is not None:
            await self._watch.stop()
        await self._source.stop()
        await self._recovery.stop()
        await self._probe.stop()
        await self._control.stop()

    @property
    def orphans(self) -> int:
        return self._recovery.aftercare.orphans

    async def ringing(self) -> list[Ringing]:
        try:
            return ringing(await self._control.api("show channels as json", 5000))
        except EslError as error:
            raise SwitchError(str(error)) from error

    async def tell(self, service: str, epoch: int, verdicts: Sequence[CallVerdict]) -> None:
        try:
            await tell_verdicts(self._control, service, epoch, verdicts)
        except EslError as error:
            raise SwitchError(str(error)) from error

    async def profiles(self, names: Sequence[str]) -> list[ProfileState]:
        try:
            return await self._profiles.look(self._control, names)
        except (EslError, ProfileError) as error:
            raise SwitchError(str(error)) from error

    async def recover(
        self,
        service: str,
        profiles: Sequence[str],
        records: Sequence[CallRecord],
        progress: Progress,
        epoch: int,
        outage_began: float | None,
        rest: Rest | None = None,
    ) -> list[CallVerdict]:
        if rest is not None:
            others = rest.others

            async def inherited() -> Sequence[CallRecord]:
                return self._inherited(await others())

            rest = replace(rest, others=inherited)
        try:
            return await self._recovery.recover(
                service, profiles, self._inherited(records), progress,
                epoch=epoch, outage_began=outage_began, rest=rest,
            )  # fmt: skip
        except (RecoveryInterrupted, CoreDbError, EslError, ValueError) as error:
            raise SwitchError(str(error)) from error

    async def end_resurrected(self, service: str, uuids: Sequence[str]) -> None:
        try:
            await self._recovery.end_resurrected(service, uuids)
        except (CoreDbError, EslError) as error:
            raise SwitchError(str(error)) from error

    async def snapshot(self) -> list[CallRecord]:
        if not self._source.core_uuid:
            raise SwitchError(self._source.problem or "FreeSWITCH has not told its core_uuid yet")
        try:
            return await self._source.snapshot()
        except (CoreDbError, EslError) as error:
            raise SwitchError(str(error)) from error

    async def clear_stale(self) -> int:
        try:
            return await self._recovery.clear_stale_rows()
        except (EslError, CoreDbError) as error:
            raise SwitchError(str(error)) from error

    async def end_calls(self, profiles: Sequence[str]) -> bool:
        try:
            return await end_calls(self._control, profiles)
        except (EslError, ProfileError) as error:
            raise SwitchError(str(error)) from error

    async def stand_by(self, profiles: Sequence[str], on: bool) -> None:
        """A FreeSWITCH that was started anew is not lifted before its recovery is known to be due:
        `control` may be logged in seconds before the connection that finds out."""
        known = self._source.core_uuid
        try:
            if on:
                await stand_by(self._control, profiles)
                return
            found = (await self._control.api("global_getvar core_uuid")).strip()
            if not known or found != known:
                raise SwitchError("FreeSWITCH was started anew: first its calls are recovered")
            await lift_standby(self._control, profiles)
        except (EslError, ProfileError) as error:
            raise SwitchError(str(error)) from error

    def set_fenced(self, service: str, fenced: bool) -> None:
        self._source.set_fenced(service, fenced)

    def forget(self, service: str) -> None:
        self._source.forget(service)
        self._recovery.forget(service)

    def expect_shutdown(self) -> None:
        self._source.expect_shutdown()
