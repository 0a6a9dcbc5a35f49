"""A real Chromium without a window, driven by its DevTools protocol: pages, keys, screens, and their errors."""

from __future__ import annotations

import asyncio
import base64
import itertools
import os
import re
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from tests.servers.process import ServerProcess, child_environment, until

Json = dict[str, Any]

# As Debian's packages call it: the small one without windows first.
PROGRAMS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
_LISTENS = re.compile(r"DevTools listening on (ws://\S+)")
_OPTIONS = (
    "--headless", "--remote-debugging-port=0", "--no-first-run", "--disable-gpu", "--disable-extensions",
    "--disable-background-networking", "--disable-component-update", "--hide-scrollbars",
    # /dev/shm is small in containers.
    "--disable-dev-shm-usage",
)  # fmt: skip
_MESSAGE_BYTES = 64 << 20
KEYS = {
    "Tab": (9, ""), "Enter": (13, "\r"), "ArrowLeft": (37, ""), "ArrowUp": (38, ""), "ArrowRight": (39, ""),
    "ArrowDown": (40, ""), "Home": (36, ""), "End": (35, ""),
}  # fmt: skip


def program() -> str:
    """The browser's program. Fails without one."""
    found = next((path for name in PROGRAMS if (path := shutil.which(name))), None)
    assert found is not None, "no Chromium: run scripts/setup.sh system"
    return found


@dataclass
class Page:
    """One tab. `errors` are messages of its console and uncaught exceptions; `requests` are the addresses it asked."""

    _browser: Browser
    _session: str
    errors: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    async def call(self, method: str, **parameters: Any) -> Json:
        return await self._browser.call(method, parameters, self._session)

    async def go(self, url: str) -> None:
        """Open an address, and wait for the document."""
        await self.call("Page.navigate", url=url)
        await self.wait("document.readyState === 'complete' && location.href !== 'about:blank'")

    async def ask(self, script: str) -> Any:
        """The value of an expression in the page."""
        answer = await self.call(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    async def wait(self, script: str) -> None:
        """Wait until an expression is true; fails when the machine is idle and it still isn't."""
        holds = False
        last: Any = None

        async def look() -> None:
            nonlocal holds, last
            while not holds:
                last = await self.ask(f"({script}) || document.body?.innerText")
                holds = last is True
                await asyncio.sleep(0.02)

        looking = asyncio.create_task(look())
        try:
            await until(lambda: holds or looking.done(), what=script)
        except TimeoutError as error:
            raise AssertionError(f"never true: {script}; the page: {last}") from error
        finally:
            looking.cancel()
            await asyncio.gather(looking, return_exceptions=True)
        assert holds, self.errors

    async def press(self, key: str) -> None:
        """Press and release a key, as on a keyboard."""
        code, text = KEYS[key]
        common: Json = {"key": key, "code": key, "windowsVirtualKeyCode": code}
        down = {"type": "keyDown" if text else "rawKeyDown", **({"text": text} if text else {})}
        await self.call("Input.dispatchKeyEvent", **common, **down)
        await self.call("Input.dispatchKeyEvent", type="keyUp", **common)

    async def type(self, text: str) -> None:
        await self.call("Input.insertText", text=text)

    async def look_like(self, *, width: int = 1280, height: int = 900, dark: bool = False) -> None:
        """Set the window's size in pixels, and the colours that the person prefers."""
        await self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1,
            mobile=width < 600,
        )  # fmt: skip
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        await self.call("Emulation.setEmulatedMedia", features=[scheme])

    async def spoken(self) -> list[tuple[str, str]]:
        """What a screen reader has: (role, name) of each node of the accessibility tree."""
        answer = await self.call("Accessibility.getFullAXTree")
        return [
            (str(each["role"]["value"]), str((each.get("name") or {}).get("value") or ""))
            for each in answer["nodes"]
            if not each.get("ignored") and "role" in each
        ]

    async def screen(self) -> bytes:
        """A picture of the whole page as PNG, for people."""
        answer = await self.call("Page.captureScreenshot", captureBeyondViewport=True)
        return base64.b64decode(answer["data"])

    def hear(self, method: str, told: Json) -> None:
        """Keep what an event of the protocol tells."""
        if method == "Network.requestWillBeSent":
            self.requests.append(told["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            self.errors.append(str(told["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled" and told["type"] in ("error", "warning"):
            self.errors.append(str(told["args"]))
        elif method == "Log.entryAdded" and told["entry"]["level"] in ("error", "warning"):
            self.errors.append(f"{told['entry']['text']} {told['entry'].get('url', '')}")


class Browser:
    """A running Chromium."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._numbers = itertools.count(1)
        self._answers: dict[int, asyncio.Future[Json]] = {}
        self._pages: dict[str, Page] = {}

    async def listen(self) -> None:
        """Take answers and events until the browser ends."""
        async for message in self._socket:
            told = message.json()
            if "id" in told:
                self._answers.pop(told["id"]).set_result(told)
            elif (page := self._pages.get(told.get("sessionId", ""))) is not None:
                page.hear(told["method"], told["params"])

    async def call(self, method: str, parameters: Json, session: str | None = None) -> Json:
        number = next(self._numbers)
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        request = {"id": number, "method": method, "params": parameters}
        await self._socket.send_json({**request, **({"sessionId": session} if session else {})})
        found = await answer
        assert "error" not in found, f"{method}: {found['error']}"
        result: Json = found["result"]
        return result

    async def page(self) -> Page:
        """A new tab with nothing of the others: no cookies, no storage."""
        context = await self.call("Target.createBrowserContext", {})
        target = await self.call(
            "Target.createTarget", {"url": "about:blank", **context}
        )  # fmt: skip
        attached = await self.call("Target.attachToTarget", {**target, "flatten": True})
        page = self._pages[attached["sessionId"]] = Page(self, attached["sessionId"])
        for domain in ("Page", "Runtime", "Network", "Log", "Accessibility"):
            await page.call(f"{domain}.enable")
        await page.look_like()
        return page


@asynccontextmanager
async def chromium(directory: Path) -> AsyncIterator[Browser]:
    """A Chromium with a profile of its own, until left."""
    # The sandbox needs rights that a root user in a container has not.
    unsafe = ["--no-sandbox"] if os.geteuid() == 0 else []
    profile = f"--user-data-dir={directory / 'profile'}"
    process = ServerProcess(
        [program(), *_OPTIONS, *unsafe, profile, "about:blank"],
        log=directory / "chromium.log",
        environment=child_environment(directory),
    )
    try:
        process.wait_for(lambda: bool(_LISTENS.search(process.log_text())), what="DevTools")
        found = _LISTENS.search(process.log_text())
        assert found is not None
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(found[1], max_msg_size=_MESSAGE_BYTES) as socket,
        ):
            browser = Browser(socket)
            listening = asyncio.create_task(browser.listen())
            try:
                yield browser
            finally:
                listening.cancel()
                await asyncio.gather(listening, return_exceptions=True)
    finally:
        process.stop()
