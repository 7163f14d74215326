"""Measuring processes seen from the laboratory: started in a namespace, asked line by line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import msgspec

import haclusterd
from haclusterd.lab import netns
from haclusterd.lab.netns import LabError

T = TypeVar("T")


def python_environment() -> dict[str, str]:
    """The environment in which `python -m haclusterd...` finds this very code."""
    root = str(Path(haclusterd.__file__).parent.parent)
    others = [p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p and p != root]
    # Only names that hold for every node: HOME and locale, not the caller's own switches.
    kept = {key: os.environ[key] for key in ("PATH", "HOME", "LANG", "TMPDIR") if key in os.environ}
    return {**kept, "PYTHONPATH": os.pathsep.join([root, *others]), "PYTHONUNBUFFERED": "1"}


class Instrument:
    """A measuring process: one line of command, one line of JSON as the answer."""

    def __init__(
        self, namespace: str, module: str, *arguments: str, settings: object = None, log: Path
    ) -> None:
        self._name = module.rpartition(".")[2]
        self._log = log
        with netns.inside(namespace), log.open("ab") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", module, *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=python_environment(),
                start_new_session=True,
            )
        if settings is not None:
            self._write(msgspec.json.encode(settings))
        if self._read().strip() != b"ready":
            raise self._failed()

    def ask(self, command: str) -> Any:
        return msgspec.json.decode(self._exchange(command))

    def ask_as(self, command: str, kind: type[T]) -> T:
        return msgspec.json.decode(self._exchange(command), type=kind)

    def close(self) -> None:
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            self._process.wait(2)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def __enter__(self) -> Instrument:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _exchange(self, command: str) -> bytes:
        self._write(command.encode())
        answer = self._read()
        if not answer:
            raise self._failed()
        return answer

    def _write(self, line: bytes) -> None:
        if self._process.stdin is None or self._process.poll() is not None:
            raise self._failed()
        self._process.stdin.write(line + b"\n")
        self._process.stdin.flush()

    def _read(self) -> bytes:
        return self._process.stdout.readline() if self._process.stdout is not None else b""

    def _failed(self) -> LabError:
        lines = (
            self._log.read_text(errors="replace").strip().splitlines() if self._log.exists() else []
        )
        return LabError(f"{self._name} ended: {lines[-1] if lines else 'no message'} ({self._log})")
