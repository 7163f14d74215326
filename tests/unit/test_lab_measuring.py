"""The lab's judgement: who held an address when, what became of a call, what a frame says."""

from __future__ import annotations

import socket
import struct
import tomllib
from pathlib import Path

import pytest

from haclusterd.config import load_cluster
from haclusterd.lab.calls import CallVerdict, badly_ended, gaps, judge
from haclusterd.lab.frames import arp_question, mac_bytes, neighbour_question, speaks_for, udp_of
from haclusterd.lab.holders import Span, Speakers, holders_max, overlaps
from haclusterd.lab.overlap import THAW_MS, Overlap, admitted_ms, judge_overlap, told
from haclusterd.lab.plan import LabPlan, PlanError, config_text
from haclusterd.lab.sip_watch import CallWatch, Stream

MS = 1_000_000
IP = socket.inet_aton("10.9.0.101")
A, B, C = (bytes([2, 0, 0, 0, 0, n]) for n in (1, 2, 3))


def speak(speakers: Speakers, mac: bytes, first_ms: float, last_ms: float) -> None:
    for ms in range(int(first_ms), int(last_ms) + 1):
        speakers.seen(IP, mac, ms * MS)


def held(*spans: tuple[bytes, int, int]) -> int:
    return holders_max([Span(IP, mac, first * MS, last * MS) for mac, first, last in spans])


def test_an_address_that_moves_has_one_holder() -> None:
    assert held((A, 0, 100), (B, 110, 500)) == 1


def test_frames_on_their_way_when_the_address_moves_are_no_second_holder() -> None:
    assert held((A, 0, 100), (B, 99, 500)) == 1


def test_an_owner_that_speaks_on_after_its_successor_is_a_second_holder() -> None:
    assert held((A, 0, 104), (B, 100, 500)) == 2


def test_one_late_frame_of_a_thawed_owner_is_enough() -> None:
    assert held((A, 0, 100), (B, 150, 900), (A, 500, 500)) == 2


def test_moving_back_later_is_no_overlap() -> None:
    assert held((A, 0, 100), (B, 110, 200), (A, 210, 300)) == 1


def test_three_at_once_are_three() -> None:
    assert held((A, 0, 900), (B, 100, 800), (C, 200, 700)) == 3


def test_addresses_are_judged_apart() -> None:
    other = socket.inet_aton("10.9.0.102")
    assert holders_max([Span(IP, A, 0, 900 * MS), Span(other, B, 0, 900 * MS)]) == 1


def test_silence_ends_a_span() -> None:
    speakers = Speakers()
    speak(speakers, A, 0, 50)
    speak(speakers, B, 100, 300)
    speak(speakers, A, 200, 201)
    assert [(s.mac, s.first_ns // MS, s.last_ns // MS) for s in speakers.spans] == [
        (A, 0, 50),
        (B, 100, 300),
        (A, 200, 201),
    ]
    assert holders_max(speakers.spans) == 2
    assert [(one.mac, other.mac) for one, other in overlaps(speakers.spans)] == [(B, A)]


def together(
    *spans: tuple[bytes, float, float], bound_ms: int, ip: bytes = IP, thawed_ms: float = 0
) -> Overlap:
    """The fault is at 100 ms."""
    made = [Span(ip, mac, int(first * MS), int(last * MS)) for mac, first, last in spans]
    return judge_overlap(made, 100 * MS, int(thawed_ms * MS), bound_ms)


def test_an_overlap_ends_when_two_last_spoke_at_once_and_lasts_since_both_did() -> None:
    found = together((A, 0, 1000), (B, 250, 3000), bound_ms=900)
    assert (found.end_ms, found.longest_ms, found.thaw_ms, found.beyond) == (900, 750, 0, ())
    assert len(together((A, 0, 1001), (B, 250, 3000), bound_ms=900).beyond) == 2


def test_without_a_bound_any_overlap_is_beyond_it() -> None:
    found = together((A, 0, 110), (B, 90, 3000), bound_ms=0)
    names = {A: "fs-a", B: "fs-b"}
    assert [told(pair, names, 100 * MS) for pair in found.beyond] == [
        "10.9.0.101: fs-b from -10.0 to 2900.0 ms, while fs-a from -100.0 to 10.0 ms",
        "10.9.0.101: fs-a from -100.0 to 10.0 ms, while fs-b from -10.0 to 2900.0 ms",
    ]


def test_the_fallback_leaves_a_thawed_ipv6_socket_a_moment_and_an_ipv4_one_none() -> None:
    six = socket.inet_pton(socket.AF_INET6, "fd00:9::101")
    spans = ((A, 0, 1000), (B, 250, 9000), (A, 3000, 3004))
    found = together(*spans, bound_ms=900, ip=six, thawed_ms=2990)
    assert (found.end_ms, found.thaw_ms, found.beyond) == (900, 14, ())
    assert together(*spans, bound_ms=900, thawed_ms=2990).beyond, "IPv4"
    assert together(*spans, bound_ms=0, ip=six, thawed_ms=2990).beyond, "the kernel's fence"
    assert together(*spans, bound_ms=900, ip=six).beyond, "nobody was frozen"
    late = ((B, 250, 9000), (A, 3000, 3001 + THAW_MS))
    assert together(*late, bound_ms=900, ip=six, thawed_ms=3000).beyond, "still going on"


def test_the_bound_is_what_status_says() -> None:
    words = "for 1234 ms (overlap_bound_ms), an IPv6 socket for longer"
    alarms = [{"name": "a", "text": "after 60 ms"}, {"name": "host", "text": words}]
    assert admitted_ms({"alarms": alarms}) == 1234
    assert admitted_ms({"alarms": alarms[:1]}) == admitted_ms(None) == 0


def test_nobody_spoke() -> None:
    assert holders_max([]) == 0


def test_arp_speaks_for_its_sender_and_a_probe_for_nobody() -> None:
    asked = arp_question(A, "10.9.0.200", "10.9.0.101")
    assert speaks_for(asked) == socket.inet_aton("10.9.0.200")
    assert speaks_for(arp_question(A, "0.0.0.0", "10.9.0.101")) == b""


def test_a_neighbour_question_has_a_right_checksum_and_speaks_for_its_source() -> None:
    frame = neighbour_question(A, "fd00:9::c8", "fd00:9::101")
    assert speaks_for(frame) == socket.inet_pton(socket.AF_INET6, "fd00:9::c8")
    source, group, icmp = frame[22:38], frame[38:54], frame[54:]
    pseudo = source + group + len(icmp).to_bytes(4, "big") + bytes([0, 0, 0, 58])
    words = pseudo + icmp
    total = sum(int.from_bytes(words[i : i + 2], "big") for i in range(0, len(words), 2))
    assert (total & 0xFFFF) + (total >> 16) == 0xFFFF


def test_a_neighbour_advertisement_speaks_for_its_target_whatever_its_source() -> None:
    target = socket.inet_pton(socket.AF_INET6, "fd00:9::101")
    source = socket.inet_pton(socket.AF_INET6, "fe80::1")
    icmp = bytes([136, 0, 0, 0, 0x60, 0, 0, 0]) + target
    header = b"\x60\0\0\0" + len(icmp).to_bytes(2, "big") + bytes([58, 255])
    frame = bytes(6) + A + b"\x86\xdd" + header + source + source + icmp
    assert speaks_for(frame) == target


def test_a_fragment_is_no_udp() -> None:
    header = bytearray(20)
    header[0], header[9] = 0x45, 17
    frame = bytes(12) + b"\x08\x00" + bytes(header) + b"\x13\xc4\x13\xec\0\x08\0\0"
    whole = udp_of(frame)
    assert whole is not None
    assert whole[:2] == (5060, 5100)
    header[7] = 1
    assert udp_of(bytes(12) + b"\x08\x00" + bytes(header) + bytes(8)) is None


def sip(watch: CallWatch, at_ms: int, *, ours: bool, text: str) -> None:
    ends = ("10.9.0.101", "10.9.0.200") if ours else ("10.9.0.200", "10.9.0.101")
    watch.sip(5060 if ours else 5100, *ends, text.encode(), at_ms * MS)


def message(first: str, method: str = "INVITE", sdp: str = "") -> str:
    return f"{first}\r\nCall-ID: 1.east1.1@lab\r\nCSeq: 1 {method}\r\n\r\n{sdp}"


def live_call() -> CallWatch:
    """A call that is up from 30 ms on, with RTP every 20 ms until 1000 ms."""
    watch = CallWatch(5060)
    sip(watch, 10, ours=False, text=message("INVITE sip:9197@10.9.0.101 SIP/2.0"))
    media = "c=IN IP4 10.9.0.101\r\nm=audio 16400 RTP/AVP 0\r\n"
    sip(watch, 20, ours=True, text=message("SIP/2.0 200 OK", sdp=media))
    sip(watch, 30, ours=False, text=message("ACK sip:9197@10.9.0.101 SIP/2.0", "ACK"))
    rtp(watch, range(40, 1001, 20))
    return watch


def rtp(watch: CallWatch, times_ms: range, ssrc: int = 7, shift: int = 0xFFBB) -> None:
    """One packet at each of these times, numbered by its time plus `shift`; wraps at 1380 ms."""
    for ms in times_ms:
        number = (ms // 20 + shift) & 0xFFFF
        watch.rtp(IP, 16400, ms * MS, struct.pack("!BBHII", 0x80, 0, number, 8 * ms, ssrc))


def verdict(watch: CallWatch, fault_ms: int, until_ms: int) -> CallVerdict:
    streams: dict[str, Stream] = watch.report()["streams"]
    found = judge(watch.calls, streams, fault_ms * MS, until_ms * MS)
    assert len(found) == 1
    return found[0]


def test_a_recovered_call_shows_its_gap_and_its_reinvite() -> None:
    watch = live_call()
    watch.arm()
    sip(watch, 1040, ours=True, text=message("INVITE sip:caller@10.9.0.200 SIP/2.0"))
    rtp(watch, range(1150, 2001, 20), ssrc=8)
    found = verdict(watch, 1005, 2000)
    assert (found.lost, found.reinvites, found.first_reinvite_ms) == ("", 1, 35.0)
    assert found.gap_ms == 150.0
    assert found.touched
    # Two senders number apart: what is missing between them cannot be counted.
    assert (found.rtp_lost, found.rtp_restarts) == (0, 1)


def test_an_untouched_call_is_untouched() -> None:
    found = verdict(live_call(), 500, 1010)
    assert not found.touched
    assert found.gap_ms == 20.0
    assert (found.rtp_lost, found.rtp_restarts) == (0, 0)


def test_packets_that_never_came_are_counted_by_their_numbers() -> None:
    watch = live_call()
    watch.arm()
    rtp(watch, range(1020, 1301, 20))
    rtp(watch, range(1380, 1501, 20))  # three are missing before the numbers wrap
    found = verdict(watch, 1005, 1510)
    assert (found.rtp_lost, found.rtp_restarts) == (3, 0)
    rtp(watch, range(1340, 1341))  # one of them comes late
    rtp(watch, range(1500, 1501))  # one comes twice
    assert verdict(watch, 1005, 1510).rtp_lost == 2
    watch.arm()
    assert verdict(watch, 1005, 1510).rtp_lost == 0


@pytest.mark.parametrize("jump", [0x8000, 1000, 30, -5, -1000])
def test_a_new_sender_with_the_old_ssrc_has_lost_nothing(jump: int) -> None:
    """A recovered call of a real FreeSWITCH: the numbers jump further than the time did."""
    watch = live_call()
    watch.arm()
    rtp(watch, range(1200, 1601, 20), shift=0xFFBB - 10 + jump)
    found = verdict(watch, 1005, 1610)
    assert (found.rtp_lost, found.rtp_restarts) == (0, 1)


def test_what_is_no_rtp_is_not_counted() -> None:
    watch = live_call()
    before = watch.report()["streams"]["10.9.0.101:16400"].packets
    watch.rtp(IP, 16400, 1010 * MS, b"\x80\x00\x00")
    watch.rtp(IP, 16400, 1010 * MS, b"\x00" * 12)
    assert watch.report()["streams"]["10.9.0.101:16400"].packets == before


def test_a_call_without_media_is_lost_and_its_gap_is_open() -> None:
    found = verdict(live_call(), 900, 1500)
    assert found.lost == "no media any more"
    assert found.gap_ms == 500.0


def test_a_bye_after_the_fault_is_a_loss_and_one_before_it_is_no_call() -> None:
    watch = live_call()
    sip(watch, 990, ours=True, text=message("BYE sip:caller@10.9.0.200 SIP/2.0", "BYE"))
    assert verdict(watch, 900, 1010).lost == "ended by FreeSWITCH after 90 ms"
    assert judge(watch.calls, {}, 995 * MS, 1010 * MS) == []


def test_a_call_that_is_told_to_end_must_end_with_an_answer() -> None:
    watch = live_call()
    assert badly_ended(watch.calls, 1000 * MS) == {"1.east1.1@lab": "never ended"}
    sip(watch, 1010, ours=False, text=message("BYE sip:9197@10.9.0.101 SIP/2.0", "BYE"))
    assert badly_ended(watch.calls, 1000 * MS) == {"1.east1.1@lab": "BYE not answered"}
    sip(watch, 1012, ours=True, text=message("SIP/2.0 200 OK", "BYE"))
    assert badly_ended(watch.calls, 1000 * MS) == {}
    assert badly_ended(watch.calls, 1000 * MS, {"1.east1.1@lab"}) == {
        "1.east1.1@lab": "FreeSWITCH was told to end it, and its caller did"
    }


def test_a_bye_of_freeswitch_is_answered_by_the_caller_and_by_nobody_else() -> None:
    watch = live_call()
    sip(watch, 1010, ours=True, text=message("BYE sip:caller@10.9.0.200 SIP/2.0", "BYE"))
    sip(watch, 1011, ours=True, text=message("SIP/2.0 200 OK", "BYE"))
    mine = {"1.east1.1@lab"}
    assert badly_ended(watch.calls, 1000 * MS, mine) == {"1.east1.1@lab": "BYE not answered"}
    sip(watch, 1012, ours=False, text=message("SIP/2.0 200 OK", "BYE"))
    assert badly_ended(watch.calls, 1000 * MS, mine) == {}


def test_no_calls_no_gap() -> None:
    assert gaps([]) == {"p50": None, "max": None}


@pytest.mark.parametrize("backend", ["none", "process", "emulator"])
def test_every_plan_makes_a_configuration_that_is_accepted(tmp_path: Path, backend: str) -> None:
    path = tmp_path / "haclusterd.toml"
    plan = LabPlan(masters=3, slaves=2, nics=3, freeswitch=backend)
    path.write_text(config_text(plan, tmp_path))
    config = load_cluster(path)
    assert [len(node.links) for node in config.nodes] == [3] * 5
    assert [config.nodes[s.preferred].id for s in config.services] == ["fs-a", "fs-b", "fs-c"]
    assert (config.freeswitch is None) == (backend == "none")


def test_two_nodes_get_a_witness() -> None:
    plan = LabPlan(masters=1, slaves=1)
    assert [node.witness for node in plan.nodes] == [False, False, True]
    assert tomllib.loads(config_text(plan, Path("/")))["cluster"]["quorum"] == "witness"


def test_nodes_have_addresses_of_their_own() -> None:
    plan = LabPlan(masters=20, slaves=6, nics=6)
    links = [link for node in plan.nodes for link in node.links]
    assert len(set(links)) == len(links) == 26 * 6
    assert len({mac_bytes(node.mac) for node in plan.nodes}) == 26
    assert not {n.service_ip for n in plan.nodes} & {s.ip for s in plan.services}


@pytest.mark.parametrize(
    ("masters", "slaves", "nics"), [(1, 0, 2), (0, 3, 2), (2, 1, 0), (20, 7, 2)]
)
def test_a_plan_that_makes_no_cluster_is_refused(masters: int, slaves: int, nics: int) -> None:
    with pytest.raises(PlanError):
        LabPlan(masters=masters, slaves=slaves, nics=nics)
