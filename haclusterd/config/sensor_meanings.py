"""What the keys of `[health]`, `[[sensor]]` and movers mean, for docs/configuration.md."""

from __future__ import annotations

MEANINGS = {
    "service.mover": "Who makes the network send the packets here. `netlink`: the announcement "
    "(ARP, NA) is enough. `exec`: a command as well, for clouds; see docs/movers.md.",
    "service.mover_add": "Gets the addresses to this node; run by its new owner.",
    "service.mover_remove": "Run by who is no owner any more. Left out: nothing is.",
    "service.mover_check": "Exit status 0: they come here, 1: they do not (`mover_add` is run "
    "again), else: not known. Left out: nobody looks.",
    "service.mover_dry_run": "What `haclusterctl doctor` runs: exit status 0 if `mover_add` would "
    "work; it moves nothing. Left out: doctor only looks whether the commands are there.",
    "service.mover_deadline_ms": "How long `mover_add`, its repetitions included, has until the "
    "service is handed to the next in line.",
    "service.mover_check_ms": "From one `mover_check` to the next.",
    "health.hand_over": "A master whose health is below 50 hands over to a clearly better slave, "
    "by a switchover. `false`: health only orders the slaves.",
    "health.better_by": "By how much the slave's health must be above the master's.",
    "health.after_s": "How long all of that must have been so.",
    "health.every_s": "A service is moved by health at most once in this time.",
    "sensor.name": "Names the sensor in status, alarms and metrics.",
    "sensor.kind": "What is watched; see docs/sensors.md.",
    "sensor.interval_ms": "From one reading to the next.",
    "sensor.timeout_ms": "A reading that takes longer is critical; at most `interval_ms`, which is "
    "the default where it is shorter.",
    "sensor.fails": "Readings in a row that must be worse before the state is.",
    "sensor.passes": "Readings in a row that must be better before the state is.",
    "sensor.weight": "What `critical` takes from the node's health (100); `warn` takes a quarter. "
    "0: it only raises an alarm.",
    "sensor.required": "While it is critical the node is no candidate for what it does not own, "
    "unless a service has had no owner for 3 s.",
    "sensor.nodes": "The nodes that have it. Left out: all that are no witness.",
    "sensor.warn": "From this value on the reading is `warn`; 0: never.",
    "sensor.critical": "From this value on the reading is `critical`; 0: never.",
    "sensor.path": "`disk`: a folder of the file system. `mount`: where it must be mounted.",
    "sensor.write": "`mount`: also write, sync and remove a file `.haclusterd-NODE` there.",
    "sensor.nic": "`nic`: which must have carrier.",
    "sensor.host": "`ping`: whom to ask by ICMP echo.",
    "sensor.gateway": "`gateway`: which FreeSWITCH must call UP. Judged on the node that owns the "
    "service of its profile.",
    "sensor.target": "`options`: whom to ask by SIP OPTIONS over UDP. `self`: the addresses of own "
    "services; `peers`: those of others (evidence only, its weight is 0).",
    "sensor.port": "`options`: the port on service addresses.",
    "sensor.event": "`event`: the FreeSWITCH event to listen to.",
    "sensor.raise_if": "`event`: headers and values that, all together, make it critical.",
    "sensor.clear_if": "`event`: the same to make it ok again.",
    "sensor.clear_after_s": "`event`: ok again by itself after this time; 0: not.",
    "sensor.exec": "`exec`: a command, started without a shell: exit status 0 ok, 1 warn, 2 "
    "critical; its first line of output is shown.",
}
