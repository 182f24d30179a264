"""The input file of a batch, line by line."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from octavo.server.jobs.shapes import Line, LineError, line_of

MAX_LINES = 50_000
MAX_LINE_BYTES = 4 << 20
MAX_ERRORS = 100


def check(path: Path, endpoints: Sequence[str]) -> tuple[int, list[LineError]]:
    """How many lines there are and the first errors in them; a job with any is not begun."""
    errors: list[LineError] = []
    seen: dict[str, int] = {}
    count = 0
    for number, raw in enumerate(_raw_lines(path), 1):
        if len(errors) >= MAX_ERRORS:
            break
        if not raw.strip():
            continue
        count += 1
        if count > MAX_LINES:
            errors.append(_error("too_many_lines", number, f"more than {MAX_LINES} lines"))
            break
        if len(raw) > MAX_LINE_BYTES:
            errors.append(_error("line_too_long", number, f"more than {MAX_LINE_BYTES} bytes"))
            continue
        try:
            line = line_of(raw)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            errors.append(_error("invalid_json_line", number, f"not a request: {error}"))
            continue
        errors += _complaints(line, number, endpoints, seen)
        seen.setdefault(line.custom_id, number)
    if not count and not errors:
        errors.append(_error("empty_file", None, "the file has no requests"))
    return count, errors


def _complaints(
    line: Line, number: int, endpoints: Sequence[str], seen: dict[str, int]
) -> Iterator[LineError]:
    if line.custom_id in seen:
        yield _error(
            "duplicate_custom_id",
            number,
            f"custom_id {line.custom_id[:64]!r} stands on line {seen[line.custom_id]}, too",
            "custom_id",
        )
    if line.url not in endpoints:
        yield _error(
            "mismatched_endpoint",
            number,
            f"url is {line.url[:64]!r}; expected {' or '.join(endpoints)}",
            "url",
        )
    if not bytes(line.body).startswith(b"{"):
        yield _error("invalid_body", number, "body is not an object", "body")
    elif _streams(line):
        yield _error(
            "stream_in_batch",
            number,
            "body asks for a stream, which a file cannot be",
            "body.stream",
        )


class _Streams(msgspec.Struct):
    stream: object = None


def _streams(line: Line) -> bool:
    try:
        return bool(msgspec.json.decode(line.body, type=_Streams).stream)
    except msgspec.MsgspecError:
        return False  # the call itself will say what is wrong


def _error(code: str, line: int | None, reason: str, param: str | None = None) -> LineError:
    return LineError(code=code, message=f"{reason}.", line=line, param=param)


def _raw_lines(path: Path) -> Iterator[bytes]:
    """Lines; one that is too long comes as its beginning, one byte too long, and the rest is skipped."""
    with path.open("rb") as file:
        while raw := file.readline(MAX_LINE_BYTES + 1):
            yield raw
            while len(raw) > MAX_LINE_BYTES and not raw.endswith(b"\n"):
                raw = file.readline(MAX_LINE_BYTES)
                if not raw:
                    return


def requests(path: Path) -> Iterator[tuple[int, Line]]:
    """(index, line) of every request of a file that has been checked."""
    index = 0
    for raw in _raw_lines(path):
        if raw.strip():
            yield index, line_of(raw)
            index += 1
