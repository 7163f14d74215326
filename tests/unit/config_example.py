"""The configuration of the contract (DESIGN section 8), for the tests that need one."""

from __future__ import annotations

GOOD = """\
[cluster]
name = "voice1"
key_file = "cluster.key"
preset = "lan"
quorum = "majority"
[timing]
[freeswitch]
esl_host = "127.0.0.1"
esl_port = 8021
esl_password_file = "esl.password"
core_db = "/var/lib/freeswitch/{node}/core.db"
pid_file = "/run/freeswitch/freeswitch.pid"
start_command = ["systemctl", "start", "freeswitch@{node}"]
[sync]
port = 7801
[heartbeat]
port = 7800
[api]
socket = "/run/haclusterd/haclusterd.sock"
http = "127.0.0.1:7802"
[[node]]
id = "fs-a"
links = ["10.1.0.1", "10.2.0.1"]
priority = 100
capacity = 1000
[[node]]
id = "fs-b"
links = ["10.1.0.2", "10.2.0.2"]
[[node]]
id = "fs-c"
links = ["10.1.0.3", "10.2.0.3"]
[[service]]
name = "east"
addresses = ["203.0.113.10/24 dev eth0", "2001:DB8::10/64 dev eth0"]
profiles = ["east"]
preferred = "fs-a"
priority = 10
"""


def changed(old: str, new: str) -> str:
    assert old in GOOD
    return GOOD.replace(old, new, 1)
