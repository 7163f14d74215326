"""`orders.json`: what operators ordered, on disk before anybody is told that it is done (ML10).

Times are written as what is left of them, with the boot and the moment: within one boot they go
on by its clock; over a restart of the host they stand still, for no clock is sure to have run.
Whom a file of another boot marks dead may be back since: it is not marked by it any more.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from haclusterd.core.agreed import AgreedWord, MarkWord
from haclusterd.core.model import FOR_GOOD_US
from haclusterd.files import boot_id, write_atomically

FILE_NAME = "orders.json"
FILE_BYTES_MAX = 1 << 20
FORMAT = 1


class Maintenance(msgspec.Struct, frozen=True):
    """This node's own; `left_us` FOR_GOOD_US without an end."""

    on: bool = False
    left_us: int = FOR_GOOD_US

    def until(self, end_us: int, now_us: int) -> Maintenance:
        """The same as it stands at `now_us`, where it ends at `end_us`."""
        left_us = FOR_GOOD_US if self.left_us >= FOR_GOOD_US else max(0, end_us - now_us)
        return Maintenance(self.on and left_us > 0, left_us)


class Kept(msgspec.Struct, frozen=True):
    """The file. `at_us` is BOOTTIME when it was written, in the boot `boot_id`."""

    format: int
    cluster: str
    boot_id: str
    at_us: int
    agreed: AgreedWord = AgreedWord()
    maintenance: Maintenance = Maintenance()
    standing_by: tuple[str, ...] = ()  # services whose profiles the agent put into standby

    def is_of_this_boot(self) -> bool:
        """The host has not restarted since; False where /proc does not say."""
        return bool(self.boot_id) and self.boot_id == boot_id()


class OrdersFileError(Exception):
    """The file cannot be used; the message names it and the fix."""


def read(path: Path, cluster: str, now_us: int) -> Kept | None:
    """What was kept, its times as they stand at `now_us`; None where there is no file.

    Raises OrdersFileError.
    """
    fix = "order again what shall be in force"
    try:
        with path.open("rb") as file:
            content = file.read(FILE_BYTES_MAX + 1)
        found = msgspec.json.decode(content, type=Kept)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise OrdersFileError(f"{path}: {error.strerror}: {fix}") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise OrdersFileError(f"{path}: is damaged ({error}): {fix}") from None
    if len(content) > FILE_BYTES_MAX or found.format != FORMAT or found.cluster != cluster:
        raise OrdersFileError(f"{path}: is not of this cluster and version: {fix}")
    gone_us = max(0, now_us - found.at_us) if found.is_of_this_boot() else 0
    pause, maintenance = found.agreed.pause, found.maintenance
    pause = msgspec.structs.replace(pause, left_us=_left(pause.left_us, gone_us))
    drains = tuple(
        msgspec.structs.replace(
            drain, left_us=_left(drain.left_us, gone_us), move_us=_left(drain.move_us, gone_us)
        )
        for drain in found.agreed.drains
    )
    left_us = _left(maintenance.left_us, gone_us)
    return msgspec.structs.replace(
        found,
        agreed=msgspec.structs.replace(found.agreed, pause=pause, drains=drains),
        maintenance=Maintenance(maintenance.on and left_us > 0, left_us),
    )


def set_aside(path: Path) -> str:
    """Move away what cannot be used, so that nothing writes over it; a sentence that says where."""
    aside = path.with_name(path.name + ".damaged")
    try:
        path.replace(aside)
    except OSError:
        return ""
    return f"; what it held is in {aside} now"


def sentence(forgotten: Sequence[MarkWord]) -> str:
    """For the operator: whose marks are not in force any more, and the fix; empty for none."""
    if not forgotten:
        return ""
    marked = ", ".join(f"{mark.node} (verified by {mark.by})" for mark in forgotten)
    return (
        f"marked dead before this host restarted, and not any more: {marked}: look again; what is "
        "still dead: `haclusterctl node mark-dead ID --verified-by NAME`"
    )


def _left(left_us: int, gone_us: int) -> int:
    return FOR_GOOD_US if left_us >= FOR_GOOD_US else max(0, left_us - gone_us)


def write(path: Path, kept: Kept) -> None:
    """Replace the file; on disk when this returns. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = msgspec.json.format(msgspec.json.encode(kept), indent=1) + b"\n"
    write_atomically(path, content)
