"""The flight recorder: bounds of its ring, its file, hostile files, replays that are equal."""

from __future__ import annotations

import contextlib
import os
import time
from datetime import datetime, tzinfo
from pathlib import Path
from typing import Any

import msgspec
import pytest

from haclusterd.core import claimant
from haclusterd.core.actions import Persist
from haclusterd.core.inputs import AddressesAdded, Overheard, Tick
from haclusterd.core.model import Identity
from haclusterd.core.node import step
from haclusterd.core.state import start
from haclusterd.trace import folder
from haclusterd.trace.file import BODY_BYTES_MAX, MAGIC, Trace, TraceError, pack, unpack
from haclusterd.trace.recorder import BATCH, Recorder
from haclusterd.trace.replay import replay
from tests.fixtures.recorded import HEADER, Recordings, a_takeover
from tests.unit.core_bench import spec_of


@pytest.fixture(scope="module")
def takeover() -> Recordings:
    return a_takeover()


@pytest.fixture(scope="module")
def content(takeover: Recordings) -> bytes:
    return takeover.file(2)


# -- the ring ------------------------------------------------------------------------------------


def test_all_is_kept_while_it_is_young(takeover: Recordings) -> None:
    trace = takeover.trace(2)
    assert trace.steps == takeover.steps[2]
    assert [s.began_us for s in trace.segments] == sorted({s.began_us for s in trace.segments})


def test_the_ring_is_bounded_by_bytes_and_by_time() -> None:
    small = a_takeover(bytes_max=100_000)
    recorder = small.by_node[2][1]
    assert recorder.size <= 100_000
    kept = small.trace(2)
    assert 0 < kept.steps < small.steps[2]
    assert replay(kept).difference is None, "what is left begins with a checkpoint"
    short = a_takeover(keep_us=500_000, segment_us=100_000).trace(2)
    assert 500_000 <= short.ended_us - short.began_us <= 700_000
    assert replay(short).difference is None


def test_what_was_handed_out_does_not_change(takeover: Recordings) -> None:
    node = start(spec_of(), 1_000, 7)
    recorder = Recorder(node, 1_000)
    recorder.note(Tick(), 2_000, step(node, Tick(), 2_000)[1])
    pieces = recorder.body(2_000)
    before = b"".join(pieces)
    for k in range(50):
        recorder.note(Tick(), 3_000 + k, step(node, Tick(), 3_000 + k)[1])
    assert b"".join(pieces) == before
    assert unpack(pack(HEADER, pieces), "x").steps == 1


def test_only_the_state(takeover: Recordings) -> None:
    trace = takeover.trace(3, whole=False)
    assert (len(trace.segments), trace.steps) == (1, 0)
    assert trace.segments[0].node == takeover.by_node[3][0]


def test_a_step_costs_next_to_nothing(takeover: Recordings) -> None:
    """Some 2 us in a heart's 30 to 50 for a step; the bound only catches another order."""
    steps = [(s.event, s.after_us) for segment in takeover.trace(2).segments for s in segment.steps]
    recorder = Recorder(takeover.by_node[2][0], 0)
    began = time.process_time()
    for event, after_us in steps:
        recorder.note(event, after_us, ())
    assert (time.process_time() - began) / len(steps) < 50e-6


def test_what_cannot_be_encoded_ends_the_recording_and_nothing_else() -> None:
    node = start(spec_of(), 1_000, 7)
    recorder = Recorder(node, 1_000)
    recorder.note(Tick(), 2_000, [Persist((Identity(1 << 80, 0, 0),))])
    for _again in range(BATCH):  # encoded in batches
        recorder.note(Tick(), 2_500, ())
    assert "recording has stopped: Tick" in recorder.fault
    recorder.note(Tick(), 3_000, ())
    assert recorder.size == 0
    with pytest.raises(TraceError, match="holds no steps"):
        unpack(pack(HEADER, recorder.body(3_000)), "x")


def test_a_state_that_cannot_be_encoded_ends_the_recording_and_nothing_else() -> None:
    for whole in (True, False):
        node = start(spec_of(), 1_000, 7)
        recorder = Recorder(node, 1_000, segment_us=10_000)
        node.random = 1 << 80
        assert len(recorder.body(2_000, whole)) == 1
        assert "recording has stopped: Node" in recorder.fault
    node = start(spec_of(), 1_000, 7)
    recorder = Recorder(node, 1_000, segment_us=10_000)
    node.random = 1 << 80
    recorder.note(Tick(), 20_000, ())
    assert "recording has stopped: Node" in recorder.fault


# -- replay --------------------------------------------------------------------------------------


@pytest.mark.parametrize("me", range(4))
def test_a_replay_reaches_the_same_actions(takeover: Recordings, me: int) -> None:
    outcome = replay(takeover.trace(me))
    assert outcome.difference is None
    assert outcome.steps == takeover.steps[me]


def test_a_replay_tells_what_was_decided(takeover: Recordings) -> None:
    rows = [what.row for what in replay(takeover.trace(2)).decided if what.service == 0]
    assert rows[-3:] == ["T101", "T201", "T301"]


def test_another_core_is_found_out(takeover: Recordings, monkeypatch: pytest.MonkeyPatch) -> None:
    """One ms of impatience in the claimant: the claim comes in another step."""
    due = claimant._due

    def sooner(*words: Any) -> int:
        return due(*words) - 1_000

    monkeypatch.setattr(claimant, "_due", sooner)
    difference = replay(takeover.trace(2)).difference
    assert difference is not None
    assert difference.what == "this core asks for other actions than the recorded one"
    assert difference.input == "Tick()"


def test_a_state_changed_from_outside_is_found_at_the_checkpoint(takeover: Recordings) -> None:
    trace = takeover.trace(2)
    last = takeover.by_node[2][0]
    changed = msgspec.msgpack.decode(msgspec.msgpack.encode(last), type=type(last))
    changed.calls += 1
    again = msgspec.structs.replace(trace.segments[0], node=changed, steps=[])
    difference = replay(Trace(trace.header, [*trace.segments, again])).difference
    assert difference is not None
    assert difference.what == "the state differs from the checkpoint in calls"
    assert difference.step == takeover.steps[2]


def test_the_step_that_broke_the_core_is_the_last_and_breaks_it_again() -> None:
    node = start(spec_of(), 1_000, 7)
    recorder = Recorder(node, 1_000)
    wrong = AddressesAdded(99, True)
    with pytest.raises(IndexError):
        step(node, wrong, 2_000)
    recorder.broke(wrong, 2_000)
    trace = unpack(pack(HEADER, recorder.last_words()), "x")
    outcome = replay(trace)
    assert outcome.difference is None
    assert outcome.ended.startswith("IndexError")
    healed = msgspec.structs.replace(trace.segments[0].steps[0], event=Tick())
    trace.segments[0].steps[0] = healed
    difference = replay(trace).difference
    assert difference is not None
    assert "this one does not" in difference.what


@pytest.mark.parametrize("wrong", [Overheard(1 << 80, 1), AddressesAdded(0, False, "\udcff")])
def test_what_broke_the_core_may_be_what_cannot_be_encoded(
    wrong: Overheard | AddressesAdded,
) -> None:
    """Half of it made the whole recording of the fault unreadable."""
    node = start(spec_of(), 1_000, 7)
    recorder = Recorder(node, 1_000)
    recorder.note(Tick(), 1_500, ())
    recorder.broke(wrong, 2_000)
    trace = unpack(pack(HEADER, recorder.last_words()), "x")
    assert [type(one.event) for one in trace.segments[0].steps] == [Tick]


def test_a_text_that_is_none_ends_the_recording_and_nothing_else() -> None:
    recorder = Recorder(start(spec_of(), 1_000, 7), 1_000)
    recorder.note(AddressesAdded(0, False, "\udcff"), 2_000, ())
    assert recorder.size == 0
    assert "recording has stopped: AddressesAdded" in recorder.fault


# -- hostile files -------------------------------------------------------------------------------


def test_the_first_lines_can_be_read_by_people(content: bytes) -> None:
    first, second, _ = content.split(b"\n", 2)
    assert first == b"haclusterd-trace 1"
    assert msgspec.json.decode(second)["node"] == "n0"


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (b"", "is no recording"),
        (b"\x7fELF" * 100, "is no recording"),
        (MAGIC + b"\xff\n{}\n", "is no recording"),
        (MAGIC + b"9" * 5000 + b"\n", "is no recording"),
        (MAGIC + b"7\n{}\n", "has format 7, this haclusterctl reads format 1"),
        (MAGIC + b"1\n{}\nx", "its second line is damaged"),
        (MAGIC + b"1\n" + b"[" * 4000, "its second line is damaged"),
        (MAGIC + b"1\n" + msgspec.json.encode(HEADER), "ends within its second line"),
        (MAGIC + b"1\n" + msgspec.json.encode(HEADER) + b"\n\x00\x01", "is damaged"),
        (pack(HEADER, [b"\xc1"]), "its steps are not understood"),
        (pack(HEADER, [b"\xdd\xff\xff\xff\xff"]), "its steps are not understood"),
        (pack(HEADER, [b"\x90"]), "holds no steps"),
        (pack(HEADER, [bytes(BODY_BYTES_MAX + 1)]), "unpacks to more than"),
    ],
)
def test_a_file_that_is_no_recording_is_refused(made: bytes, said: str) -> None:
    with pytest.raises(TraceError, match=said) as refused:
        unpack(made, "some.trace")
    assert str(refused.value).startswith("some.trace: ")


def test_every_truncation_is_noticed(content: bytes) -> None:
    for length in {*range(0, len(content), max(1, len(content) // 200)), len(content) - 1}:
        with pytest.raises(TraceError):
            unpack(content[:length], "cut.trace")


def test_bytes_that_flipped_never_crash_a_reader(takeover: Recordings) -> None:
    """Past zlib's own check: the msgpack itself is damaged."""
    body = b"".join(takeover.pieces(3))[:40_000]
    whole = b"".join(takeover.pieces(3, whole=False))
    for at in range(0, len(whole), 97):
        for value in (0x00, 0xFF, 0xC0):
            damaged = whole[:at] + bytes([value]) + whole[at + 1 :]
            with contextlib.suppress(TraceError):
                replay(unpack(pack(HEADER, [damaged]), "x"))
    with pytest.raises(TraceError, match="not understood"):
        unpack(pack(HEADER, [body]), "x")


def test_a_state_that_contradicts_itself_is_refused(takeover: Recordings) -> None:
    trace = takeover.trace(2, whole=False)
    segment = trace.segments[0]
    changes: tuple[dict[str, Any], ...] = (
        {"peers": []},
        {"services": []},
        {"successors": ((), (), ())},
    )
    for change in changes:
        node = msgspec.structs.replace(segment.node, **change)
        body = msgspec.msgpack.encode([msgspec.structs.replace(segment, node=node)])
        with pytest.raises(TraceError, match="state 0 is damaged"):
            unpack(pack(HEADER, [body]), "x")


# -- the folder ----------------------------------------------------------------------------------


def test_the_newest_of_each_kind_are_kept(tmp_path: Path, takeover: Recordings) -> None:
    spec, pieces = spec_of(), takeover.pieces(2, whole=False)
    place = tmp_path / "traces"
    names: list[str] = []
    for _ in range(folder.KEPT[folder.OWNER] + 3):
        content = folder.content_of(spec, pieces, folder.OWNER)
        names.append(folder.save(place, content, folder.OWNER).name)
        time.sleep(0.002)  # the name is the time in ms
    kept = folder.save(place, folder.content_of(spec, pieces, folder.ASKED), folder.ASKED)
    (place / "notes.txt").write_text("not ours")
    found = folder.listed(place)
    by_owner = [one.name for one in found if one.reason == folder.OWNER]
    assert by_owner == names[-folder.KEPT[folder.OWNER] :]
    assert Path(kept.path).stat().st_mode & 0o777 == 0o600
    assert unpack(folder.read_named(place, kept.name), kept.name).header.reason == folder.ASKED
    for name in ("../secret", "notes.txt", kept.name + "/x"):
        with pytest.raises(TraceError, match="names no recording"):
            folder.read_named(place, name)
    Path(kept.path).unlink()
    with pytest.raises(TraceError, match="trace list"):
        folder.read_named(place, kept.name)


def test_a_recording_knows_when_it_was_saved_by_both_clocks(
    takeover: Recordings, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Wall(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Wall:
            return cls(2026, 11, 28, 18, 0, 0, 496_789, tz)

    monkeypatch.setattr(folder, "datetime", Wall)
    monkeypatch.setattr(time, "clock_gettime_ns", {time.CLOCK_BOOTTIME: 7_000_789_000}.get)
    pieces = takeover.pieces(2, whole=False)
    found = unpack(folder.content_of(spec_of(), pieces, folder.ASKED), "x").header
    assert (found.saved, found.saved_us) == ("2026-11-28T18:00:00.496Z", 7_000_000)


def test_a_recording_of_before_it_had_both_clocks_is_read(takeover: Recordings) -> None:
    first, second, rest = takeover.file(2).split(b"\n", 2)
    header = msgspec.json.decode(second)
    del header["saved_us"]
    found = unpack(b"\n".join([first, msgspec.json.encode(header), rest]), "x")
    assert found.header.saved_us is None


def test_what_is_no_recording_in_the_folder_is_named_and_holds_nobody_up(
    tmp_path: Path, takeover: Recordings
) -> None:
    """A pipe kept `trace list` waiting for somebody to write to it."""
    pieces = takeover.pieces(2, whole=False)
    good = folder.save(tmp_path, folder.content_of(spec_of(), pieces, folder.OWNER), folder.OWNER)
    pipe, place, text = (tmp_path / f"2020010{n}T000000000Z-asked.trace" for n in (1, 2, 3))
    os.mkfifo(pipe)
    place.mkdir()
    text.write_text("hello")
    found = folder.listed(tmp_path)
    assert [one.path for one in found] == [str(pipe), str(place), str(text), good.path]
    assert [one.wrong for one in found[:2]] == [
        f"{path}: is no regular file: move it away" for path in (pipe, place)
    ]
    assert "is no recording of haclusterd" in found[2].wrong
    assert found[3] == good
    for path in (pipe, place):
        with pytest.raises(TraceError, match="is no regular file"):
            folder.read_named(tmp_path, path.name)
