"""A headless browser for tests: it opens pages, clicks, and records errors and network requests.

It speaks the DevTools protocol over two pipes, so that it needs no package besides the browser.
"""

from __future__ import annotations

import base64
import fcntl
import itertools
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Self

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
OPTIONS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--no-first-run",
    "--disable-background-networking",
    "--remote-debugging-pipe",
)
LAUNCH = (
    "import os, sys; a, b = map(int, sys.argv[1:3]); os.dup2(a, 3); os.dup2(b, 4); "
    "os.execv(sys.argv[3], sys.argv[3:])"
)
"""A program that starts the browser with its pipes as file descriptors 3 and 4, as it expects."""


def find_browser() -> str:
    """Return the path of a browser, or skip the test if none is installed."""
    for name in (os.environ.get("D3JAX_BROWSER", ""), *NAMES):
        if name and (path := shutil.which(name)):
            return path
    pytest.skip("no Chromium or Chrome here (D3JAX_BROWSER can name one)")


class Page:
    """A page that a headless browser opened from a file.

    `errors` holds exceptions and the console's errors and warnings. `requests` holds the addresses
    that the page requested, without the file itself and data: URLs. Raises `TimeoutError` if the
    browser does not answer within `seconds` of opening.
    """

    def __init__(self, path: Path, width: int = 1280, height: int = 900, seconds: float = 60):
        self.errors: list[str] = []
        self.requests: list[str] = []
        self._url = path.resolve().as_uri()
        self._until = time.monotonic() + seconds
        self._counter = itertools.count(1)
        self._buffer, self._session = b"", ""
        self._events: list[dict[str, Any]] = []
        self._profile = tempfile.mkdtemp(prefix="d3jax-browser-")
        self._process = self._launch(find_browser())
        try:
            self._open(width, height)
        except BaseException:
            self.close()
            raise

    def evaluate(self, expression: str) -> Any:
        """Return the value of a JavaScript expression in the page. A promise is awaited."""
        options = {"expression": expression, "returnByValue": True, "awaitPromise": True}
        found = self._call("Runtime.evaluate", **options)
        if "exceptionDetails" in found:
            raise RuntimeError(f"{expression}: {found['exceptionDetails']}")
        return found["result"].get("value")

    def click(self, selector: str) -> None:
        """Click the first element that matches a CSS selector, with mouse events."""
        place = self.evaluate(
            f"(() => {{const found = document.querySelector({json.dumps(selector)});"
            "found.scrollIntoView({block: 'center', behavior: 'instant'});"
            "const box = found.getBoundingClientRect();"
            "return [box.x + Math.min(box.width / 2, 20), box.y + box.height / 2]})()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            where = {"x": place[0], "y": place[1], "button": "left", "clickCount": 1}
            self._call("Input.dispatchMouseEvent", type=kind, **where)

    def texts(self, selector: str) -> list[str]:
        """Return the texts of the elements that match a CSS selector, in the order of the page."""
        chosen = f"document.querySelectorAll({json.dumps(selector)})"
        return self.evaluate(f"[...{chosen}].map(one => one.textContent.trim())")

    def html(self) -> str:
        """Return the current DOM as HTML."""
        return self.evaluate("document.documentElement.outerHTML")

    def broken_pictures(self) -> list[str]:
        """Return the alternative texts of the pictures that did not load."""
        return self.evaluate(
            "[...document.images].filter(i => !(i.complete && i.naturalWidth)).map(i => i.alt)"
        )

    def screenshot(self, path: Path, *, dark: bool = False, media: str = "screen") -> None:
        """Write a PNG of the whole page, with `dark` in its dark colours.

        `media` is the CSS medium, for example "print".
        """
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._call("Emulation.setEmulatedMedia", media=media, features=[scheme])
        options = {"format": "png", "captureBeyondViewport": True}
        path.write_bytes(base64.b64decode(self._call("Page.captureScreenshot", **options)["data"]))

    def close(self) -> None:
        """End the browser."""
        self._process.kill()
        self._process.wait()
        os.close(self._write)
        os.close(self._read)
        shutil.rmtree(self._profile, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _launch(self, browser: str) -> subprocess.Popen:
        commands, self._write = pipe_pair()
        self._read, answers = pipe_pair()
        line = [sys.executable, "-c", LAUNCH, str(commands), str(answers), browser, *OPTIONS]
        process = subprocess.Popen(
            [*line, f"--user-data-dir={self._profile}"],
            pass_fds=(commands, answers),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(commands)
        os.close(answers)
        return process

    def _open(self, width: int, height: int) -> None:
        target = self._call("Target.createTarget", url="about:blank")
        attach = {"targetId": target["targetId"], "flatten": True}
        self._session = self._call("Target.attachToTarget", **attach)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._call(f"{domain}.enable")
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self._call("Emulation.setDeviceMetricsOverride", **size)
        self._call("Page.navigate", url=self._url)
        while not any(event["method"] == "Page.loadEventFired" for event in self._events):
            self._receive()

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        number = next(self._counter)
        message = {"id": number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            left = self._until - time.monotonic()
            if left <= 0 or not select.select([self._read], [], [], left)[0]:
                raise TimeoutError("the browser does not answer")
            chunk = os.read(self._read, 1 << 20)
            if not chunk:
                raise RuntimeError(f"the browser ended with exit code {self._process.wait()}")
            self._buffer += chunk
        text, self._buffer = self._buffer.split(b"\0", 1)
        message = json.loads(text)
        if "method" in message:
            self._events.append(message)
            self._note(message["method"], message["params"])
        return message

    def _note(self, method: str, told: dict[str, Any]) -> None:
        if method == "Runtime.exceptionThrown":
            self.errors.append(str(told["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled" and told["type"] in ("error", "warning"):
            self.errors.append(str([one.get("value") for one in told["args"]]))
        elif method == "Log.entryAdded" and told["entry"]["level"] in ("error", "warning"):
            self.errors.append(told["entry"]["text"])
        elif method == "Network.requestWillBeSent":
            address = told["request"]["url"]
            if address != self._url and not address.startswith("data:"):
                self.requests.append(address)


def pipe_pair() -> list[int]:
    """Return the two ends of a pipe as file descriptors of at least 10.

    The descriptors 3 and 4 stay free for the browser.
    """
    ends = os.pipe()
    high = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in ends]
    for end in ends:
        os.close(end)
    return high
