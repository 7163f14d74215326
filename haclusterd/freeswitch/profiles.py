"""SIP profiles of the local FreeSWITCH: their state, their preparation, the end of their calls.

Commands to mod_sofia other than recovery belong here, and the facts `doctor` asks for
(FREESWITCH.md 8, 12; DESIGN 2.4).
"""

from __future__ import annotations

import asyncio
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from dataclasses import dataclass

from .esl import Esl
from .mends import MediaAddress

POLL_S = 0.02
HANGUP_PATIENCE_S = 5.0
AWAY_S = 4.0
XML_CHARACTERS_MAX = 4_000_000

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}\Z")
_ADDRESS = re.compile(r"sip:(?:[^@\s]*@)?([A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\])(?::([0-9]{1,5}))?")


class ProfileError(Exception):
    """A profile could not be brought into the wanted state; the message names the fix."""


@dataclass(frozen=True, slots=True)
class ProfileState:
    """One SIP profile; `None` where FreeSWITCH does not tell.

    `standby` is the configured start state; no command shows the present one (FREESWITCH.md 4).
    """

    name: str
    state: str  # as FreeSWITCH says it, for example "RUNNING (1)"; empty when it does not exist
    track_calls: bool | None
    standby: bool | None
    auto_restart: bool | None = False  # its own parameter, else the global one, else FreeSWITCH's

    @property
    def running(self) -> bool:
        return self.state.startswith("RUNNING")

    @property
    def problems(self) -> list[str]:
        """What stops this profile from being taken over or from being protected."""
        where = f"SIP profile {self.name!r}"
        found = []
        if not self.state:
            found.append(
                f"{where} does not run: add it to sofia.conf.xml on every node and start it"
            )
        elif not self.running:
            found.append(f"{where} is {self.state}: is net.ipv4.ip_nonlocal_bind 1?")
        if self.track_calls is False:
            found.append(f"{where}: set track-calls to true, without it no call can be recovered")
        if self.standby is False:
            found.append(f"{where}: set profile-standby to true, or a slave answers calls")
        return found


@dataclass(frozen=True, slots=True)
class FreeswitchFacts:
    """For doctor; `None` or empty where FreeSWITCH does not tell."""

    version: str
    core_uuid: str
    switchname: str
    rtp_port_usage_robustness: bool | None
    profiles: tuple[ProfileState, ...]

    @property
    def problems(self) -> list[str]:
        found = [problem for profile in self.profiles for problem in profile.problems]
        if self.rtp_port_usage_robustness is False:
            found.append(
                "switch.conf.xml: set rtp-port-usage-robustness to true, or new calls get the"
                " audio ports of recovered ones"
            )
        return found


def checked_name(profile: str) -> str:
    """A profile name that can stand in a command. Raises ProfileError."""
    if not _NAME.match(profile):
        raise ProfileError(f"not a SIP profile name: {profile[:64]!r}")
    return profile


def _parse_xml(text: str) -> ElementTree.Element | None:
    if len(text) > XML_CHARACTERS_MAX or "<!DOCTYPE" in text or "<!ENTITY" in text:
        return None
    start = text.find("<")
    if start < 0:
        return None
    body = re.sub(r"^\s*<\?xml[^>]*\?>", "", text[start:])
    try:
        # Bytes of another character set came as surrogates, which the parser refuses otherwise.
        return ElementTree.fromstring(body.encode("utf-8", "replace"))
    except ElementTree.ParseError:
        return None


def parse_profile_states(xmlstatus: str) -> dict[str, str]:
    """Name to state from `sofia xmlstatus` (captures: esl_session_transcript.txt)."""
    root = _parse_xml(xmlstatus)
    states: dict[str, str] = {}
    if root is not None:
        for profile in root.iter("profile"):
            if profile.findtext("type", "") == "profile":
                states[profile.findtext("name", "")] = profile.findtext("state", "").strip()
    return states


def parse_profile_addresses(xmlstatus: str) -> dict[str, str]:
    """Name to `sip:HOST:PORT` from `sofia xmlstatus`, of profiles whose address is one."""
    root = _parse_xml(xmlstatus)
    addresses: dict[str, str] = {}
    for profile in root.iter("profile") if root is not None else ():
        found = _ADDRESS.fullmatch(profile.findtext("data", "").strip())
        if found is not None and profile.findtext("type", "") == "profile":
            addresses[profile.findtext("name", "")] = f"sip:{found[1]}:{found[2] or 5060}"
    return addresses


_SEVERAL = ("contact", "call-id")  # besides what is true


def _true(value: str | None) -> bool:
    return (value or "").strip().lower() in ("true", "yes", "on", "1", "t", "enabled", "active")


def parse_profile_params(sofia_conf: str) -> dict[str, dict[str, str]]:
    """Parameters by profile from `xml_locate configuration configuration name sofia.conf`."""
    root = _parse_xml(sofia_conf)
    if root is None:
        return {}
    return {
        profile.get("name", ""): {
            param.get("name", ""): param.get("value", "")
            for param in profile.findall("settings/param")
        }
        for profile in root.iter("profile")
    }


def with_one_phone_for_a_user(sofia_conf: str) -> frozenset[str]:
    """Profiles in which a REGISTER replaces what its user had: `multiple-registrations` is off."""
    return frozenset(
        name
        for name, params in parse_profile_params(sofia_conf).items()
        if (several := params.get("multiple-registrations", "")).lower() not in _SEVERAL
        and not _true(several)
    )


def _global_auto_restart(sofia_conf: str) -> str:
    """`auto-restart` of all profiles that do not set it: FreeSWITCH's default is true."""
    root = _parse_xml(sofia_conf)
    for param in root.iterfind(".//global_settings/param") if root is not None else ():
        if param.get("name") == "auto-restart":
            return param.get("value", "")
    return "true"


async def profile_states(esl: Esl, profiles: Sequence[str]) -> list[ProfileState]:
    """What is known of each profile. Raises EslError."""
    states = parse_profile_states(await esl.api("sofia xmlstatus"))
    conf = await esl.api("xml_locate configuration configuration name sofia.conf", 5000)
    params = parse_profile_params(conf)
    everywhere = _global_auto_restart(conf)
    found = []
    for name in profiles:
        own = params.get(name)
        found.append(
            ProfileState(
                name,
                states.get(name, ""),
                None if own is None else _true(own.get("track-calls")),
                None if own is None else _true(own.get("profile-standby")),
                None if own is None else _true(own.get("auto-restart", everywhere)),
            )
        )
    return found


class ProfileKeeper:
    """Starts profiles that do not run; into standby, if so configured.

    One that somebody restarts is away for seconds. Started beside that it fails for want of its
    port, and the restart as well (seen on 1.11.1): so only what stays away for `AWAY_S` is started.
    A FreeSWITCH that was started anew has that time from then on; a login alone begins nothing
    anew, or an event socket that is lost again and again would put the start off for ever.
    """

    def __init__(self) -> None:
        self._away_since: dict[str, float] = {}
        self._core_uuid = ""
        self._logins = self._logins_known = 0

    def logged_in(self) -> None:
        """It may be another FreeSWITCH from now on."""
        self._logins += 1

    async def look(self, esl: Esl, profiles: Sequence[str]) -> list[ProfileState]:
        """Start what is due, then tell the state of each.

        Raises EslError, ProfileError for a name that can not be one.
        """
        logins = self._logins
        if logins != self._logins_known:
            core_uuid = await esl.api("global_getvar core_uuid")
            self._logins_known = logins
            if core_uuid != self._core_uuid:
                self._core_uuid, self._away_since = core_uuid, {}
        states = parse_profile_states(await esl.api("sofia xmlstatus"))
        away = [name for name in profiles if checked_name(name) not in states]
        now = asyncio.get_running_loop().time()
        self._away_since = {name: self._away_since.get(name, now) for name in away}
        for name, since in self._away_since.items():
            if now - since >= AWAY_S:
                await esl.api(f"sofia profile {name} start", 5000)
        return await profile_states(esl, profiles)


async def media_addresses(esl: Esl, profiles: Sequence[str]) -> dict[str, MediaAddress]:
    """Where these profiles have their RTP, as far as FreeSWITCH tells. Raises EslError."""
    found = {}
    for name in map(checked_name, profiles):
        root = _parse_xml(await esl.api(f"sofia xmlstatus profile {name}"))
        info = root.find("profile-info") if root is not None else None
        ips = [one.text or "" for one in info.findall("rtp-ip")] if info is not None else []
        if info is not None and len(ips) == 1 and ips[0]:  # which of several it is, is not known
            told = info.findtext("ext-rtp-ip", "").strip()
            found[name] = MediaAddress(ips[0], told or ips[0])
    return found


async def facts(esl: Esl, profiles: Sequence[str]) -> FreeswitchFacts:
    """What doctor wants to know of a running FreeSWITCH. Raises EslError."""
    switch_conf = _parse_xml(
        await esl.api("xml_locate configuration configuration name switch.conf", 5000)
    )
    robustness: bool | None = None
    if switch_conf is not None and switch_conf.find("settings") is not None:
        robustness = any(
            param.get("name") == "rtp-port-usage-robustness" and _true(param.get("value"))
            for param in switch_conf.iter("param")
        )
    return FreeswitchFacts(
        version=_said(await esl.api("version")),
        core_uuid=_said(await esl.api("global_getvar core_uuid")),
        switchname=_said(await esl.api("switchname")),
        rtp_port_usage_robustness=robustness,
        profiles=tuple(await profile_states(esl, profiles)),
    )


def _said(reply: str) -> str:
    return "" if reply.startswith("-ERR") else reply.strip()


async def lift_standby(esl: Esl, profiles: Sequence[str]) -> None:
    """Take calls again after `stand_by`, where nothing is to be recovered. Raises as it does.

    Only the owner of the service, whose rows are all of its own FreeSWITCH: `recover` finds none.
    One that does not run keeps none of the others in standby.
    """
    stay = []
    for name in [checked_name(profile) for profile in profiles]:
        reply = await esl.api(f"sofia profile {name} recover", 5000)
        if "Invalid" in reply or reply.startswith("-ERR"):
            stay.append(f"SIP profile {name!r} stays in standby: {reply.strip()[:200]}")
    if stay:
        raise ProfileError("; ".join(stay))


async def stand_by(esl: Esl, profiles: Sequence[str]) -> None:
    """Put profiles back into standby: new requests get 503, calls that are up go on.

    `rescan` applies the configured `profile-standby` again, in about 4 ms (measured on 1.11);
    `sofia profile P recover` lifts it. One that does not run starts as configured, and must not
    stop a switchover or a drain of the others. Raises EslError, ProfileError.
    """
    await _rescan(esl, profiles, may_be_away=True)


async def _rescan(esl: Esl, profiles: Sequence[str], *, may_be_away: bool) -> None:
    failed = []
    for name in [checked_name(profile) for profile in profiles]:
        reply = await esl.api(f"sofia profile {name} rescan", 5000)
        away = may_be_away and reply.startswith("Invalid Profile")
        if "+OK" not in reply and not away:
            failed.append(f"SIP profile {name!r} is not rescanned: {reply.strip()[:200]}")
    if failed:
        raise ProfileError("; ".join(failed))


async def end_calls(esl: Esl, profiles: Sequence[str]) -> bool:
    """Put these profiles into standby and end every call of theirs, and only of theirs.

    True if there were calls. For a node whose service has a new owner (DESIGN 2.4). The fence must
    be closed until this returns: FreeSWITCH says BYE for each call. A profile is never stopped:
    that takes 10 s to be allowed and may come back without it; one that does not run has no calls
    and starts as configured. Cheap to repeat. Raises EslError, ProfileError.
    """
    states = await _states(esl)
    running = [name for name in map(checked_name, profiles) if name in states]
    await _rescan(esl, running, may_be_away=False)
    left = await _with_calls(esl, running)
    had_calls = bool(left)
    for name in left:
        await esl.api(f"hupall MANAGER_REQUEST sofia_profile_name {name}", 10_000)
    for _ in range(int(HANGUP_PATIENCE_S / POLL_S)):
        if not left or not (left := await _with_calls(esl, left)):
            return had_calls
        await asyncio.sleep(POLL_S)
    raise ProfileError(f"calls of {', '.join(sorted(left))} do not end")


async def _states(esl: Esl) -> dict[str, str]:
    text = await esl.api("sofia xmlstatus")
    if "<profiles" not in text:
        raise ProfileError(f"mod_sofia does not tell its profiles: {text.strip()[:200]}")
    return parse_profile_states(text)


async def _with_calls(esl: Esl, profiles: Sequence[str]) -> list[str]:
    states = await _states(esl)
    return [name for name in profiles if not states.get(name, "").endswith("(0)")]
