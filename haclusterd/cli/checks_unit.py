"""`doctor`: would stopping FreeSWITCH by its unit hang up every call? Where systemd runs."""

from __future__ import annotations

from collections.abc import Iterator

from haclusterd.cli.checks import OK, SKIPPED, WARNING, Check, HostProbe

NAME = "freeswitch.service"
SYSTEMD = "/run/systemd/system"


def unit_checks(host: HostProbe) -> Iterator[Check]:
    """Its drop-in asks haclusterd to hand over before it stops FreeSWITCH (DESIGN 2.7)."""
    systemctl = host.command("systemctl")
    if systemctl is None or not host.exists(SYSTEMD):
        return
    words = [systemctl, "show", NAME, "--property=LoadState", "--property=ExecStop"]
    status, said = host.run(words)
    if status != 0 or "LoadState=loaded" not in said:
        text = "there is none: whatever starts FreeSWITCH here has to run"
        yield Check(NAME, SKIPPED, f"{text} `haclusterctl hand-over` before it stops it")
    elif "haclusterctl hand-over" in said:
        yield Check(NAME, OK, "hands over before it stops FreeSWITCH")
    else:
        fix = "install fs_conf/systemd (the Debian package does), then systemctl daemon-reload"
        text = "stopping or upgrading FreeSWITCH hangs up every call: its drop-in is missing"
        yield Check(NAME, WARNING, text, fix)
