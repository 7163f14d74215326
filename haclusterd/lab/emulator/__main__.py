"""Command line of the emulator: load the configuration, run until a signal or `fsctl shutdown`."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sqlite3
import sys
from pathlib import Path

from haclusterd.lab.emulator.config import EmulatorConfig, EmulatorConfigError, load, of_cluster
from haclusterd.lab.emulator.esl_server import EslServer
from haclusterd.lab.emulator.switch import Switch


async def run(config: EmulatorConfig) -> None:
    """Serve until told to stop.

    :raises OSError, sqlite3.Error: ESL port taken, core.db or pid file not writable.
    """
    Path(config.run_dir).mkdir(parents=True, exist_ok=True)
    switch = Switch(config)
    server = EslServer(switch)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, switch.stopping.set)
    for _ in range(2):
        await asyncio.to_thread(os.getpid)  # threads up: the first recover need not wait for them
    switch.start()
    await server.start()
    pid_file = config.path(config.pid_file)
    pid_file.write_text(f"{os.getpid()}\n")
    await switch.stopping.wait()
    await switch.shutdown()
    await server.stop()
    pid_file.unlink(missing_ok=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m haclusterd.lab.emulator", description=__doc__)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--config", type=Path, help="JSON file")
    which.add_argument("--cluster", type=Path, help="haclusterd.toml: what it says of FreeSWITCH")
    arguments = parser.parse_args()
    path: Path = arguments.config or arguments.cluster
    try:
        asyncio.run(run(load(path) if arguments.config else of_cluster(path)))
    except EmulatorConfigError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    except (OSError, sqlite3.Error) as error:
        sys.stderr.write(f"{path}: cannot start: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
