"""What the engine does on a GPU, beside what the GPU could do, in one command of a few minutes.

    python benchmarks/gpu --json benchmarks/results/gpu.json      # on a GPU
    python benchmarks/gpu --dry-run                               # on any machine: tiny shapes, to see that all of it runs

Ceilings are measured in the same run. Results are written after every case, so that a run that is cut off leaves what it
had; a case that cannot run says why. No weights are needed: they are random, in the shapes of `benchmarks/shapes`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import time
import traceback
from pathlib import Path
from typing import Any

import torch
from cases import CASES, Setting
from clock import ceilings

from octavo.engine.device import probe
from octavo.tools.bench.environment import environment


def main() -> int:
    """Run the cases, print and write what they found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=tuple(CASES), default=tuple(CASES))
    parser.add_argument("--json", type=Path, help="where results go")
    parser.add_argument("--dry-run", action="store_true", help="tiny shapes, on the CPU")
    parser.add_argument(
        "--async-scheduling", action="store_true", help="in every case, not only in (b) and (c)"
    )
    asked = parser.parse_args()
    facts, wrong = probe()
    if wrong is not None and not asked.dry_run:
        print(f"{wrong.code}: {wrong.message} {wrong.fix}")
        return 1
    device = torch.device("cpu" if asked.dry_run else "cuda")
    results: dict[str, Any] = {
        "environment": environment(),
        "gpu": str(facts) if wrong is None else None,
    }
    results |= {"gpu_state": _smi(), "dry_run": asked.dry_run, "torch_cuda": torch.version.cuda}
    results["ceilings"] = ceilings(device, small=asked.dry_run)
    options = {"async_scheduling": True} if asked.async_scheduling else {}
    setting = Setting(device, results["ceilings"], asked.dry_run, options)
    results["cases"] = {}
    failed = 0
    for name in asked.only:
        begun = time.perf_counter()
        try:
            found = CASES[name](setting)
        except Exception as error:  # a case that cannot run must not cost the others
            failed += 1
            found = {
                "refused": f"{type(error).__name__}: {error}",
                "trace": traceback.format_exc()[-3000:],
            }
        found["took_s"] = time.perf_counter() - begun
        results["cases"][name] = found
        print(
            name,
            json.dumps(
                {k: v for k, v in found.items() if k not in ("about", "trace")}, default=str
            )[:600],
        )
        if asked.json is not None:
            asked.json.write_text(json.dumps(results, indent=1, default=str) + "\n")
    return 1 if failed else 0


def _smi() -> str:
    """Driver, clocks and power limit, as the driver says."""
    query = "name,driver_version,clocks.max.sm,clocks.sm,power.limit,temperature.gpu"
    try:
        command = ["nvidia-smi", f"--query-gpu={query}", "--format=csv"]
        return subprocess.run(
            command, capture_output=True, text=True, timeout=10, check=False
        ).stdout
    except OSError:
        return ""


if __name__ == "__main__":
    raise SystemExit(main())
