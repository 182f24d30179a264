"""Who answers `generate` and `chat`: a server behind --url, or an engine started for the
occasion.

Both are spoken to over the same API, so that what an operator sees here is what a client of
`serve` sees.
"""

from __future__ import annotations

import argparse
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Mapping
from typing import NamedTuple

from octavo.core import env
from octavo.core.config import EngineConfig
from octavo.core.errors import ConfigError
from octavo.tools import openai_client
from octavo.tools.flags import add_config_flags, configs, flags_of
from octavo.tools.openai_client import Backend, first_model
from octavo.tools.parser import Parser

_WITH_URL = ("model", "seed")
"""Flags of the engine that mean something to a server that runs already."""


class Answer(NamedTuple):
    """One answer and how long it took."""

    text: str
    num_tokens: int
    num_prompt: int
    num_cached: int
    ttft_s: float
    decode_s: float
    """From the first chunk to the last."""
    finish_reason: str | None

    def line(self) -> str:
        """`32 tokens, 41.2 tok/s, TTFT 12 ms`."""
        rate = (self.num_tokens - 1) / self.decode_s if self.decode_s > 0 else 0.0
        parts = [f"{self.num_tokens} tokens"]
        parts += [f"{rate:.1f} tok/s"] if self.num_tokens > 1 and rate else []
        parts.append(f"TTFT {self.ttft_s * 1e3:.0f} ms")
        parts += [f"{self.num_cached} of {self.num_prompt} prompt tokens cached"] * bool(
            self.num_cached
        )
        parts += ["cut at max_tokens"] * (self.finish_reason == "length")
        return ", ".join(parts)


def add_backend_flags(parser: Parser) -> None:
    """Add --url, its key, and the engine's flags."""
    group = parser.add_argument_group("server instead of a local engine")
    group.add_argument("--url", help="Address of any OpenAI-compatible server.")
    group.add_argument(
        "--api-key", dest="url_key", metavar="TEXT", help="Its key; also OCTAVO_API_KEY."
    )
    add_config_flags(parser, EngineConfig)


@contextlib.asynccontextmanager
async def open_backend(args: argparse.Namespace) -> AsyncIterator[Backend]:
    """Connect, or start an engine and wait until it is ready.

    Raises:
        OctavoError: the engine cannot start, or the server does not answer.
    """
    if args.url is None:
        # lazy: the server and its libraries are not needed with --url
        from octavo.tools.local import serving

        async with serving(configs(args)) as local:
            yield local
        return
    fields = {flag.field: flag.option for flag in flags_of(EngineConfig)}
    given = [fields[name] for name in fields if name not in _WITH_URL and hasattr(args, name)]
    if args.config is not None:
        given.append("--config")
    if given:
        raise ConfigError(
            f"{given[0]} says how to start an engine; with --url none is started.",
            code="E-FLAG-02",
            fix="Leave one of them out.",
        )
    key = args.url_key or next(iter(env.api_keys()), None)
    async with openai_client.connect(args.url, api_key=key) as client:
        named = args.model_positional or getattr(args, "model", None)
        yield Backend(client, named or await first_model(client))


async def ask(
    backend: Backend, path: str, body: Mapping[str, object], show: Callable[[str], None]
) -> Answer:
    """Stream one answer; `show` gets its text as it comes.

    Raises:
        OctavoError: the request was refused or failed.
    """
    sent = time.perf_counter()
    text: list[str] = []
    times: list[float] = []
    usage: openai_client.Usage | None = None
    reason: str | None = None
    request = {
        "model": backend.model,
        "stream": True,
        "stream_options": {"include_usage": True},
        **body,
    }
    async for piece in backend.client.stream(path, request):
        if piece.is_output:
            times.append(piece.at)
        if piece.text:
            text.append(piece.text)
            show(piece.text)
        usage = piece.usage or usage
        reason = piece.finish_reason or reason
    return Answer(
        text="".join(text),
        num_tokens=usage.completion_tokens if usage else len(times),
        num_prompt=usage.prompt_tokens if usage else 0,
        num_cached=(usage.cached_tokens or 0) if usage else 0,
        ttft_s=(times[0] if times else time.perf_counter()) - sent,
        decode_s=times[-1] - times[0] if times else 0.0,
        finish_reason=reason,
    )
