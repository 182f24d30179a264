"""`octavo chat`: talk with a local model, or with any OpenAI-compatible server."""

from __future__ import annotations

import argparse
import contextlib
import sys

from octavo.core.errors import ConfigError, OctavoError
from octavo.tools import openai_client, sampling
from octavo.tools.backend import Answer, add_backend_flags, ask, open_backend
from octavo.tools.background import LoopThread
from octavo.tools.openai_client import Backend
from octavo.tools.parser import Parser
from octavo.tools.session import Session

_PROMPT = "> "


def add_arguments(parser: Parser) -> None:
    """Add the verb's flags."""
    parser.add_argument("--system", metavar="TEXT", help="System message.")
    sampling.add_sampling_flags(parser)
    add_backend_flags(parser)


def run(args: argparse.Namespace) -> int:
    """Run the verb until /exit or the end of the input."""
    session = Session(sampling.given(args), args.system)
    with LoopThread() as loop, loop.hold(open_backend(args)) as backend:
        _line_editing()
        print(f"Talking with {backend.model}. /help shows the commands, Ctrl-D leaves.")
        while not session.is_over:
            line = _read()
            if line is None:
                break
            if line.startswith("/"):
                _obey(session, line)
            elif line.strip():
                _answer(session, line, loop, backend)
    return 0


def _line_editing() -> None:
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  # lazy: gives input() history and editing where it exists


def _read() -> str | None:
    """A line, or None at the end of the input. Ctrl-C drops the line begun."""
    while True:
        try:
            return input(_PROMPT)
        except EOFError:
            print()
            return None
        except KeyboardInterrupt:
            print("\n(Ctrl-D or /exit leaves)")


def _obey(session: Session, line: str) -> None:
    try:
        print(session.command(line))
    except ConfigError as error:
        print(error.info().one_line())


def _answer(session: Session, line: str, loop: LoopThread, backend: Backend) -> None:
    heard: list[str] = []

    def show(text: str) -> None:
        heard.append(text)
        sys.stdout.write(text)
        sys.stdout.flush()

    async def work() -> Answer:
        body = {"messages": session.messages, **session.settings}
        return await ask(backend, openai_client.CHAT, body, show)

    session.say(line)
    try:
        answer = loop.run(work())
    except KeyboardInterrupt:
        session.hear_part("".join(heard))
        print("\n[stopped]")
    except OctavoError as error:
        session.take_back()
        print(error.info().one_line())
    else:
        session.hear(answer)
        print(f"\n[{answer.line()}]")
