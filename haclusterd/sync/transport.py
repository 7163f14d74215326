"""The mesh of connections between agents: listen on every link, dial, authenticate, dial again.

Of each pair the node with the lower id dials, from its own address of the link to the peer's; over
which link is in `dialling`. Both sides show certificates of the cluster's CA (TLS 1.3); a
certificate must name a configured node. Segments are kept small so that a path that loses large
packets (scenario 50) still carries a snapshot.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from haclusterd.lasting import lasting, unending
from haclusterd.sync.dialling import Dialler
from haclusterd.sync.session import Session, SessionOwner, SyncTiming

log = logging.getLogger(__name__)

SEGMENT_BYTES = 1128  # 1200 less IPv6 and TCP headers with timestamps
HANDSHAKES_MAX = 64
HANDSHAKES_PER_SOURCE_MAX = 4
_ANY_NAME = "haclusterd"  # TLS wants one and nobody looks at it; an id like "a..b" is no host name
_IP_FREEBIND = 15
_IPV6_FREEBIND = 78


class SyncError(Exception):
    """Replication cannot start; the message names the cause and the fix."""


class Identity(msgspec.Struct, frozen=True):
    """Where this node's key material is; made by `haclusterctl keys create`."""

    ca_file: Path
    certificate_file: Path
    key_file: Path


class MeshConfig(msgspec.Struct, frozen=True):
    """Who is who. `links[node]`: one address per link, the same order for every node."""

    cluster: str
    node: str
    links: Mapping[str, Sequence[str]]
    port: int
    identity: Identity
    timing: SyncTiming = SyncTiming()
    segment_bytes: int = SEGMENT_BYTES
    ports: Mapping[str, int] = {}  # of single nodes, where several share an address (tests)

    def port_of(self, node: str) -> int:
        """The port on which `node` listens."""
        return self.ports.get(node, self.port)


def tls_context(identity: Identity, server: bool) -> ssl.SSLContext:
    """TLS 1.3 with a certificate demanded from the other side. Raises SyncError."""
    side = ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT
    context = ssl.SSLContext(side)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False  # the peer is a node id, compared in session.certified_node
    context.verify_mode = ssl.CERT_REQUIRED
    if server:
        context.num_tickets = 0
    for file in (identity.ca_file, identity.certificate_file, identity.key_file):
        if not file.is_file():
            raise SyncError(
                f"{file} is missing: run `haclusterctl keys create` and copy the "
                "directory to every node"
            )
    try:
        context.load_verify_locations(identity.ca_file)
        context.load_cert_chain(identity.certificate_file, identity.key_file)
    except (ssl.SSLError, OSError) as error:
        raise SyncError(
            f"{identity.certificate_file}: {error}: the certificate, its key and "
            f"{identity.ca_file.name} do not fit together; run "
            "`haclusterctl keys create` again"
        ) from error
    return context


class Mesh:
    """Keeps one session with every other node. `counters` hold everything that went wrong."""

    def __init__(self, config: MeshConfig, owner: SessionOwner) -> None:
        self.config = config
        self.counters: Counter[str] = Counter()
        self.sessions: dict[str, Session] = {}
        self._distrusted: dict[str, str] = {}
        self._owner = owner
        self._nodes = frozenset(config.links)
        self._server_tls = tls_context(config.identity, server=True)
        self._client_tls = tls_context(config.identity, server=False)
        self._tasks: set[asyncio.Task[None]] = set()
        self._shaking: Counter[str] = Counter()
        self._listeners: list[socket.socket] = []
        self._all: set[Session] = set()
        self._diallers: dict[str, Dialler] = {}

    async def start(self) -> None:
        """Listen on every own link and dial. Raises SyncError, e.g. where the port is taken."""
        own = self.config.node
        try:
            for address in dict.fromkeys(self.config.links[own]):
                self._listeners.append(self._listen(address))
        except BaseException:
            self._close_listeners()
            raise
        for listener in self._listeners:
            self._keep(partial(self._accept, listener), "accepting replication")
        for peer in self.config.links:
            if own < peer:
                self._diallers[peer] = self._dialler(peer)
                self._keep(self._diallers[peer].run, f"replication with {peer}")

    async def stop(self) -> None:
        """Close everything and wait for it."""
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(list(self._tasks), timeout=1)
        self._close_listeners()
        sessions = list(self._all)
        for session in sessions:
            session.abort("stopped", "this node stops replicating")
        if sessions:
            await asyncio.wait([s.closed for s in sessions], timeout=1)

    def reload_certificates(self) -> None:
        """Read the key material again; sessions that are up stay. Raises SyncError."""
        self._server_tls = tls_context(self.config.identity, server=True)
        self._client_tls = tls_context(self.config.identity, server=False)

    def hear(self, peer: str, up: Sequence[bool]) -> None:
        """Heart's word on the links to a peer: which of them carry beats both ways."""
        dialler = self._diallers.get(peer)
        if dialler is not None:
            dialler.heard.hear(up)

    def adopt(self, session: Session) -> None:
        """A session is ready: it replaces an older one with the same peer."""
        self._distrusted.pop(session.peer, None)
        old = self.sessions.get(session.peer)
        self.sessions[session.peer] = session
        if old is not None and old is not session:
            old.abort("replaced", "the peer connected again")

    def lost(self, session: Session) -> bool:
        """A session ended; True if it was the one in use."""
        if self.sessions.get(session.peer) is not session:
            return False
        del self.sessions[session.peer]
        return True

    def distrusted(self) -> dict[str, str]:
        """By peer that is not connected: why the certificate it showed last is not accepted."""
        return {p: why for p, why in self._distrusted.items() if p not in self.sessions}

    def _distrust(self, peer: str, error: BaseException) -> None:
        """An end of its validity, or another CA: no waiting mends it, so it is said aloud, once."""
        if not peer or not isinstance(error, ssl.SSLCertVerificationError):
            return
        text = (
            f"the certificate that {peer} shows is not accepted here: {error.verify_message}; look "
            f"at {peer}.crt and ca.crt there, and at {self.config.identity.ca_file} here"
        )
        if self._distrusted.get(peer) != text:
            self._distrusted[peer] = text
            log.warning("%s", text)

    # -- accepting --

    def _listen(self, address: str) -> socket.socket:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        listener = socket.socket(family, socket.SOCK_STREAM)
        try:
            listener.setblocking(False)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                listener.setsockopt(socket.IPPROTO_IPV6, _IPV6_FREEBIND, 1)
            else:
                listener.setsockopt(socket.IPPROTO_IP, _IP_FREEBIND, 1)
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, self.config.segment_bytes)
            listener.bind((address, self.config.port_of(self.config.node)))
            listener.listen(HANDSHAKES_MAX)
        except OSError as error:
            listener.close()
            port = self.config.port_of(self.config.node)
            raise SyncError(
                f"cannot listen on {address} port {port}: {error.strerror}; stop what "
                "uses it (`ss -ltnp`) or change `port` in [sync]"
            ) from error
        return listener

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, source = await loop.sock_accept(listener)
            except OSError as error:
                self.counters["accept"] += 1
                log.debug("accept: %s", error)
                await asyncio.sleep(0.1)
                continue
            address = str(source[0])
            if (
                self._shaking.total() >= HANDSHAKES_MAX
                or self._shaking[address] >= HANDSHAKES_PER_SOURCE_MAX
            ):
                self.counters["crowded"] += 1
                connection.close()
                continue
            self._shaking[address] += 1
            self._spawn(self._handshake(connection, address), f"handshake with {address}")

    async def _handshake(self, connection: socket.socket, address: str) -> None:
        loop = asyncio.get_running_loop()
        timing = self.config.timing
        limit_s = 4 * timing.connect_ms / 1000
        try:
            connection.setblocking(False)
            self._tune(connection)
            session = self._session(None)
            await loop.connect_accepted_socket(
                lambda: session,
                connection,
                ssl=self._server_tls,
                ssl_handshake_timeout=limit_s,
                ssl_shutdown_timeout=1,
            )
            await self._until_ready(session, limit_s)
        except (TimeoutError, OSError) as error:
            self.counters["handshake"] += 1
            log.debug("sync handshake with %s failed: %s", address, error)
            self._distrust(self._node_at(address), error)
            connection.close()
        finally:
            self._shaking[address] -= 1
            if self._shaking[address] <= 0:
                del self._shaking[address]

    # -- dialling --

    def _dialler(self, peer: str) -> Dialler:
        def moved() -> None:
            self.counters["moved"] += 1

        links = len(self.config.links[peer])
        return Dialler(peer, links, self.config.timing, partial(self._dial, peer), moved)

    async def _dial(self, peer: str, link: int) -> Session | None:
        """One attempt over one link; None (and a counter) if it did not end in a session."""
        config = self.config
        loop = asyncio.get_running_loop()
        limit_s = config.timing.connect_ms / 1000
        own = config.links[config.node]
        address = config.links[peer][link]
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        connection = socket.socket(family, socket.SOCK_STREAM)
        handed = False  # to a transport, which closes it: its number must not be free before
        try:
            connection.setblocking(False)
            self._tune(connection)
            if link < len(own):
                connection.bind((own[link], 0))
            target = (address, config.port_of(peer))
            async with asyncio.timeout(limit_s):  # wait_for of 3.11 can swallow a cancellation
                await loop.sock_connect(connection, target)
            session = self._session(peer)
            handed = True
            await loop.create_connection(
                lambda: session,
                sock=connection,
                ssl=self._client_tls,
                server_hostname=_ANY_NAME,
                ssl_handshake_timeout=2 * limit_s,
                ssl_shutdown_timeout=1,
            )
            if await self._until_ready(session, 2 * limit_s):
                return session
            self.counters["refused"] += 1
        except (TimeoutError, OSError, RuntimeError) as error:  # whatever it is, dial again
            self.counters["dial"] += 1
            log.debug("sync with %s over %s: %s", peer, address, error)
            self._distrust(peer, error)
        finally:
            if not handed:
                connection.close()
        return None

    async def _until_ready(self, session: Session, limit_s: float) -> bool:
        self._all.add(session)
        session.closed.add_done_callback(lambda _: self._all.discard(session))
        done, _ = await asyncio.wait([session.became_ready], timeout=limit_s)
        if not done:
            session.abort("hello", f"no hello within {limit_s:.1f} s")
            return False
        return session.became_ready.result()

    # -- small parts --

    def _node_at(self, address: str) -> str:
        """The other node that has this link address, or nothing."""
        others = ((n, links) for n, links in self.config.links.items() if n != self.config.node)
        return next((node for node, links in others if address in links), "")

    def _session(self, expect: str | None) -> Session:
        config = self.config
        return Session(
            config.node,
            config.cluster,
            self._nodes,
            expect,
            config.timing,
            self._owner,
            self.counters,
        )

    def _tune(self, connection: socket.socket) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, self.config.segment_bytes)

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> None:
        self._remember(lasting(work, name))

    def _keep(self, work: Callable[[], Coroutine[Any, Any, None]], name: str) -> None:
        self._remember(unending(work, name))

    def _remember(self, task: asyncio.Task[None]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _close_listeners(self) -> None:
        for listener in self._listeners:
            listener.close()
        self._listeners.clear()
