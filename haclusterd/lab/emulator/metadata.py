"""The XML CDR in column `metadata` of table `recovery`: written for our calls, read for any.

What is read may come from a real FreeSWITCH or from haclusterd, so it is not trusted: only the
parts that recovery uses are taken, and what is missing is an error that names it.
"""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import unquote
from xml.etree import ElementTree
from xml.sax.saxutils import escape, quoteattr

from haclusterd.lab.emulator.channel import CallerProfile, Channel, Pairs
from haclusterd.lab.emulator.events import url_encode

METADATA_MAX: Final = 1 << 20
_NAME: Final = re.compile(r"^[A-Za-z_][\w.-]*$")
_FLAGS: Final = "0=1;1=1;39=1;55=1;68=1;88=1;89=1;113=1;114=1;123=1;160=1;165=1;166=1"
_CAPS: Final = "1=1;2=1;3=1;4=1;5=1;6=1;8=1;9=1;10=1"
_PROFILE_FIELDS: Final = (
    "username",
    "dialplan",
    "caller_id_name",
    "caller_id_number",
    "callee_id_name",
    "callee_id_number",
    "ani",
    "aniii",
    "network_addr",
    "rdnis",
    "destination_number",
    "uuid",
    "source",
    "context",
    "chan_name",
)
_TIMES: Final = {
    "created_time": "Channel-Created",
    "profile_created_time": "Profile-Created",
    "progress_time": "Channel-Progress",
    "progress_media_time": "Channel-Progress-Media",
    "answered_time": "Channel-Answered",
    "bridged_time": "Channel-Bridged",
    "last_hold_time": "",
    "hold_accum_time": "",
    "hangup_time": "Channel-Hangup",
    "resurrect_time": "Channel-Resurrect",
    "transfer_time": "Channel-Transfer",
}
_COUNTERS: Final = (
    "raw_bytes",
    "media_bytes",
    "packet_count",
    "media_packet_count",
    "skip_packet_count",
    "dtmf_packet_count",
    "cng_packet_count",
)


class MetadataError(ValueError):
    """A row cannot be recovered; the text says why."""


def _element(indent: int, name: str, text: str) -> str:
    return f"{' ' * indent}<{name}>{escape(text)}</{name}>\n"


def _counters(side: str, *more: str) -> str:
    inner = "".join(_element(8, name, "0") for name in (*_COUNTERS, *more))
    return f"      <{side}>\n{inner}      </{side}>\n"


_CALL_STATS: Final = (
    "  <call-stats>\n    <audio>\n"
    + _counters("inbound", "flush_packet_count", "largest_jb_size")
    + _counters("outbound", "rtcp_packet_count", "rtcp_octet_count")
    + "    </audio>\n  </call-stats>\n"
)


def write(channel: Channel, core_uuid: str, switchname: str) -> str:
    """The document FreeSWITCH would store now: the last executed application may lag behind."""
    flags = _FLAGS if channel.direction == "inbound" else _FLAGS.replace(";39", ";2=1;39")
    parts = [
        f"<cdr core-uuid={quoteattr(core_uuid)} switchname={quoteattr(switchname)}>\n",
        "  <channel_data>\n",
        _element(4, "state", channel.state),
        _element(4, "direction", channel.direction),
        _element(4, "state_number", str(channel.state_number)),
        _element(4, "flags", flags),
        _element(4, "caps", _CAPS),
        "  </channel_data>\n",
        _CALL_STATS,
        "  <variables>\n",
    ]
    for name, value in channel.variables.items():
        if _NAME.match(name):
            parts.append(_element(4, name, url_encode(value)))
    parts += ["  </variables>\n", _app_log(channel), _callflow(channel), "</cdr>\n"]
    return "".join(parts)


def _application(indent: int, name: str, data: str, more: str = "") -> str:
    return f"{' ' * indent}<application {more}app_name={quoteattr(name)} app_data={quoteattr(data)}"


def _app_log(channel: Channel) -> str:
    lines = [
        _application(4, name, data) + f' app_stamp="{stamp_us}"></application>\n'
        for name, data, stamp_us in channel.executed
    ]
    return f"  <app_log>\n{''.join(lines)}  </app_log>\n"


def _callflow(channel: Channel) -> str:
    current = channel.executed[-1][0] if channel.executed else ""
    number = channel.caller.destination_number
    out = [
        f'  <callflow dialplan="XML" unique-id={quoteattr(channel.uuid)} profile_index="1">\n',
        f"    <extension name={quoteattr(number)} number={quoteattr(number)}"
        f" current_app={quoteattr(current)}>\n",
    ]
    for name, data in channel.applications:
        more = 'last_executed="true" ' if name == current else ""
        out.append(_application(6, name, data, more) + "></application>\n")
    out.append("    </extension>\n    <caller_profile>\n")
    for name in _PROFILE_FIELDS:
        value = channel.uuid if name == "uuid" else str(getattr(channel.caller, name))
        out.append(_element(6, name, value))
    out.append("    </caller_profile>\n    <times>\n")
    for name, key in _TIMES.items():
        out.append(_element(6, name, str(channel.times[key]) if key else "0"))
    out.append("    </times>\n  </callflow>\n")
    return "".join(out)


class Metadata:
    """What recovery needs of a stored document."""

    __slots__ = ("applications", "caller", "direction", "times", "uuid", "variables")

    def __init__(self, text: str) -> None:
        """
        :raises MetadataError: not XML, too large, or without uuid, variables or caller profile.
        """
        if len(text) > METADATA_MAX:
            raise MetadataError(f"metadata of {len(text)} bytes, at most {METADATA_MAX}")
        if "<!DOCTYPE" in text or "<!ENTITY" in text:
            raise MetadataError("a document type is not allowed in metadata")
        try:
            root = ElementTree.fromstring(text)
        except (ElementTree.ParseError, ValueError) as error:
            raise MetadataError(f"metadata is not XML: {error}") from error
        self.variables = {
            node.tag: unquote(node.text or "", errors="surrogateescape")
            for node in root.iterfind("variables/*")
        }
        self.direction = root.findtext("channel_data/direction") or ""
        if self.direction not in ("inbound", "outbound"):
            raise MetadataError("channel_data/direction is neither inbound nor outbound")
        profile = root.find("callflow/caller_profile")
        if profile is None or not self.variables:
            raise MetadataError("no variables or no caller profile in metadata")
        self.uuid = profile.findtext("uuid") or self.variables.get("uuid", "")
        if not self.uuid:
            raise MetadataError("no uuid in metadata")
        self.caller = CallerProfile(
            **{name: profile.findtext(name) or "" for name in _PROFILE_FIELDS if name != "uuid"}
        )
        self.applications: Pairs = [
            (node.get("app_name") or "", node.get("app_data") or "")
            for node in root.iterfind("callflow/extension/application")
        ]
        self.times = {key: _number(root, name) for name, key in _TIMES.items() if key}

    def need(self, name: str) -> str:
        value = self.variables.get(name, "")
        if not value:
            raise MetadataError(f"variable {name} is missing in metadata")
        return value


def _number(root: ElementTree.Element, name: str) -> int:
    text = root.findtext(f"callflow/times/{name}") or "0"
    return int(text) if text.isascii() and text.isdigit() and len(text) < 19 else 0
