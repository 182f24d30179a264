"""GET /console and what belongs to it: the files of `web/`, as they lie in the package. Public, because no data is in them.

A name is looked up among the files that were read at the first call; no path is ever made of what a caller sends.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from starlette.datastructures import Headers
from starlette.responses import Response

from octavo.core.errors import NotFoundError, did_you_mean
from octavo.server.call import Call

FOLDER = Path(__file__).resolve().parents[2] / "web"
INDEX = "index.html"
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
HEADERS = {
    # Nothing but our own files, no code or style inside a page, nobody may frame it.
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
    # Asked for anew each time, and answered with a 304: after an upgrade no half of the page is an old one.
    "cache-control": "no-cache",
}


class Page(NamedTuple):
    """One file."""

    body: bytes
    headers: Mapping[str, str]


@functools.cache
def pages() -> Mapping[str, Page]:
    """Name, with slashes, -> file."""
    found = {}
    for path in sorted(FOLDER.rglob("*")):
        if path.suffix in TYPES and path.is_file():
            body = path.read_bytes()
            etag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
            headers = {**HEADERS, "content-type": TYPES[path.suffix], "etag": etag}
            found[path.relative_to(FOLDER).as_posix()] = Page(body, headers)
    return found


async def index(call: Call) -> Response:
    """The page."""
    return _answer(call, pages()[INDEX])


async def file(call: Call) -> Response:
    """What the page loads.

    Raises:
        NotFoundError: there is no such file.
    """
    name = str(call.scope["path_params"]["name"])
    if not name:
        # Relative, so that nothing of it comes from the Host header.
        return Response(status_code=308, headers={"location": "../console"})
    page = pages().get(name)
    if page is None:
        known = [f"/console/{one}" for one in pages()]
        given = f"/console/{name[:256]}"
        raise NotFoundError(
            f"the console has no file {given!r}.{did_you_mean(given, known)}",
            fix="The console is at /console.",
        )
    return _answer(call, page)


def _answer(call: Call, page: Page) -> Response:
    given = Headers(scope=call.scope).get("if-none-match", "")
    known = {one.strip().removeprefix("W/") for one in given.split(",")}
    if known & {page.headers["etag"], "*"}:
        kept = {name: value for name, value in page.headers.items() if name != "content-type"}
        return Response(status_code=304, headers=kept)
    return Response(page.body, headers=dict(page.headers))
