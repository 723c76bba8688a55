"""A headless Chromium, driven by the DevTools protocol over a pipe (no library, no port)."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

NAMES = ("chromium", "chromium-browser", "google-chrome")
WAIT_MS = 20_000
_UNTIL = """new Promise((done, failed) => {{
  const end = performance.now() + {limit};
  const look = () => {{
    let found; try {{ found = {condition}; }} catch (error) {{ found = false; }}
    if (found) done(found); else if (performance.now() > end) failed(new Error(document.body.innerText));
    else setTimeout(look, 30);
  }};
  look();
}})"""


class Navigated(RuntimeError):
    """The page went elsewhere while a script ran in it."""


class Browser:
    """Chromium with an empty profile. A context manager."""

    def __init__(self) -> None:
        program = next((path for path in map(shutil.which, NAMES) if path), None)
        if program is None:
            raise RuntimeError(f"no {' or '.join(NAMES)}; install it, as with apt-get install chromium")
        self._profile = tempfile.TemporaryDirectory(prefix="tamiyo-browser-", ignore_cleanup_errors=True)
        read, self._commands = os.pipe()
        self._answers, write = os.pipe()
        flags = "--headless=new --disable-gpu --no-first-run --disable-dev-shm-usage --remote-debugging-pipe"
        sandbox = "--no-sandbox" if os.geteuid() == 0 else ""
        self._process = subprocess.Popen(
            [
                "bash",  # descriptors above 9 are beyond a plain sh
                "-c",
                f'exec "$0" {flags} {sandbox} --user-data-dir="$1" about:blank 3<&{read} 4>&{write}',
                program,
                self._profile.name,
            ],
            pass_fds=(read, write),
            stderr=subprocess.DEVNULL,
        )
        os.close(read)
        os.close(write)
        self._number = 0
        self._rest = b""
        self.events: list[dict[str, Any]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self._process.terminate()
        self._process.wait(20)
        os.close(self._commands)
        os.close(self._answers)
        self._profile.cleanup()

    def page(self, *, width: int = 1400, height: int = 1000, dark: bool = False) -> Page:
        """Open an empty page in a context of its own: no cookies, no cache of another test."""
        context = self.call("Target.createBrowserContext")["browserContextId"]
        target = self.call("Target.createTarget", url="about:blank", browserContextId=context)["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = Page(self, session)
        for domain in ("Runtime", "Log", "Page"):
            page.call(f"{domain}.enable")
        page.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 700,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        page.call("Emulation.setEmulatedMedia", features=[scheme])
        return page

    def call(self, method: str, session: str = "", **params: Any) -> dict[str, Any]:
        """Send a command and return its result; events that come meanwhile are kept."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if session:
            message["sessionId"] = session
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._number:
                if "error" in answer:
                    text = answer["error"]["message"]
                    raise (Navigated if "navigated" in text else RuntimeError)(f"{method}: {text}")
                return answer["result"]
            self.events.append(answer)

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            chunk = os.read(self._answers, 1 << 16)
            if not chunk:
                raise RuntimeError("the browser has ended")
            self._rest += chunk
        message, _, self._rest = self._rest.partition(b"\0")
        return json.loads(message)


@dataclass
class Page:
    """One page."""

    browser: Browser
    session: str
    _seen: int = field(default=0)

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        return self.browser.call(method, self.session, **params)

    def open(self, url: str) -> None:
        self.call("Page.navigate", url=url)

    def do(self, script: str) -> Any:
        """Run ``script`` in the page and return its value; a promise is awaited."""
        found = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in found:
            raise AssertionError(found["exceptionDetails"]["exception"].get("description", found))
        return found["result"].get("value")

    def until(self, condition: str, limit_ms: int = WAIT_MS) -> Any:
        """Wait until ``condition`` holds in the page, also across a navigation; return its value."""
        while True:
            try:
                return self.do(_UNTIL.format(condition=condition, limit=limit_ms))
            except Navigated:
                continue

    def text(self, selector: str) -> str:
        return self.do(f"document.querySelector({json.dumps(selector)}).innerText")

    def press(self, key: str) -> None:
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key)

    def complaints(self) -> list[str]:
        """Return what the page logged as an error, and what it threw."""
        found = []
        for event in self.browser.events:
            if event.get("sessionId") != self.session:
                continue
            if event["method"] == "Runtime.exceptionThrown":
                found.append(json.dumps(event["params"]["exceptionDetails"]))
            elif event["method"] == "Log.entryAdded" and event["params"]["entry"]["level"] == "error":
                found.append(event["params"]["entry"]["text"])
            elif event["method"] == "Runtime.consoleAPICalled" and event["params"]["type"] in {"error", "warning"}:
                found.append(json.dumps(event["params"]["args"]))
        return found
