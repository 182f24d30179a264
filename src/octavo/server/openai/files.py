"""POST, GET and DELETE /v1/files: what batches read and write. Every key sees its own files alone."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path

from starlette.datastructures import FormData, Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive

from octavo.core.errors import RequestError
from octavo.server.call import Call, json_response
from octavo.server.errors import BodyTimeoutError, MediaTypeError, TooLargeError
from octavo.server.jobs.shapes import OPEN, Deleted, File, FileList
from octavo.server.jobs.store import MAX_FILE_BYTES, new_id
from octavo.server.limits import MAX_NAME_CHARS, ClientGone
from octavo.server.openai.pages import page, path_id, query, store_of

UPLOAD_TIMEOUT_S = 600.0
PURPOSES = ("batch",)
_FIELDS = ("file", "purpose", "expires_after[anchor]", "expires_after[seconds]")
_SHORTEST_S, _LONGEST_S = 3600, 30 * 86400
_EXTRA_BYTES = 64 << 10
"""Of a form beside the file in it."""
_READ_BYTES = 1 << 18


async def upload_file(call: Call) -> Response:
    """Keep a file."""
    store = store_of(call)
    headers = Headers(scope=call.scope)
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "multipart/form-data":
        raise MediaTypeError(f"content-type is {kind[:80]!r}; expected 'multipart/form-data'.")
    try:
        async with asyncio.timeout(UPLOAD_TIMEOUT_S):
            parser = MultiPartParser(
                headers, _bounded(call.receive), max_files=1, max_fields=len(_FIELDS)
            )
            form = await parser.parse()
    except TimeoutError as error:
        raise BodyTimeoutError(
            f"the body was not complete after {UPLOAD_TIMEOUT_S:g} s."
        ) from error
    except (MultiPartException, KeyError, UnicodeDecodeError) as error:
        reason = getattr(error, "message", "it is malformed")
        raise RequestError(f"the form cannot be read: {reason}", code="invalid_form") from error
    try:
        file, upload = _checked(call, form)
        kept = await asyncio.to_thread(store.add_file, call.caller.tenant, file, upload.file)
    finally:
        await form.close()
    return json_response(kept)


async def _bounded(receive: Receive) -> AsyncGenerator[bytes, None]:
    size = 0
    more = True
    while more:
        message = await receive()
        if message["type"] != "http.request":
            raise ClientGone
        part: bytes = message.get("body", b"")
        size += len(part)
        if size > MAX_FILE_BYTES + _EXTRA_BYTES:
            raise TooLargeError(f"the file is larger than {MAX_FILE_BYTES} bytes.")
        more = message.get("more_body", False)
        yield part


def _checked(call: Call, form: FormData) -> tuple[File, UploadFile]:
    for name in form:
        if name not in _FIELDS:
            short = name[:40]
            call.refuse(
                RequestError(f"unknown field {short!r}.", param=short, code="unknown_field")
            )
    upload, purpose = form.get("file"), form.get("purpose")
    if not isinstance(upload, UploadFile):
        raise RequestError("file is missing; expected a file part of that name.", param="file")
    if purpose not in PURPOSES:
        raise RequestError(
            f"purpose is {str(purpose)[:40]!r}; expected one of {', '.join(PURPOSES)}.",
            param="purpose",
        )
    name = Path(upload.filename or "upload").name
    if len(name) > MAX_NAME_CHARS:
        raise RequestError(f"the file's name is longer than {MAX_NAME_CHARS}.", param="file")
    now = int(time.time())
    seconds = _expiry(form)
    file = File(
        id=new_id("file-"),
        bytes=0,
        created_at=now,
        expires_at=None if seconds is None else now + seconds,
        filename=name,
        purpose=str(purpose),
    )
    return file, upload


def _expiry(form: FormData) -> int | None:
    anchor, seconds = form.get("expires_after[anchor]"), form.get("expires_after[seconds]")
    if anchor is None and seconds is None:
        return None
    if anchor != "created_at":
        raise RequestError(
            "expires_after.anchor is not 'created_at'.", param="expires_after.anchor"
        )
    text = str(seconds)
    is_number = text.isascii() and text.isdigit() and len(text) < 10
    if not is_number or not _SHORTEST_S <= int(text) <= _LONGEST_S:
        raise RequestError(
            f"expires_after.seconds is {text[:40]!r}; expected {_SHORTEST_S} to {_LONGEST_S}.",
            param="expires_after.seconds",
        )
    return int(text)


async def list_files(call: Call) -> Response:
    """A key's files, newest first."""
    store = store_of(call)
    asked = query(call, ("purpose", "limit", "order", "after"))
    files = store.files(call.caller.tenant)
    if "purpose" in asked:
        files = [file for file in files if file.purpose == asked["purpose"]]
    found, has_more = page(files, asked)
    return json_response(
        FileList(
            data=found,
            first_id=found[0].id if found else None,
            last_id=found[-1].id if found else None,
            has_more=has_more,
        )
    )


async def get_file(call: Call) -> Response:
    """What is known of a file."""
    return json_response(store_of(call).file(call.caller.tenant, path_id(call, "file_id")))


async def delete_file(call: Call) -> Response:
    """Forget a file, unless a job still reads it."""
    store, file_id = store_of(call), path_id(call, "file_id")
    readers = [
        batch.id
        for batch in store.batches(call.caller.tenant)
        if batch.input_file_id == file_id and batch.status in OPEN
    ]
    if readers:
        raise RequestError(
            f"the file is read by {readers[0]}.",
            param="file_id",
            fix="Cancel it, or wait for its end.",
        )
    await asyncio.to_thread(store.delete_file, call.caller.tenant, file_id)
    return json_response(Deleted(id=file_id))


async def file_content(call: Call) -> Response:
    """The bytes of a file."""
    store = store_of(call)
    file = store.file(call.caller.tenant, path_id(call, "file_id"))
    return StreamingResponse(
        _parts(store.path(file.id)),
        media_type="application/octet-stream",
        headers={"content-length": str(file.bytes)},
    )


async def _parts(path: Path) -> AsyncIterator[bytes]:
    with path.open("rb") as source:
        while part := await asyncio.to_thread(source.read, _READ_BYTES):
            yield part
