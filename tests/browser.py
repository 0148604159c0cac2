"""A headless Chromium that reports what a page asks for and what goes wrong in it, through its debugging protocol."""

import json
import shutil
import subprocess
import tempfile
import time
from base64 import b64decode
from pathlib import Path
from urllib.request import urlopen

from websocket import create_connection

PROGRAM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
OPTIONS = (
    "--headless --no-sandbox --disable-gpu --disable-dev-shm-usage --no-first-run --remote-allow-origins=*".split()
)


class Browser:
    """One tab of a browser of its own; use it as a context manager."""

    def __enter__(self) -> "Browser":
        self.folder = Path(tempfile.mkdtemp())
        command = [PROGRAM, *OPTIONS, "--remote-debugging-port=0", f"--user-data-dir={self.folder}", "about:blank"]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        port = self.folder / "DevToolsActivePort"
        for _ in range(600):
            if port.exists() and port.read_text().strip():
                break
            time.sleep(0.1)
        address = f"http://127.0.0.1:{port.read_text().split()[0]}/json"
        tab = next(one for one in json.loads(urlopen(address).read()) if one["type"] == "page")
        self.socket, self.number, self.events = create_connection(tab["webSocketDebuggerUrl"], timeout=120), 0, []
        for domain in ("Page", "Network", "Log", "Runtime"):
            self.call(f"{domain}.enable")
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()
        self.process.kill()
        self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def call(self, method: str, **parameters: object) -> dict:
        """The result of a command; events that come before it are kept."""
        self.number += 1
        self.socket.send(json.dumps({"id": self.number, "method": method, "params": parameters}))
        while "id" not in (message := json.loads(self.socket.recv())):
            self.events.append(message)
        assert "error" not in message, message
        return message["result"]

    def look(self, width: int, dark: bool = False) -> None:
        """Show pages at a width in CSS pixels, in the light or the dark mode of the reader's system."""
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def open(self, address: str, settle: float = 0.3) -> list[dict]:
        """Load a page and wait until it is quiet; returns the events on the way."""
        self.events.clear()
        self.call("Page.navigate", url=address)
        for _ in range(600):
            if any(event["method"] == "Page.loadEventFired" for event in self.events):
                break
            self.value("0")
            time.sleep(0.05)
        time.sleep(settle)
        self.value("0")
        return self.events

    def value(self, expression: str) -> object:
        """The value of a JavaScript expression in the page; that of a promise once it is kept."""
        options = {"returnByValue": True, "awaitPromise": True}
        return self.call("Runtime.evaluate", expression=expression, **options)["result"].get("value")

    def picture(self, whole: bool = True) -> bytes:
        """A PNG of the page, down to its end or as far as the window shows."""
        return b64decode(self.call("Page.captureScreenshot", captureBeyondViewport=whole)["data"])


def requests(events: list[dict]) -> list[str]:
    """The addresses that a page asked for."""
    return [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]


def errors(events: list[dict]) -> list[str]:
    """What went wrong in a page: failed requests, exceptions, errors and warnings of its console."""
    found = []
    for event in events:
        told = event["params"]
        match event["method"]:
            case "Network.loadingFailed" if not told.get("canceled"):
                found.append(f"request failed: {told['errorText']}")
            case "Network.responseReceived" if told["response"]["status"] >= 400:
                found.append(f"{told['response']['status']}: {told['response']['url']}")
            case "Runtime.exceptionThrown":
                found.append(str(told["exceptionDetails"].get("exception", told["exceptionDetails"])))
            case "Runtime.consoleAPICalled" if told["type"] in ("error", "assert", "warning"):
                found.append(str(told["args"]))
            case "Log.entryAdded" if told["entry"]["level"] in ("error", "warning"):
                found.append(told["entry"]["text"])
    return found
