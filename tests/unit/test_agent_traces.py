"""The agent's part of the flight recorder: put together, packed, saved, bounded."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from haclusterd.agent import traces as module
from haclusterd.agent.operators import OperatorError
from haclusterd.agent.traces import Traces
from haclusterd.core.actions import Decided, TracePart
from haclusterd.core.inputs import FromAgent, TraceRequested
from haclusterd.trace import folder
from haclusterd.trace.file import unpack
from haclusterd.trace.replay import replay
from tests.fixtures.agent_parts import spec
from tests.fixtures.recorded import a_takeover

pytestmark = pytest.mark.timeout(20)

PIECES = a_takeover().pieces(2)


class Heart:
    """Answers each request with the pieces of a recording, some time later."""

    def __init__(self, path: Path) -> None:
        self.asked: list[TraceRequested] = []
        self.answers = True
        self.refusal = ""
        self.traces = Traces(spec(), path, self.send)

    def send(self, message: FromAgent) -> None:
        assert isinstance(message, TraceRequested)
        self.asked.append(message)
        if self.answers:
            asyncio.get_running_loop().call_soon(self.hand_out, message.request)

    def hand_out(self, request: int) -> None:
        if self.refusal:
            self.traces.take(TracePart(request, b"", True, self.refusal))
            return
        self.traces.take(TracePart(request - 1, b"late", True))
        body = b"".join(PIECES)
        for at in range(0, len(body), 40_000):
            last = at + 40_000 >= len(body)
            self.traces.take(TracePart(request, body[at : at + 40_000], last))


@pytest.fixture
def heart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Heart:
    monkeypatch.setattr(module, "SPACING_S", 0.05)
    monkeypatch.setattr(module, "AFTER_CHANGE_S", 0.05)
    monkeypatch.setattr(module, "HEART_S", 0.5)
    return Heart(tmp_path / "traces")


async def test_a_recording_is_put_together(heart: Heart) -> None:
    trace = unpack(await heart.traces.fetch(True), "x")
    assert (trace.header.node, trace.header.cluster) == ("fs-a", "voice1")
    assert replay(trace).difference is None
    assert [m.whole for m in heart.asked] == [True]


async def test_it_is_saved_for_root_only_listed_and_read(heart: Heart) -> None:
    saved = await heart.traces.save()
    path = Path(saved.path)
    assert path.parent == heart.traces.folder
    assert path.stat().st_mode & 0o777 == 0o600
    assert await heart.traces.listed() == [saved]
    assert await heart.traces.named(saved.name) == path.read_bytes()
    with pytest.raises(OperatorError, match="names no recording"):
        await heart.traces.named("../../etc/shadow")


async def test_one_at_a_time_and_not_in_quick_succession(heart: Heart) -> None:
    loop = asyncio.get_running_loop()
    began = loop.time()
    await asyncio.gather(*(heart.traces.fetch(True) for _ in range(3)))
    assert loop.time() - began >= 2 * 0.05
    assert [m.request for m in heart.asked] == [1, 2, 3]


async def test_a_heart_that_does_not_answer_or_refuses(heart: Heart) -> None:
    heart.answers = False
    with pytest.raises(OperatorError, match="handed no recording out"):
        await heart.traces.fetch(True)
    heart.answers, heart.refusal = True, "heart is handing out a recording already"
    with pytest.raises(OperatorError, match="already"):
        await heart.traces.fetch(True)
    heart.refusal = ""
    assert await heart.traces.fetch(False)


async def test_more_than_any_ring_holds_is_not_collected(
    heart: Heart, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BODY_BYTES_MAX", 100_000)
    with pytest.raises(OperatorError, match="larger than any"):
        await heart.traces.fetch(True)


async def test_a_folder_that_cannot_be_written(heart: Heart, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    heart.traces.folder = tmp_path / "file" / "traces"
    with pytest.raises(OperatorError, match="make the folder writable"):
        await heart.traces.save()


async def test_a_change_of_owner_here_is_saved_once_it_has_settled(heart: Heart) -> None:
    heart.traces.decided(Decided(1, "V1", "grants elsewhere", 0, 2))
    await asyncio.sleep(0.1)
    assert heart.asked == []
    for row in ("T301", "T407", "T301"):  # three services at once are one recording
        heart.traces.decided(Decided(1, row, "something", 0, 2))
    assert heart.traces._later is not None
    await heart.traces._later
    (saved,) = await heart.traces.listed()
    assert saved.reason == folder.OWNER
    heart.traces.decided(Decided(2, "T701", "released", 0, 2))
    await heart.traces.stop()
    assert len(await heart.traces.listed()) == 1


async def test_a_recording_that_cannot_be_saved_by_itself_is_only_logged(
    heart: Heart, caplog: pytest.LogCaptureFixture
) -> None:
    heart.refusal = "recording has stopped"
    heart.traces.decided(Decided(1, "T301", "serves", 0, 2))
    assert heart.traces._later is not None
    await heart.traces._later
    assert "was not saved: recording has stopped" in caplog.text
