"""Octavo beside the engines that one would pick instead, on this machine, in one run.

    bash benchmarks/peers/install.sh PEERS           # once: vLLM, llama.cpp and OpenVINO GenAI
    python benchmarks/peers --peers PEERS --out benchmarks/results/peers.json

A round measures the machine's ceilings, then every engine in a process of its own, one after the other, in turning
order. What is in --out already is not measured again, so a run that was stopped goes on where it was, and
`--again octavo` measures one engine afresh among the others' old rows. The table shows medians over the rounds.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import drive
import plot
import report
from workload import Case

OUTPUT_TOKENS = {1: 64, 4: 64, 16: 64}
FEW_OUTPUT_TOKENS = 32
HEAVY_TOKENS = 1024
"""A case with more prompt tokens than this is run in --heavy-rounds only."""


def parse() -> argparse.Namespace:
    """The flags."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    known = ", ".join(dict.fromkeys(name for name, _ in drive.ENGINES))
    parser.add_argument(
        "--peers", type=Path, help="folder of install.sh; without it, those engines are skipped"
    )
    parser.add_argument(
        "--models",
        type=Path,
        default=Path("build/peers"),
        help="where checkpoints are made [build/peers]",
    )
    parser.add_argument(
        "--shape",
        type=Path,
        default=Path("benchmarks/shapes/qwen3-0.6b"),
        help="folder with a config.json",
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="results file; goes on where it ends"
    )
    parser.add_argument(
        "--only", nargs="+", metavar="ENGINE", help=f"of {known}; ENGINE:PRECISION for one row"
    )
    parser.add_argument(
        "--again", nargs="+", default=[], metavar="ENGINE", help="forget what --out has of these"
    )
    parser.add_argument(
        "--batches", nargs="+", type=int, default=[1, 16], help="prompts at once [1 16]; also 4, 64"
    )
    parser.add_argument(
        "--contexts", nargs="+", type=int, default=[256], help="prompt tokens [256]; also 4096"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--heavy-rounds",
        type=int,
        default=1,
        help=f"of cases above {HEAVY_TOKENS} prompt tokens [1]",
    )
    parser.add_argument("--threads", type=int, default=drive.usable_cores())
    parser.add_argument("--timeout", type=int, default=1800, help="seconds of one process [1800]")
    parser.add_argument(
        "--quiet",
        type=float,
        default=0.1,
        help="share of the cores that others may take during a run; a busier one is repeated [0.1]",
    )
    parser.add_argument("--tries", type=int, default=2, help="runs until one is quiet [2]")
    parser.add_argument(
        "--lock",
        type=Path,
        help="file to lock while something is measured, on a machine that is shared",
    )
    parser.add_argument("--plot", type=Path, help="also draw the table as SVG")
    return parser.parse_args()


def cases(args: argparse.Namespace, turn: int) -> list[Case]:
    """Those of one round."""
    found = [
        Case(batch, context, OUTPUT_TOKENS.get(batch, FEW_OUTPUT_TOKENS))
        for context in args.contexts
        for batch in args.batches
    ]
    return [
        case
        for case in found
        if turn < (args.heavy_rounds if case.batch * case.input_len > HEAVY_TOKENS else args.rounds)
    ]


def main() -> None:
    """Measure what is missing, then report all there is."""
    args = parse()
    results = drive.Results(args.out, args.shape)
    results.forget(args.again)
    engines = [row for row in drive.ENGINES if drive.is_wanted(row, args.only)]
    for turn in range(max(args.rounds, args.heavy_rounds)):
        drive.run_round(args, results, engines, turn, cases(args, turn))
    document = json.loads(args.out.read_text())
    print(report.to_text(document))
    if args.plot:
        args.plot.write_text(plot.to_svg(document))


if __name__ == "__main__":
    main()
