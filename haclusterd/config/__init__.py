"""The configuration file: TOML in, frozen values out, every error at once (DESIGN section 8).

`load` is for a daemon, which must know which node it is; `load_cluster` for tools that look at
the cluster as a whole. Both raise `ConfigError`, which names file, key and fix of each problem.

    model     the values, and where `{node}` stands in a path
    presets   protocol times by preset, and the rules that hold between them
    reading   tables of the file: types, ranges, unknown keys
    sections  one function per section of the file
    rules     what must hold between sections
    reference docs/configuration.md: every key with type, default and meaning
    recovering section [recovery]
    revisions what a node keeps of the set in force and of the next one
    identity  which of the configured nodes this host is
"""

from haclusterd.config.load import load, load_cluster
from haclusterd.config.model import (
    Api,
    Config,
    ConfigError,
    FreeSwitch,
    Problem,
    agents_shape,
    cluster_spec,
    config_hash,
    effective,
    seen_by,
    shape,
    times,
)
from haclusterd.config.presets import PRESETS
from haclusterd.config.recovering import RecoverySection

__all__ = [
    "PRESETS",
    "Api",
    "Config",
    "ConfigError",
    "FreeSwitch",
    "Problem",
    "RecoverySection",
    "agents_shape",
    "cluster_spec",
    "config_hash",
    "effective",
    "load",
    "load_cluster",
    "seen_by",
    "shape",
    "times",
]
