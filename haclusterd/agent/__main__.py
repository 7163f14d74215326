"""Start of the agent. Heart runs it: `python -m haclusterd.agent --config FILE --heart-fd N`."""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from haclusterd.agent import logs
from haclusterd.config import ConfigError, revisions

GC_THRESHOLD = 50_000  # call records are plain values: collecting them often only costs time
SWITCH_S = 0.0005  # the threads that read and write core.db hold nobody up for Python's 5 ms


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point: 0 when heart ended it, 1 when it could not run, 2 usage."""
    arguments = _parser().parse_args(argv)
    try:
        begun = revisions.begin(
            arguments.config, node=arguments.node, run_dir=arguments.run_dir,
            revision=arguments.revision, counts_by=arguments.shape,
        )  # fmt: skip
    except ConfigError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    listener = logs.start(logging.INFO, "JOURNAL_STREAM" in os.environ)
    sys.setswitchinterval(SWITCH_S)
    gc.set_threshold(GC_THRESHOLD, 20, 20)
    try:
        reason = asyncio.run(_run(begun, arguments.heart_fd))
        logging.getLogger(__name__).info("the agent ends: %s", reason)
    finally:
        listener.stop()
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="haclusterd.agent", description="The agent of haclusterd; started by its heart."
    )
    parser.add_argument("--config", type=Path, required=True, metavar="FILE")
    parser.add_argument("--node", metavar="ID")
    parser.add_argument("--run-dir", type=Path, metavar="DIR")
    parser.add_argument("--revision", type=int, default=0, metavar="N")
    parser.add_argument("--shape", type=int, default=0, metavar="N")
    parser.add_argument("--heart-fd", type=int, required=True, metavar="N")
    return parser


async def _run(begun: revisions.Start, heart_fd: int) -> str:
    from haclusterd.agent.daemon import Agent

    agent = Agent(begun.config, heart_fd, begun)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, agent.stop)
    # The terminal's hang-up is heart's business: there it means an upgrade.
    loop.add_signal_handler(signal.SIGHUP, lambda: None)
    return await agent.run()


if __name__ == "__main__":
    sys.exit(main())
