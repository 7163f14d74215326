"""A SIP profile: its socket, standby, and where each request goes."""

from __future__ import annotations

import asyncio
import time
import uuid
from typing import TYPE_CHECKING, Final

from haclusterd.lab.emulator import inbound
from haclusterd.lab.emulator.call_events import Q850
from haclusterd.lab.emulator.channel import Channel
from haclusterd.lab.emulator.config import ProfileConfig
from haclusterd.lab.emulator.events import Source
from haclusterd.lab.emulator.registrar import Registrar
from haclusterd.lab.emulator.sip_message import SipMessage, SipParseError, new_tag, response, tag_of
from haclusterd.lab.emulator.sip_transport import Address, SipTransport

if TYPE_CHECKING:
    from haclusterd.lab.emulator.switch import Switch

_PAUSED: Final = ("INVITE", "REGISTER", "OPTIONS", "NOTIFY", "INFO", "SUBSCRIBE", "MESSAGE")
_RETRY_BIND_S: Final = 5.0
_T1_S: Final = 0.5
_T2_S: Final = 4.0
_STARTED: Final = Source("sofia.c", "sofia_profile_thread_run", 3440)


class SofiaProfile:
    def __init__(self, config: ProfileConfig, switch: Switch) -> None:
        self.config = config
        self.name = config.name
        self.switch = switch
        self.standby = config.standby
        self.running = False
        self.transport: SipTransport | None = None
        self.started = 0.0
        self._retry: asyncio.TimerHandle | None = None
        self._unacknowledged: dict[str, asyncio.TimerHandle] = {}
        self.ringing: dict[tuple[str, int], tuple[Channel, SipMessage, Address]] = {}
        host = f"[{config.ip}]" if ":" in config.ip else config.ip
        self.host = host
        self.url = f"sip:mod_sofia@{host}:{config.sip_port}"
        database = switch.config.path(switch.config.core_db).with_name(f"sofia_reg_{self.name}.db")
        self.registrar = Registrar(self, database)

    @property
    def sent_by(self) -> str:
        """Our Via: without the port where it is the default one."""
        port = self.config.sip_port
        return self.host if port == 5060 else f"{self.host}:{port}"

    def start(self) -> None:
        """Bind; on a foreign address without ip_nonlocal_bind retry every 5 s (FREESWITCH.md 8)."""
        self.standby = self.config.standby
        self.running = True
        self.started = time.monotonic()
        self.registrar.start()
        self._bind()

    def _bind(self) -> None:
        self._retry = None
        config = self.switch.config
        try:
            self.transport = SipTransport(
                self.config.ip,
                self.config.sip_port,
                freebind=config.freebind,
                timeout_s=config.transaction_timeout_s,
                on_request=self.receive,
            )
        except OSError as error:
            self.switch.log(
                f"[ERR] sofia.c: Error Creating SIP UA for profile: {self.name}: {error}"
            )
            self._retry = asyncio.get_running_loop().call_later(_RETRY_BIND_S, self._bind)
            return
        headers = [
            ("module_name", "mod_sofia"),
            ("profile_name", self.name),
            ("profile_uri", self.url),
        ]
        self.switch.bus.fire_custom("sofia::profile_start", _STARTED, headers)

    def stop(self) -> None:
        self.running = False
        self.registrar.stop()
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        for timer in self._unacknowledged.values():
            timer.cancel()
        self._unacknowledged.clear()
        if self.transport is not None:
            self.transport.close()
            self.transport = None

    def channels(self) -> list[Channel]:
        return [c for c in self.switch.channels.values() if c.profile_name == self.name]

    def receive(self, request: SipMessage, source: Address) -> None:
        """Route one request; a request that cannot be understood gets 400."""
        try:
            self._route(request, source)
        except SipParseError as error:
            if request.method != "ACK":
                self.answer(request, source, 400, "Bad Request")
            raise SipParseError(f"answered 400: {error}") from error

    def _route(self, request: SipMessage, source: Address) -> None:
        method = request.method
        tag = tag_of(request.get("to"))
        channel = self.switch.dialogs.get((request.get("call-id"), tag)) if tag else None
        if method == "ACK":
            if channel is not None:
                inbound.acknowledged(self, channel, request)
        elif self.standby and method in _PAUSED:
            self.answer(request, source, 503, "System Paused")
        elif method == "CANCEL":
            inbound.cancelled(self, request, source)
        elif channel is not None and not channel.hangup_cause:
            inbound.in_dialog(self, channel, request, source)
        elif tag or method == "BYE":
            self.answer(request, source, 481, "Call Does Not Exist")
        elif method == "INVITE":
            inbound.invited(self, request, source)
        elif method == "OPTIONS":
            extra = [("Contact", f"<{self.url}>"), ("Accept", "application/sdp")]
            self.answer(request, source, 200, "OK", extra=extra)
        elif method == "REGISTER":
            self._register(request, source)
        else:
            self.answer(request, source, 501, "Not Implemented")

    def _register(self, request: SipMessage, source: Address) -> None:
        """Nobody is in the directory: the challenge, then no, unless everybody may."""
        if self.config.blind_reg:
            self.registrar.register(request, source)
            return
        if request.get("authorization"):
            self.answer(request, source, 403, "Forbidden")
            return
        challenge = f'Digest realm="{self.config.ip}", nonce="{uuid.uuid4()}", algorithm=MD5'
        extra = [("WWW-Authenticate", challenge + ', qop="auth"')]
        self.answer(request, source, 401, "Unauthorized", extra=extra)

    def answer(
        self,
        request: SipMessage,
        source: Address,
        status: int,
        reason: str,
        *,
        to_tag: str = "",
        extra: list[tuple[str, str]] | None = None,
        body: str = "",
    ) -> None:
        if self.transport is None:
            return
        tag = to_tag or ("" if status == 100 else new_tag())
        datagram = response(
            request, status, reason, source=source, to_tag=tag, extra=extra, body=body
        )
        self.transport.reply(request, datagram, source, final=status >= 200)

    def repeat_until_acknowledged(
        self, channel: Channel, request: SipMessage, datagram: bytes, target: Address
    ) -> None:
        """A 2xx is repeated until the ACK (RFC 3261 13.3.1.4); without one the call ends."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self.switch.config.transaction_timeout_s

        def again(interval: float) -> None:
            if loop.time() >= deadline:
                self._unacknowledged.pop(channel.uuid, None)
                self.switch.hangup(channel, "RECOVERY_ON_TIMER_EXPIRE")
                return
            if self.transport is not None:
                self.transport.send(datagram, target)
            interval = min(interval * 2, _T2_S)
            self._unacknowledged[channel.uuid] = loop.call_later(interval, again, interval)

        self.forget(channel)
        self._unacknowledged[channel.uuid] = loop.call_later(_T1_S, again, _T1_S)

    def forget(self, channel: Channel) -> None:
        """Stop repeating the 2xx of this call, or waiting for its CANCEL."""
        timer = self._unacknowledged.pop(channel.uuid, None)
        if timer is not None:
            timer.cancel()
        for key in [k for k, waiting in self.ringing.items() if waiting[0] is channel]:
            _, invite, source = self.ringing.pop(key)
            tag = channel.dialog.key[1]
            self.answer(invite, source, 480, "Temporarily Unavailable", to_tag=tag)

    def send_bye(self, channel: Channel) -> None:
        if self.transport is None or not channel.answered:
            return
        cause = channel.hangup_cause
        reason = f'Q.850;cause={Q850.get(cause, 31)};text="{cause}"'
        datagram, branch = channel.dialog.request("BYE", self.sent_by, reason=reason)
        try:
            destination = channel.dialog.destination()
        except SipParseError as error:
            self.switch.log(f"[ERR] sofia: no BYE for {channel.uuid}: {error}")
            return
        self.transport.request(datagram, destination, branch, "BYE", lambda _answer, _why: None)
