"""Emulator processes for tests: own directory, own loopback address, own ESL port."""

from __future__ import annotations

import itertools
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from tests.unit.emulator_peers import Esl, Telephone

_counter = itertools.count(1)


def loopback() -> str:
    """An address of 127/8 that no other test process uses at the same time."""
    return f"127.{1 + os.getpid() % 250}.{os.getpid() // 250 % 250}.{next(_counter)}"


def free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def eventually(condition: Callable[[], bool], timeout_s: float = 5.0) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"not true after {timeout_s} s")
        time.sleep(0.01)


class Emulator:
    """One emulator; `start` again after a death keeps directory, address and core.db."""

    def __init__(self, directory: Path, ip: str = "", **settings: Any) -> None:
        self.directory = directory
        self.ip = ip or loopback()
        self.port = free_port()
        profile = {"name": "pa", "ip": self.ip, **settings.pop("profile", {})}
        self.config = {
            "run_dir": str(directory),
            "switchname": "nodea",
            "esl": {"port": self.port, "password": "ClueCon"},
            "profiles": [profile, *settings.pop("more_profiles", [])],
            "shutdown_ms": 100,
            **settings,
        }
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def sip(self) -> tuple[str, int]:
        return self.ip, 5060

    def start(self, **changed: Any) -> Emulator:
        self.directory.mkdir(parents=True, exist_ok=True)
        file = self.directory / "emulator.json"
        file.write_text(json.dumps(self.config | changed))
        command = [sys.executable, "-m", "haclusterd.lab.emulator", "--config", str(file)]
        with open(self.directory / "log", "ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        eventually((self.directory / "freeswitch.pid").exists, 10)
        return self

    def signal(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def kill(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait(10)
        (self.directory / "freeswitch.pid").unlink(missing_ok=True)

    def esl(self) -> Esl:
        return Esl("127.0.0.1", self.port, "ClueCon")

    def api(self, command: str) -> str:
        with self.esl() as esl:
            return esl.api(command)

    def telephone(self, number: str = "9197") -> Telephone:
        return Telephone(loopback(), self.sip, number)

    def sql(self, statement: str, *arguments: str) -> list[tuple[str, ...]]:
        path = self.directory / "core.db"
        with closing(sqlite3.connect(path, timeout=5)) as connection, connection:
            return connection.execute(statement, arguments).fetchall()

    def rows(self) -> list[tuple[str, ...]]:
        return self.sql("SELECT * FROM recovery")

    def log(self) -> str:
        return (self.directory / "log").read_text()
