"""A file system whose writers not even SIGKILL reaches, as on a dead file server."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from haclusterd.sensors.probes import Probe, probe_of
from haclusterd.sensors.reading import CRITICAL, OK, Reading
from tests.unit.test_sensor_readings import SENSOR

_TOOLS = ("mkfs.ext4", "fsfreeze", "mount", "umount")
_PATH = "/usr/sbin:/sbin:/usr/bin:/bin"
_ABSENT = [tool for tool in _TOOLS if shutil.which(tool, path=_PATH) is None]
pytestmark = [
    pytest.mark.lab,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount"),
    pytest.mark.skipif(bool(_ABSENT), reason=f"missing: {', '.join(_ABSENT)}"),
    pytest.mark.timeout(60),
]


def call(*words: str) -> None:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise OSError(f"{' '.join(words)}: {done.stderr.strip()}")


@pytest.fixture
def storage(tmp_path: Path) -> Iterator[Path]:
    image, folder = tmp_path / "image", tmp_path / "mounted"
    folder.mkdir()
    with image.open("wb") as file:
        file.truncate(16 << 20)
    try:
        call("mkfs.ext4", "-q", str(image))
        call("mount", "-o", "loop", str(image), str(folder))
    except OSError as error:
        pytest.skip(f"no loop mount here: {error}")
    try:
        yield folder
    finally:
        with suppress(OSError):
            call("fsfreeze", "--unfreeze", str(folder))
        call("umount", "--lazy", str(folder))


def test_a_storage_that_hangs_for_good_stops_nothing_else(storage: Path) -> None:
    """EG13: critical in time, one process left behind and no second one, well again after."""

    async def scenario() -> None:
        sensor = replace(SENSOR, kind="mount", path=str(storage), write=True, timeout_ms=500)
        probe: Probe = probe_of(sensor, "fs-a", list, list)
        assert (await probe()).level == OK
        call("fsfreeze", "--freeze", str(storage))
        worst, readings = 0.0, list[Reading]()
        for _ in range(3):
            reading = asyncio.ensure_future(probe())
            while not reading.done():
                began = time.monotonic()
                await asyncio.sleep(0.01)
                worst = max(worst, time.monotonic() - began)
            readings.append(reading.result())
        assert {found.level for found in readings} == {CRITICAL}
        assert "did not end within 0.5 s" in readings[0].text
        assert all("not even SIGKILL ends it" in found.text for found in readings[1:])
        assert worst < 0.5, "the loop went on"
        call("fsfreeze", "--unfreeze", str(storage))
        async with asyncio.timeout(10):
            while (await probe()).level != OK:
                await asyncio.sleep(0.1)

    asyncio.run(scenario())
