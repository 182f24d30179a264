"""Calls written as JSON objects with a name and arguments, which several formats wrap each in their own way."""

from __future__ import annotations

from octavo.text.parsers.base import Malformed, Steps, Tools
from octavo.text.parsers.scan import Scanner

_ARGUMENTS = ("arguments", "parameters")
_BESIDE = ("id", "type")
"""What models write beside the two, and what needs no word about it."""


class _Call:
    """One object as far as it is read."""

    def __init__(self, scanner: Scanner, tools: Tools | None) -> None:
        self._scanner = scanner
        self._tools = tools
        self.name: str | None = None
        self.early: str | None = None
        """Arguments that came before the name."""
        self.has_arguments = False
        self.flaw = ""

    def begin(self) -> None:
        """Say that it is a call. Raises Malformed when it is none."""
        if self.name is None:
            raise Malformed("a call has no name")
        if self._tools is not None and self.name not in self._tools:
            raise Malformed(f"there is no tool {self.name!r}")
        self._scanner.begin_call(self.name)


def json_call(scanner: Scanner, known: Tools | None = None) -> Steps[None]:
    """One `{"name": ..., "arguments": {...}}`. With `known`, an object is a call only if it names one of these and has
    arguments: for formats in which nothing else tells a call from JSON that is the answer.

    Raises:
        Malformed: it is no call, or a call that breaks off.
    """
    call = _Call(scanner, known)
    yield from scanner.expect("{")
    while True:
        key = yield from scanner.string()
        yield from scanner.expect(":")
        yield from _member(scanner, call, key)
        if (yield from scanner.peek()) != ",":
            break
        yield from scanner.expect(",")
    if not scanner.is_in_call:
        if known is not None and call.early is None:
            raise Malformed("an object without arguments is no call")
        call.begin()
        scanner.arguments("{}" if call.early is None else call.early)
    yield from scanner.expect("}")
    scanner.end_call(call.flaw)


def _member(scanner: Scanner, call: _Call, key: str) -> Steps[None]:
    if key == "name" and call.name is None:
        call.name = yield from scanner.string()
        if call.early is not None:
            call.begin()
            scanner.arguments(call.early)
    elif key in _ARGUMENTS and not call.has_arguments:
        call.has_arguments = True
        if call.name is None:
            early: list[str] = []
            yield from _arguments(scanner, early)
            call.early = "".join(early)
        else:
            call.begin()
            yield from _arguments(scanner, None)
    else:
        yield from scanner.value(lambda _: None)
        if key not in _BESIDE:
            call.flaw = f"a call has the unknown key {key[:40]!r}"


def _arguments(scanner: Scanner, early: list[str] | None) -> Steps[None]:
    """The arguments as they are written; out of a string that holds their JSON."""
    put = scanner.arguments if early is None else early.append
    if (yield from scanner.peek()) == '"':
        put((yield from scanner.string(1 << 20)))
    else:
        yield from scanner.value(put)


def json_calls(scanner: Scanner, known: Tools | None = None) -> Steps[None]:
    """A list of such objects. Raises Malformed."""
    yield from scanner.expect("[")
    while True:
        yield from json_call(scanner, known)
        found = yield from scanner.peek()
        if found == "]":
            yield from scanner.expect("]")
            return
        yield from scanner.expect(",")
        # What follows a comma is a call of its own: one that fails must not bring back the comma.
        scanner.hold()


def close(scanner: Scanner, ends: tuple[str, ...]) -> Steps[None]:
    """The end of a call: one of `ends`, or the output's. Raises Malformed."""
    if (yield from scanner.at(ends)):
        scanner.release()
        return
    found = yield from scanner.peek()
    if found:
        raise Malformed(f"expected {ends[0]!r}, found {found!r}")
    scanner.release()


def tagged_calls(
    scanner: Scanner, starts: tuple[str, ...], ends: tuple[str, ...], *, is_list: bool = False
) -> Steps[None]:
    """Content in which calls stand between markers."""
    while True:
        marker = yield from scanner.until(starts, scanner.content)
        if not marker:
            return
        scanner.hold(marker)
        try:
            yield from json_calls(scanner) if is_list else json_call(scanner)
            if ends:
                yield from close(scanner, ends)
            scanner.release()
        except Malformed as flaw:
            yield from scanner.recover(flaw, ends)


def all_content(scanner: Scanner) -> Steps[None]:
    """The rest is content."""
    yield from scanner.until((), scanner.content)
