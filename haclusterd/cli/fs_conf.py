"""`fs-conf render`: writes FreeSWITCH's configuration, and never over what it did not write.

A list of what was written, with checksums, lies beside the files. A file that is on it and has
its checksum is this program's; any other one is somebody's, and is named instead of replaced.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from haclusterd.cli.main import DONE, FAILED, complain
from haclusterd.cli.show import Part, Table, show
from haclusterd.config import load_cluster
from haclusterd.files import write_atomically
from haclusterd.freeswitch import conf

LIST = ".haclusterd.sums"
MODE = 0o644
LIST_BYTES_MAX = 1 << 20
# Folders whose files FreeSWITCH reads all of: a strange one there is in force too.
_READ_WHOLE = ("autoload_configs", "dialplan", "services")


class RenderError(Exception):
    """Nothing was written; one reason with its fix a line."""


@dataclass(frozen=True)
class Rendered:
    """What `write` did. `strange`: files of others that FreeSWITCH reads as well."""

    written: tuple[str, ...]
    removed: tuple[str, ...]
    unchanged: int
    strange: tuple[str, ...]
    digest: str


def run(config_path: Path, output: Path, as_json: bool) -> int:
    """Render for the cluster of `config_path` into `output`; the exit code. Raises ConfigError."""
    config = load_cluster(config_path)
    try:
        done = write(conf.render(config), output)
    except (conf.ConfError, RenderError) as error:
        complain(str(error))
        return FAILED
    profiles = conf.profiles(config)
    if as_json:
        told = {"output": str(output), "digest": done.digest, "written": done.written,
                "removed": done.removed, "unchanged": done.unchanged, "strange": done.strange,
                "profiles": [vars(profile) for profile in profiles]}  # fmt: skip
        print(json.dumps(told, indent=2))
    else:
        password = config.freeswitch.esl_password_file if config.freeswitch else Path()
        show(list(_told(done, output, profiles, password)))
    return DONE


def write(files: Mapping[str, bytes], output: Path) -> Rendered:
    """Put `files` below `output`. RenderError, and nothing written, if one of others is in the way.

    Files that are for the operator are only written where there is none.
    """
    known = _read_list(output)
    ours = {p: c for p, c in files.items() if p not in conf.OPERATORS_FILES}
    gone = [place for place in known if place not in files and (output / place).exists()]
    problems = [p for place in (*files, *gone) for p in _in_the_way(output, place, ours, known)]
    if problems:
        raise RenderError("\n".join(problems))
    wanted = {p: c for p, c in files.items() if p in ours or not (output / p).exists()}
    changed = [p for p, content in wanted.items() if _content(output / p) != content]
    sums = {place: _sum(content) for place, content in ours.items()}
    listed = "".join(f"{sums[place]}  {place}\n" for place in sorted(sums))
    try:
        for place in changed:
            (output / place).parent.mkdir(parents=True, exist_ok=True)
            write_atomically(output / place, wanted[place], MODE)
        for place in gone:
            (output / place).unlink()
        write_atomically(output / LIST, listed.encode(), MODE)
    except OSError as error:
        raise RenderError(
            f"{error.filename or output}: {error.strerror}. Fix: name a folder that this user may "
            "write to, and run this again"
        ) from None
    return Rendered(
        tuple(changed), tuple(gone), len(wanted) - len(changed),
        tuple(_strange(output, files)), hashlib.sha256(listed.encode()).hexdigest(),
    )  # fmt: skip


def _in_the_way(
    output: Path, place: str, ours: Mapping[str, bytes], known: Mapping[str, str]
) -> Iterator[str]:
    path = output / place
    if path.is_symlink() or not path.parent.resolve().is_relative_to(output.resolve()):
        yield f"{path}: leads elsewhere by a link. Fix: move the link away"
        return
    if path.exists() and not path.is_file():
        yield f"{path}: is no file. Fix: move it away"
        return
    found = _content(path)
    if found is None or place in conf.OPERATORS_FILES:
        return
    if found != ours.get(place) and _sum(found) != known.get(place):
        if place not in known:
            yield (
                f"{path}: was not written by this command and is not overwritten. Fix: move it "
                f"away (a whole other configuration: mv {output} {output}.before)"
            )
        elif place in ours:
            yield (
                f"{path}: was changed since this command wrote it. Fix: move it away, and keep the "
                "change in node/ or in a file of your own (README.md there)"
            )
        else:
            yield f"{path}: is not needed any more, but was changed. Fix: move it away"


def _read_list(output: Path) -> dict[str, str]:
    """Checksums by place, of what was written before; nothing where there is no list."""
    try:
        with (output / LIST).open("rb") as file:
            text = file.read(LIST_BYTES_MAX).decode()
    except (OSError, UnicodeDecodeError):
        return {}
    known = {}
    for line in text.splitlines():
        digest, _, place = line.partition("  ")
        parts = Path(place).parts
        if place and not Path(place).is_absolute() and ".." not in parts:
            known[place] = digest
    return known


def _content(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise RenderError(f"{path}: {error.strerror}. Fix: run this as its owner") from None


def _sum(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _strange(output: Path, files: Mapping[str, bytes]) -> Iterator[str]:
    for folder in _READ_WHOLE:
        for path in sorted((output / folder).glob("*.xml")):
            place = path.relative_to(output).as_posix()
            if place not in files:
                yield place


def _told(
    done: Rendered, output: Path, profiles: list[conf.Profile], password: Path
) -> Iterator[Part]:
    rows = [[p.name, p.service, p.address, str(p.port)] for p in profiles]
    yield (
        f"{output}: {len(done.written)} files written, {len(done.removed)} removed, "
        f"{done.unchanged} as they were; sum {done.digest[:16]}"
    )
    yield from (f"also read by FreeSWITCH, not of this command: {name}" for name in done.strange)
    yield Table("profiles", ["profile", "service", "address", "port"], rows, frozenset({"port"}))
    yield ""
    yield "next:"
    yield f"  copy {output} to every node: the sum is the same there"
    yield f"  {password} on every node: one line, readable for FreeSWITCH (mode 0640)"
    yield f"  cp {output}/sysctl.d/*.conf /etc/sysctl.d/ && sysctl --system"
    yield f"  cp -r {output}/systemd/* /etc/systemd/system/ && systemctl daemon-reload"
    yield "  (the Debian package of haclusterd has done both)"
    yield f"  restart FreeSWITCH (its option -conf names {output}; haclusterctl hand-over first"
    yield "  where it serves), then haclusterctl doctor"
