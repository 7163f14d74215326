"""What a FreeSWITCH can do for a service, asked over ESL, and what of it another one lacks.

Modules, codecs, profile settings and dialplan contexts: the settings and the dialplan as digests,
because values may be secret and long. Everything is bounded, whatever FreeSWITCH prints.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence

import msgspec

from .esl import Esl
from .profiles import checked_name, parse_profile_params

ASK_MS = 5000
NAMES_MAX = 512  # modules, codecs
PROFILES_MAX = 128
SETTINGS_MAX = 128  # of one profile
ENCODED_BYTES_MAX = 128 * 1024
SHOWN_MAX = 3
ROWS_CHARACTERS_MAX = 4_000_000

# Interfaces that a call may need. A module that has none of these (a logger, an API, SNMP) is no
# reason to leave a call without a node.
CALL_INTERFACES = frozenset(
    ["application", "asr", "codec", "dialplan", "endpoint", "file", "limit", "say", "speech",
     "timer"]
)  # fmt: skip
# Settings that differ from node to node on purpose.
OWN_SETTINGS = frozenset(["sip-ip", "rtp-ip", "ext-sip-ip", "ext-rtp-ip"])

_MODULE = re.compile(r"mod_[A-Za-z0-9_.-]{1,60}\Z")
_NAME = re.compile(r"[ -~]{1,64}\Z")
_FIELD = re.compile(r"^([A-Z][A-Za-z -]*?)\s*\t(.*)$", re.MULTILINE)


class ProfileFacts(msgspec.Struct, frozen=True):
    """One SIP profile as it runs. `settings`: digest by parameter."""

    context: str = ""
    codecs: tuple[str, ...] = ()
    settings: dict[str, str] = {}


class Capabilities(msgspec.Struct, frozen=True):
    """What one FreeSWITCH has. `contexts`: digest by name, empty where its dialplan has none."""

    modules: tuple[str, ...] = ()
    codecs: tuple[str, ...] = ()
    profiles: dict[str, ProfileFacts] = {}
    contexts: dict[str, str] = {}

    @property
    def digest(self) -> str:
        """Changes with anything in it."""
        return _digest(encode(self))


class _Row(msgspec.Struct):
    type: str = ""
    name: str = ""
    ikey: str = ""


class _Rows(msgspec.Struct):
    rows: list[_Row] = []


_rows_decoder = msgspec.json.Decoder(_Rows)
_encoder = msgspec.json.Encoder(order="sorted")
_decoder = msgspec.json.Decoder(Capabilities)


def encode(found: Capabilities) -> bytes:
    """For the other nodes."""
    return _encoder.encode(found)


def decode(content: bytes) -> Capabilities:
    """What another node said. Raises ValueError."""
    if len(content) > ENCODED_BYTES_MAX:
        raise ValueError(f"{len(content)} bytes of capabilities are over {ENCODED_BYTES_MAX}")
    try:
        found = _decoder.decode(content)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"capabilities that cannot be read: {error}") from None
    profiles = found.profiles
    names = [*found.modules, *found.codecs, *profiles, *found.contexts]
    for profile in profiles.values():
        names += [*profile.codecs, *profile.settings, *([profile.context] * bool(profile.context))]
    if not all(_NAME.match(name) for name in names):
        raise ValueError("a name in the capabilities is no name")
    return found


async def read(esl: Esl, profiles: Sequence[str]) -> Capabilities:
    """Ask FreeSWITCH. Raises EslError, ProfileError for a name that can not be one."""
    modules = parse_modules(await esl.api("show modules as json", ASK_MS))
    codecs = parse_codecs(await esl.api("show codecs as json", ASK_MS))
    conf = await esl.api("xml_locate configuration configuration name sofia.conf", ASK_MS)
    params = parse_profile_params(conf)
    found: dict[str, ProfileFacts] = {}
    contexts: dict[str, str] = {}
    for name in list(profiles)[:PROFILES_MAX]:
        text = await esl.api(f"sofia status profile {checked_name(name)}", ASK_MS)
        profile = parse_profile(text, params.get(name, {}))
        if profile is None:
            continue
        found[name] = profile
        if profile.context and profile.context not in contexts:
            question = f"xml_locate dialplan context name {profile.context}"
            contexts[profile.context] = context_digest(await esl.api(question, ASK_MS))
    whole = Capabilities(modules, codecs, found, contexts)
    if len(encode(whole)) <= ENCODED_BYTES_MAX:
        return whole
    bare = {name: ProfileFacts(p.context, p.codecs) for name, p in found.items()}
    return Capabilities(modules, codecs, bare, contexts)


def _parse_rows(text: str) -> list[_Row]:
    if len(text) > ROWS_CHARACTERS_MAX:
        return []
    try:
        return _rows_decoder.decode(text).rows
    except (msgspec.DecodeError, UnicodeEncodeError):
        return []


def parse_modules(text: str) -> tuple[str, ...]:
    """Loaded modules that calls may need, from `show modules as json`."""
    found = {
        row.ikey
        for row in _parse_rows(text)
        if row.type in CALL_INTERFACES and _MODULE.match(row.ikey)
    }
    return tuple(sorted(found)[:NAMES_MAX])


def parse_codecs(text: str) -> tuple[str, ...]:
    """From `show codecs as json`."""
    found = {row.name for row in _parse_rows(text) if row.type == "codec" and _NAME.match(row.name)}
    return tuple(sorted(found)[:NAMES_MAX])


def parse_profile(text: str, params: Mapping[str, str]) -> ProfileFacts | None:
    """From `sofia status profile`, and the parameters of its configuration; None: not running."""
    fields = {name.strip(): value.strip() for name, value in _FIELD.findall(text[:65536])}
    if "CODECS IN" not in fields and "Context" not in fields:
        return None
    context = fields.get("Context", "")
    codecs = {
        word.partition("@")[0].strip().upper()
        for key in ("CODECS IN", "CODECS OUT")
        for word in fields.get(key, "").split(",")
    }
    settings = {
        name: _digest(value.encode("utf-8", "surrogateescape"))
        for name, value in list(params.items())[:SETTINGS_MAX]
        if name not in OWN_SETTINGS and _NAME.match(name)
    }
    return ProfileFacts(
        context if re.match(r"[\w.-]{1,64}\Z", context, re.ASCII) else "",
        tuple(sorted(word for word in codecs if _NAME.match(word))[:NAMES_MAX]),
        settings,
    )


def context_digest(text: str) -> str:
    """Of one context of the dialplan, whatever its white space; empty: there is none."""
    if "<context" not in text:
        return ""
    return _digest(b" ".join(text.encode("utf-8", "surrogateescape").split()))


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=6).hexdigest()


# -- comparing --


def lacking(theirs: Capabilities, mine: Capabilities, profiles: Sequence[str], owner: str) -> str:
    """What of `owner`'s FreeSWITCH, that a service with these profiles may need, is missing here.

    One sentence with its fix; empty if nothing. What either side does not tell is not compared.
    """
    return next(_lacking(theirs, mine, profiles, owner), "")


def _lacking(
    theirs: Capabilities, mine: Capabilities, profiles: Sequence[str], owner: str
) -> Iterator[str]:
    if mine.modules and (gone := sorted({*theirs.modules} - {*mine.modules})):
        yield (
            f"FreeSWITCH lacks {_shown('module', gone)}, which {owner} has: load it (fs_cli -x "
            f"'load {gone[0]}') and add it to modules.conf.xml"
        )
    if mine.codecs and (gone := sorted({*theirs.codecs} - {*mine.codecs})):
        yield f"FreeSWITCH lacks {_shown('codec', gone)}, which {owner} has: load its module"
    for name in profiles:
        here, there = mine.profiles.get(name), theirs.profiles.get(name)
        if here is None or there is None:
            continue  # a profile that does not run here is said by its own check
        if here.codecs and (gone := sorted({*there.codecs} - {*here.codecs})):
            yield (
                f"SIP profile {name!r} does not offer {_shown('codec', gone)}, as on {owner}: "
                "give it the same codec preferences and rescan it"
            )
        context = there.context
        if theirs.contexts.get(context) and mine.contexts.get(here.context) == "":
            yield (
                f"the dialplan has no context {here.context!r} of SIP profile {name!r}, as on "
                f"{owner}: add it, then reloadxml"
            )


def drift(
    theirs: Capabilities, mine: Capabilities, profiles: Sequence[str], owner: str
) -> list[str]:
    """What differs from `owner` without keeping anybody from a takeover: for an alarm."""
    found = []
    for name in profiles:
        here, there = mine.profiles.get(name), theirs.profiles.get(name)
        if here is None or there is None:
            continue
        if here.context != there.context:
            found.append(
                f"SIP profile {name!r} has context {here.context!r}, on {owner} {there.context!r}"
            )
        elif _differ(mine.contexts.get(here.context), theirs.contexts.get(there.context)):
            found.append(f"dialplan context {here.context!r} is not the same as on {owner}")
        names = {*here.settings, *there.settings} if here.settings and there.settings else ()
        other = sorted(n for n in names if here.settings.get(n) != there.settings.get(n))
        if other:
            found.append(f"SIP profile {name!r}: {_shown('setting', other)} not as on {owner}")
    return found


def _differ(here: str | None, there: str | None) -> bool:
    return bool(here and there) and here != there


def _shown(what: str, names: Sequence[str]) -> str:
    text = f"{what}{'s' if len(names) > 1 else ''} {', '.join(names[:SHOWN_MAX])}"
    more = len(names) - SHOWN_MAX
    return f"{text} and {more} more" if more > 0 else text
