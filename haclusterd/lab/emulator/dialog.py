"""A SIP dialog from our side: who is who, and the requests we send in it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Final

from haclusterd.lab.emulator.sip_message import (
    ALLOW,
    USER_AGENT,
    SipParseError,
    Uri,
    address_uri,
    build,
    new_branch,
    tag_of,
)

_NTP_OFFSET_S: Final = 2_208_988_800


def time_based_cseq() -> int:
    """The CSeq sofia-sip starts a leg with: +1 every 2 s (FREESWITCH.md 1.4)."""
    return ((int(time.time()) + _NTP_OFFSET_S) >> 1) & 0x7FFFFFF


@dataclass(slots=True)
class Dialog:
    """`local` and `remote` are whole From/To values with tags; `target` the peer's Contact URI."""

    call_id: str
    local: str
    remote: str
    target: str
    contact: str
    route: str = ""
    peer: tuple[str, int] = ("", 0)
    cseq: int = 0
    remote_cseq: int = 0

    @property
    def key(self) -> tuple[str, str]:
        """Call-ID and our tag: what an in-dialog request of the peer names."""
        return self.call_id, tag_of(self.local)

    def destination(self) -> tuple[str, int]:
        """Where requests go: the route's or target's numeric address, else where it came from.

        :raises SipParseError: there is neither.
        """
        for text in (address_uri(self.route.partition(",")[0]), self.target):
            if text:
                uri = Uri(text)
                if _numeric(uri.host):
                    return uri.host, uri.port
        if self.peer[0]:
            return self.peer
        raise SipParseError("the peer has no numeric address")

    def request(
        self,
        method: str,
        via: str,
        *,
        cseq: int | None = None,
        branch: str = "",
        reason: str = "",
        body: str = "",
    ) -> tuple[bytes, str]:
        """A request in this dialog and its branch; `via` is our sent-by.

        `cseq` and `branch` are given for an ACK only.
        """
        if cseq is None:
            self.cseq = cseq = (self.cseq + 1) if self.cseq else time_based_cseq()
        branch = branch or new_branch()
        headers = [("Via", f"SIP/2.0/UDP {via};rport;branch={branch}")]
        if self.route:
            headers.append(("Route", self.route))
        headers += [
            ("Max-Forwards", "70"),
            ("From", self.local),
            ("To", self.remote),
            ("Call-ID", self.call_id),
            ("CSeq", f"{cseq} {method}"),
        ]
        if method in ("INVITE", "ACK"):
            headers.append(("Contact", self.contact))
        headers.append(("User-Agent", USER_AGENT))
        if method == "INVITE":
            headers.append(("Allow", ALLOW))
            headers.append(("Supported", "timer, path, replaces"))
        if reason:
            headers.append(("Reason", reason))
        if body:
            headers.append(("Content-Type", "application/sdp"))
        return build(f"{method} {self.target} SIP/2.0", headers, body), branch


def _numeric(host: str) -> bool:
    return ":" in host or (all(p.isdigit() and len(p) < 4 for p in host.split(".")) and "." in host)
