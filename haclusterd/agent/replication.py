"""The replicator with what the agent adds: own records, and a view of heart in its terms."""

from __future__ import annotations

from haclusterd.config import Config
from haclusterd.core.records import CallRecord
from haclusterd.core.replication import Item
from haclusterd.core.view import View
from haclusterd.keys import paths
from haclusterd.sync.replicator import Replicator
from haclusterd.sync.transport import Identity, MeshConfig


class AgentReplicator(Replicator):
    """Replicator of this node."""

    def own_records(self, service: str) -> list[CallRecord]:
        """Live calls of an owned service, as they were last logged."""
        items = self.change_log.items(service)
        return [] if items is None else self.store.unpack(items.items.values())

    def owned(self) -> dict[str, int]:
        """Epoch by owned service."""
        return {name: log.epoch for name, log in self.change_log.logs.items()}

    def own_calls(self, service: str) -> int:
        """Live call legs of an owned service."""
        items = self.change_log.items(service)
        return 0 if items is None else items.live

    def items_of(self, service: str) -> tuple[str, list[Item]]:
        """("own" or "copy", packed calls): what this node knows of a service."""
        own = self.change_log.items(service)
        items = own.items if own is not None else self.store.items(service)
        return "copy" if own is None else "own", [i for i in items.values() if not i.dead]

    def take_view(self, view: View) -> None:
        """What heart sees, as `observe` wants it."""
        self.observe(
            {s.name: (s.owner, s.epoch) for s in view.services if s.owner},
            [n.id for n in view.nodes if n.role not in ("dead", "left")],
            [n.id for n in view.nodes if n.role not in ("dead", "left", "failed", "maintenance")],
        )


def mesh_config(config: Config) -> MeshConfig:
    """Who is who in the mesh, from the configuration. Witnesses take part: they carry requests."""
    files = paths(config, config.node.id)
    return MeshConfig(
        cluster=config.name,
        node=config.node.id,
        links={node.id: node.links for node in config.nodes},
        port=config.sync_port,
        identity=Identity(files.ca_certificate, files.certificate, files.private_key),
    )
