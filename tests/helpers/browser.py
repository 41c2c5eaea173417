"""Drive a Chromium without a window: open a page on a screen of any size, run scripts in it, and see what went wrong.

It is spoken to by the DevTools protocol over two pipes (--remote-debugging-pipe), so no library is needed.
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest

NO_BROWSER = "there is no browser here: apt-get install chromium"
NAMES = ("chromium", "chromium-browser", "google-chrome")
SECONDS = 60.0  # a busy machine is no failure
_FREE = 20  # a file descriptor above those that bash uses
_OPTIONS = (
    *("--headless=new", "--no-sandbox", "--no-first-run", "--disable-gpu", "--disable-dev-shm-usage"),
    *("--disable-background-networking", "--disable-component-update", "--disable-extensions", "--disable-sync"),
    *("--host-resolver-rules=MAP * ~NOTFOUND", "--hide-scrollbars", "--remote-debugging-pipe"),
)
# Elements that reach beyond the right edge of the screen, but for what lies in a part that scrolls by itself.
_TOO_WIDE = """(() => {
  const edge = document.documentElement.clientWidth + 1;
  const scrolls = element => element && (/auto|scroll|hidden|clip/.test(getComputedStyle(element).overflowX)
    || scrolls(element.parentElement));
  return [...document.body.querySelectorAll("*")]
    .filter(element => element.getBoundingClientRect().right > edge && !scrolls(element.parentElement))
    .map(element => `${element.tagName} ${element.id} ${element.className.baseVal ?? element.className}`);
})()"""


def find_browser() -> str:
    """Return the path of a browser; without one the test is skipped, and a line at the end of all tests says so."""
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.skip(NO_BROWSER)
    return str(found)


class Browser:
    """A running browser with one page; use as a context manager."""

    def __init__(self, profile: Path) -> None:
        read_end, self._commands = os.pipe()
        self._answers, write_end = os.pipe()
        theirs = [fcntl.fcntl(end, fcntl.F_DUPFD, _FREE) for end in (read_end, write_end)]
        for end in (read_end, write_end):
            os.close(end)
        command = [find_browser(), *_OPTIONS, f"--user-data-dir={profile}", "about:blank"]
        moved = f'exec "$@" 3<&{theirs[0]} 4>&{theirs[1]}'
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self._process = subprocess.Popen(["bash", "-c", moved, "bash", *command], pass_fds=theirs, **quiet)  # type: ignore[call-overload]
        for end in theirs:
            os.close(end)
        self._unread = b""
        self._number = 0
        self._session = ""
        self.events: list[dict[str, Any]] = []

    def __enter__(self) -> Browser:
        (page,) = (target for target in self._send("Target.getTargets")["targetInfos"] if target["type"] == "page")
        attached = self._send("Target.attachToTarget", targetId=page["targetId"], flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self._send(f"{domain}.enable")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.terminate()
        self._process.wait(SECONDS)
        os.close(self._commands)
        os.close(self._answers)

    def _send(self, method: str, **values: Any) -> dict[str, Any]:
        """Send a command; returns its result, and keeps the events that come before it."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": values}
        os.write(self._commands, json.dumps(message | self._own_session()).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                found: dict[str, Any] = answer["result"]
                return found
            self.events.append(answer)

    def _own_session(self) -> dict[str, str]:
        return {"sessionId": self._session} if self._session else {}

    def _receive(self) -> dict[str, Any]:
        """Wait for the next message."""
        until = time.monotonic() + SECONDS
        while b"\0" not in self._unread:
            ready, _, _ = select.select([self._answers], [], [], until - time.monotonic())
            assert ready, f"the browser gave no answer in {SECONDS:g} s"
            read = os.read(self._answers, 1 << 20)
            assert read, "the browser has ended"
            self._unread += read
        message, _, self._unread = self._unread.partition(b"\0")
        found: dict[str, Any] = json.loads(message)
        return found

    def resize(self, width: int, height: int = 900) -> None:
        """Give the page a screen of this size, that of a telephone if it is narrow."""
        is_phone = width < 600
        self._send(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=is_phone
        )

    def open(self, path: Path) -> None:
        """Open a file, and wait until it is loaded and its scripts have run."""
        self.events.clear()
        self._send("Page.navigate", url=path.resolve().as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self.events.append(self._receive())

    def run(self, script: str) -> Any:
        """Evaluate an expression of JavaScript, wait for it if it is a promise, and return its value."""
        done = self._send("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in done, done["exceptionDetails"]
        return done["result"].get("value")

    def too_wide(self) -> list[str]:
        """List what reaches beyond the right edge, after the page has been drawn."""
        self.run("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
        width = self.run("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
        found: list[str] = self.run(_TOO_WIDE)
        return found + ([f"the page: {width}"] if width[0] > width[1] else [])

    def errors(self) -> list[str]:
        """List the errors of scripts, and what was written as an error to the console, since the page was opened."""
        self.run("0")  # fetches the events until now
        found = []
        for event in self.events:
            values = event.get("params", {})
            if event["method"] == "Runtime.exceptionThrown":
                found.append(str(values["exceptionDetails"]))
            elif event["method"] == "Log.entryAdded" and values["entry"]["level"] == "error":
                found.append(str(values["entry"]))
            elif event["method"] == "Runtime.consoleAPICalled" and values["type"] == "error":
                found.append(str(values["args"]))
        return found

    def fetched(self) -> list[str]:
        """List the addresses that the page asked for, but for itself and what it holds."""
        self.run("0")
        asked = [e["params"] for e in self.events if e["method"] == "Network.requestWillBeSent"]
        urls = [values["request"]["url"] for values in asked if values["type"] != "Document"]
        return [url for url in urls if not url.startswith(("data:", "blob:"))]

    def save(self, path: Path, whole: bool = False) -> None:
        """Save a picture of the page, of the screen or of the whole of it."""
        shot = self._send("Page.captureScreenshot", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(shot["data"]))
