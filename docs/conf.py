"""How `make docs` makes a site of the Markdown in this repository: Sphinx with MyST and Furo.

The sources are plain Markdown that reads as well on a forge, so the order of the pages is here and
not in them: `NAVIGATION` becomes the hidden tables of contents of docs/index.md. A page that stands
in no part of it, a link to nothing and an anchor that is not there end the build.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pygments.lexers.special import TextLexer

ROOT = Path(__file__).parents[1]

NAVIGATION = {
    "Begin": ["README", "docs/quick-start", "docs/by-hand", "docs/install", "fs_conf/README"],
    "Understand": [
        "docs/concepts", "docs/freeswitch-ha", "docs/recovery", "docs/registrations-and-limits",
        "docs/replication",
        "docs/comparison", "docs/limits", "docs/figures",
    ],
    "Operate": [
        "docs/runbook", "docs/upgrade", "docs/commands", "docs/configuration", "docs/security",
        "docs/upstream", "docs/hooks", "docs/dns", "docs/http", "docs/metrics", "docs/events",
        "docs/sensors", "docs/movers", "contrib/README",
        "docs/esl-backends", "docs/trace",
    ],
    "Look inside": [
        "docs/design", "docs/takeover-fsm", "docs/reliability", "docs/track-record",
        "vagrant/README", "CONTRIBUTING", "CHANGELOG",
    ],
    "Decisions": sorted(f"docs/adr/{path.stem}" for path in (ROOT / "docs/adr").glob("*.md")),
}  # fmt: skip

TITLES = {"README": "Overview", "fs_conf/README": "FreeSWITCH as a node"}

project = "haclusterd"
copyright = "the haclusterd authors"
extensions = ["myst_parser"]
root_doc = "docs/index"
include_patterns = ["docs/**", *(f"{page}.md" for pages in NAVIGATION.values() for page in pages)]
exclude_patterns = ["docs/conf.py", "docs/site/**"]
source_suffix = {".md": "markdown"}

# Anchors as forges make them, on every heading.
myst_heading_anchors = 4
# The excerpts of files and terminals are not all of one language.
highlight_language = "none"

html_theme = "furo"
html_title = "haclusterd"
html_extra_path = ["site"]
html_show_sourcelink = False
html_copy_source = False
html_static_path: list[str] = []


def _navigation(_app: object, name: str, content: list[str]) -> None:
    """Hangs the navigation onto the first page."""
    if name == root_doc:
        for caption, pages in NAVIGATION.items():
            entries = "\n".join(f"{TITLES[p]} </{p}>" if p in TITLES else f"/{p}" for p in pages)
            content[0] += f"\n```{{toctree}}\n:hidden:\n:caption: {caption}\n\n{entries}\n```\n"


def setup(app: Any) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("source-read", _navigation)
    # Forges draw this one; the site shows its words and loads no script that could.
    app.add_lexer("mermaid", TextLexer)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
