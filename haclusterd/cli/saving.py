"""`backup` and `restore`: from the command line to `haclusterd.backup`, and what it did."""

from __future__ import annotations

import argparse
import datetime
import json
from pathlib import Path

from haclusterd import backup
from haclusterd.cli.main import DONE, FAILED, complain
from haclusterd.config import load


def run(path: Path, arguments: argparse.Namespace) -> int:
    """Carry out one of the two; the exit code. Raises ConfigError."""
    run_dir = None if arguments.run_dir is None else Path(arguments.run_dir)
    file = Path(arguments.file)
    try:
        if arguments.command == "backup":
            return _backup(path, arguments, run_dir, file)
        done = backup.restore(path, arguments.node_id, run_dir, file)
    except backup.BackupError as error:
        complain(str(error))
        return FAILED
    written = [str(one) for one in done.written]
    if arguments.json:
        print(json.dumps({"written": written, "kept": list(done.kept)}))
        return DONE
    print("\n".join([*(f"wrote {one}" for one in written), *(f"kept {one}" for one in done.kept)]))
    print("start haclusterd: it is no candidate before the other nodes have told it their calls")
    return DONE


def _backup(path: Path, arguments: argparse.Namespace, run_dir: Path | None, file: Path) -> int:
    config = load(path, node=arguments.node_id, run_dir=run_dir)
    at = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    made = backup.make(config, file, at)
    if arguments.json:
        names = [item.name for item in made.items]
        told = {"file": str(file), "node": made.node, "at": at, "items": names}
        print(json.dumps({**told, "epochs": made.epochs}))
        return DONE
    print(f"wrote {file}: {len(made.items)} files of {made.node}, with keys: keep it off others")
    return DONE
