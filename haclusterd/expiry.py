"""When a node's certificates end: said in good time, for nothing else notices before the day.

A connection between agents that is up stays up beyond that day, and none can be made any more: the
first fault of a link after it leaves the nodes without copies of each other.
"""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from pathlib import Path

from haclusterd.config.model import Config
from haclusterd.keys import KeysError, paths, read_file

SOON = datetime.timedelta(days=30)
FIX = (
    'run "haclusterctl keys rotate" while the nodes are connected; where they are not any more, '
    "docs/maintenance.md (certificates that end) says how to go on by hand"
)


@dataclass(frozen=True, slots=True)
class Validity:
    """One certificate file and when it ends."""

    file: Path
    ends: datetime.datetime

    def problem(self, now: datetime.datetime) -> str:
        """What an operator should know, or nothing."""
        day = f"{self.ends:%Y-%m-%d %H:%M} UTC"
        if now >= self.ends:
            return (
                f"{self.file} ended on {day}: the nodes cannot connect anew to exchange copies of "
                "calls"
            )
        if now >= self.ends - SOON:
            days = (self.ends - now).days
            left = "in less than a day" if days < 1 else f"in {days} day{'s' if days > 1 else ''}"
            return f"{self.file} ends {left}, on {day}"
        return ""


def validities(config: Config, node_id: str) -> list[Validity]:
    """The certificates that node `node_id` needs at run time. KeysError where one is unreadable.

    `ca.crt` holds two CAs while keys are rotated; the one that lasts longer is the one to come.
    """
    from cryptography import x509  # heart loads `keys`, and would pay for it in locked memory

    files = paths(config, node_id)
    found = []
    for file in (files.certificate, files.ca_certificate):
        try:
            certificates = x509.load_pem_x509_certificates(read_file(file))
        except ValueError:
            raise KeysError(
                f"{file}: is not PEM. Fix: copy the folder that one "
                '"haclusterctl keys create" wrote'
            ) from None
        found.append(Validity(file, max(one.not_valid_after_utc for one in certificates)))
    return found
