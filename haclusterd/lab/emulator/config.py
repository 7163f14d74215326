"""The emulator's JSON configuration, checked on load.

Names follow FreeSWITCH's own parameters where it has one (`rtp-port-usage-robustness`).
"""

from __future__ import annotations

import socket
from pathlib import Path

import msgspec

from haclusterd.config import Config, ConfigError, load_cluster
from haclusterd.config import load as load_as_node
from haclusterd.config.model import NODE_PLACEHOLDER
from haclusterd.freeswitch import conf


class EmulatorConfigError(ValueError):
    """The configuration cannot be used; the text names the file, the key and the fix."""


class EslConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    host: str = "127.0.0.1"
    port: int = 8021
    password: str = "ClueCon"


class ProfileConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    ip: str
    sip_port: int = 5060
    standby: bool = False
    track_calls: bool = True
    presence: bool = False  # manage-presence: variable presence_id and PRESENCE_IN events
    context: str = "public"
    codecs: str = "PCMU,PCMA"
    auto_start: bool = True  # False: only known, as if added to the XML before `profile start`
    blind_reg: bool = False  # everybody may register, as with apply-register-acl
    expires_late_margin_s: int = 60
    ireg_seconds: float = 30.0


class EmulatorConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Times are those measured on the real one (FREESWITCH.md 1.2, 3); tests may shorten them."""

    run_dir: str
    profiles: list[ProfileConfig]
    core_db: str = "core.db"  # relative paths: relative to run_dir
    pid_file: str = "freeswitch.pid"
    switchname: str = "emulator"
    esl: EslConfig = EslConfig()
    rtp_port_min: int = 16384
    rtp_port_max: int = 32768
    rtp_port_usage_robustness: bool = False
    media_pps: int = 50
    heartbeat_s: float = 20.0
    recover_leg_ms: float = 2.9
    sql_flush_ms: float = 210.0
    profile_min_uptime_s: float = 10.0
    transaction_timeout_s: float = 32.0
    esl_event_lag_ms: float = 20.0
    shutdown_ms: float = 900.0
    max_sessions: int = 3000
    extensions: dict[str, str] = msgspec.field(default_factory=dict)
    lacks: list[str] = msgspec.field(default_factory=list)  # modules and codecs not loaded
    contexts_missing: list[str] = msgspec.field(default_factory=list)
    freebind: bool = True  # False: only the sysctl ip_nonlocal_bind helps, as with the real one

    def path(self, name: str) -> Path:
        return Path(self.run_dir) / name


# What fs_conf loads, each with the kind of interface that calls use it for.
MODULES = {
    "mod_conference": "application",
    "mod_db": "limit",
    "mod_dialplan_xml": "dialplan",
    "mod_dptools": "application",
    "mod_event_socket": "application",
    "mod_hash": "limit",
    "mod_loopback": "endpoint",
    "mod_lua": "application",
    "mod_native_file": "file",
    "mod_sndfile": "file",
    "mod_sofia": "endpoint",
    "mod_tone_stream": "file",
}
CODECS = ("G.711 alaw", "G.711 ulaw", "RAW Signed Linear (16 bit)")
APPS = ("tone", "echo", "ring", "busy")


def _problems(config: EmulatorConfig) -> list[str]:
    found = []
    names = [p.name for p in config.profiles]
    if len(set(names)) != len(names):
        found.append("profiles: two profiles have the same name; rename one")
    for key, value in config.extensions.items():
        if value not in APPS:
            found.append(f"extensions.{key}: {value!r} is unknown; use one of {', '.join(APPS)}")
    if any(p.ireg_seconds <= 0 or p.expires_late_margin_s < 0 for p in config.profiles):
        found.append("profiles: ireg_seconds must be over 0, expires_late_margin_s not under 0")
    if not 1024 <= config.rtp_port_min < config.rtp_port_max <= 65535:
        found.append("rtp_port_min, rtp_port_max: need 1024 <= min < max <= 65535")
    if not 1 <= config.media_pps <= 200:
        found.append("media_pps: need 1 to 200 packets per second")
    for key in ("heartbeat_s", "sql_flush_ms", "transaction_timeout_s"):
        if getattr(config, key) <= 0:
            found.append(f"{key}: must be greater than 0")
    if min(config.recover_leg_ms, config.shutdown_ms, config.esl_event_lag_ms) < 0:
        found.append("recover_leg_ms, shutdown_ms, esl_event_lag_ms: must not be negative")
    return found


def load(path: Path) -> EmulatorConfig:
    """Read and check FILE.

    :raises EmulatorConfigError: unreadable, not JSON, an unknown key, a value out of range.
    """
    try:
        config = msgspec.json.decode(path.read_bytes(), type=EmulatorConfig)
    except OSError as error:
        raise EmulatorConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except msgspec.ValidationError as error:
        raise EmulatorConfigError(f"{path}: {error}") from error
    except msgspec.DecodeError as error:
        raise EmulatorConfigError(f"{path}: not JSON: {error}") from error
    problems = _problems(config)
    if problems:
        raise EmulatorConfigError("\n".join(f"{path}: {p}" for p in problems))
    return config


def _cluster(path: Path) -> Config:
    """Bound to this node only where the file needs that: tests describe clusters of other hosts."""
    cluster = load_cluster(path)
    return load_as_node(path) if NODE_PLACEHOLDER in str(cluster.freeswitch) else cluster


def of_cluster(path: Path) -> EmulatorConfig:
    """The FreeSWITCH that haclusterd.toml in `path` describes, as `fs-conf render` would make it.

    :raises EmulatorConfigError: the file, or the password that it names, cannot be used.
    """
    try:
        cluster = _cluster(path)
        section = cluster.freeswitch
        if section is None:
            raise EmulatorConfigError(f"{path}: freeswitch: is missing; add a section [freeswitch]")
        password = section.esl_password_file.read_text().strip()
    except ConfigError as error:
        raise EmulatorConfigError(str(error)) from error
    except OSError as error:
        raise EmulatorConfigError(f"{error.filename}: cannot be read: {error.strerror}") from error
    return EmulatorConfig(
        run_dir=str(section.core_db.parent),
        profiles=[
            ProfileConfig(name=p.name, ip=p.address, sip_port=p.port, standby=True)
            for p in conf.profiles(cluster)
        ],
        core_db=str(section.core_db),
        pid_file=str(section.pid_file),
        switchname=socket.gethostname(),
        esl=EslConfig(host=section.esl_host, port=section.esl_port, password=password),
        rtp_port_usage_robustness=True,
        extensions={"9196": "echo", "9197": "tone", "9198": "ring"},
    )
