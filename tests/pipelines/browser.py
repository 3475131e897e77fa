"""Headless Chromium over its debugging pipe: opens a page, asks it things, clicks, takes pictures. No package needed.

Messages are JSON ended by a NUL byte, in on descriptor 3 and out on 4:
https://chromedevtools.github.io/devtools-protocol/
"""

import base64
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
SECONDS = 120.0  # a start takes two, on a machine that does nothing else


def browser_program() -> str:
    """Path of a Chromium; skips the test where there is none."""
    for name in PROGRAMS:
        path = shutil.which(name)
        if path:
            return path
    pytest.skip(f"no browser to open the page with: none of {', '.join(PROGRAMS)} is installed")


class Browser:
    """One page in a browser of its own; use it as a context manager.

    Attributes:
        events: everything that the browser reported, in order: (method, parameters).
    """

    def __init__(self, profile: Path) -> None:
        program = browser_program()
        self.events: list[tuple[str, dict[str, Any]]] = []
        self._number = 0
        self._received = b""
        self._session: str | None = None
        commands, self._commands = os.pipe()
        self._answers, answers = os.pipe()

        def connect() -> None:
            high = [os.dup(commands), os.dup(answers)]  # so that neither is overwritten by the other's number
            os.dup2(high[0], 3)
            os.dup2(high[1], 4)

        arguments = ["--headless", "--remote-debugging-pipe", f"--user-data-dir={profile}", "--no-first-run"]
        arguments += [
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--disable-background-networking",
            "--hide-scrollbars",
        ]
        if os.geteuid() == 0:
            arguments.append("--no-sandbox")  # Chromium has none for root
        self._process = subprocess.Popen(
            [program, *arguments, "about:blank"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            preexec_fn=connect,
            pass_fds=(3, 4),
        )
        os.close(commands)
        os.close(answers)

    def __enter__(self) -> "Browser":
        try:
            self._attach()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _attach(self) -> None:
        targets = self.call("Target.getTargets")["targetInfos"]
        page = next(target for target in targets if target["type"] == "page")
        attached = self.call("Target.attachToTarget", targetId=page["targetId"], flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def __exit__(self, *error: object) -> None:
        os.close(self._commands)  # at which the browser ends
        os.close(self._answers)
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command, and its answer."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                result: dict[str, Any] = answer["result"]
                return result

    def open(self, file: Path) -> None:
        """Open a file, and wait until all of it is there."""
        self.events.clear()
        self.call("Page.navigate", url=file.as_uri())
        deadline = time.monotonic() + SECONDS
        while self.evaluate("document.readyState") != "complete":
            assert time.monotonic() < deadline, f"{file} did not finish loading"
            time.sleep(0.05)
        self.evaluate("Promise.all([...document.images].map(image => image.decode().catch(() => 0))).then(() => 0)")

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression, awaited."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def resize(self, *, width: int, height: int, mobile: bool = False) -> None:
        """Of the window, in CSS pixels; `mobile` also does what phones do with the viewport."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=2 if mobile else 1,
            mobile=mobile,
        )

    def click(self, selector: str, *, across: float = 0.5) -> None:
        """Press and release the mouse on the first element that a selector names, at a share of its width."""
        box = self.evaluate(
            f"(() => {{ const element = document.querySelector({json.dumps(selector)});"
            " element.scrollIntoView({block: 'center'}); const box = element.getBoundingClientRect();"
            " return [box.left, box.top, box.width, box.height]; })()"
        )
        left, top, width, height = box
        where = {"x": left + across * width, "y": top + height / 2, "button": "left", "clickCount": 1}
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, **where)

    def screenshot(self, file: Path, *, whole: bool = False) -> None:
        """PNG of the window, or of the whole page."""
        found = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        file.write_bytes(base64.b64decode(found["data"]))

    def problems(self) -> list[str]:
        """Exceptions, and errors and warnings on the console, since the page was opened."""
        found = [str(values) for method, values in self.events if method == "Runtime.exceptionThrown"]
        found += [
            str(values)
            for method, values in self.events
            if (method == "Log.entryAdded" and values["entry"]["level"] in ("error", "warning"))
            or (method == "Runtime.consoleAPICalled" and values["type"] in ("error", "warning", "assert"))
        ]
        return found

    def requests(self) -> list[str]:
        """Addresses that the page asked for, those inside it apart."""
        urls = [values["request"]["url"] for method, values in self.events if method == "Network.requestWillBeSent"]
        return [url for url in urls if not url.startswith("data:")]

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._received:
            ready, _, _ = select.select([self._answers], [], [], SECONDS)
            assert ready, f"the browser said nothing for {SECONDS:.0f} s"
            data = os.read(self._answers, 2**20)
            assert data, "the browser ended"
            self._received += data
        line, _, self._received = self._received.partition(b"\0")
        message: dict[str, Any] = json.loads(line)
        if "method" in message:
            self.events.append((message["method"], message["params"]))
        return message
