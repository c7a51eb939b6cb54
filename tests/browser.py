"""A real headless Chromium, driven over its own protocol (Chrome DevTools Protocol)."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import shutil
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import aiohttp

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
"""The installed Chromium; None if there is none."""

_QUIET = (
    "--headless=new",
    "--no-sandbox",  # it refuses to run as root otherwise
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-quic",
    "--remote-debugging-port=0",
)
SECONDS = 60.0
"""Longest wait for an answer or a state of the page."""

_KEYS = {"ArrowRight": 39, "ArrowLeft": 37, "ArrowUp": 38, "ArrowDown": 40, "Enter": 13, "Tab": 9, "Delete": 46}


class NavigatedError(AssertionError):
    """The page that a script ran in has been left meanwhile."""


class Page:
    """One page. Leave the context to end the browser."""

    def __init__(self, profile: Path, width: int = 1280, height: int = 800) -> None:
        self.profile = profile
        self.size = f"--window-size={width},{height}"
        self._numbers = itertools.count(1)
        self.errors: list[str] = []
        """What the page's scripts complained about."""

    async def __aenter__(self) -> Self:
        assert CHROMIUM is not None
        command = [CHROMIUM, *_QUIET, self.size, f"--user-data-dir={self.profile}", "about:blank"]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self._http = aiohttp.ClientSession()
        port_file = self.profile / "DevToolsActivePort"
        async with asyncio.timeout(SECONDS):
            while not port_file.exists() or not port_file.read_text().strip():
                assert self._process.poll() is None, "Chromium ended at its start"
                await asyncio.sleep(0.05)
            address = f"http://127.0.0.1:{port_file.read_text().split()[0]}/json"
            while not (pages := [each for each in await self._json(address) if each["type"] == "page"]):
                await asyncio.sleep(0.05)
        self._socket = await self._http.ws_connect(pages[0]["webSocketDebuggerUrl"], max_msg_size=0)
        for domain in ("Page", "Runtime", "Log"):
            await self.send(f"{domain}.enable")
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._socket.close()
        await self._http.close()
        self._process.kill()
        self._process.wait()

    async def _json(self, address: str) -> Any:
        async with self._http.get(address) as answer:
            return await answer.json(content_type=None)

    async def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The answer to one command of the protocol."""
        number = next(self._numbers)
        await self._socket.send_json({"id": number, "method": method, "params": parameters})
        async with asyncio.timeout(SECONDS):
            while True:
                message = json.loads(await self._socket.receive_str())
                if message.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded"):
                    self.errors.append(json.dumps(message["params"]))
                if message.get("id") == number:
                    if any(word in str(message.get("error")) for word in ("navigated", "context")):
                        raise NavigatedError(message)
                    assert "error" not in message, message
                    return dict(message["result"])

    async def run(self, script: str) -> Any:
        """The value of a JavaScript expression in the page."""
        answer = await self.send("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    async def until(self, condition: str) -> None:
        """Wait until a JavaScript expression is true."""
        async with asyncio.timeout(SECONDS):
            while True:
                with suppress(NavigatedError):  # the next page may fulfil it
                    if await self.run(f"Boolean({condition})"):
                        return
                await asyncio.sleep(0.03)

    async def open(self, url: str, ready: str) -> None:
        """Go to an address and wait until `ready`, a JavaScript expression, is true."""
        await self.send("Page.navigate", url=url)
        await self.until(f"document.readyState === 'complete' && Boolean({ready})")

    async def drag(self, points: Sequence[tuple[float, float]]) -> None:
        """Press the mouse at the first point, move it through the others, and let it go. Points are CSS pixels."""
        for kind, (x, y), buttons in [
            ("mousePressed", points[0], 1),
            *(("mouseMoved", point, 1) for point in points[1:]),
            ("mouseReleased", points[-1], 0),
        ]:
            await self.send(
                "Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", buttons=buttons, clickCount=1
            )

    async def press(self, key: str, control: bool = False, shift: bool = False) -> None:
        """Press one key: a letter, or a name such as `ArrowRight`."""
        code = _KEYS.get(key, ord(key[0].upper()))
        modifiers = 2 * control + 8 * shift
        text = {"text": key} if len(key) == 1 and not control else {"text": "\r"} if key == "Enter" else {}
        for kind in ("keyDown", "keyUp"):
            more = text if kind == "keyDown" else {}
            await self.send(
                "Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=code, modifiers=modifiers, **more
            )

    async def screenshot(self, path: Path) -> None:
        """Save what the page shows as a PNG."""
        path.write_bytes(base64.b64decode((await self.send("Page.captureScreenshot", format="png"))["data"]))
