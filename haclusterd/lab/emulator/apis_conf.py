"""What is loaded and configured: `load`, `unload`, `module_exists`, `xml_locate`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final
from xml.sax.saxutils import quoteattr

from haclusterd.lab.emulator.config import MODULES
from haclusterd.lab.emulator.events import Source

if TYPE_CHECKING:
    from haclusterd.lab.emulator.config import ProfileConfig
    from haclusterd.lab.emulator.switch import Switch

_LOADED: Final = Source("switch_loadable_module.c", "switch_loadable_module_process", 190)
_UNLOADED: Final = Source("switch_loadable_module.c", "switch_loadable_module_unprocess", 1060)
_NOT_FOUND: Final = "can't find anything\n"


def load(switch: Switch, argument: str) -> str:
    if argument not in MODULES or argument in switch.loaded:
        return "-ERR [module load file routine returned an error]\n"
    switch.loaded[argument] = MODULES[argument]
    _fire(switch, "MODULE_LOAD", _LOADED, argument)
    return "+OK Reloading XML\n+OK\n"


def unload(switch: Switch, argument: str) -> str:
    if argument not in switch.loaded:
        return "-ERR unloading module [No such module!]\n"
    _fire(switch, "MODULE_UNLOAD", _UNLOADED, argument)
    del switch.loaded[argument]
    return "+OK\n"


def _fire(switch: Switch, event: str, source: Source, module: str) -> None:
    name = module.removeprefix("mod_")
    headers = [("type", switch.loaded[module]), ("name", name), ("key", module)]
    switch.bus.fire(event, source, lambda: headers)


def module_exists(switch: Switch, argument: str) -> str:
    return "true" if argument in switch.loaded else "false"


def xml_locate(switch: Switch, argument: str) -> str:
    words = argument.split()
    if words[:3] == ["dialplan", "context", "name"] and len(words) == 4:
        return _context(switch, words[3])
    if words == ["configuration", "configuration", "name", "sofia.conf"]:
        profiles = "".join(_profile(profile.config) for profile in switch.profiles.values())
        settings = _params({"auto-restart": "false"})
        return (
            '<configuration name="sofia.conf" description="SIP">\n'
            f"<global_settings>\n{settings}</global_settings>\n"
            f"<profiles>\n{profiles}</profiles>\n</configuration>\n"
        )
    return _NOT_FOUND


def _context(switch: Switch, name: str) -> str:
    config = switch.config
    known = {profile.config.context for profile in switch.profiles.values()}
    if name not in known - set(config.contexts_missing):
        return _NOT_FOUND
    extensions = "".join(
        f'<extension name={quoteattr(app)}>\n<condition field="destination_number" '
        f"expression={quoteattr(f'^{number}$')}/>\n</extension>\n"
        for number, app in config.extensions.items()
    )
    return f"<context name={quoteattr(name)}>\n{extensions}</context>\n"


def _profile(config: ProfileConfig) -> str:
    settings = _params(
        {
            "track-calls": "true" if config.track_calls else "false",
            "profile-standby": "true" if config.standby else "false",
            "sip-ip": config.ip,
            "sip-port": str(config.sip_port),
            "context": config.context,
            "inbound-codec-prefs": config.codecs,
            "outbound-codec-prefs": config.codecs,
        }
    )
    return (
        f"<profile name={quoteattr(config.name)}>\n<settings>\n{settings}</settings>\n</profile>\n"
    )


def _params(settings: dict[str, str]) -> str:
    return "".join(
        f"<param name={quoteattr(name)} value={quoteattr(value)}></param>\n"
        for name, value in settings.items()
    )
