"""The service that is asked every millisecond: a UDP echo that answers from the address asked.

`python -m haclusterd.lab.echo PORT NODE_NUMBER PIDFILE`: bound to every address, IPv4 and IPv6; the
answer is the question with the node's number appended.
"""

from __future__ import annotations

import os
import select
import socket
import struct
import sys
from contextlib import suppress
from pathlib import Path

from haclusterd.lab.clock import be_punctual

ECHO_PORT = 7007
_IP_PKTINFO = 8


def _open(family: socket.AddressFamily, port: int) -> socket.socket:
    echo = socket.socket(family, socket.SOCK_DGRAM)
    if family == socket.AF_INET6:
        echo.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        echo.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
        echo.bind(("::", port))
    else:
        echo.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
        echo.bind(("0.0.0.0", port))
    return echo


def _answer(echo: socket.socket, tag: bytes) -> None:
    question, ancillary, _, client = echo.recvmsg(2048, 256)
    asked: list[tuple[int, int, bytes]] = []
    for level, kind, content in ancillary:
        if level == socket.IPPROTO_IP and kind == _IP_PKTINFO:
            address = struct.unpack("=i4s4s", content[:12])[2]
            asked = [(level, kind, struct.pack("=i4s4s", 0, address, address))]
        elif level == socket.IPPROTO_IPV6 and kind == socket.IPV6_PKTINFO:
            asked = [(level, kind, content)]
    echo.sendmsg([question + tag], asked, 0, client)


def main(argv: list[str]) -> int:
    port, tag, pid_file = int(argv[0]), bytes([int(argv[1])]), Path(argv[2])
    be_punctual(70)
    sockets = [_open(family, port) for family in (socket.AF_INET, socket.AF_INET6)]
    temporary = pid_file.with_suffix(".new")
    temporary.write_text(f"{os.getpid()}\n")
    temporary.rename(pid_file)
    while True:
        for echo in select.select(sockets, [], [])[0]:
            # The address may have gone meanwhile, or be fenced.
            with suppress(OSError):
                _answer(echo, tag)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
