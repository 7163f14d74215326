"""Links in the repository's Markdown lead somewhere: files that exist, headings that are there.

Nothing is fetched: addresses of the network are only looked at for their form.
"""

from __future__ import annotations

import re
import runpy
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import pytest

ROOT = Path(__file__).parents[1]
_ELSEWHERE = ("build", "dist", "site")
DOCUMENTS = sorted(
    path.relative_to(ROOT)
    for path in ROOT.rglob("*.md")
    if not any(p.startswith(".") or p in _ELSEWHERE for p in path.relative_to(ROOT).parts[:-1])
)
_FENCE = re.compile(r"^ {0,3}(```+|~~~+).*?^ {0,3}\1 *$", re.M | re.S)
_CODE = re.compile(r"(`+)(?!`).*?(?<!`)\1(?!`)", re.S)
_LINK = re.compile(r"!?\[(?:[^\[\]]|\[[^\]]*\])*\]\(\s*<?([^)<>\s]+)>?(?:\s+\"[^\"]*\")?\s*\)")
_REFERENCE = re.compile(r"^ {0,3}\[[^\]]+\]:\s*<?(\S+?)>?\s*$", re.M)
_SOURCE = re.compile(r"<(?:img|source|a)\b[^>]*?\b(?:src|srcset|href)=\"([^\"]+)\"")
_HEADING = re.compile(r"^ {0,3}#{1,6} +(.*?) *#*$", re.M)


def links(text: str) -> Iterator[str]:
    """Every target in `text`, code aside."""
    prose = _CODE.sub("", _FENCE.sub("", text))
    for pattern in (_LINK, _REFERENCE, _SOURCE):
        yield from pattern.findall(prose)


def anchors(text: str) -> set[str]:
    """The anchors of all headings, as forges make them."""
    found, seen = set(), Counter[str]()
    for heading in _HEADING.findall(_FENCE.sub("", text)):
        plain = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
        found.add(f"{slug}-{seen[slug]}" if seen[slug] else slug)
        seen[slug] += 1
    return found


def problems(document: Path, root: Path = ROOT) -> Iterator[str]:
    """What is wrong with the links of one document."""
    text = (root / document).read_text()
    for target in links(text):
        if re.match(r"[a-z]+:", target):
            if not re.match(r"https?://[\w.-]+(?::\d+)?(?:/\S*)?$|mailto:\S+@\S+$", target):
                yield f"{document}: {target} is no address"
            continue
        place, _, anchor = target.partition("#")
        path = (root / document).parent / unquote(place) if place else root / document
        if not path.resolve().is_relative_to(root.resolve()):
            yield f"{document}: {target} leads out of the repository"
        elif not path.exists():
            yield f"{document}: {target} does not exist"
        elif anchor and path.suffix == ".md" and anchor not in anchors(path.read_text()):
            yield f"{document}: {target} has no such heading"


@pytest.mark.parametrize("document", DOCUMENTS, ids=str)
def test_every_link_leads_somewhere(document: Path) -> None:
    assert list(problems(document)) == []


def test_every_page_has_its_place_in_the_navigation() -> None:
    """As `make docs` has it, which needs more than this does."""
    parts = runpy.run_path(str(ROOT / "docs" / "conf.py"))["NAVIGATION"]
    placed = [f"{page}.md" for pages in parts.values() for page in pages]
    pages = {str(d) for d in DOCUMENTS if d.parts[0] == "docs"} - {"docs/index.md"}
    assert pages - set(placed) == set(), "add them to NAVIGATION in docs/conf.py"
    assert [page for page in placed if not (ROOT / page).exists()] == []
    assert len(placed) == len(set(placed))


def test_the_readme_is_among_them() -> None:
    assert {Path("README.md"), Path("docs/index.md"), Path("fs_conf/README.md")} <= set(DOCUMENTS)


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("[a](b.md)", "b.md does not exist"),
        ("[a](c.md#there-is-none)", "c.md#there-is-none has no such heading"),
        ("[a](#nowhere)", "#nowhere has no such heading"),
        ("[a](../../etc)", "../../etc leads out of the repository"),
        ("[a](https:/x)", "https:/x is no address"),
        ("![a [b]](no.svg)", "no.svg does not exist"),
        ('<img src="no.png">', "no.png does not exist"),
        ("[x]: no.md", "no.md does not exist"),
    ],
)
def test_links_to_nothing_are_found(tmp_path: Path, text: str, wrong: str) -> None:
    (tmp_path / "c.md").write_text("# There is one: `x` & y\n\n## A\n\n## A\n")
    (tmp_path / "a.md").write_text(text)
    assert list(problems(Path("a.md"), tmp_path)) == [f"a.md: {wrong}"]


def test_links_that_are_right_and_code_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "c.md").write_text("# There is one: `x` & y\n\n## A\n\n## A\n")
    text = "[a](c.md#a-1) [b](c.md#there-is-one-x--y) `[c](d)`\n\n```sh\n[e](f)\n```\n<https://x.y>"
    (tmp_path / "a.md").write_text(text)
    assert list(problems(Path("a.md"), tmp_path)) == []
