"""Drives a headless Chromium over pipes: returns the text of a page, shadow trees included, and screenshots."""

from __future__ import annotations

import base64
import itertools
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
in_a_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")

TEXT = """(function text(node) {
  if (node.nodeType === Node.TEXT_NODE) return node.textContent.trim() + " ";
  if (["STYLE", "SCRIPT", "TEMPLATE"].includes(node.nodeName)) return "";
  return [...(node.shadowRoot ? [node.shadowRoot] : []), ...node.childNodes].map(text).join("");
})(document.body ?? document)"""


class Tab:
    """One page; commands are those of the Chrome DevTools protocol."""

    def __init__(self, to_browser: int, answers: IO[bytes]) -> None:
        self._to, self._from, self._rest = to_browser, answers, b""
        self._numbers = itertools.count(1)
        self._session: str | None = None
        target = self.command("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.command("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.command("Emulation.setDeviceMetricsOverride", width=1500, height=1000, deviceScaleFactor=1, mobile=False)

    def command(self, method: str, **params: Any) -> dict[str, Any]:
        """Return the result of a command."""
        message = {"id": next(self._numbers), "method": method, "params": params}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            while b"\0" not in self._rest:
                read = self._from.read(1 << 20)
                assert read, "the browser has ended"
                self._rest += read
            answer, _, self._rest = self._rest.partition(b"\0")
            found = json.loads(answer)
            if found.get("id") == message["id"]:
                assert "error" not in found, found
                return found["result"]

    def evaluate(self, script: str) -> Any:
        """Return the value of an expression in the page."""
        result = self.command("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def open(self, address: str, *awaited: str, seconds: float = 120) -> str:
        """Return the text of a page once it shows all that is awaited."""
        self.command("Page.navigate", url=address)
        until, text = time.monotonic() + seconds, ""
        while time.monotonic() < until:
            text = self.evaluate(TEXT) or ""
            if all(words in text for words in awaited):
                return text
            time.sleep(0.3)
        raise AssertionError(f"{address}: {[w for w in awaited if w not in text]} not shown in: {text[:3000]}")

    def screenshot(self, path: Path) -> None:
        """Write what is seen as a PNG file."""
        path.write_bytes(base64.b64decode(self.command("Page.captureScreenshot")["data"]))


@contextmanager
def browser(folder: Path) -> Iterator[Tab]:
    """Start a browser whose profile is in a folder, and give one page of it."""
    assert CHROMIUM is not None
    theirs_in, to_browser = os.pipe()
    from_browser, theirs_out = os.pipe()
    flags = "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking"
    command = [CHROMIUM, *flags.split(), "--remote-debugging-pipe", f"--user-data-dir={folder / 'profile'}"]
    shell = f'exec "$@" 3<&{theirs_in} 4>&{theirs_out}'  # the descriptors that the flag means
    process = subprocess.Popen(
        ["bash", "-c", shell, "bash", *command],
        pass_fds=(theirs_in, theirs_out),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(theirs_in)
    os.close(theirs_out)
    try:
        with os.fdopen(from_browser, "rb", buffering=0) as answers:
            yield Tab(to_browser, answers)
    finally:
        os.close(to_browser)
        process.terminate()
        process.wait(20)
