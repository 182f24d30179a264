"""The command `octavo`: which verbs there are, and how every one of them ends.

A verb is a row of `VERBS`: a module with `add_arguments(parser)` and `run(args) -> exit code`,
imported when asked for. An error of the operator is one line on standard error, `CODE: cause.
fix.`, always the last one, and exit code 2. This module imports nothing heavy: `octavo --help` is
to be instant.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import select
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple, NoReturn, cast

if TYPE_CHECKING:
    from argparse import Namespace

    from octavo.engine.spawn import Spawned
    from octavo.tools.parser import Parser


class Verb(NamedTuple):
    """One row: the module that holds the verb, and what it does in one line."""

    module: str
    help: str
    has_engine: bool = False
    """Whether it runs an engine and nothing else, so that the process is started before flags are read: `run` gets it,
    too, and it ends with a flag that is refused."""


VERBS: dict[str, Verb] = {
    "serve": Verb("octavo.tools.serve", "Serve a model over an OpenAI-compatible HTTP API.", True),
    "generate": Verb("octavo.tools.generate", "Complete a prompt and print the text as it comes."),
    "chat": Verb("octavo.tools.chat", "Talk with a model, local or behind a URL."),
    "batch": Verb("octavo.tools.batch", "Answer a JSONL file of requests, with resume."),
    "bench throughput": Verb("octavo.tools.bench.throughput", "Tokens per second, offline."),
    "bench latency": Verb("octavo.tools.bench.latency", "Time per token of one batch, offline."),
    "bench serve": Verb("octavo.tools.bench.serve", "Load a running server and judge the answer."),
    "bench sweep": Verb(
        "octavo.tools.bench.sweep", "Latency against throughput, over request rates."
    ),
    "keys create": Verb("octavo.tools.keys.create", "Make an API key and print it, once."),
    "keys list": Verb(
        "octavo.tools.keys.list", "Show the API keys: what each may do, not the key."
    ),
    "keys revoke": Verb("octavo.tools.keys.revoke", "End an API key."),
    "keys rotate": Verb("octavo.tools.keys.rotate", "Put a new API key in place of one."),
    "plan": Verb(
        "octavo.tools.plan.command", "Say what a model takes and does on a device, before loading."
    ),
    "tune": Verb("octavo.tools.tune.command", "Find flags of `serve` for a traffic and an SLO."),
    "why": Verb("octavo.tools.why", "Where the time of a request went, and who cost it most."),
    "cost": Verb("octavo.tools.cost", "Who used how much device time, and what it cost."),
    "budget set": Verb("octavo.tools.budget.set", "Say how much a key or a feature may spend."),
    "budget list": Verb("octavo.tools.budget.list", "Show the budgets and what is used of each."),
    "budget remove": Verb("octavo.tools.budget.remove", "Remove a budget."),
    "doctor": Verb("octavo.tools.doctor", "Check this machine and say what to fix."),
}
ALIASES = {"complete": "generate", "run-batch": "batch"}

EXIT_ERROR = 2
EXIT_INTERRUPTED = 130
EXIT_NO_READER = 141
_STDOUT = 1


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; the process's exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        code = _run(words)
        # What is still buffered is written here, where a reader that has gone is no surprise.
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        if not _reader_is_gone():
            raise
        return EXIT_NO_READER


def _run(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    if words[0] in ("-V", "--version"):
        print(f"octavo {version()}")
        return 0
    # lazy: loads msgspec, which `octavo --help` does not need
    from octavo.core.errors import OctavoError

    try:
        return _dispatch(words)
    except OctavoError as error:
        sys.stdout.flush()
        print(error.info().one_line(), file=sys.stderr)
        return EXIT_ERROR
    except SystemExit as end:  # argparse ends --help this way
        return 0 if end.code is None else int(end.code)


def _reader_is_gone() -> bool:
    """Whether it is our output that broke, as in `octavo bench ... | head`; if so, drop it."""
    watch = select.poll()
    watch.register(_STDOUT, 0)  # errors are told unasked
    if not watch.poll(0):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), _STDOUT)
    return True


def usage() -> str:
    """The text of `octavo --help`."""
    width = max(map(len, VERBS))
    rows = "\n".join(f"  {name:<{width}}  {verb.help}" for name, verb in VERBS.items())
    return (
        "usage: octavo VERB [options]\n\n"
        "An LLM inference engine whose KV cache is kept in pages of sixteen tokens.\n\n"
        f"verbs:\n{rows}\n\n"
        "  octavo VERB --help  shows a verb's options;  octavo --version  shows the version."
    )


def version() -> str:
    """The installed version, or `0+source` in a source tree."""
    # lazy: importlib.metadata costs 20 ms
    from importlib import metadata

    try:
        return metadata.version("octavo")
    except metadata.PackageNotFoundError:
        return "0+source"


def parser_of(name: str) -> Parser:
    """The argument parser of a verb, with all its flags."""
    # lazy: argparse is not needed for `octavo --help`
    from octavo.tools.parser import Parser

    verb = VERBS[name]
    parser = Parser(prog=f"octavo {name}", description=verb.help)
    add_arguments = cast(
        "Callable[[Parser], None]", importlib.import_module(verb.module).add_arguments
    )
    add_arguments(parser)
    return parser


def _dispatch(words: list[str]) -> int:
    name, rest = _find(words)
    if name is None:
        return 0
    if VERBS[name].has_engine and not {"-h", "--help"}.intersection(rest):
        return _with_engine(name, rest)
    args = parser_of(name).parse(rest)
    run = cast("Callable[[Namespace], int]", importlib.import_module(VERBS[name].module).run)
    return run(args)


def _with_engine(name: str, rest: list[str]) -> int:
    """Start the engine's process, which loads its libraries while this one loads its own, reads flags and runs."""
    # lazy: no other verb starts a process here
    from octavo.engine.spawn import Spawned

    spawned: Spawned | None = None
    with contextlib.suppress(OSError):  # `run` tries again, and says why it cannot be
        spawned = Spawned()
    try:
        args = parser_of(name).parse(rest)
        run = cast(
            "Callable[[Namespace, Spawned | None], int]",
            importlib.import_module(VERBS[name].module).run,
        )
        return run(args, spawned)
    finally:
        if spawned is not None and not spawned.is_taken:
            spawned.abandon()


def _find(words: list[str]) -> tuple[str | None, list[str]]:
    """The verb (one or two words) and what follows; None when only help was asked for."""
    first = ALIASES.get(words[0], words[0])
    if first in VERBS:
        return first, words[1:]
    below = [name.split()[1] for name in VERBS if name.startswith(f"{first} ")]
    if not below:
        _unknown(first, {name.split()[0] for name in VERBS} | set(ALIASES), "verb")
    if len(words) < 2 or words[1] in ("-h", "--help"):
        group = {name: verb for name, verb in VERBS.items() if name.startswith(f"{first} ")}
        width = max(map(len, group))
        rows = "\n".join(f"  {name:<{width}}  {verb.help}" for name, verb in group.items())
        print(f"usage: octavo {first} {{{','.join(below)}}} [options]\n\n{rows}")
        return None, []
    if words[1] not in below:
        _unknown(words[1], below, f"{first} verb")
    return f"{first} {words[1]}", words[2:]


def _unknown(given: str, known: Sequence[str] | set[str], kind: str) -> NoReturn:
    # lazy: loads msgspec, which `octavo --help` does not need
    from octavo.core.errors import ConfigError, did_you_mean

    raise ConfigError(
        f"unknown {kind} {given!r}; known: {', '.join(sorted(known))}.{did_you_mean(given, known)}",
        code="E-CFG-02",
        fix="See `octavo --help`.",
    )


if __name__ == "__main__":
    sys.exit(main())
