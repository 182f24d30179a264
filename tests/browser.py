"""A real Chromium, driven over its own protocol: pages, keys, screenshots, and everything that it complains about."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import json
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    "--headless=new",
    "--no-sandbox",  # tests may run as root in a container, where it cannot have one
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-proxy-server",  # looking for one takes as long as a name takes that nobody knows
    "--disable-extensions",
    "--no-first-run",
    "--hide-scrollbars",
    "--force-color-profile=srgb",
    "--remote-debugging-port=0",
    "about:blank",
)
WAIT_S = 20
KEYS = {"Enter": 13, "Escape": 27, "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40, "End": 35, "Home": 36}  # fmt: skip


def chromium() -> str | None:
    """Its path, where there is one."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Page:
    """One tab. `complaints` are console errors and warnings, exceptions, blocked loads and refused contents; `loaded` all
    URLs that it asked for.
    """

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._ids = itertools.count(1)
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self.complaints: list[str] = []
        self.loaded: list[str] = []
        self._is_loaded = asyncio.Event()
        self._reader = asyncio.create_task(self._read())

    async def _read(self) -> None:
        async for message in self._socket:
            frame = json.loads(message.data)
            if "id" in frame:
                answer = self._answers.pop(frame["id"])
                if not answer.done():
                    answer.set_result(frame)
            else:
                self._note(frame["method"], frame["params"])

    def _note(self, method: str, params: dict[str, Any]) -> None:
        match method:
            case "Runtime.consoleAPICalled" if params["type"] in ("error", "warning", "assert"):
                self.complaints.append(json.dumps(params["args"]))
            case "Runtime.exceptionThrown":
                details = params["exceptionDetails"]
                self.complaints.append(
                    details.get("exception", {}).get("description", details["text"])
                )
            case "Log.entryAdded" if params["entry"]["level"] in ("error", "warning"):
                entry = params["entry"]
                self.complaints.append(f"{entry['text']} {entry.get('url', '')}")
            case "Audits.issueAdded" if params["issue"]["code"] == "ContentSecurityPolicyIssue":
                self.complaints.append(json.dumps(params["issue"]["details"]))
            case "Page.loadEventFired":
                self._is_loaded.set()
            case "Network.requestWillBeSent":
                self.loaded.append(params["request"]["url"])

    async def send(self, method: str, **params: Any) -> Any:
        """One command and its result."""
        number = next(self._ids)
        self._answers[number] = asyncio.get_running_loop().create_future()
        await self._socket.send_json({"id": number, "method": method, "params": params})
        frame = await asyncio.wait_for(self._answers[number], WAIT_S + 10)
        assert "error" not in frame, (method, frame["error"])
        return frame["result"]

    async def open(self, url: str) -> None:
        """Go there; returns when all of it is loaded."""
        for domain in ("Page", "Runtime", "Log", "Network", "Audits"):
            await self.send(f"{domain}.enable")
        self._is_loaded.clear()
        await self.send("Page.navigate", url=url)
        await asyncio.wait_for(self._is_loaded.wait(), WAIT_S)

    async def reload(self) -> None:
        """The same again."""
        self._is_loaded.clear()
        await self.send("Page.reload")
        await asyncio.wait_for(self._is_loaded.wait(), WAIT_S)

    async def run(self, script: str) -> Any:
        """The value of an expression, awaited."""
        result = await self.send(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    async def until(self, condition: str, within_s: float = WAIT_S) -> Any:
        """Wait until an expression of the page is true; its value."""
        script = f"""new Promise((resolve, reject) => {{
            const end = performance.now() + {1000 * within_s};
            const look = () => {{
                let value;
                try {{ value = {condition}; }} catch (error) {{ value = null; }}
                if (value) resolve(value);
                else if (performance.now() > end) reject(new Error("never: " + {json.dumps(condition)}));
                else setTimeout(look, 20);
            }};
            look();
        }})"""
        return await self.run(script)

    async def text(self, selector: str) -> str:
        """The text of the first element."""
        return str(await self.run(f"document.querySelector({json.dumps(selector)}).textContent"))

    async def click(self, selector: str) -> None:
        """With a real pointer, in the middle of it."""
        name = json.dumps(selector)
        await self.run(f"document.querySelector({name}).scrollIntoView({{block: 'center'}})")
        box = await self.run(
            f"(() => {{ const b = document.querySelector({name}).getBoundingClientRect();"
            "return [b.x + b.width / 2, b.y + b.height / 2]; })()"
        )
        await self.point(*box)
        for kind in ("mousePressed", "mouseReleased"):
            await self.send(
                "Input.dispatchMouseEvent", type=kind, x=box[0], y=box[1], button="left", clickCount=1
            )  # fmt: skip

    async def point(self, x: float, y: float) -> None:
        """Move the pointer."""
        await self.send("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    async def type(self, text: str) -> None:
        """Into what has the focus."""
        await self.send("Input.insertText", text=text)

    async def press(self, key: str) -> None:
        """One key, down and up."""
        params: dict[str, Any] = {"key": key, "windowsVirtualKeyCode": KEYS.get(key, ord(key[0].upper()))}  # fmt: skip
        if len(key) == 1:
            params["text"] = key
        elif key == "Enter":
            params["text"] = "\r"
        await self.send("Input.dispatchKeyEvent", type="keyDown", **params)
        params.pop("text", None)
        await self.send("Input.dispatchKeyEvent", type="keyUp", **params)

    async def window(
        self, width: int, height: int, *, dark: bool = False, mobile: bool = False
    ) -> None:
        """Size, system theme, and whether it is a phone."""
        await self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=mobile,
        )
        features = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        await self.send("Emulation.setEmulatedMedia", features=features)

    async def picture(self, path: Path) -> None:
        """A screenshot."""
        shot = await self.send("Page.captureScreenshot", format="png")
        path.write_bytes(base64.b64decode(shot["data"]))

    async def close(self) -> None:
        """Let go of the tab."""
        await self._socket.close()
        await self._reader


@contextlib.asynccontextmanager
async def browsing() -> AsyncIterator[Page]:
    """A page of a browser of its own, without history."""
    path = chromium()
    assert path is not None, "ask `chromium()` first"
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,
        Path(folder, "errors").open("w+") as errors,
    ):
        process = subprocess.Popen(
            [path, f"--user-data-dir={folder}", *FLAGS],
            stdout=subprocess.DEVNULL,
            stderr=errors,
            text=True,
        )
        try:
            url = await asyncio.wait_for(_debugger(process, Path(errors.name)), WAIT_S)
            port = url.split(":")[2].split("/")[0]
            async with aiohttp.ClientSession() as session:
                async with session.get(f"http://127.0.0.1:{port}/json") as answer:
                    tabs = [one for one in await answer.json() if one["type"] == "page"]
                url = tabs[0]["webSocketDebuggerUrl"]
                async with session.ws_connect(url, max_msg_size=0) as socket:
                    page = Page(socket)
                    yield page
                    await page.close()
        finally:
            process.terminate()
            process.wait(10)


async def _debugger(process: subprocess.Popen[str], log: Path) -> str:
    """Where it listens, which it says on its standard error."""
    while True:
        assert process.poll() is None, log.read_text()
        for line in log.read_text().splitlines():
            if line.startswith("DevTools listening on "):
                return line.removeprefix("DevTools listening on ")
        await asyncio.sleep(0.02)
