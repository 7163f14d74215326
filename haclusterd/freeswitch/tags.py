"""The tags of a dialog, where FreeSWITCH has them but its row does not yet.

The row of an inbound call is written at the answer and again when the phone has acknowledged it,
in two batches up to 205 ms apart (FREESWITCH.md 1.2). In between FreeSWITCH says over ESL what is
still missing; a call is then recoverable from its first row on.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from typing import TypeGuard

from msgspec.structs import replace

from haclusterd.core.records import CallRecord, Tombstone

from . import metadata
from .esl import Esl
from .esl_errors import EslError

log = logging.getLogger(__name__)

ANSWER_MS = 150  # what FreeSWITCH has not said by then comes with the second row
ASK_AT_ONCE = 25


async def complete(
    esl: Esl | None, changes: Sequence[CallRecord | Tombstone]
) -> list[CallRecord | Tombstone]:
    """The same changes in the same order; records that lack a tag have it where it is known."""
    found = list(changes)
    if esl is None or not esl.up:
        return found
    lacking = [(n, one) for n, one in enumerate(found) if _lacks(one)]
    for start in range(0, len(lacking), ASK_AT_ONCE):
        part = lacking[start : start + ASK_AT_ONCE]
        told = await asyncio.gather(*(_asked(esl, one) for _, one in part))
        for (n, _), record in zip(part, told, strict=True):
            found[n] = record
    return found


def _lacks(change: CallRecord | Tombstone) -> TypeGuard[CallRecord]:
    with contextlib.suppress(metadata.MetadataError):
        return isinstance(change, CallRecord) and metadata.untagged(change.metadata)
    return False


async def _asked(esl: Esl, record: CallRecord) -> CallRecord:
    """With what FreeSWITCH says; as it was where that is no better."""
    try:
        reply = await esl.api(
            f"uuid_getvar {record.uuid} sip_full_to", ANSWER_MS, drop_on_timeout=False
        )
        whole = reply.strip()
        _, _, tag = whole.rpartition(">")[2].partition(";tag=")
        tag = tag.partition(";")[0]
        if not tag or not whole.isprintable():
            return record
        text = metadata.set_variable(record.metadata, "sip_full_to", whole)
        text = metadata.set_variable(text, "sip_to_tag", tag)
        return record if metadata.untagged(text) else replace(record, metadata=text)
    except (EslError, metadata.MetadataError):
        return record
    except Exception:  # it must not keep those that are told with it
        log.exception("call %.60r", record.uuid)
        return record
