"""`backup` and `restore`: nothing is forgotten, nothing is another's, all of it or nothing."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import stat
from pathlib import Path
from typing import Any

import msgspec
import pytest

from haclusterd import backup, keys, rotation
from haclusterd.backup import BackupError
from haclusterd.cli.main import main
from haclusterd.config import Config, cluster_spec, load, revisions
from haclusterd.core import promises
from haclusterd.core.actions import Persist
from haclusterd.core.model import Identity
from haclusterd.core.promises import decode
from haclusterd.files import write_atomically
from tests.unit.config_example import GOOD

Printed = pytest.CaptureFixture[str]


class Node:
    """fs-b of the example cluster on a disk of its own."""

    def __init__(self, folder: Path) -> None:
        self.etc, self.run = folder / "etc", folder / "run"
        self.etc.mkdir(parents=True)
        self.run.mkdir()
        self.path = self.etc / "haclusterd.toml"
        self.path.write_text(GOOD)
        (self.etc / "esl.password").write_text("ClueCon\n")
        keys.create(self.config)
        self.file = folder / "saved.backup"
        self.promise(epoch=7, node=0)
        self.orders = self.run / backup.ORDERS

    @property
    def config(self) -> Config:
        return load(self.path, node="fs-b", run_dir=self.run)

    def promise(self, epoch: int, node: int, owned: int = 0) -> None:
        spec = cluster_spec(self.config)
        known = Persist((Identity(epoch, node, epoch * 11),), (owned,))
        (self.run / promises.FILE_NAME).write_bytes(promises.encode(spec, "boot", known))

    @property
    def promised(self) -> tuple[int, int, int]:
        content = (self.run / promises.FILE_NAME).read_bytes()
        found = decode(content, cluster_spec(self.config))
        return found.promises[0].epoch, found.promises[0].nonce, found.owned[0]

    def save(self) -> backup.Backup:
        return backup.make(self.config, self.file, "2026-11-29")

    def restore(self, node: str | None = "fs-b") -> backup.Done:
        return backup.restore(self.path, node, self.run, self.file)

    def change(self, **changes: Any) -> None:
        found = msgspec.json.decode(self.file.read_bytes(), type=backup.Backup)
        self.file.write_bytes(msgspec.json.encode(msgspec.structs.replace(found, **changes)))


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


def refused(host: Node, node: str | None = "fs-b") -> str:
    with pytest.raises(BackupError) as caught:
        host.restore(node)
    assert "Fix:" in str(caught.value)
    return str(caught.value)


def test_ms84_a_lost_disk_is_put_back_whole(node: Node) -> None:
    made = node.save()
    assert stat.S_IMODE(node.file.stat().st_mode) == 0o600
    assert made.epochs == {"east": 7}
    before = {p.name: p.read_bytes() for p in node.etc.iterdir()}
    shutil.rmtree(node.etc)
    shutil.rmtree(node.run)
    done = node.restore(node=None)
    assert {p.name: p.read_bytes() for p in node.etc.iterdir()} == before
    modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in node.etc.iterdir()}
    assert (modes.pop("haclusterd.toml"), modes.pop("esl.password")) == (0o644, 0o640)
    assert set(modes.values()) == {0o600}
    assert node.promised == (7, 77, 0)
    assert len(done.written) == len(before) + 1
    assert not list(node.etc.glob(".*"))
    keys.check_readable(node.config, "fs-b")


def test_ms85_an_old_backup_never_makes_a_node_forget(node: Node) -> None:
    node.promise(epoch=7, node=0, owned=6)
    node.save()
    node.promise(epoch=9, node=2, owned=5)
    node.restore()
    assert node.promised == (9, 99, 6)
    node.promise(epoch=3, node=2, owned=2)  # an image of the disk, older than the backup
    node.restore()
    assert node.promised == (7, 77, 6)


def test_promises_that_are_damaged_on_the_disk_are_replaced(node: Node) -> None:
    node.save()
    (node.run / promises.FILE_NAME).write_text("{")
    node.restore()
    assert node.promised == (7, 77, 0)


def test_the_set_of_nodes_never_goes_back(node: Node) -> None:
    old = revisions.Content(revisions.Kept(1, GOOD))
    new = revisions.Content(revisions.Kept(2, GOOD))
    revisions.write(node.run, old)
    node.save()
    revisions.write(node.run, new)
    done = node.restore()
    assert revisions.read(node.run) == new
    assert any("revision 2 is known here" in line for line in done.kept)
    (node.run / revisions.FILE_NAME).unlink()
    node.restore()
    assert revisions.read(node.run) == old
    later = GOOD.replace("[timing]", "revision = 2\n[timing]")
    node.path.write_text(later)
    done = node.restore()
    assert node.path.read_text() == later
    assert any("later revision" in line for line in done.kept)


def test_orders_stay_as_they_are_and_maintenance_is_of_its_day(node: Node) -> None:
    kept = {"format": 1, "cluster": "voice1", "maintenance": {"on": True}, "standing_by": ["east"]}
    node.orders.write_text(json.dumps(kept))
    node.save()
    node.orders.write_text("mine")
    assert any("orders are kept" in line for line in node.restore().kept)
    assert node.orders.read_text() == "mine"
    node.orders.unlink()
    node.restore()
    assert json.loads(node.orders.read_text()) == {"format": 1, "cluster": "voice1"}


def test_keys_that_were_rotated_since_stay(node: Node) -> None:
    node.save()
    config = node.config
    kept = rotation.begin(config, "anna")
    for phase in (rotation.KNOWN, rotation.USED, rotation.DONE):
        kept = rotation.enter(config, kept, phase)
    ring = config.key_file.read_text()
    done = node.restore()
    assert config.key_file.read_text() == ring
    assert any("rotated since" in line for line in done.kept)


def test_while_the_daemon_runs_it_is_refused(node: Node) -> None:
    node.save()
    with (node.run / "fs-b.pid").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "systemctl stop haclusterd" in refused(node)
    node.restore()
    assert not (node.run / "fs-b.pid").exists()


def test_what_is_anothers_is_refused(node: Node) -> None:
    node.save()
    assert "is of node fs-b, not fs-c" in refused(node, node="fs-c")
    node.path.write_text(GOOD.replace("voice1", "voice2"))
    before = node.path.read_text()
    assert "is of cluster voice1" in refused(node)
    assert node.path.read_text() == before


def test_this_host_is_another_node(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    node.save()
    monkeypatch.setattr(
        "haclusterd.config.identity.local_addresses", lambda: ("10.1.0.3", "127.0.0.1")
    )
    assert "this host is fs-c" in refused(node, node=None)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"format": 9}, "has format 9"),
        ({"items": []}, "the configuration in it cannot be used"),
    ],
)
def test_bad_backups_are_refused(node: Node, change: dict[str, Any], text: str) -> None:
    node.save()
    node.change(**change)
    with pytest.raises(BackupError, match=text):
        node.restore()


def test_damaged_open_and_strange_backups_are_refused(node: Node) -> None:
    made = node.save()
    node.file.chmod(0o644)
    assert "chmod 600" in refused(node)
    node.file.chmod(0o600)
    bad = [msgspec.structs.replace(made.items[0], content=b"x"), *made.items[1:]]
    node.change(items=bad)
    assert "is damaged" in refused(node)
    strange = backup.Item("keys", "../../passwd", b"", made.items[0].sha256)
    empty = msgspec.structs.replace(
        strange, sha256="e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    )
    node.change(items=[*made.items, empty])
    assert "belongs nowhere" in refused(node)
    node.file.write_text("no backup")
    assert "is no backup" in refused(node)
    node.file.unlink()
    assert "No such file" in refused(node)


def test_what_cannot_be_saved_is_refused(node: Node) -> None:
    node.file.write_text("mine")
    with pytest.raises(BackupError, match="is there already"):
        node.save()
    node.file = node.etc / "none" / "saved"
    with pytest.raises(BackupError, match="name a file in a folder"):
        node.save()
    for path in node.etc.glob("*"):
        if path.suffix != ".toml":
            path.unlink()
    with pytest.raises(BackupError, match="a backup of nothing"):
        node.save()


def test_a_restore_that_fails_has_changed_nothing(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    node.save()
    (node.etc / "cluster.key").write_text("mine")
    real, count = write_atomically, [0]

    def full(path: Path, content: bytes, mode: int) -> None:
        count[0] += 1
        if count[0] > 4:
            raise OSError(28, "No space left on device", str(path))
        real(path, content, mode)

    monkeypatch.setattr(backup, "write_atomically", full)
    assert "No space left on device" in refused(node)
    assert (node.etc / "cluster.key").read_text() == "mine"
    assert not list(node.etc.glob(".*.restored"))


def test_the_commands(node: Node, capsys: Printed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HACLUSTERD_CONFIG", str(node.path))
    run = ["--run-dir", str(node.run), "--node", "fs-b"]
    assert main(["backup", str(node.file), *run]) == 0
    assert "with keys: keep it off others" in capsys.readouterr().out
    assert main(["backup", str(node.file), *run]) == 1
    assert "name a new file" in capsys.readouterr().err
    assert main(["restore", str(node.file), *run]) == 0
    assert "start haclusterd" in capsys.readouterr().out
    assert main(["restore", str(node.file), *run, "--json"]) == 0
    assert "kept" in json.loads(capsys.readouterr().out)
    other = str(node.file) + "2"
    assert main(["backup", other, *run, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["epochs"] == {"east": 7}
    assert main(["restore", str(node.file), "--node", "fs-a"]) == 1
    assert "is of node fs-b, not fs-a" in capsys.readouterr().err


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_restored_by_root_the_files_belong_to_whom_the_folder_belongs(node: Node) -> None:
    node.save()
    os.chown(node.etc, 64_999, 64_998)
    node.restore()
    owners = {(p.stat().st_uid, p.stat().st_gid) for p in node.etc.iterdir()}
    assert owners == {(64_999, 64_998), (64_999, 0)}
    assert (node.etc / "esl.password").stat().st_gid == 0, "the group that it had"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
@pytest.mark.parametrize("there", [True, False])
def test_ms44_freeswitch_can_read_the_password_that_was_restored(node: Node, there: bool) -> None:
    node.save()
    password = node.etc / "esl.password"
    os.chown(password, 0, 64_998)
    os.chown(node.run, 64_999, 64_997)
    if not there:
        password.unlink()
        node.path.unlink()
    node.restore()
    found = password.stat()
    assert (found.st_gid, stat.S_IMODE(found.st_mode)) == (64_998 if there else 64_997, 0o640)
    assert node.path.stat().st_mode & 0o044 == 0o044, "fs_cli and FreeSWITCH's unit read it"


def test_what_is_no_backup_is_not_called_one_that_others_can_read(node: Node) -> None:
    node.file.write_text("root:x:0:0\n")
    node.file.chmod(0o644)
    assert "chmod" not in refused(node)
