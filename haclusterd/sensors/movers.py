"""What a mover's commands are told, whoever runs them: the agent, or `doctor`."""

from __future__ import annotations

from haclusterd.config import Config
from haclusterd.config.watching import Mover


def environment_of(config: Config, mover: Mover) -> dict[str, str]:
    """Beside HACLUSTERD_VERB and HACLUSTERD_EPOCH."""
    service = next(s for s in config.services if s.name == mover.service)
    return {
        "HACLUSTERD_NODE": config.node.id,
        "HACLUSTERD_SERVICE": service.name,
        "HACLUSTERD_ADDRESSES": " ".join(address.ip for address in service.addresses),
        "HACLUSTERD_NICS": " ".join(address.nic for address in service.addresses),
    }
