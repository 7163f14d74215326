"""News of the nf_tables ruleset: that somebody removed the fence, in the moment it happens.

The kernel tells each transaction's changes, then NEWGEN. What the packet path does to the sets, and
elements that run out, are not told, so a quiet host is quiet here. Layouts: linux/netfilter/
nf_tables.h, nfnetlink.h.
"""

from __future__ import annotations

import errno
import socket
import struct

from haclusterd.heart.errors import refused

_NETLINK_NETFILTER = 12
_GROUP = 1 << (7 - 1)  # NFNLGRP_NFTABLES
_SUBSYSTEM = 10  # NFNL_SUBSYS_NFTABLES
_NEWTABLE, _DELTABLE, _NEWRULE, _DELRULE, _DELSETELEM, _NEWGEN = 0, 2, 6, 8, 14, 15
_HARMFUL = frozenset({_NEWTABLE, _DELTABLE, _DELRULE, _DELSETELEM})  # NEWTABLE: made dormant
_FAMILY_NETDEV = 5
_HEADER = struct.Struct("=IHHIIBBHHH")  # nlmsghdr, nfgenmsg, the first attribute's header
_TABLE_NAME = 1  # NFTA_TABLE_NAME, NFTA_RULE_TABLE, NFTA_SET_ELEM_LIST_TABLE: always the first
_RECEIVE_BYTES = 65536


class RulesetEvents:
    """Non-blocking, for the loop's epoll. `damaged`: the table lost something and has not been
    loaded whole since."""

    def __init__(self, table: str) -> None:
        """Raises HeartError, e.g. without CAP_NET_ADMIN."""
        self._table = table.encode() + b"\0"
        self._touched: set[int] = set()
        self.damaged = False
        kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        try:
            self._socket = socket.socket(socket.AF_NETLINK, kind, _NETLINK_NETFILTER)
            self._socket.bind((0, _GROUP))
        except OSError as error:
            raise refused("nf_tables notifications", error) from error

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()

    def receive(self, limit: int = 64) -> bool:
        """Take in what waits, at most `limit` datagrams; False if some were lost on the way."""
        for _turn in range(limit):
            try:
                datagram = self._socket.recv(_RECEIVE_BYTES)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno == errno.ENOBUFS:
                    return False
                raise refused("nf_tables notifications", error) from error
            self.take(datagram)
        return True

    def take(self, datagram: bytes) -> None:
        """One datagram of notifications; a malformed rest is dropped."""
        offset = 0
        while offset + 20 <= len(datagram):
            size, kind = struct.unpack_from("=IH", datagram, offset)
            if size < 20 or offset + size > len(datagram):
                return
            if kind >> 8 == _SUBSYSTEM:
                self._message(kind & 0xFF, datagram[offset : offset + size])
            offset += (size + 3) & ~3

    def _message(self, kind: int, message: bytes) -> None:
        if kind == _NEWGEN:
            if self._touched & _HARMFUL:
                self.damaged = _NEWRULE not in self._touched
            self._touched.clear()
        elif len(message) >= _HEADER.size:
            *_, family, _version, _resource, size, attribute = _HEADER.unpack_from(message)
            name = message[_HEADER.size : 20 + size]
            ours = family == _FAMILY_NETDEV and attribute == _TABLE_NAME and name == self._table
            if ours:
                self._touched.add(kind)
