#!/usr/bin/env python3
"""Writes manual pages and shell completions below a folder, as a package installs them.

    scripts/documents.py DIR     DIR/usr/share/man/..., DIR/usr/share/bash-completion/..., ...

They are made of the command lines and of the readers of the configuration file, so they are never
kept in the repository.
"""

from __future__ import annotations

import sys
from pathlib import Path

from haclusterd.cli import completion, manual
from haclusterd.heart.main import command_line

BASH, ZSH = "usr/share/bash-completion/completions", "usr/share/zsh/vendor-completions"


def documents() -> dict[str, str]:
    """Content by place."""
    control = completion.haclusterctl()
    daemon = completion.commands(command_line())
    return {
        "usr/share/man/man1/haclusterctl.1": manual.control(control),
        "usr/share/man/man5/haclusterd.toml.5": manual.configuration(),
        "usr/share/man/man8/haclusterd.8": manual.daemon(daemon[0]),
        f"{BASH}/haclusterctl": completion.bash("haclusterctl", control),
        f"{BASH}/haclusterd": completion.bash("haclusterd", daemon),
        f"{ZSH}/_haclusterctl": completion.zsh("haclusterctl", control),
        f"{ZSH}/_haclusterd": completion.zsh("haclusterd", daemon),
    }


def main(words: list[str]) -> int:
    if len(words) != 1:
        sys.stderr.write("usage: scripts/documents.py DIR\n")
        return 2
    for place, content in documents().items():
        path = Path(words[0], place)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
