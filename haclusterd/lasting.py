"""Work that nobody waits for: when it fails, that is said, for nobody would ask."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any

log = logging.getLogger(__name__)


def lasting(work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
    """A task whose failure is a line of the log at once, and not when the agent ends."""
    task = asyncio.get_running_loop().create_task(work, name=name)
    task.add_done_callback(say_why)
    return task


def say_why(task: asyncio.Task[Any]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("%s failed", task.get_name(), exc_info=error)
