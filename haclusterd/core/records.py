"""Call state as it travels: from a master's FreeSWITCH through replication into a slave's.

Only values live here. `freeswitch.calls` makes them, `sync` carries and stores them,
`freeswitch.recovery` turns them back into rows of table `recovery` (FREESWITCH.md 2.3).
"""

from __future__ import annotations

import msgspec


class CallRecord(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One recoverable call leg: what FreeSWITCH would need to take it up again.

    `version` grows with every change of this leg at its origin and never goes back, so of two
    records with the same uuid the higher version wins wherever they meet (RELIABILITY.md S9).
    `metadata` is the XML CDR of the recovery row, kept as FreeSWITCH wrote it (but for variables
    that only its events told, `freeswitch.positions`); mends are made on a copy just before
    injection.
    """

    service: str
    uuid: str
    version: int
    profile: str
    runtime_uuid: str
    metadata: str
    partner: str = ""  # uuid of the bridged other leg, empty for a single leg
    direction: str = "inbound"  # inbound | outbound, as FreeSWITCH means it
    answered_ms: int = 0  # wall clock of the answer at the origin, for people only
    sip_cseq: str = ""  # CSeq in the metadata: a changed one proves the re-INVITE (FREESWITCH 1.5)
    position: int = -1  # of the running application in the extension, -1 where nobody told


class Registration(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One contact of a SIP user, as the FreeSWITCH where it registered keeps it (FREESWITCH.md 4).

    `service` is the lane's name of the service (`sync.lane`), `uuid` names the contact in its
    profile, `version` grows at its origin as a call's does. Texts come from a SIP user: whoever
    makes or uses one asks `freeswitch.registrations` first. `expires_s` is a wall clock time.
    """

    service: str
    uuid: str
    version: int
    profile: str
    user: str
    host: str
    contact: str
    call_id: str
    expires_s: int
    status: str = "Registered"
    rpid: str = "unknown"
    user_agent: str = ""
    server_user: str = ""
    network_ip: str = ""
    network_port: str = ""
    username: str = ""
    realm: str = ""
    mwi_user: str = ""
    mwi_host: str = ""
    sub_host: str = ""
    presence_hosts: str = ""
    force_ping: int = 0


class Tombstone(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A call leg that ended while its master owned the service: never recover it (S8).

    Also a registration that is gone.
    """

    service: str
    uuid: str
    version: int
    cause: str = ""


class CallVerdict(msgspec.Struct, frozen=True):
    """What became of one replicated call after a takeover (E2, MS13).

    `verdict` is recovered, partial (one leg of a bridge), or lost; `gap_ms` is the time without
    this call's media or signalling as far as this node can tell, -1 where it cannot.
    """

    uuid: str
    verdict: str
    reason: str
    gap_ms: int = -1
    ended: bool = False  # after it was recovered: nobody may recover it again
