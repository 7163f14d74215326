"""keys: everything or nothing is written, nothing is replaced, and bad files say what is wrong."""

from __future__ import annotations

import os
import shutil
import signal
import ssl
import stat
import threading
from pathlib import Path

import pytest
from cryptography import x509

from haclusterd import keys
from haclusterd.config import Config, load_cluster
from haclusterd.keys import KeysError
from tests.unit.config_example import GOOD

LINE = "haclusterd cluster key 1\n"


@pytest.fixture
def config(tmp_path: Path) -> Config:
    path = tmp_path / "haclusterd.toml"
    path.write_text(GOOD)
    return load_cluster(path)


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {"haclusterd.toml"}


def test_create_writes_everything_private(config: Config) -> None:
    written = keys.create(config).written
    folder = config.key_file.parent
    nodes = {f"fs-{n}.{kind}" for n in "abc" for kind in ("crt", "key")}
    assert names_in(folder) == {path.name for path in written}
    assert names_in(folder) == {"cluster.key", "ca.crt", "ca.key"} | nodes
    assert {stat.S_IMODE(path.stat().st_mode) for path in written} == {0o600}
    for node in config.nodes:
        keys.check_readable(config, node.id)


def test_private_even_with_an_open_umask(config: Config) -> None:
    before = os.umask(0)
    try:
        written = keys.create(config).written
    finally:
        os.umask(before)
    assert {stat.S_IMODE(path.stat().st_mode) for path in written} == {0o600}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_made_by_root_they_belong_to_whom_the_folder_belongs(config: Config) -> None:
    folder = config.key_file.parent
    os.chown(folder, 64_999, 64_998)
    keys.create(config)
    owners = {(path.stat().st_uid, path.stat().st_gid) for path in folder.glob("*.key")}
    assert owners == {(64_999, 64_998)}


def test_what_was_created_loads(config: Config) -> None:
    keys.create(config)
    ring = keys.load_cluster_key(config.key_file)
    assert [key.id for key in ring.keys] == [1]
    assert len(ring.keys[0].secret) == 32
    assert len(set(ring.keys[0].secret)) > 8


def test_two_clusters_share_nothing(config: Config, tmp_path: Path) -> None:
    keys.create(config)
    first = {
        path.name: path.read_bytes() for path in tmp_path.glob("*.*") if path.suffix != ".toml"
    }
    for name in first:
        (tmp_path / name).unlink()
    keys.create(config)
    for name, content in first.items():
        assert (tmp_path / name).read_bytes() != content


def test_certificates_are_for_node_and_links(config: Config) -> None:
    keys.create(config)
    for node in config.nodes:
        files = keys.paths(config, node.id)
        certificate = x509.load_pem_x509_certificate(files.certificate.read_bytes())
        ca = x509.load_pem_x509_certificate(files.ca_certificate.read_bytes())
        certificate.verify_directly_issued_by(ca)
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert names.get_values_for_type(x509.DNSName) == [node.id]
        addresses = [str(ip) for ip in names.get_values_for_type(x509.IPAddress)]
        assert addresses == list(node.links)


def handshake(server: ssl.SSLContext, client: ssl.SSLContext, name: str) -> None:
    """A TLS handshake in memory; raises ssl.SSLError when either side refuses."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        client.wrap_bio(to_client, to_server, server_hostname=name),
        server.wrap_bio(to_server, to_client, server_side=True),
    ]
    waiting = set(ends)
    for _ in range(10):
        for end in ends:
            try:
                end.do_handshake()
                waiting.discard(end)
            except ssl.SSLWantReadError:
                continue
    assert not waiting


def contexts(config: Config, server: str, client: str) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    found = []
    for node, protocol in ((server, ssl.PROTOCOL_TLS_SERVER), (client, ssl.PROTOCOL_TLS_CLIENT)):
        files = keys.paths(config, node)
        context = ssl.SSLContext(protocol)
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(files.ca_certificate)
        context.load_cert_chain(files.certificate, files.private_key)
        found.append(context)
    return found[0], found[1]


def test_nodes_meet_over_mtls(config: Config) -> None:
    keys.create(config)
    server, client = contexts(config, "fs-a", "fs-b")
    handshake(server, client, "10.1.0.1")
    handshake(server, client, "fs-a")
    with pytest.raises(ssl.SSLError):
        handshake(server, client, "fs-c")


def test_another_clusters_certificate_is_refused(config: Config, tmp_path: Path) -> None:
    keys.create(config)
    (tmp_path / "other").mkdir()
    shutil.copy(config.path, tmp_path / "other")
    stranger = load_cluster(tmp_path / "other" / "haclusterd.toml")
    keys.create(stranger)
    server, _ = contexts(config, "fs-a", "fs-b")
    _, client = contexts(stranger, "fs-a", "fs-b")
    with pytest.raises(ssl.SSLError):
        handshake(server, client, "fs-a")


NODE_D = '[[node]]\nid = "fs-d"\nlinks = ["10.1.0.4", "10.2.0.4"]\n[[service]]'


@pytest.fixture
def grown(config: Config) -> Config:
    """The same configuration with a node more."""
    config.path.write_text(GOOD.replace("[[service]]", NODE_D))
    return load_cluster(config.path)


def contents_of(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in names_in(folder)}


def test_again_is_nothing_to_do(config: Config, tmp_path: Path) -> None:
    first = keys.create(config)
    before = contents_of(tmp_path)
    again = keys.create(config)
    assert (again.written, again.nodes) == ((), ())
    assert set(again.kept) == set(first.written)
    assert contents_of(tmp_path) == before
    (tmp_path / "ca.key").unlink()
    assert keys.create(config).written == ()


def test_a_node_more_gets_its_certificate_and_nothing_else_changes(
    config: Config, grown: Config, tmp_path: Path
) -> None:
    keys.create(config)
    before = contents_of(tmp_path)
    done = keys.create(grown)
    assert [path.name for path in done.written] == ["fs-d.crt", "fs-d.key"]
    assert done.nodes == ("fs-d",)
    after = contents_of(tmp_path)
    assert {name: after[name] for name in before} == before
    assert {stat.S_IMODE(path.stat().st_mode) for path in done.written} == {0o600}
    keys.check_readable(grown, "fs-d")
    handshake(*contexts(grown, "fs-a", "fs-d"), "fs-a")
    copied = {path.name for path in keys.to_copy(grown, "fs-d")}
    assert copied == {"cluster.key", "ca.crt", "fs-d.crt", "fs-d.key"}


def test_without_the_ca_key_nothing_is_signed(
    config: Config, grown: Config, tmp_path: Path
) -> None:
    keys.create(config)
    (tmp_path / "ca.key").unlink()
    before = contents_of(tmp_path)
    with pytest.raises(
        KeysError, match=r"ca\.key: is missing.*signed for fs-d.*Fix: run this where"
    ):
        keys.create(grown)
    assert contents_of(tmp_path) == before


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("ca.key", "nonsense", r"ca\.key with ca\.crt: the private key is not plain PEM"),
        ("ca.crt", "nonsense", r"ca\.key with ca\.crt: the certificate is not PEM"),
        ("ca.key", "fs-a.key", r"ca\.key with ca\.crt: .* belongs to another certificate"),
        ("cluster.key", "nonsense", r"cluster\.key: does not begin"),
    ],
)
def test_what_is_there_must_be_whole(
    config: Config, grown: Config, tmp_path: Path, name: str, content: str, message: str
) -> None:
    keys.create(config)
    source = tmp_path / content
    (tmp_path / name).write_text(source.read_text() if source.exists() else content)
    before = contents_of(tmp_path)
    with pytest.raises(KeysError, match=message):
        keys.create(grown)
    assert contents_of(tmp_path) == before


@pytest.mark.parametrize(
    ("name", "problems"),
    [("cluster.key", 1), ("ca.key", 2), ("ca.crt", 2), ("fs-b.crt", 3), ("fs-b.key", 3)],
)
def test_a_file_alone_is_no_key_material(
    config: Config, tmp_path: Path, name: str, problems: int
) -> None:
    (tmp_path / name).write_text("precious")
    with pytest.raises(KeysError, match=r"is missing.*Fix:") as caught:
        keys.create(config)
    assert len(str(caught.value).splitlines()) == problems, "all that is wrong, at once"
    assert names_in(tmp_path) == {name}
    assert (tmp_path / name).read_text() == "precious"


def test_ctrl_c_waits_for_the_whole_and_then_takes_it_back(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, seen = keys._place, list[int]()

    def struck(source: Path, target: Path) -> None:
        place(source, target)
        # To this thread: others, left over from other tests, have it unblocked.
        signal.pthread_kill(threading.get_ident(), signal.SIGINT)
        seen.append(len(names_in(tmp_path)))

    monkeypatch.setattr(keys, "_place", struck)
    # A shell that starts tests in the background has them ignore it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with pytest.raises(KeyboardInterrupt):
        keys.create(config)
    assert len(seen) == 9, "the interrupt waits"
    assert len(names_in(tmp_path)) in (0, 9)
    assert not list(tmp_path.glob(".keys-*"))


@pytest.mark.parametrize("linked", [True, False])
def test_nothing_half_done_stays(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, linked: bool
) -> None:
    """A file that appears while we write is kept, and what we had placed goes away again."""
    place, placed = keys._place, list[Path]()

    def race(source: Path, target: Path) -> None:
        if len(placed) == 4:
            target.write_text("somebody else's")
        placed.append(target)
        place(source, target)

    def no_links(source: Path, target: Path) -> None:
        raise PermissionError("no hard links here")

    monkeypatch.setattr(keys, "_place", race)
    if not linked:
        monkeypatch.setattr(os, "link", no_links)
    with pytest.raises(KeysError, match="File exists"):
        keys.create(config)
    assert names_in(tmp_path) == {placed[-1].name}
    assert placed[-1].read_text() == "somebody else's"


def test_without_hard_links(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_links(source: Path, target: Path) -> None:
        raise PermissionError("no hard links here")

    monkeypatch.setattr(os, "link", no_links)
    assert names_in(tmp_path) == set() != {path.name for path in keys.create(config).written}
    assert len(names_in(tmp_path)) == 9


def test_an_interrupt_leaves_nothing(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(folder: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(keys, "_sync_folder", interrupted)
    with pytest.raises(KeyboardInterrupt):
        keys.create(config)
    assert names_in(tmp_path) == set()


def test_no_folder(config: Config, tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.write_text(GOOD.replace("cluster.key", "absent/cluster.key"))
    with pytest.raises(KeysError, match=r"absent: cannot write.*No such file.*Fix: create"):
        keys.create(load_cluster(path))


HEX = "ab" * 32


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "does not begin"),
        (f"key 1 {HEX}\n", "does not begin"),
        (LINE.replace("1", "2") + f"key 1 {HEX}\n", "does not begin"),
        (LINE, "holds 0 keys"),
        (LINE + "".join(f"key {n} {HEX}\n" for n in range(9)), "holds 9 keys"),
        (LINE + f"key {HEX}\n", "key 1: is not a key line"),
        (LINE + f"key 1 {HEX}\nkey 256 {HEX}\n", r"key 2: has no id in 0\.\.255"),
        (LINE + f"key -1 {HEX}\n", "has no id"),
        (LINE + f"key ² {HEX}\n", "is not text"),
        (LINE + "key 1 xyz\n", "is not hexadecimal"),
        (LINE + "key 1 abcd\n", "has 2 bytes, not 32"),
        (LINE + f"key 1 {HEX}\nkey 1 {HEX}\n", "the same id"),
        ("x" * 70_000, "larger than"),
    ],
)
def test_bad_key_files(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "cluster.key"
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(KeysError, match=message) as caught:
        keys.load_cluster_key(path)
    assert str(path) in str(caught.value)
    assert "Fix: " in str(caught.value)
    assert HEX not in str(caught.value)


def test_comments_and_order(tmp_path: Path) -> None:
    path = tmp_path / "cluster.key"
    path.write_text(f"# new first\n{LINE}\nkey 7 {HEX}  # since May\nkey 1 {'cd' * 32}\n")
    path.chmod(0o600)
    assert [key.id for key in keys.load_cluster_key(path).keys] == [7, 1]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
def test_open_to_others(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "cluster.key"
    path.write_text(f"{LINE}key 1 {HEX}\n")
    path.chmod(mode)
    with pytest.raises(KeysError, match=rf"mode {mode:04o}.*Fix: chmod 600 {path}"):
        keys.load_cluster_key(path)


def test_missing_and_unreadable(tmp_path: Path) -> None:
    with pytest.raises(KeysError, match=r"is missing.*keys create"):
        keys.load_cluster_key(tmp_path / "cluster.key")
    with pytest.raises(KeysError, match="cannot be read: Is a directory"):
        keys.load_cluster_key(tmp_path)


@pytest.mark.parametrize("name", ["cluster.key", "fs-a.key", "fs-a.crt", "ca.crt"])
def test_a_node_without_one_of_its_files(config: Config, tmp_path: Path, name: str) -> None:
    keys.create(config)
    (tmp_path / name).unlink()
    with pytest.raises(KeysError, match=f"{name}: is missing"):
        keys.check_readable(config, "fs-a")
    (tmp_path / name).write_text("nonsense")
    (tmp_path / name).chmod(0o600)
    with pytest.raises(KeysError, match=name):
        keys.check_readable(config, "fs-a")


@pytest.mark.parametrize(
    ("name", "message"),
    [("fs-a.key", "belongs to another certificate"), ("ca.crt", "not issued by this CA")],
)
def test_files_of_two_creations(config: Config, tmp_path: Path, name: str, message: str) -> None:
    written = keys.create(config).written
    old = (tmp_path / name).read_bytes()
    for path in written:
        path.unlink()
    keys.create(config)
    (tmp_path / name).write_bytes(old)
    with pytest.raises(KeysError, match=message):
        keys.check_readable(config, "fs-a")


def test_the_ca_key_may_be_elsewhere(config: Config, tmp_path: Path) -> None:
    keys.create(config)
    (tmp_path / "ca.key").unlink()
    keys.check_readable(config, "fs-a")
