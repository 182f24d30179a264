"""What the engine does on a GPU, beside what the GPU could do and what others do there: one command.

    python benchmarks/gpu --json benchmarks/results/gpu.json              # on a GPU: everything, what matters most first
    python benchmarks/gpu --json benchmarks/results/gpu.json --only a,e   # some of it
    python benchmarks/gpu --dry-run                                       # anywhere: tiny shapes, to see that it runs

Each part runs in a process of its own, for at most so long as `--list` says, so that none costs the others memory or time.
Results are written after every part, and a run that was cut goes on where it was: parts that have figures are not run again
(`--again` runs them). No weights are needed: they are random, in the shapes of `benchmarks/shapes`. Read README.md here.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

from card import Card
from cases import PARTS, Setting
from goals import GOALS
from results import Results

from octavo.tools.tables import table

HERE = Path(__file__).resolve().parent


def main(argv: list[str] | None = None) -> int:
    """Run parts, print and write what they found."""
    asked = _arguments(argv)
    if asked.list:
        print(table(("part", "at most s"), [(n, str(part.limit_s)) for n, part in PARTS.items()]))
        return 0
    if asked.child is not None:
        return _child(asked)
    begun = time.monotonic()
    card = Card(is_dry=asked.dry_run)
    ceilings = card.ceilings()
    results = Results(asked.json, card.describe(), ceilings)
    del card  # and its memory
    failed = 0
    for name in asked.only:
        if results.is_done(name) and not asked.again:
            print(f"{name}: there already")
            continue
        left = asked.budget_s - (time.monotonic() - begun)
        if left < 20:
            print(
                f"{name}: not begun, {asked.budget_s} s are over; the same command goes on from here"
            )
            continue
        found = run_part(name, ceilings, is_dry=asked.dry_run, limit_s=left)
        failed += "refused" in found and not name.endswith("vllm")
        results.put(name, found)
        shown = {k: v for k, v in found.items() if k in ("refused", "took_s") or _is_short(v)}
        print(name, json.dumps(shown, default=str)[:600], flush=True)
    rows = [goal.row(results.parts, is_dry=asked.dry_run) for goal in GOALS]
    print(table(("what", "figure", "goal", "reached"), rows))
    if asked.dry_run:
        print("A dry run: no figure here is a speed.")
    return 1 if failed else 0


def run_part(
    name: str, ceilings: dict[str, float], *, is_dry: bool, limit_s: float
) -> dict[str, Any]:
    """In a process of its own; what it found, or why it found nothing."""
    part = PARTS[name]
    limit_s = min(part.limit_s, limit_s)
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.json"
        if isinstance(part.run, str):
            command = [str(HERE / part.run), "--json", str(out)] + ["--interpret"] * is_dry
        else:
            command = [str(HERE), "--child", name, "--ceilings", json.dumps(ceilings)]
            command += ["--json", str(out)] + ["--dry-run"] * is_dry
        try:
            done = subprocess.run(
                [sys.executable, *command],
                capture_output=True,
                text=True,
                timeout=limit_s,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return {"refused": f"took more than {limit_s:.0f} s"}
        try:
            read = json.loads(out.read_text())
        except (OSError, ValueError):
            last = (done.stderr or done.stdout).strip().splitlines()[-1:]
            why = f"ended with {done.returncode}: {''.join(last)}"
            return {"refused": why, "trace": done.stderr[-3000:]}
    found: dict[str, Any] = read["parts"][name] if isinstance(part.run, str) else read
    return found | {"took_s": time.monotonic() - begun}


def _child(asked: argparse.Namespace) -> int:
    setting = Setting(Card(is_dry=asked.dry_run), json.loads(asked.ceilings))
    call = PARTS[asked.child].run
    assert not isinstance(call, str), "scripts are run as such"
    try:
        found = call(setting)
    except Exception as error:  # edge of the process: the parent writes it down
        found = {
            "refused": f"{type(error).__name__}: {error}",
            "trace": traceback.format_exc()[-3000:],
        }
    asked.json.write_text(json.dumps(found, default=str))
    return 0


def _is_short(value: Any) -> bool:
    return not isinstance(value, list | dict) or len(json.dumps(value, default=str)) < 200


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", type=_names, default=tuple(PARTS), help="parts, as a,e,kernels")
    parser.add_argument("--json", type=Path, help="where results go, and where a run goes on")
    parser.add_argument("--budget-s", type=float, default=1e9, help="begin no part after so long")
    parser.add_argument("--again", action="store_true", help="run parts that have figures, too")
    parser.add_argument("--dry-run", action="store_true", help="tiny shapes, on the CPU")
    parser.add_argument("--list", action="store_true", help="parts, and how long each may take")
    parser.add_argument("--child", choices=tuple(PARTS), help=argparse.SUPPRESS)
    parser.add_argument("--ceilings", help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def _names(text: str) -> tuple[str, ...]:
    names = tuple(filter(None, text.split(",")))
    wrong = [name for name in names if name not in PARTS]
    if wrong or not names:
        raise argparse.ArgumentTypeError(
            f"no part {', '.join(wrong) or text!r}: {', '.join(PARTS)}"
        )
    return names


if __name__ == "__main__":
    raise SystemExit(main())
