"""`octavo bench throughput`: output tokens per second of batches, offline, beside `transformers`
if asked.

Both sides get the same prompts, batches, greedy decoding and type, in the same run; rounds
alternate in order, so that a machine that warms up or slows down favours neither. Numbers are
medians over the rounds.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence

import msgspec

from octavo.core.config import EngineConfig
from octavo.core.errors import EngineError
from octavo.tools import output
from octavo.tools.bench import offline
from octavo.tools.bench.stats import median
from octavo.tools.flags import configs
from octavo.tools.parser import Parser, number
from octavo.tools.tables import table

Generate = Callable[[list[list[int]], int], list[list[int]]]
"""(prompts of one batch, output length) -> output ids."""

OWN, PEER = "octavo", "transformers"


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One batch size."""

    batch: int
    seconds: dict[str, list[float]]
    """Side -> seconds of each round."""
    output_tokens: int
    """Per round."""
    same_outputs: float | None
    """Share of outputs on which both sides agree to the last token; None without a peer."""

    def rates(self, side: str) -> list[float]:
        """Output tokens per second of each round."""
        return [self.output_tokens / seconds for seconds in self.seconds[side]]

    def ratio(self) -> float | None:
        """Median over the rounds of ours over theirs, round by round; None without a peer."""
        if PEER not in self.seconds:
            return None
        pairs = zip(self.rates(OWN), self.rates(PEER), strict=True)
        return median([own / peer for own, peer in pairs])


def add_arguments(parser: Parser) -> None:
    """Add the verb's flags."""
    parser.add_argument(
        "--num-prompts",
        type=number(1, 1 << 20, whole=True),
        metavar="N",
        help="Prompts per round; default: one batch.",
    )
    parser.add_argument(
        "--compare-transformers",
        action="store_true",
        help="Run transformers' generate on the same model beside it.",
    )
    offline.add_arguments(parser, batch=[1, 16])


def run(args: argparse.Namespace) -> int:
    """Run the verb."""
    # lazy: torch-free, but it loads tokenizers, which `--help` does not need
    from octavo.engine.llm import LLM

    config = configs(args).engine
    with LLM(**msgspec.structs.asdict(config)) as llm:
        offline.check_room(llm.ready, args)

        def own(prompts: list[list[int]], length: int) -> list[list[int]]:
            outputs = llm.generate(prompts, offline.full_length(length), use_tqdm=False)
            return [one.outputs[0].token_ids for one in outputs]

        sides: dict[str, Generate] = {OWN: own}
        if args.compare_transformers:
            sides[PEER] = _peer(config, llm.ready.dtype)
        rows = [measure(sides, batch, args) for batch in args.batch]
        results = {"rows": rows, "ratios": [row.ratio() for row in rows]}
        output.show(
            args.json,
            lambda: to_text(rows),
            lambda: offline.to_json("octavo bench throughput", config, llm.ready, results),
        )
    return 0


def _peer(config: EngineConfig, dtype: str) -> Generate:
    # lazy: loads torch and transformers into this process, only for the comparison
    from octavo.tools.bench.peer import TransformersPeer

    return TransformersPeer(config, dtype).generate


def measure(sides: dict[str, Generate], batch: int, args: argparse.Namespace) -> Row:
    """All rounds of one batch size; a round before them is thrown away.

    Raises:
        EngineError: a side gave fewer tokens than asked.
    """
    count = args.num_prompts or batch
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    same: list[bool] = []
    for turn in range(-1, args.repeats):
        prompts = offline.prompts(count, args.input_len, f"{args.repeats} {batch} {turn}")
        order = list(sides) if turn % 2 == 0 else list(reversed(sides))
        outputs: dict[str, list[list[int]]] = {}
        for side in order:
            started = time.perf_counter()
            outputs[side] = _in_batches(sides[side], prompts, batch, args.output_len)
            elapsed = time.perf_counter() - started
            _check_lengths(side, outputs[side], args.output_len)
            if turn >= 0:
                seconds[side].append(elapsed)
        if PEER in sides:
            pairs = zip(outputs[OWN], outputs[PEER], strict=True)
            same += [own == peer for own, peer in pairs]
    return Row(
        batch=batch,
        seconds=seconds,
        output_tokens=count * args.output_len,
        same_outputs=sum(same) / len(same) if same else None,
    )


def _in_batches(
    generate: Generate, prompts: list[list[int]], batch: int, output_len: int
) -> list[list[int]]:
    starts = range(0, len(prompts), batch)
    return [ids for at in starts for ids in generate(prompts[at : at + batch], output_len)]


def _check_lengths(side: str, outputs: Sequence[Sequence[int]], expected: int) -> None:
    short = [len(ids) for ids in outputs if len(ids) != expected]
    if short:
        raise EngineError(
            f"{side} gave {short[0]} tokens where {expected} were asked; rates would be false.",
            code="E-BENCH-01",
        )


def to_text(rows: Sequence[Row]) -> str:
    """A table: one line per batch size and side."""
    lines: list[list[str]] = []
    for row in rows:
        for side in row.seconds:
            rates = row.rates(side)
            ratio = row.ratio() if side == OWN else None
            same = row.same_outputs if side == OWN else None
            lines.append(
                [
                    str(row.batch),
                    side,
                    f"{median(rates):.1f}",
                    f"{min(rates):.1f} to {max(rates):.1f}",
                    f"{ratio:.2f}" if ratio is not None else "-",
                    f"{same:.0%}" if same is not None else "-",
                ]
            )
    header = ("batch", "engine", "output tok/s", "spread", "ratio", "same outputs")
    return table(header, lines)
