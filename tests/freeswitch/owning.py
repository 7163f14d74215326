"""Every service at its preferred node: on a busy machine a cluster may begin otherwise."""

from __future__ import annotations

from haclusterd.lab.laboratory import Laboratory
from haclusterd.lab.node import ApiRefused


def as_preferred(lab: Laboratory) -> None:
    """Switch over what is not where it belongs, and wait until it is."""
    for service in lab.plan.services:
        there = service.preferred

        def moved(name: str = service.name, ip: str = service.ip, there: str = there) -> bool:
            if lab.holder(ip) == there:
                return True
            try:
                lab.nodes[there].ctl("switchover", name, "--to", there)
            except (OSError, ApiRefused):
                return False
            return lab.holder(ip) == there

        lab.wait(moved, 40, f"{service.name} at {there}")
