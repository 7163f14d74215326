"""A real Chromium, driven over its DevTools pipe: no driver, no port, no package."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

ANSWER_S = 30.0
_NAMES = ("chromium", "chromium-browser", "google-chrome")
_FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
    "--no-first-run", "--disable-extensions", "--disable-background-networking",
    "--hide-scrollbars", "--remote-debugging-pipe", "--mute-audio", "--no-proxy-server",
)  # fmt: skip

PHONE = (360, 740)
DESKTOP = (1440, 900)


def obstacle() -> str:
    """Why there is no browser here, or nothing."""
    if any(shutil.which(name) for name in _NAMES):
        return ""
    return "no Chromium: apt-get install chromium (scripts/prepare web does)"


class Browser:
    """One page in a headless Chromium. Context manager."""

    def __init__(self) -> None:
        program = next(name for name in _NAMES if shutil.which(name))
        self._folder = tempfile.TemporaryDirectory(prefix="haclusterd-web-")
        to_read, self._write = os.pipe()
        self._read, to_write = os.pipe()

        def give() -> None:
            # Chromium reads fd 3 and writes fd 4.
            ours = [fcntl.fcntl(fd, fcntl.F_DUPFD, 10) for fd in (to_read, to_write)]
            for fd, target in zip(ours, (3, 4), strict=True):
                os.dup2(fd, target)
                os.set_inheritable(target, True)

        self._process = subprocess.Popen(
            [program, *_FLAGS, f"--user-data-dir={self._folder.name}", "about:blank"],
            preexec_fn=give, close_fds=False, start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(to_read)
        os.close(to_write)
        self._number = 0
        self._rest = b""
        self._session = ""
        self.events: list[dict[str, Any]] = []

    def __enter__(self) -> Browser:
        targets = self.do("Target.getTargets")["targetInfos"]
        page = next(target for target in targets if target["type"] == "page")
        attached = self.do("Target.attachToTarget", targetId=page["targetId"], flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.do(f"{domain}.enable")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        os.close(self._read)
        os.close(self._write)
        shutil.rmtree(self._folder.name, ignore_errors=True)

    def do(self, method: str, **params: Any) -> dict[str, Any]:
        """One DevTools command and its result."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        until = time.monotonic() + ANSWER_S
        while True:
            answer = self._next(until - time.monotonic())
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise AssertionError(f"{method}: {answer['error']}")
                found: dict[str, Any] = answer["result"]
                return found
            self.events.append(answer)

    def _next(self, timeout_s: float) -> dict[str, Any]:
        until = time.monotonic() + timeout_s
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._read], [], [], max(0.0, until - time.monotonic()))
            if not ready:
                raise TimeoutError("Chromium does not answer")
            self._rest += os.read(self._read, 1 << 20)
        message, _, self._rest = self._rest.partition(b"\0")
        found: dict[str, Any] = json.loads(message)
        return found

    # -- what a person does and sees --

    def size(self, size: tuple[int, int], dark: bool = False) -> None:
        """A window of that size, light or dark."""
        self.do("Emulation.setDeviceMetricsOverride", width=size[0], height=size[1],
                deviceScaleFactor=1, mobile=size[0] < 600)  # fmt: skip
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.do("Emulation.setEmulatedMedia", features=[scheme])

    def go(self, url: str) -> None:
        self.do("Page.navigate", url=url)

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression."""
        answer = self.do("Runtime.evaluate", expression=script, returnByValue=True,
                         awaitPromise=True)  # fmt: skip
        if "exceptionDetails" in answer:
            raise AssertionError(answer["exceptionDetails"])
        return answer["result"].get("value")

    def text(self, selector: str) -> str:
        """What a person reads there."""
        return str(self.run(f"document.querySelector({selector!r})?.innerText ?? ''"))

    def wait(self, condition: Callable[[], Any], what: str, timeout_s: float = 15.0) -> Any:
        """Until `condition()` is truthy."""
        until = time.monotonic() + timeout_s
        while not (found := condition()):
            broken = any(e.get("method") == "Runtime.exceptionThrown" for e in self.events)
            if broken or time.monotonic() > until:
                raise AssertionError(f"{what}: not within {timeout_s} s; {self.complaints()[:2]}")
            time.sleep(0.02)
        return found

    def press(self, key: str, code: int) -> None:
        for kind in ("rawKeyDown", "keyUp"):
            self.do("Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=code)
            if kind == "rawKeyDown" and key == "Enter":
                self.do("Input.dispatchKeyEvent", type="char", text="\r", key=key)

    def complaints(self) -> list[str]:
        """What the browser's console says: errors, refused styles and scripts."""
        self.run("1")
        found = []
        for event in self.events:
            params = event.get("params", {})
            if event.get("method") == "Runtime.exceptionThrown":
                found.append(json.dumps(params["exceptionDetails"])[:600])
            if event.get("method") == "Log.entryAdded":
                found.append(str(params["entry"].get("text")))
        return found

    def picture(self, path: Path, whole: bool = False) -> None:
        """A screenshot as PNG."""
        answer = self.do("Page.captureScreenshot", format="png", captureBeyondViewport=whole,
                         **({"clip": self._all()} if whole else {}))  # fmt: skip
        path.write_bytes(base64.b64decode(answer["data"]))

    def _all(self) -> dict[str, Any]:
        size = self.do("Page.getLayoutMetrics")["cssContentSize"]
        return {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
