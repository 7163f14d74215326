"""The fence's nf_tables script, and `nft`, which loads it. What it means is told in `fence`."""

from __future__ import annotations

import ipaddress
import re
import subprocess
import zlib
from collections.abc import Sequence

from haclusterd.heart.errors import HeartError

ARM, RENEW, CLOSE, PROBE = 1, 2, 3, 4  # last octet of the crafted frame's destination
MARKS = 256  # the marks from `mark` on are the fence's, see `fence`
_NFT_TIMEOUT_S = 5.0


def table_name(cluster: str, node: str) -> str:
    """An nf_tables name for this node's table: letters that nft takes, unique by checksum."""
    plain = re.sub(r"[^A-Za-z0-9]+", "_", f"{cluster}_{node}")[:60]
    return f"haclusterd_{plain}_{zlib.crc32(f'{cluster}/{node}'.encode()):08x}"


def ruleset(
    table: str,
    mark: int,
    devices: Sequence[str],
    addresses: Sequence[str],
    fence_ms: int,
    arm_ms: int,
    silent: bool = True,
) -> str:
    """The nft script that replaces `table` by a closed fence, in one transaction.

    `silent`: what may not leave is led to the loopback, which throws away what is not for it. A
    `drop` comes back as ENOBUFS to sockets with IP_RECVERR, as FreeSWITCH's SIP sockets are, and
    FreeSWITCH then ends the call at once instead of sending again a little later.
    """
    stop = 'fwd to "lo"' if silent else "drop"
    four = [a for a in addresses if ":" not in a]
    six = [a for a in addresses if ":" in a]
    sets, guard, control = [], [], []
    for family, kind, members, loopback in (
        ("ip", "ipv4_addr", four, "127.0.0."),
        ("ip6", "ipv6_addr", six, "::"),
    ):
        if not members:
            continue
        lease, own = f"lease_{family}", f"service_{family}"
        mine = f"{family} saddr @{own}"
        sets += [
            f"set {lease} {{ type {kind}; size 65535; flags dynamic,timeout; gc-interval 1s; }}",
            f"set {own} {{ type {kind}; elements = {{ {', '.join(members)} }} }}",
        ]
        guard.append(f"{mine} {family} saddr != @{lease} {stop}")
        control += [
            f"{family} daddr {loopback}{RENEW} {mine} meta mark @armed "
            f"update @{lease} {{ {family} saddr timeout {fence_ms}ms }} drop",
            f"{family} daddr {loopback}{CLOSE} {mine} delete @{lease} {{ {family} saddr }} drop",
        ]
    guard += _neighbour_rules(four, six, stop)
    arm = f"ip daddr 127.0.0.{ARM} update @armed {{ meta mark timeout {arm_ms}ms }} drop"
    probe = f"ip daddr 127.0.0.{PROBE} drop"
    foreign = f"meta mark & {0xFFFFFFFF - MARKS + 1:#x} != {mark:#x} accept"
    named = ", ".join(f'"{device}"' for device in devices)
    body = [
        "set armed { type mark; size 4096; flags dynamic,timeout; gc-interval 1s; }",
        *sets,
        *(_chain("guard", f"devices = {{ {named} }}", guard) if named and guard else ()),
        *_chain("control", 'device "lo"', [foreign, arm, probe, *control]),
    ]
    name = f"table netdev {table}"
    return "\n".join([name, f"delete {name}", f"{name} {{", *body, "}"]) + "\n"


def _neighbour_rules(four: Sequence[str], six: Sequence[str], stop: str) -> list[str]:
    """What speaks for an address without having it as source: ARP, and NA by others."""
    rules = [f"arp saddr ip @service_ip arp saddr ip != @lease_ip {stop}"] if four else []
    for address in six:
        # nft 1.0.6 has no name for the target field: it starts 8 bytes into the ICMPv6 header.
        target = ipaddress.ip_address(address).packed.hex()
        rules.append(
            f"icmpv6 type nd-neighbor-advert @th,64,128 0x{target} ip6 saddr != @lease_ip6 {stop}"
        )
    return rules


def _chain(name: str, device: str, rules: Sequence[str]) -> list[str]:
    head = f"type filter hook egress {device} priority 0; policy accept;"
    return [f"chain {name} {{", head, *rules, "}"]


def run_nft(*arguments: str, script: str = "") -> None:
    """Run nft once, at start or stop. Raises HeartError with nft's own first complaint."""
    try:
        done = subprocess.run(
            ["nft", *arguments],
            input=script,
            capture_output=True,
            text=True,
            timeout=_NFT_TIMEOUT_S,
            check=False,
        )
    except FileNotFoundError as error:
        raise HeartError("the program nft is missing", "apt-get install nftables") from error
    except subprocess.TimeoutExpired as error:
        raise HeartError(f"nft did not finish within {_NFT_TIMEOUT_S:.0f} s") from error
    if done.returncode:
        raise nft_refused(done.stderr)


def nft_refused(stderr: str) -> HeartError:
    said = next((line for line in stderr.splitlines() if line.strip()), "no reason given")
    fix = "needs Linux 5.16 or later with CONFIG_NF_TABLES_NETDEV and CONFIG_NETFILTER_EGRESS"
    if "permitted" in said:
        fix = "run with CAP_NET_ADMIN"
    return HeartError(f"nft: {said.strip()}", fix)


def drop_table(table: str) -> None:
    """Remove the table, if it is there. Raises HeartError."""
    name = f"table netdev {table}"
    run_nft("-f", "-", script=f"{name}\ndelete {name}\n")
