"""A page of headless Chromium, driven over its DevTools socket with real mouse and keyboard events.

with Page() as page:
    page.open("http://127.0.0.1:8188")
    page.run("document.title")
"""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import os
import shutil
import subprocess
import tempfile
import time
import urllib.request
from pathlib import Path

import websocket

FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--enable-unsafe-swiftshader",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--mute-audio",
    "--hide-scrollbars",
    "--remote-allow-origins=*",
    "--remote-debugging-port=0",
)
NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
KEYS = {"Enter": 13, "Escape": 27, "Delete": 46, "ArrowDown": 40}


class PageError(AssertionError):
    """The page or its browser did not do what the test needs."""


def browser_path() -> str | None:
    """The Chromium of this machine, named by CHROMIUM or found on the path."""
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)


class Page:
    """One browser with one page; ended with the with block.

    Attributes:
        errors: uncaught exceptions and console errors since `open`, oldest first.
    """

    def __init__(self, width: int = 1600, height: int = 900):
        self._size, self._numbers, self.errors = (width, height), itertools.count(1), []

    def __enter__(self) -> Page:
        self._folder = tempfile.mkdtemp(prefix="browser-")
        command = [browser_path(), *FLAGS, f"--user-data-dir={self._folder}", "about:blank"]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            self._socket = websocket.create_connection(self._address(), timeout=120)
            for domain in ("Page", "Runtime", "Log"):
                self.call(f"{domain}.enable")
            width, height = self._size
            metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
            self.call("Emulation.setDeviceMetricsOverride", **metrics)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _address(self) -> str:
        """The socket of the first page, once the browser has written down its port."""
        written = Path(self._folder, "DevToolsActivePort")
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and self._process.poll() is None:
            with contextlib.suppress(OSError, IndexError, StopIteration):
                port = int(written.read_text().split()[0])
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list", timeout=20) as reply:
                    return next(tab for tab in json.load(reply) if tab["type"] == "page")["webSocketDebuggerUrl"]
            time.sleep(0.1)
        raise PageError(f"{browser_path()} did not open a page (exit code {self._process.poll()})")

    def call(self, method: str, **parameters) -> dict:
        """One DevTools command and its result."""
        number = next(self._numbers)
        self._socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._socket.recv())
            if message.get("id") != number:
                self._notice(message)
            elif "error" in message:
                raise PageError(f"{method}: {message['error'].get('message')}")
            else:
                return message.get("result", {})

    def _notice(self, message: dict) -> None:
        kind, details = message.get("method"), message.get("params", {})
        if kind == "Runtime.exceptionThrown":
            thrown = details["exceptionDetails"]
            self.errors.append(thrown.get("exception", {}).get("description") or thrown.get("text", "?"))
        elif kind == "Runtime.consoleAPICalled" and details.get("type") in ("error", "assert"):
            parts = (part.get("value", part.get("description", part["type"])) for part in details["args"])
            self.errors.append("console: " + " ".join(map(str, parts)))
        elif kind == "Log.entryAdded" and details["entry"]["level"] == "error":
            self.errors.append(f"log: {details['entry']['text']} {details['entry'].get('url', '')}".rstrip())

    def own_errors(self) -> list[str]:
        """Errors that are not about the network, which is closed: what the page fetches from elsewhere is refused."""
        return [error for error in self.errors if not error.startswith("log: ") and "fetch" not in error]

    def open(self, url: str) -> None:
        self.errors.clear()
        self.call("Page.navigate", url=url)

    def run(self, expression: str):
        """Value of a JavaScript expression; promises are awaited."""
        result = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in result:
            thrown = result["exceptionDetails"]
            raise PageError(thrown.get("exception", {}).get("description") or thrown.get("text", "?"))
        return result["result"].get("value")

    def ask(self, function: str, *arguments):
        """Value of a JavaScript function called with arguments that JSON can carry."""
        return self.run(f"({function})(...{json.dumps(arguments)})")

    def wait_for(self, expression: str, what: str, seconds: float = 60.0):
        """Value of an expression as soon as it is true; `PageError` after `seconds`."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                value = self.run(expression)
            except PageError:
                value = None  # what it looks at is not there yet
            if value:
                return value
            if time.monotonic() > deadline:
                raise PageError(f"{what}: not within {seconds:g} s; errors of the page: {self.errors[-3:]}")
            time.sleep(0.2)

    def screenshot(self, region: tuple[float, float, float, float] | None = None) -> bytes:
        """The page, or left, top, width and height of a part of it, as PNG."""
        clip = {"clip": {**dict(zip(("x", "y", "width", "height"), region, strict=True)), "scale": 1}} if region else {}
        return base64.b64decode(self.call("Page.captureScreenshot", format="png", **clip)["data"])

    def image(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(self.screenshot())

    # Mouse and keyboard; positions in CSS pixels of the page.

    def _mouse(self, kind: str, x: float, y: float, clicks: int = 0, held: bool = False) -> None:
        button = "left" if clicks or held else "none"
        self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button=button, buttons=int(held), clickCount=clicks)

    def move(self, x: float, y: float) -> None:
        self._mouse("mouseMoved", x, y)

    def click(self, x: float, y: float, times: int = 1) -> None:
        self.move(x, y)
        for count in range(1, times + 1):
            self._mouse("mousePressed", x, y, count, held=True)
            self._mouse("mouseReleased", x, y, count)

    def drag(self, start: tuple[float, float], end: tuple[float, float], steps: int = 8) -> None:
        self.move(*start)
        self._mouse("mousePressed", *start, clicks=1, held=True)
        for step in range(1, steps + 1):
            share = step / steps
            x, y = (a + (b - a) * share for a, b in zip(start, end, strict=True))
            self._mouse("mouseMoved", x, y, held=True)
            time.sleep(0.03)
        self._mouse("mouseReleased", *end, clicks=1)

    def type(self, text: str) -> None:
        self.call("Input.insertText", text=text)

    def press(self, key: str, modifiers: int = 0) -> None:
        code = KEYS.get(key) or ord(key.upper())
        name = key if key in KEYS else f"Key{key.upper()}"
        for kind in ("keyDown", "keyUp"):
            self.call(
                "Input.dispatchKeyEvent", type=kind, key=key, code=name, windowsVirtualKeyCode=code, modifiers=modifiers
            )
