"""A headless Chromium for tests, spoken to over a pipe in the protocol of its developer tools; no port, no library.

`browser()` gives a `Page` and ends the process with the block. Skips the test where no Chromium is installed, or none
can be started here.
"""

from __future__ import annotations

import fcntl
import json
import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "chrome-headless-shell")
# The protocol's ends are to be 3 and 4. (A container's root cannot have the sandbox; the pages are our own.)
AS_3_AND_4 = "import os, sys; [os.dup2(int(sys.argv[i]), i + 2) for i in (1, 2)]; os.execv(sys.argv[3], sys.argv[3:])"
PATIENCE = 120.0  # seconds that an answer may take: a machine may be busy, and a hang is to end


class BrowserError(Exception):
    """The browser ended, hangs, or refused what it was asked."""


class Page:
    """A tab. `complaints` are its console's errors and warnings, and exceptions; `requests` the URLs it asked for."""

    def __init__(self, to: int, answers: int) -> None:
        self._to, self._answers, self._buffer = to, answers, b""
        self._number, self._session = 0, ""
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self._events: list[str] = []
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.ask(f"{domain}.enable")

    def ask(self, method: str, **params: Any) -> dict[str, Any]:
        """What the browser answers to a command of its protocol."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            found = self._next()
            if found.get("id") == self._number:
                if "error" in found:
                    raise BrowserError(f"{method}: {found['error']['message']}")
                return dict(found["result"])
            self._note(found)

    def open(self, path: Path) -> None:
        """Loads a file, to the end."""
        self._events.clear()
        self.ask("Page.navigate", url=path.as_uri())
        while "Page.loadEventFired" not in self._events:
            self._note(self._next())

    def value(self, expression: str) -> Any:
        """What a JavaScript expression gives, as JSON holds it."""
        found = self.ask("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in found:
            raise BrowserError(f"{expression}: {found['exceptionDetails']}")
        return found["result"].get("value")

    def show(self, *, width: int, height: int = 900, dark: bool = False, scripts: bool = True) -> None:
        """Sets the window's size, light or dark, and whether scripts run in pages opened from now on."""
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.ask("Emulation.setEmulatedMedia", features=[scheme])
        self.ask("Emulation.setScriptExecutionDisabled", value=not scripts)

    def mouse(self, kind: str, x: float, y: float, **more: Any) -> None:
        """A mouse event: mousePressed, mouseMoved, mouseReleased or mouseWheel, at a place of the window."""
        self.ask("Input.dispatchMouseEvent", type=kind, x=x, y=y, **more)

    def click(self, x: float, y: float) -> None:
        for kind in ("mousePressed", "mouseReleased"):
            self.mouse(kind, x, y, button="left", clickCount=1)

    def key(self, key: str) -> None:
        for kind in ("keyDown", "keyUp"):
            self.ask("Input.dispatchKeyEvent", type=kind, key=key, **({"text": key} if len(key) == 1 else {}))

    def _next(self) -> dict[str, Any]:
        end = time.monotonic() + PATIENCE
        while b"\0" not in self._buffer:
            if not select.select([self._answers], [], [], max(0.0, end - time.monotonic()))[0]:
                raise BrowserError(f"no answer in {PATIENCE:g} seconds")
            if not (some := os.read(self._answers, 1 << 16)):
                raise BrowserError("the browser ended")
            self._buffer += some
        message, self._buffer = self._buffer.split(b"\0", 1)
        return dict(json.loads(message))

    def _note(self, found: dict[str, Any]) -> None:
        method, params = found.get("method", ""), found.get("params", {})
        self._events.append(method)
        if method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
            self.complaints.append(str(params["args"]))
        elif method == "Runtime.exceptionThrown":
            self.complaints.append(str(params["exceptionDetails"]))
        elif method == "Log.entryAdded":  # policies broken, files not found
            self.complaints.append(params["entry"]["text"])
        elif method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])


def chromium() -> str | None:
    """Where a Chromium is installed; None where there is none."""
    return next((found for name in NAMES if (found := shutil.which(name))), None)


@contextmanager
def browser(folder: Path) -> Iterator[Page]:
    """A tab of a new browser that keeps its things in `folder`."""
    if (program := chromium()) is None:
        pytest.skip("no Chromium here")
    (theirs_in, ours_out), (ours_in, theirs_out) = os.pipe(), os.pipe()
    high_in, high_out = (fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (theirs_in, theirs_out))
    command = [program, "--headless=new", "--remote-debugging-pipe", f"--user-data-dir={folder}", "--no-sandbox"]
    command += ["--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--hide-scrollbars", "about:blank"]
    with (folder.parent / "browser.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", AS_3_AND_4, str(high_in), str(high_out), *command],
            pass_fds=(high_in, high_out),
            stdout=log,
            stderr=log,
        )
    for end in (theirs_in, theirs_out, high_in, high_out):
        os.close(end)
    try:
        try:
            page = Page(ours_out, ours_in)
        except (BrowserError, BrokenPipeError) as error:
            pytest.skip(f"{program} does not start here: {error}")
        yield page
    finally:
        os.close(ours_out)
        os.close(ours_in)
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
