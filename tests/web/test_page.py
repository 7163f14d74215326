"""The status page in a real Chromium: what it shows, to whom, and what it never does."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from haclusterd.agent.http import Http
from tests.web.browser import DESKTOP, PHONE, Browser, obstacle
from tests.web.large import HOSTILE, NODES, SERVICES, Large, view

_REASON = obstacle()
pytestmark = [
    pytest.mark.skipif(bool(_REASON), reason=_REASON),
    pytest.mark.timeout(120),
    pytest.mark.slow,
]
PICTURES = Path(__file__).parents[2] / "docs" / "pictures"
SIZES = [DESKTOP, (1024, 768), (768, 1024), PHONE, (320, 568)]


class Served:
    """The page of a large cluster on a port of this host, in a thread of its own."""

    def __init__(self, source: Large) -> None:
        self.source = source
        self._loop = asyncio.new_event_loop()
        self._http = Http("127.0.0.1", 0, source)
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> Served:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._http.start(), self._loop).result(10)
        self.url = f"http://127.0.0.1:{self._http.port}/"
        return self

    def __exit__(self, *reason: object) -> None:
        self.stop()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def stop(self) -> None:
        """The daemon goes away."""
        asyncio.run_coroutine_threadsafe(self._http.stop(), self._loop).result(10)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser() as made:
        yield made


@pytest.fixture
def page(browser: Browser, request: pytest.FixtureRequest) -> Iterator[tuple[Browser, Served]]:
    """A page that has drawn itself; the parameter says what kind of night it is."""
    kind = getattr(request, "param", "")
    with Served(Large(hostile=kind == "hostile", quiet=kind == "quiet")) as served:
        browser.events.clear()
        browser.size(DESKTOP)
        browser.go(served.url)
        browser.wait(lambda: browser.run("document.querySelectorAll('.tiles .card').length"),
                     "the page to draw itself")  # fmt: skip
        yield browser, served
        browser.go("about:blank")


def counted(browser: Browser, selector: str) -> int:
    return int(browser.run(f"document.querySelectorAll({selector!r}).length"))


def test_everything_is_there_and_what_is_wrong_comes_first(
    page: tuple[Browser, Served], request: pytest.FixtureRequest
) -> None:
    browser, _ = page
    if request.config.getoption("--rewrite"):
        browser.picture(PICTURES / "large.png")
    assert browser.text("#verdict").strip() == "Not served: prague-5."
    assert browser.run("document.querySelector('#head').dataset.tone") == "bad"
    assert counted(browser, ".groups .card") == NODES
    assert counted(browser, ".tiles .card") == SERVICES
    assert "prague-5" in browser.text(".tiles .card")
    assert "Down (1)" in browser.text(".groups")
    assert "one link left to fs-08" in browser.text("#alarms")
    assert "paris-1" in browser.text('.groups [data-key="fs-02"]'), "who serves what"
    assert "1st in line" in browser.text('.groups [data-key="slaves"]')
    assert "disk" in browser.text('.groups [data-key="fs-09"]'), (
        "which sensor takes from its health"
    )
    assert (
        browser.run("document.querySelector('.groups [data-key=\"fs-09\"]').dataset.tone") == "wait"
    )
    assert "takes no new calls" in browser.text('.tiles [data-key="vienna-1"]')
    assert "12 of 40 call legs back so far" in browser.text('.tiles [data-key="paris-1"]')
    assert counted(browser, ".reports svg.picture") == 4
    assert "silent 153 ms" in browser.text(".reports")
    assert browser.complaints() == []


@pytest.mark.parametrize("page", ["quiet"], indirect=True)
def test_a_quiet_night_is_quiet(page: tuple[Browser, Served]) -> None:
    browser, _ = page
    assert browser.text("#verdict").strip() == f"All {SERVICES} services are served."
    assert browser.run("document.querySelector('#head').dataset.tone") == "good"
    assert browser.run("document.querySelector('#alarms').hidden") is True
    assert "Nothing has moved yet." in browser.text("#moves")


@pytest.mark.parametrize("page", ["hostile"], indirect=True)
def test_names_are_text_whatever_they_hold(page: tuple[Browser, Served]) -> None:
    browser, _ = page
    assert browser.run("document.title") != "1"
    assert counted(browser, "img") == 0
    shown = browser.text(".tiles")
    assert HOSTILE.split("\u202e")[0] in shown
    assert "\\u{202e}" in shown
    for char in ("\u202e", "\x1b"):
        assert char not in browser.text("body")
        assert char not in browser.run("document.title")
    assert browser.complaints() == []


def test_an_injected_script_would_not_run(page: tuple[Browser, Served]) -> None:
    """The policy holds even where the escaping would not."""
    browser, _ = page
    made = """(() => { try {
        const bad = document.createElement('script'); bad.textContent = 'window.hit = 1';
        document.body.append(bad);
        document.body.insertAdjacentHTML('beforeend', '<img src=x onerror="window.hit=1">');
        } catch (error) { return error.name } })()"""
    assert browser.run(made) == "TypeError", "trusted types refuse text as script or HTML"
    assert browser.run("window.hit ?? 0") == 0


def test_pictures_are_small() -> None:
    pictures = sorted(PICTURES.glob("*.png"))
    assert [one.name for one in pictures] == ["large.png", "takeover.png"]
    assert all(one.stat().st_size < 200 * 1024 for one in pictures)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("page", ["hostile", "quiet"], indirect=True)
def test_nothing_scrolls_sideways(page: tuple[Browser, Served], size: tuple[int, int]) -> None:
    browser, _ = page
    browser.size(size)
    browser.run("new Promise((done) => setTimeout(done, 1500))")
    browser.run("document.querySelectorAll('details').forEach((one) => { one.open = true })")
    too_wide = browser.run(
        "[...document.querySelectorAll('body *')].filter((one) => one.getBoundingClientRect().right"
        " > innerWidth + 1 && !one.closest('svg')).map((one) => one.className).slice(0, 5)"
    )
    assert too_wide == []
    assert browser.run("document.documentElement.scrollWidth") <= size[0]


def test_no_name_is_squeezed(page: tuple[Browser, Served]) -> None:
    """A name that is broken in three lines cannot be read at a glance."""
    browser, _ = page
    for size in SIZES:
        browser.size(size)
        browser.run("new Promise((done) => setTimeout(done, 1300))")
        squeezed = browser.run("""[...document.querySelectorAll('.card .name')]
            .filter((one) => one.getBoundingClientRect().height > 46)
            .map((one) => one.textContent)""")
        assert squeezed == [], size


def test_labels_of_a_timeline_do_not_touch(page: tuple[Browser, Served]) -> None:
    browser, _ = page
    for size in SIZES:
        browser.size(size)
        browser.run("new Promise((done) => setTimeout(done, 1300))")
        browser.run("document.querySelectorAll('details').forEach((one) => { one.open = true })")
        touching = browser.run("""[...document.querySelectorAll('svg.picture')].flatMap((svg) => {
            const own = [...svg.querySelectorAll('text:not(.phase)')].map((t) => [t.textContent,
                t.getBoundingClientRect()]);
            const frame = svg.getBoundingClientRect();
            return own.flatMap(([text, a], k) => [
                ...(a.right > frame.right + 1 || a.left < frame.left - 1 ? [text + ' leaves'] : []),
                ...own.slice(k + 1).filter(([, b]) => a.left < b.right && b.left < a.right
                    && a.top + 2 < b.bottom && b.top + 2 < a.bottom).map(([o]) => text + '|' + o)])
            })""")
        assert touching == [], size


def test_the_keyboard_reaches_everything_and_keeps_its_place(
    page: tuple[Browser, Served],
) -> None:
    browser, served = page
    browser.press("Tab", 9)
    assert browser.run("document.activeElement.className") == "skip"
    for _ in range(3):
        browser.press("Tab", 9)
    here = "document.activeElement.closest('details').dataset.key"
    key = browser.run(here)
    assert key
    browser.press("Enter", 13)
    browser.wait(lambda: browser.run("document.activeElement.parentElement.open"), "to open")
    assert "health" in browser.text(f'[data-key="{key}"] .more')
    nodes = list(served.source.now.nodes)
    nodes = [msgspec.structs.replace(node, calls=node.calls + 7) for node in nodes]
    served.source.now = msgspec.structs.replace(served.source.now, nodes=tuple(nodes))
    browser.wait(lambda: "legs" in browser.text(f'[data-key="{key}"]')
                 or browser.run(here) == key, "the next word")  # fmt: skip
    browser.run("new Promise((done) => setTimeout(done, 1500))")
    assert browser.run(here) == key, "what is drawn anew keeps the focus"
    assert browser.run("document.activeElement.parentElement.open") is True


def test_a_change_is_seen_within_a_second(page: tuple[Browser, Served]) -> None:
    browser, served = page
    served.source.now = view(quiet=True)
    served.source.told = []
    browser.wait(lambda: "All 50" in browser.text("#verdict"), "the good news", 1.0)


def test_a_daemon_that_is_gone_is_seen_and_one_that_is_back_too(browser: Browser) -> None:
    with Served(Large(quiet=True)) as served:
        browser.go(served.url)
        browser.wait(lambda: "All 50" in browser.text("#verdict"), "the page")
        served.stop()
        browser.wait(lambda: "this is old" in browser.text("#verdict"), "to be said", 8.0)
        assert browser.run("document.querySelector('#head').dataset.tone") == "bad"
    browser.go("about:blank")


def test_light_and_dark_can_be_read(page: tuple[Browser, Served]) -> None:
    """WCAG AA: text has at least 4.5 times the luminance of what it stands on, or less of it."""
    browser, _ = page
    for dark in (False, True):
        browser.size(DESKTOP, dark)
        browser.run("new Promise((done) => setTimeout(done, 2500))")
        poor = browser.run(_CONTRAST)
        assert poor == [], f"dark={dark}"
    background = browser.run("getComputedStyle(document.body).backgroundColor")
    assert background == "rgb(16, 20, 26)"


_CONTRAST = """(() => {
  const parts = (text) => { const found = text.match(/[\\d.]+/g).map(Number);
    return text.startsWith('color(') ? [...found.slice(0, 3).map((v) => v * 255), found[3] ?? 1]
      : [...found.slice(0, 3), found[3] ?? 1]; };
  const light = ([r, g, b]) => [r, g, b].map((v) => v / 255).map((v) => v <= 0.04045 ? v / 12.92
    : ((v + 0.055) / 1.055) ** 2.4).reduce((sum, v, k) => sum + v * [0.2126, 0.7152, 0.0722][k], 0);
  const behind = (node) => { for (let at = node; at; at = at.parentElement) {
    const style = getComputedStyle(at);
    if (style.backgroundImage !== 'none') return parts(style.backgroundImage.slice(15));
    const found = parts(style.backgroundColor); if (found[3] > 0.99) return found; }
    return [255, 255, 255, 1]; };
  const poor = new Set();
  for (const node of document.querySelectorAll('body *')) {
    const own = [...node.childNodes].some((one) => one.nodeType === 3 && one.data.trim());
    if (!own || node.closest('svg') || node.closest('.skip') || !node.checkVisibility()) continue;
    const [a, b] = [parts(getComputedStyle(node).color), behind(node)].map(light);
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) poor.add(`${node.className || node.tagName} ${ratio.toFixed(2)}`);
  }
  return [...poor];
})()"""


def test_every_role_and_state_has_a_place(page: tuple[Browser, Served]) -> None:
    """Those of DESIGN section 8, and the witness, which lives and takes nothing over."""
    browser, served = page
    now = served.source.now
    roles = ["starting", "syncing", "maintenance", "failed", "dead", "left"]
    changed = [
        *(msgspec.structs.replace(now.nodes[15 + k], role=role, rank=-1)
          for k, role in enumerate(roles[:5])),
        msgspec.structs.replace(now.nodes[3], role="maintenance", rank=-1, witness=True),
        msgspec.structs.replace(now.nodes[2], role=roles[5], rank=-1),
    ]  # fmt: skip
    by_id = {node.id: node for node in changed}
    states = [msgspec.structs.replace(now.services[0], state="moving"), *now.services[1:]]
    served.source.now = msgspec.structs.replace(
        now, nodes=tuple(by_id.get(n.id, n) for n in now.nodes), services=tuple(states)
    )
    browser.wait(lambda: "witness" in browser.text(".groups"), "the witness")
    others = browser.text('.groups [data-key="others"]')
    for role in ("starting", "syncing", "maintenance", "left", "witness, only votes"):
        assert role in others
    down = browser.text('.groups [data-key="down"]')
    assert "failed" in down
    assert "dead" in down
    card = "document.querySelector('.groups [data-key=\"fs-04\"]')"
    assert browser.run(f"{card}.dataset.tone") == "good"
    witness = browser.text('.groups [data-key="fs-04"]')
    assert "legs" not in witness
    assert "moving" in browser.text('.tiles [data-key="berlin-1"]')
    tones = browser.run("[...document.querySelectorAll('.groups .card')].map(c => c.dataset.tone)")
    assert set(tones) <= {"good", "wait", "soft", "bad"}
    assert counted(browser, ".groups .card") == NODES, "each is in one group"
    assert browser.complaints() == []
