"""config.revisions: which file counts at a start, and what is kept of it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from haclusterd.config import ConfigError, agents_shape, config_hash, load, load_cluster, shape
from haclusterd.config.revisions import (
    FILE_NAME,
    Content,
    Kept,
    RevisionsError,
    Start,
    after_start,
    begin,
    differences,
    keep,
    read,
    standing,
    write,
)


def toml(revision: int, ids: str = "abc", more: str = "") -> str:
    nodes = "".join(f'[[node]]\nid = "{i}"\nlinks = ["10.1.0.{ord(i)}"]\n' for i in ids)
    service = '[[service]]\nname = "east"\naddresses = ["203.0.113.10/24 dev eth0"]\n'
    head = f'[cluster]\nname = "voice1"\nrevision = {revision}\nquorum = "majority"\n'
    return head + more + nodes + service


class Host:
    """A host with a configuration file and a state folder."""

    def __init__(self, folder: Path) -> None:
        self.file, self.state = folder / "haclusterd.toml", folder / "state"
        self.has(toml(1))

    def has(self, text: str) -> None:
        self.file.write_text(text)

    def start(self, revision: int = 0, counts_by: int = 0) -> Start:
        return begin(
            self.file, node="a", run_dir=self.state, revision=revision, counts_by=counts_by
        )

    def keeps(self, active: str, staged: str = "", previous: str = "", proven: bool = True) -> None:
        def kept(text: str) -> Kept | None:
            return keep(load_cluster(self.file, text)) if text else None

        found = kept(active)
        assert found is not None
        write(self.state, Content(found, 1, kept(staged), kept(previous), proven))

    def kept(self) -> Content:
        found = read(self.state)
        assert found is not None
        return found


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def ids(start: Start) -> str:
    return "".join(node.id for node in start.config.nodes)


def test_a_first_start_takes_the_file_and_a_later_set_has_to_be_proven(host: Host) -> None:
    assert host.start().proven
    host.has(toml(4))
    start = host.start()
    assert (start.config.revision, start.proven, start.complaint) == (4, False, "")


def test_a_revision_of_one_means_what_no_revision_means(host: Host) -> None:
    """Nodes of this and of an older version have the same file and must have the same hash."""
    text = toml(1)
    without = text.replace("revision = 1\n", "")
    assert config_hash(load_cluster(host.file, text)) == config_hash(
        load_cluster(host.file, without)
    )
    assert config_hash(load_cluster(host.file, toml(2))) != config_hash(
        load_cluster(host.file, text)
    )


def test_anything_but_the_voters_changes_by_a_restart(host: Host) -> None:
    host.keeps(toml(2))
    host.has(toml(2, more='preset = "wan"\n'))
    start = host.start()
    assert (start.config.preset, start.complaint) == ("wan", "")
    assert after_start(host.kept(), start).active == keep(start.config)


def test_other_voters_do_not_count_by_a_restart(host: Host) -> None:
    host.keeps(toml(2))
    host.has(toml(2, "abcd"))
    start = host.start()
    assert ids(start) == "abc"
    assert "set cluster.revision to 3" in start.complaint


def test_a_newer_file_is_known_but_not_in_force(host: Host) -> None:
    host.keeps(toml(2), previous=toml(1, "abcd"))
    host.has(toml(5, "abcd"))
    start = host.start()
    assert (ids(start), start.proven) == ("abc", True)
    assert start.newer is not None
    assert start.newer.revision == 5
    assert start.previous is not None
    assert "haclusterctl reload" in start.complaint


def test_an_older_file_does_not_bring_an_older_set_back(host: Host) -> None:
    host.keeps(toml(2))
    start = host.start()
    assert start.config.revision == 2
    assert "install the newest file" in start.complaint


def test_what_is_staged_stays_staged_over_a_restart(host: Host) -> None:
    host.keeps(toml(2), staged=toml(3, "abcd"))
    host.has(toml(3, "abcd"))
    start = host.start()
    assert start.config.revision == 2
    assert start.staged is not None
    assert (start.staged.revision, start.newer) == (3, None)
    assert after_start(host.kept(), start).staged == host.kept().staged
    host.has(toml(4, "abcde"))
    assert host.start().newer is not None, "and a still newer one is known beside it"


def test_heart_says_which_set_is_taken_up_and_it_is_kept_so(host: Host) -> None:
    host.keeps(toml(2), staged=toml(3, "abcd"))
    host.has(toml(3, "abcd", more='preset = "wan"\n'))
    start = host.start(revision=3)
    assert (ids(start), start.config.preset) == ("abcd", "lan"), "what was staged, not the file"
    kept = after_start(host.kept(), start)
    assert (kept.active.revision, kept.staged) == (3, None)
    assert kept.previous is not None
    assert kept.previous.revision == 2
    assert host.start(revision=2).config.revision == 2


def test_a_set_that_was_only_known_is_taken_up_from_the_file(host: Host) -> None:
    host.keeps(toml(2))
    host.has(toml(4, "abcd"))
    start = host.start(revision=4)
    assert (start.config.revision, start.proven) == (4, True)


def test_whoever_was_removed_is_told_so(host: Host) -> None:
    host.keeps(toml(3, "bc"), previous=toml(2))
    with pytest.raises(ConfigError, match=r"a was removed from the cluster by revision 3.*delete"):
        host.start()


def test_what_is_damaged_is_replaced_by_what_others_know(host: Host) -> None:
    host.state.mkdir()
    (host.state / FILE_NAME).write_text("{")
    start = host.start()
    assert not start.proven
    assert "is damaged" in start.complaint
    (host.state / FILE_NAME).write_text('{"active": {"revision": 1, "toml": ""}, "format": 9}')
    with pytest.raises(RevisionsError, match="format 9"):
        read(host.state)
    (host.state / FILE_NAME).unlink()
    (host.state / FILE_NAME).mkdir()
    with pytest.raises(RevisionsError, match="directory"):
        read(host.state)


def test_a_kept_neighbour_that_cannot_be_read_any_more_is_none(host: Host) -> None:
    host.keeps(toml(2))
    kept = host.kept()
    write(host.state, Content(kept.active, 1, None, Kept(1, "no toml")))
    host.has(toml(2))
    assert host.start().previous is None


def test_a_first_start_is_written_as_it_was(host: Host) -> None:
    host.has(toml(7))
    assert after_start(None, host.start()) == Content(Kept(7, toml(7)), proven=False)


def test_what_a_reload_leaves_alone(host: Host) -> None:
    plain = load(host.file, node="a", run_dir=host.state)
    assert differences(plain, load_cluster(host.file, toml(2, "abcd"))) == []
    other = load_cluster(host.file, toml(2) + "[sync]\nport = 7999\n")
    assert differences(plain, other) == ["[sync] has changed: change it by a restart, and apart"]
    other = load_cluster(host.file, toml(2, more='last_resort = "none"\n'))
    assert "cluster.last_resort" in differences(plain, other)[0]


def test_what_was_agreed_to_is_not_forgotten_because_it_cannot_be_read(host: Host) -> None:
    host.keeps(toml(2))
    write(host.state, Content(host.kept().active, 1, Kept(3, "no toml")))
    with pytest.raises(ConfigError):
        host.start()


def test_a_process_that_was_replaced_does_not_bring_its_set_back(host: Host) -> None:
    host.keeps(toml(2))
    host.has(toml(2))
    old = host.start()
    host.keeps(toml(3, "abcd"), previous=toml(2))
    assert after_start(host.kept(), old) == host.kept()


def test_an_older_file_installed_between_staging_and_taking_up_is_told(host: Host) -> None:
    """The set in force is the staged one; the next `reload` or start would not know of it."""
    host.keeps(toml(2), staged=toml(3, "abcd"))
    host.has(toml(2))
    before = host.start()
    assert "is of revision 2 again, 3 is staged" in before.complaint
    after = host.start(revision=3)
    assert (ids(after), after.config.revision) == ("abcd", 3)
    assert "is of revision 2, revision 3 is in force: install the newest" in after.complaint


def test_what_stands_on_the_host_is_judged_again_at_any_time(host: Host) -> None:
    host.has(toml(2))
    active, kept = host.start().config, Content(Kept(2, toml(2)), staged=Kept(3, toml(3, "abcd")))
    assert standing(active, None) == ""
    host.has(toml(2, more='preset = "wan"\n'))
    assert standing(active, None) == "", "changes by a restart"
    host.has(toml(3, "abcd"))
    assert "haclusterctl reload" in standing(active, None)
    assert standing(active, kept) == ""
    host.has(toml(1))
    assert "install the newest file" in standing(active, None)
    host.has("[cluster]\nname = 1\n")
    assert re.search(r"next start of this node would fail: .*cluster\.name.*\d more", standing(
        active, None
    ))  # fmt: skip
    host.file.unlink()
    assert "cannot be read" in standing(active, None)


def test_f35_an_agent_keeps_to_the_file_that_its_heart_counts_by(host: Host) -> None:
    """The next file is installed before haclusterd is restarted, and the agent ends in between."""
    north = '[[service]]\nname = "north"\naddresses = ["203.0.113.20/24 dev eth0"]\n'
    before = load_cluster(host.file, toml(1))
    counted = agents_shape(before)
    host.keeps(toml(1))
    host.has(toml(1).replace("dev eth0", "dev eth1"))
    start = host.start(1, counted)
    assert start.config.services[0].addresses[0].nic == "eth1", "the numbers are the same"
    assert start.complaint == ""
    host.has(toml(1).replace("[[service]]", f"{north}[[service]]"))
    start = host.start(1, counted)
    assert [s.name for s in start.config.services] == ["east"]
    assert "restart haclusterd to apply it" in start.complaint
    assert after_start(host.kept(), start).active == keep(start.config)
    restarted = host.start()
    assert [s.name for s in restarted.config.services] == ["north", "east"]


@pytest.mark.parametrize(
    "other",
    [
        toml(1, more='preset = "wan"\n'),
        toml(1).replace("[[service]]", '[[service]]\nprofiles = ["other"]'),
    ],
)
def test_f38_an_agent_keeps_to_the_times_and_profiles_of_its_heart(host: Host, other: str) -> None:
    """What it writes down is what the next start takes for the file that ran last."""
    before = load_cluster(host.file, toml(1))
    host.keeps(toml(1))
    host.has(other)
    start = host.start(1, agents_shape(before))
    assert start.config.services == before.services
    assert (start.config.timing, start.config.preset) == (before.timing, before.preset)
    assert "restart haclusterd to apply it" in start.complaint


def test_f38_a_start_knows_for_how_long_the_last_run_held_down(host: Host) -> None:
    host.has(toml(1))
    assert host.start().hold_down_us == 0, "nothing ran before"
    host.keeps(toml(1, more='preset = "wan"\n'))
    start = host.start()
    assert (start.config.preset, start.hold_down_us) == ("lan", 2_700_000)


def test_a_start_knows_the_addresses_of_the_last_run(host: Host) -> None:
    """They may be on the host still, and no fence of the present file covers them."""
    assert host.start().ran_addresses == frozenset()
    host.keeps(toml(1))
    host.has(toml(1).replace("203.0.113.10", "203.0.113.11"))
    assert host.start().ran_addresses == {"203.0.113.10"}


def test_a_heart_of_the_version_before_tells_its_agent_the_shape_alone(host: Host) -> None:
    """The package is installed, the daemon not reloaded yet, and its agent ends in between."""
    here = load_cluster(host.file)
    counted = shape(here.nodes, here.services)
    assert counted != agents_shape(here)
    assert host.start(1, counted).config.services == here.services


def test_f35_an_agent_that_cannot_know_the_file_of_its_heart_does_not_start(host: Host) -> None:
    before = load_cluster(host.file, toml(1))
    counted = agents_shape(before)
    host.has(toml(1).replace("east", "west"))
    with pytest.raises(ConfigError, match=r"than haclusterd runs with.*restart haclusterd"):
        host.start(1, counted)
    host.keeps(toml(1).replace("east", "north"))
    with pytest.raises(ConfigError, match="than haclusterd runs with"):
        host.start(1, counted)
    assert host.start(1).config.services[0].name == "west"
