"""What the two offline benchmarks share: their flags, their prompts and their JSON."""

from __future__ import annotations

import argparse
import random

import msgspec

from octavo.core.config import EngineConfig
from octavo.core.errors import ConfigError
from octavo.core.params import SamplingParams
from octavo.engine.ipc import Ready
from octavo.tools import output
from octavo.tools.bench.environment import environment
from octavo.tools.bench.sample import TOKEN_IDS, random_tokens
from octavo.tools.flags import add_config_flags
from octavo.tools.parser import Parser, number


def add_arguments(parser: Parser, *, batch: list[int]) -> None:
    """Add the flags of both."""
    group = parser.add_argument_group("benchmark")
    count = number(1, 1 << 20, whole=True)
    group.add_argument(
        "--input-len", type=count, default=128, metavar="N", help="Prompt tokens [128]."
    )
    group.add_argument(
        "--output-len", type=count, default=64, metavar="N", help="Output tokens [64]."
    )
    group.add_argument(
        "--batch",
        type=count,
        nargs="+",
        default=batch,
        metavar="N",
        help=f"Sequences at a time, one row each {batch}.",
    )
    group.add_argument(
        "--repeats", type=count, default=3, metavar="N", help="Measured rounds per row [3]."
    )
    output.add_json_flag(parser)
    add_config_flags(parser, EngineConfig)


def full_length(output_len: int) -> SamplingParams:
    """Greedy, and exactly so many tokens."""
    return SamplingParams(temperature=0.0, max_tokens=output_len, ignore_eos=True)


def prompts(count: int, length: int, seed: str) -> list[list[int]]:
    """Random prompts; another seed, other prompts, so that no prefix cache helps."""
    rng = random.Random(seed)
    return [list(random_tokens(length, rng)) for _ in range(count)]


def check_room(ready: Ready, args: argparse.Namespace) -> None:
    """Refuse what cannot be run as asked, before measuring.

    Raises:
        ConfigError: lengths beyond the context, a batch beyond --max-num-seqs, a tiny vocabulary.
    """
    if args.input_len + args.output_len > ready.max_model_len:
        raise ConfigError(
            f"--input-len {args.input_len} plus --output-len {args.output_len} exceed the context "
            f"of {ready.max_model_len} tokens.",
            fix="Ask for less.",
        )
    if max(args.batch) > ready.max_num_seqs:
        raise ConfigError(
            f"--batch {max(args.batch)} exceeds --max-num-seqs {ready.max_num_seqs}.",
            fix=f"Add --max-num-seqs {max(args.batch)}.",
        )
    if ready.vocab_size < TOKEN_IDS.stop:
        raise ConfigError(f"a vocabulary of {ready.vocab_size} is too small to draw prompts from.")


def to_json(kind: str, config: EngineConfig, ready: Ready, results: object) -> str:
    """One JSON with the results, the engine as it was started, and the machine."""
    document = {
        "kind": kind,
        "results": results,
        "config": config,
        "engine": ready,
        "environment": environment(),
    }
    return msgspec.json.format(msgspec.json.encode(document), indent=1).decode()
