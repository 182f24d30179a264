"""`octavo generate`: complete a prompt, from --prompt or standard input, and print the text as it
comes.
"""

from __future__ import annotations

import argparse
import sys

from octavo.core.errors import ConfigError
from octavo.tools import openai_client, sampling
from octavo.tools.backend import Answer, add_backend_flags, ask, open_backend
from octavo.tools.background import LoopThread
from octavo.tools.parser import Parser

DEFAULT_MAX_TOKENS = 128


def add_arguments(parser: Parser) -> None:
    """Add the verb's flags."""
    parser.add_argument("--prompt", metavar="TEXT", help="Text to complete; default: stdin.")
    parser.add_argument(
        "--echo", action="store_true", help="Print the prompt before its completion."
    )
    sampling.add_sampling_flags(parser)
    add_backend_flags(parser)


def run(args: argparse.Namespace) -> int:
    """Run the verb."""
    fields = {"max_tokens": DEFAULT_MAX_TOKENS, **sampling.given(args)}
    prompt = args.prompt
    if prompt is None:
        if sys.stdin.isatty():
            raise ConfigError("no prompt.", fix='Give --prompt "TEXT", or pipe one in.')
        prompt = sys.stdin.read()
    if not prompt:
        raise ConfigError("the prompt is empty.", fix='Give --prompt "TEXT", or pipe one in.')
    with LoopThread() as loop:
        answer = loop.run(_complete(args, {"prompt": prompt, **fields}))
    print()
    if sys.stderr.isatty():
        print(f"[{answer.line()}]", file=sys.stderr)
    return 0


async def _complete(args: argparse.Namespace, body: dict[str, object]) -> Answer:
    async with open_backend(args) as backend:
        if args.echo:
            _show(str(body["prompt"]))
        return await ask(backend, openai_client.COMPLETIONS, body, _show)


def _show(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
