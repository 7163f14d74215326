"""Why the laboratory cannot run with a real FreeSWITCH here."""

from __future__ import annotations

import shutil

from haclusterd.lab import freeswitch, netns


def obstacle() -> str:
    """Empty where it can."""
    if reason := netns.why_not():
        return reason
    if shutil.which("sipp") is None:
        return "sipp is missing: sip-tester"
    try:
        freeswitch.find_binary()
    except netns.LabError as error:
        return str(error)
    return ""
