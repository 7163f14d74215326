"""Commands that need no daemon: configuration, keys, doctor."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

from haclusterd import rotation
from haclusterd.cli.client import Refused
from haclusterd.cli.main import DEFAULT_CONFIG, DEFAULT_SOCKET, DONE, FAILED, complain
from haclusterd.config import Config, ConfigError, effective, load, load_cluster
from haclusterd.config.model import NODE_PLACEHOLDER
from haclusterd.keys import Created, KeysError, create, to_copy

_OR_SOCKET = "or name the socket of the running daemon with --socket"
_NO_NODE = "or leave --node out: [api] socket is the same for every node"


def run(arguments: argparse.Namespace) -> int:
    """Carry out one command; the exit code."""
    path = config_path(arguments)
    if arguments.command == "doctor":
        from haclusterd.cli.doctor import run as examine

        return examine(arguments, path)
    if arguments.command == "completion":
        return _completion(arguments.shell)
    try:
        if arguments.command == "fs-conf":
            from haclusterd.cli import fs_conf

            return fs_conf.run(path, Path(arguments.output), arguments.json)
        if arguments.command == "keys" and arguments.abort:
            raise KeysError("--abort belongs to `keys rotate`")
        if arguments.command == "keys":
            return _keys_create(path, arguments.json)
        if arguments.command in ("backup", "restore"):
            from haclusterd.cli import saving

            return saving.run(path, arguments)
        return _config_check(path, arguments)
    except ConfigError as error:
        if arguments.json:
            print(json.dumps({"ok": False, "problems": [_problem(p) for p in error.problems]}))
        complain(str(error))
    except KeysError as error:
        complain(str(error))
    return FAILED


def _completion(shell: str) -> int:
    from haclusterd.cli import completion

    write = {"bash": completion.bash, "zsh": completion.zsh}[shell]
    print(write("haclusterctl", completion.haclusterctl()), end="")
    return DONE


def config_path(arguments: argparse.Namespace) -> Path:
    """`--config`, HACLUSTERD_CONFIG, or the default."""
    return Path(arguments.config or os.environ.get("HACLUSTERD_CONFIG") or DEFAULT_CONFIG)


def api_socket(path: Path, node: str | None) -> Path:
    """Where the daemon of this node listens as the configuration has it.

    Of a broken file the default socket, unless there is none, or a node is named: the daemon may
    run all the same.
    Refused where it cannot be told which socket is meant.
    """
    try:
        return load(path, node=node).api.socket
    except ConfigError as error:
        reason = str(error)  # of a whole file: this host is none of the nodes, or `node` is not
    try:
        socket = load_cluster(path).api.socket
    except ConfigError as error:
        if node is None and not _is_absent(DEFAULT_SOCKET):
            return DEFAULT_SOCKET
        raise Refused(f"{error}\n{_OR_SOCKET}") from None
    by_node = NODE_PLACEHOLDER in str(socket)
    if node is None and not by_node:
        return socket
    if node is not None and by_node:
        # A node that was removed from the file runs until it has agreed to that by a `reload`.
        its_own = Path(str(socket).replace(NODE_PLACEHOLDER, node))
        if not _is_absent(its_own):
            return its_own
    raise Refused(f"{reason}\n{_OR_SOCKET if by_node else _NO_NODE}")


def _is_absent(path: Path) -> bool:
    """Not what only somebody else may see."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False
    return False


def _problem(problem: object) -> dict[str, str]:
    return {key: str(getattr(problem, key)) for key in ("file", "key", "message", "fix")}


def _config_check(path: Path, arguments: argparse.Namespace) -> int:
    """As a whole, and as this node uses it where this host is (or is said to be) one."""
    config = load_cluster(path)
    if arguments.node_id is not None:
        config = load(path, node=arguments.node_id)
    else:
        # A host that is no node of it: the file itself is right.
        with contextlib.suppress(ConfigError):
            config = load(path)
    if arguments.json:
        print(json.dumps({"ok": True, "warnings": config.warnings, **effective(config)}, indent=2))
        return DONE
    for warning in config.warnings:
        complain(f"warning: {warning}")
    print(_summary(path, config))
    return DONE


def _summary(path: Path, config: Config) -> str:
    nodes = ", ".join(node.id for node in config.nodes)
    services = ", ".join(service.name for service in config.services) or "none"
    me = "none of them" if config.me < 0 else config.nodes[config.me].id
    return (
        f"{path}: is right\n"
        f"  cluster {config.name}, preset {config.preset}, quorum {config.quorum.value}\n"
        f"  nodes {nodes} (this host is {me})\n"
        f"  services {services}\n"
        f"  hash {effective(config)['config_hash']}"
    )


def _keys_create(path: Path, as_json: bool) -> int:
    config = load_cluster(path)
    if rotation.is_under_way(rotation.read(config)):
        raise KeysError(
            f"{config.key_file.parent}: the keys are being rotated. Fix: `haclusterctl keys "
            "rotate` ends that, `haclusterctl keys rotate --abort` takes it back"
        )
    done = create(config)
    copy = {node: [str(file) for file in to_copy(config, node)] for node in done.nodes}
    if as_json:
        written, kept = ([str(file) for file in files] for files in (done.written, done.kept))
        print(json.dumps({"written": written, "kept": kept, "copy": copy}))
    else:
        print("\n".join(_told(config, done)))
    return DONE


def _told(config: Config, done: Created) -> Iterator[str]:
    """What was done, and what is to be copied where."""
    folder = config.key_file.parent
    if not done.written:
        yield f"nothing is missing in {folder}: every node of the file has its certificate"
        return
    for file in done.written:
        yield f"wrote {file}"
    if not done.kept:
        yield f"copy {folder} to every node; keep ca.key off the nodes if you can"
        return
    yield f"kept the {len(done.kept)} files that were there"
    for node in done.nodes:
        names = ", ".join(file.name for file in to_copy(config, node))
        yield f"copy to {node}, into the same folder: {names}"
    yield f"the other nodes need no new keys, but the same {config.path.name} as {done.nodes[0]}"
