"""A recovery document made of `uuid_dump`, for a FreeSWITCH whose core database is out of reach.

Pure. The shape is the smallest that FreeSWITCH was seen to recover (FREESWITCH.md 2.2). What no
dump tells is missing: channel flags but three, and the applications that are still to come, so an
unbridged call goes on at its present application and ends after it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from xml.sax.saxutils import escape, quoteattr

from haclusterd.core.records import CallRecord

from . import metadata

DUMP_CHARACTERS_MAX = 256 * 1024
_VARIABLE = "variable_"
_CAPS = "1=1;2=1;3=1;4=1;5=1;6=1;8=1;9=1;10=1"
_PROFILE = {
    "username": "Caller-Username",
    "dialplan": "Caller-Dialplan",
    "caller_id_name": "Caller-Caller-ID-Name",
    "caller_id_number": "Caller-Caller-ID-Number",
    "callee_id_name": "Caller-Callee-ID-Name",
    "callee_id_number": "Caller-Callee-ID-Number",
    "ani": "Caller-ANI",
    "aniii": "Caller-ANI-II",
    "network_addr": "Caller-Network-Addr",
    "rdnis": "Caller-RDNIS",
    "destination_number": "Caller-Destination-Number",
    "uuid": "Unique-ID",
    "source": "Caller-Source",
    "context": "Caller-Context",
    "chan_name": "Channel-Name",
}
_TIMES = {
    "created_time": "Caller-Channel-Created-Time",
    "profile_created_time": "Caller-Profile-Created-Time",
    "progress_time": "Caller-Channel-Progress-Time",
    "progress_media_time": "Caller-Channel-Progress-Media-Time",
    "answered_time": "Caller-Channel-Answered-Time",
    "bridged_time": "Caller-Channel-Bridged-Time",
    "last_hold_time": "Caller-Channel-Last-Hold",
    "hold_accum_time": "Caller-Channel-Hold-Accum",
    "hangup_time": "Caller-Channel-Hangup-Time",
    "resurrect_time": "Caller-Channel-Resurrect-Time",
    "transfer_time": "Caller-Channel-Transfer-Time",
}
# Of this process's life, not of the call's.
_LEFT_OUT = {"call_timeout", "bridge_uuid", "recovered", "last_bridge_to"}


def document(dump: Mapping[str, str]) -> str:
    """The XML CDR of an answered leg. Raises metadata.MetadataError."""
    uuid, direction = dump.get("Unique-ID", ""), dump.get("Call-Direction", "")
    if not uuid or direction not in ("inbound", "outbound"):
        raise metadata.MetadataError("the dump of a channel lacks its uuid or direction")
    variables = {
        name.removeprefix(_VARIABLE): value
        for name, value in dump.items()
        if name.startswith(_VARIABLE) and metadata.VARIABLE_NAME.match(name.removeprefix(_VARIABLE))
    }
    partner = variables.get("signal_bond") or variables.get("originate_signal_bond")
    flags = ["1=1"]
    if direction == "outbound":
        flags.append("2=1")
    elif partner:
        flags.append("4=1")
    number = dump.get("Caller-Destination-Number", "")
    lines = [
        f"<cdr core-uuid={quoteattr(dump.get('Core-UUID', ''))}"
        f" switchname={quoteattr(dump.get('FreeSWITCH-Switchname', ''))}>",
        "  <channel_data>",
        _element("state", dump.get("Channel-State", "CS_EXECUTE")),
        _element("direction", direction),
        _element("state_number", dump.get("Channel-State-Number", "4")),
        _element("flags", ";".join(flags)),
        _element("caps", _CAPS),
        "  </channel_data>",
        "  <variables>",
        *(
            f"    <{name}>{metadata.encoded(value)}</{name}>"
            for name, value in variables.items()
            if name not in _LEFT_OUT
        ),
        "  </variables>",
        '  <callflow dialplan="XML" profile_index="1">',
        f"    <extension name={quoteattr(number)} number={quoteattr(number)}>",
        *_application(variables, bool(partner)),
        "    </extension>",
        "    <caller_profile>",
        *(_element(name, dump.get(header, "")) for name, header in _PROFILE.items()),
        "    </caller_profile>",
        "    <times>",
        *(_element(name, dump.get(header, "0")) for name, header in _TIMES.items()),
        "    </times>",
        "  </callflow>",
        "</cdr>",
    ]
    text = "\n".join(lines) + "\n"
    metadata.check(text)
    return text


def _application(variables: Mapping[str, str], bridged: bool) -> list[str]:
    name = variables.get("current_application", "")
    if bridged or not name:
        return []
    data = variables.get("current_application_data", "")
    return [f"      <application app_name={quoteattr(name)} app_data={quoteattr(data)}/>"]


def _element(name: str, text: str) -> str:
    return f"      <{name}>{escape(text)}</{name}>"


def record(service: str, version: int, dump: Mapping[str, str]) -> CallRecord:
    """A dumped leg as a call record. Raises metadata.MetadataError."""
    text = document(dump)
    facts = metadata.facts(text)
    return CallRecord(
        service=service,
        uuid=dump["Unique-ID"],
        version=version,
        profile=dump.get("variable_sofia_profile_name", ""),
        runtime_uuid=dump.get("Core-UUID", ""),
        metadata=text,
        partner=facts.partner,
        direction=facts.direction,
        answered_ms=facts.answered_ms,
        sip_cseq=facts.sip_cseq,
    )


def answered(dump: Mapping[str, Any]) -> bool:
    """Whether FreeSWITCH would track this leg: answered, of SIP, not hung up."""
    return (
        dump.get("Answer-State") == "answered"
        and str(dump.get("Channel-Name", "")).startswith("sofia/")
        and "Hangup-Cause" not in dump
    )
