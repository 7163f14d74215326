"""docs/configuration.md, made of what the readers of the file ask for and the meanings below.

`pytest tests/unit/test_config_reference.py --rewrite` writes it. Keys, types, defaults and ranges
are the code's own; a key without a meaning here, or a meaning without a key, fails a test.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from haclusterd.config import sensor_meanings
from haclusterd.config.load import SECTIONS, read_document
from haclusterd.config.presets import PRESETS
from haclusterd.config.reading import Asked, Problems

HEAD = """# Every key of haclusterd.toml

Generated from `haclusterd/config/` (`pytest tests/unit/test_config_reference.py --rewrite`); do not
edit.

The file is TOML and the same bytes on every node; a node finds itself by its link addresses.
`haclusterctl config check` names everything that is wrong with it at once, by file, key and fix.
Relative paths are relative to the folder of the file. `{node}` in a path or command stands for the
node's id. A *name* has 1 to 63 letters, digits, `.`, `_` or `-`, the first one a letter or digit.
No value may hold a line break or another unprintable character.

To add or to remove a node, raise `cluster.revision` by one and run `haclusterctl reload` on every
node (the new one is simply started): nothing is restarted and nothing moves. It is refused where
too few nodes of the next set are heard for a majority (but for `--without-majority`). Any other
change takes a restart of haclusterd, node by node (`haclusterctl upgrade` refuses it). In between,
nodes whose files differ in meaning raise the alarm `config_mismatch`, and those that differ from
most claim nothing. Where services were added, removed, renamed or put in another order, their
addresses changed, nodes are in another order, or times differ, old and new file cannot read each
other's beats at all (`unreadable_peer`): see [upgrade.md](upgrade.md#configuration).
"""
SECTION_TEXTS = {
    "cluster": "What the nodes have in common. Required.",
    "timing": "Protocol times in ms. Each overrides the preset; rules between them are checked.",
    "freeswitch": "The FreeSWITCH beside haclusterd. Without this section only addresses move.",
    "recovery": "What becomes of the calls at a takeover.",
    "sync": "Replication of call state between the agents, over mutual TLS.",
    "heartbeat": "Beats between the hearts, over UDP on every link.",
    "api": "How this node is asked and looked at.",
    "node": "One `[[node]]` for each host, in the same order everywhere.",
    "service": "One `[[service]]` for each set of addresses that moves as one.",
    "hook": "One `[[hook]]` for each that is told of changes, by exactly one of `exec`, `webhook` "
    "and `email`: [hooks.md](hooks.md). Optional.",
    "dns": "One `[[dns]]` for each DNS name that holds the addresses in service, by RFC 2136 "
    "updates: [dns.md](dns.md). Optional.",
    "health": "What follows from a node's health: [sensors.md](sensors.md).",
    "sensor": "One `[[sensor]]` for each thing that a node watches of itself: "
    "[sensors.md](sensors.md). Optional.",
}
MEANINGS = {
    "cluster.name": "Goes into every beat: clusters with other names do not hear each other, also "
    "on one network.",
    "cluster.key_file": "The secret that seals the beats. CA and certificates lie beside it; "
    "`haclusterctl keys create` writes them all, mode 0600.",
    "cluster.preset": "Protocol times: `lan` a switched LAN, `fast` needs real-time scheduling "
    "(experimental), `wan` routed links.",
    "cluster.quorum": "Who may act alone. `majority`: nobody; more than half of all nodes must "
    "agree. `witness`: the same, with a node that only votes. `availability`: a minority acts, and "
    "two nodes may own a service while they cannot see each other. Left out: `witness` where there "
    "is one, else `majority`; two nodes have to choose.",
    "cluster.last_resort": "When no slave is left for a lost service: `masters`, the least loaded "
    "master within its capacity takes it; `none`, it stays unserved.",
    "cluster.relinquish": "When no slave is left for 400 times `dead_ms` (`lan`: a minute) and the "
    "other masters have room: a master hands its services over and becomes a slave. Nothing moves "
    "back.",
    "cluster.maintenance_service": "A service whose address takes new calls only while another "
    "service or node is drained (`haclusterctl drain`, `maintenance --drain`): it moves to the "
    "first slave then, and back to a master once it is not needed and has no call. Needs "
    '`last_resort = "masters"`. Left out: none.',
    "cluster.revision": "Of the set of nodes: one more with every change of it, which then takes "
    "`haclusterctl reload` on each node instead of a restart. One node may be added or removed at "
    "a time.",
    "timing.heartbeat_ms": "From one beat to the next, on every link.",
    "timing.lease_ms": "How long an owner may serve after its last beat that a majority echoed.",
    "timing.stop_ms": "How long an owner may take to stop sending once its lease is over; the rule "
    "for `dead_ms` counts with it.",
    "timing.dead_ms": "Silence on all links after which a node is lost and its services are "
    "claimed. At least `(lease_ms + max(stop_ms, arm_ms)) / 0.99`.",
    "timing.arm_ms": "How old a decision to renew the kernel fence may be.",
    "timing.fence_ms": "How long the kernel lets a service address send without renewal. More than "
    "`heartbeat_ms`, at most `lease_ms - heartbeat_ms`.",
    "timing.rank_delay_ms": "How much later each further slave in line claims.",
    "timing.discovery_ms": "How long a cold start waits for the preferred node of a service.",
    "freeswitch.esl_host": "Where mod_event_socket of the local FreeSWITCH listens.",
    "freeswitch.esl_port": "Its port. 0: no ESL, only the process in `pid_file` is watched, and "
    "calls are not recovered.",
    "freeswitch.esl_password_file": "Holds the password of event_socket.conf.xml in its first "
    "line; mode 0600.",
    "freeswitch.core_db": "FreeSWITCH's core database, where it keeps what recovers a call; "
    "haclusterd writes to it.",
    "freeswitch.pid_file": "Which process FreeSWITCH is: its end moves the services at once.",
    "freeswitch.start_command": "Brings FreeSWITCH back after a crash or after it was ended behind "
    "the fence. Left out: something else does.",
    "freeswitch.limits_port": "Where mod_hash of the local FreeSWITCH asks (127.0.0.1, see "
    "`hash.conf.xml` in `fs_conf`) what the other nodes count, so that limits hold in the whole "
    "cluster. 0: each FreeSWITCH counts for itself.",
    "freeswitch.presence": "Lamps and message lights: presence and message waiting events reach "
    "the subscribers at every node, and subscriptions survive a takeover. SIP profiles need "
    "`manage-presence`.",
    "recovery.source": "Where a call's state is read. `core_db`: FreeSWITCH's own rows. `esl`: "
    "events and `uuid_dump`, where the core database is elsewhere; channel flags are lost then, "
    "and an unbridged call resumes at its present application and ends after it.",
    "recovery.streams": "How many connections recover calls side by side. FreeSWITCH takes 2 to "
    "4 ms per leg on each.",
    "recovery.deadline_ms": "How long a phone has for its answer to the re-INVITE before its call "
    "is counted as lost, from the moment FreeSWITCH has sent the last one.",
    "recovery.orphan_timeout_ms": "How long a call without answer and without RTP is kept after "
    "that, in case the phone is only slow. FreeSWITCH alone would keep it for 32 s.",
    "recovery.urgent_variable": "A channel variable that holds a digit: calls with 9 go first, "
    "then 8, down to 0, which is meant where it is not set. Within a digit bridged calls go first, "
    "then conferences, then the rest. Empty: only that.",
    "recovery.calls": "`recover`: bring them back. `recycle`: count them as lost and forget them. "
    "`ignore`: leave them to something else, without a verdict.",
    "recovery.registrations": "What phones had registered at the lost master. `recover`: it is in "
    "the new owner's table. `recycle`: it is removed from all nodes, and phones register anew. "
    "`ignore`: haclusterd neither replicates nor writes registrations, for instance where the "
    "profiles share a database.",
    "recovery.limits": "Calls that FreeSWITCH does not count against their `limit` by itself any "
    "more (bridged ones). `recover`: count them again. `ignore`: do not.",
    "recovery.half_calls": "A leg whose other leg is gone for good. `recycle`: end it. `ignore`: "
    "leave it.",
    "recovery.orphans": "A call that nobody answers for when `orphan_timeout_ms` is over. "
    "`recycle`: end it. `ignore`: leave it to FreeSWITCH.",
    "recovery.mend_cseq": "Raise the CSeq where this node's clock may be behind the last owner's.",
    "recovery.mend_profile": "Let the row name the profile that it is recovered on.",
    "recovery.mend_position": "Resume an IVR at the application it was at, not at its first one. "
    "Every node then follows CHANNEL_EXECUTE of its calls, about 4 kB per application.",
    "recovery.mend_addresses": "Move the media of a call to this node's address where its profile "
    "has another one (`rtp-ip`, `ext-rtp-ip`).",
    "recovery.mend_transport": "Let the re-INVITE to a phone on TCP or TLS say so in its Contact: "
    "without it what the phone asks afterwards, its BYE as well, goes to UDP.",
    "recovery.skip_announcements": "Leave out `playback`, `speak`, `say` and `gentones` when an "
    "unbridged call runs its extension again, unless nothing else is left of it.",
    "recovery.session_timeout_s": "Session timer that the re-INVITE asks for, at least the "
    "profile's `minimum-session-expires`; 0: its `session-timeout`, or none.",
    "recovery.pace_invites_per_s": "New INVITEs that are let through to a service while its calls "
    "are recovered; phones repeat the others after 0.5 s. UDP only. 0: all.",
    "recovery.pace_registers_per_s": "REGISTERs that are let through in the 10 s after that, and "
    "none before; phones repeat them. UDP only. 0: all.",
    "freeswitch.esl_backend": "Which library speaks to the event socket. The others are extras "
    "with known faults, listed in docs/esl-backends.md.",
    "freeswitch.compare": "Nodes tell each other their modules, codecs and profile settings; one "
    "that lacks what a service's owner has is no candidate for it, until nobody has served it for "
    "3 s. `false`: nobody compares.",
    "sync.port": "TCP, on every link address.",
    "heartbeat.port": "UDP, on every link address.",
    "api.socket": "The Unix socket of `haclusterctl`; its folder is the run directory. At most 107 "
    "bytes. `haclusterd --run-dir` overrides it.",
    "api.http": "Status page, metrics and health checks, read only and without a login: keep it on "
    "loopback or behind a firewall. Empty: none.",
    "api.hosts": "Names by which HTTP may be asked for, beside addresses, `localhost` and the host "
    "of `http`. A browser that comes by any other name gets 421.",
    "node.id": "Names the node everywhere, and its certificate file.",
    "node.links": "One address for each heartbeat NIC, 1 to 8, in the same order on every node: "
    "the first ones share a network, and so on. Not a loopback, link-local or service address.",
    "node.priority": "The higher one ranks first among slaves that are ready.",
    "node.capacity": "How many call legs the node can carry: the measure of its load.",
    "node.witness": "Votes, but has no FreeSWITCH and never owns a service.",
    "service.name": "Names the service everywhere.",
    "service.addresses": "The addresses that move with it, each on its NIC, which must exist on "
    "every node; at most 64.",
    "service.profiles": "SIP profiles that move with it, each in one service only; at most 64.",
    "service.preferred": "Who owns it at a cold start. Nothing moves back to it later.",
    "service.priority": "Of several services lost at once the higher one is served first; then by "
    "name.",
}
MEANINGS |= {
    "hook.name": "Names the hook in logs, alarms and metrics.",
    "hook.events": "What it is told of. Left out: everything.",
    "hook.exec": "A command, started without a shell, with the event as JSON on standard input.",
    "hook.webhook": "Gets the event as a JSON POST. Redirects are not followed.",
    "hook.email": "Who gets an e-mail; at most 16.",
    "hook.secret_file": "Its first line signs webhooks by HMAC-SHA256 (`X-Haclusterd-Signature`); "
    "mode 0600.",
    "hook.ca_file": "PEM file of the CAs to trust with `https` and TLS to the mail server. Left "
    "out: those of the system.",
    "hook.smtp": "The mail server.",
    "hook.smtp_tls": "How the mail server is spoken to. A password is refused without TLS.",
    "hook.smtp_user": "Who logs in there. Left out: nobody does.",
    "hook.smtp_password_file": "Holds the password in its first line; mode 0600.",
    "hook.sender": "The sender of e-mails; required with `email`.",
    "hook.timeout_ms": "How long one attempt may take; then it is ended.",
    "hook.retries": "How many more attempts follow one that failed, 1, 2, 4 .. 60 s apart.",
    "hook.every_node": "Every node tells this hook. Otherwise one node of the cluster does.",
    "dns.name": "The name whose A and AAAA records are kept.",
    "dns.zone": "The zone it is in.",
    "dns.server": "The zone's primary server.",
    "dns.key_name": "The TSIG key's name on that server.",
    "dns.key_file": "Holds the TSIG secret (base64) in its first line; mode 0600.",
    "dns.algorithm": "The TSIG algorithm.",
    "dns.ttl_s": "How long resolvers may keep the addresses.",
    "dns.hold_ms": "How long a service must be gone before its addresses are taken out: a takeover "
    "moves them, and changes nothing here. They come back at once.",
    "dns.services": "Whose addresses. Left out: those of all services.",
}
MEANINGS |= sensor_meanings.MEANINGS
TYPES = {str: "string", int: "integer", bool: "boolean", list: "array of strings"}
# Just enough of a file for every reader to be asked.
_SAMPLE: dict[str, Any] = {
    "freeswitch": {}, "node": [{}], "service": [{}], "hook": [{}], "dns": [{}], "sensor": [{}],
}  # fmt: skip
ARRAYS = ("node", "service", "hook", "dns", "sensor")


def asked() -> list[Asked]:
    """Every key that the file may hold, in the order of its sections, as the readers ask."""
    problems = Problems("")
    read_document(Path("haclusterd.toml"), _SAMPLE, problems)
    return sorted(problems.asked, key=lambda key: SECTIONS.index(key.section))


def render() -> str:
    """The whole document."""
    parts = [HEAD]
    for section in SECTIONS:
        title = f"[[{section}]]" if section in ARRAYS else f"[{section}]"
        parts.append(f"\n## {title}\n\n{SECTION_TEXTS[section]}\n\n")
        keys = [key for key in asked() if key.section == section]
        parts += _times(keys) if section == "timing" else _table(keys)
    return "".join(parts)


def _table(keys: list[Asked]) -> Iterator[str]:
    yield "| key | type | default | meaning |\n|---|---|---|---|\n"
    for key in keys:
        kind = TYPES[key.kind] + (f": {key.allowed}" if key.allowed else "")
        meaning = MEANINGS[f"{key.section}.{key.name}"]
        yield f"| `{key.name}` | {kind} | {default_of(key)} | {meaning} |\n"


def _times(keys: list[Asked]) -> Iterator[str]:
    """The defaults are the presets', so each has a column."""
    names = list(PRESETS)
    yield f"| key | range | {' | '.join(names)} | meaning |\n|---|---|{'---|' * (len(names) + 1)}\n"
    for key in keys:
        values = " | ".join(str(PRESETS[name][key.name]) for name in names)
        meaning = MEANINGS[f"{key.section}.{key.name}"]
        yield f"| `{key.name}` | {key.allowed} | {values} | {meaning} |\n"


def default_of(key: Asked) -> str:
    if key.default is None:
        return "required"
    if key.default in ("", []):
        return "none"
    return f"`{json.dumps(key.default)}`"
