"""Files, batches and their lines as the OpenAI API spells them."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from octavo.server.limits import MAX_NAME_CHARS

Status = Literal[
    "validating",
    "failed",
    "in_progress",
    "finalizing",
    "completed",
    "expired",
    "cancelling",
    "cancelled",
]
OPEN: tuple[Status, ...] = ("validating", "in_progress", "finalizing", "cancelling")
"""Jobs in these states go on after a restart."""


class File(msgspec.Struct, kw_only=True):
    """One file."""

    id: str
    object: str = "file"
    bytes: int
    created_at: int
    expires_at: int | None = None
    filename: str
    purpose: str
    status: str = "processed"


class FileList(msgspec.Struct, kw_only=True):
    """Some of a key's files."""

    object: str = "list"
    data: list[File]
    first_id: str | None
    last_id: str | None
    has_more: bool


class Deleted(msgspec.Struct, kw_only=True):
    """A file that is gone."""

    id: str
    object: str = "file"
    deleted: bool = True


class LineError(msgspec.Struct, kw_only=True):
    """What is wrong with the input file."""

    code: str
    message: str
    line: int | None = None
    param: str | None = None


class LineErrors(msgspec.Struct, kw_only=True):
    """All that is wrong, or the first of it."""

    object: str = "list"
    data: list[LineError]


class Counts(msgspec.Struct, kw_only=True):
    """Lines of a job."""

    total: int = 0
    completed: int = 0
    failed: int = 0


class Batch(msgspec.Struct, kw_only=True):
    """One job."""

    id: str
    object: str = "batch"
    endpoint: str
    errors: LineErrors | None = None
    input_file_id: str
    completion_window: str
    status: Status = "validating"
    output_file_id: str | None = None
    error_file_id: str | None = None
    created_at: int
    in_progress_at: int | None = None
    expires_at: int
    finalizing_at: int | None = None
    completed_at: int | None = None
    failed_at: int | None = None
    expired_at: int | None = None
    cancelling_at: int | None = None
    cancelled_at: int | None = None
    request_counts: Counts = msgspec.field(default_factory=Counts)
    metadata: dict[str, str] | None = None


class BatchList(msgspec.Struct, kw_only=True):
    """Some of a key's jobs."""

    object: str = "list"
    data: list[Batch]
    first_id: str | None
    last_id: str | None
    has_more: bool


class Line(msgspec.Struct, kw_only=True, frozen=True):
    """One line of an input file: a call to be made."""

    custom_id: Annotated[str, Meta(min_length=1, max_length=MAX_NAME_CHARS)]
    method: Literal["POST"] = "POST"
    url: Annotated[str, Meta(max_length=MAX_NAME_CHARS)]
    body: msgspec.Raw


class Response(msgspec.Struct, kw_only=True):
    """What a call was answered."""

    status_code: int
    request_id: str
    body: msgspec.Raw


class AnswerError(msgspec.Struct, kw_only=True):
    """Why a call was not made."""

    code: str
    message: str


class Answer(msgspec.Struct, kw_only=True):
    """One line of an output or error file."""

    id: str
    custom_id: str
    response: Response | None = None
    error: AnswerError | None = None


def line_of(raw: bytes) -> Line:
    """A line of an input file.

    Raises:
        msgspec.MsgspecError: it is no such line.
    """
    return _line.decode(raw)


_line = msgspec.json.Decoder(Line)
