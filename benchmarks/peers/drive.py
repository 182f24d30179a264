"""Runs engines, each in a process of its own, and keeps what they measured. Knows no engine but by its row."""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import fcntl
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from workload import MARK, Case, Job

from octavo.tools.bench.environment import environment

HERE = Path(__file__).resolve().parent

ENGINES = (
    ("octavo", "auto"),
    ("octavo", "float32"),
    ("octavo", "int8"),
    ("octavo", "int4"),
    ("vllm", "bfloat16"),
    ("vllm", "float32"),
    ("llamacpp", "bf16"),
    ("llamacpp", "q8_0"),
    ("llamacpp", "q4_0"),
    ("openvino", "bf16"),
    ("openvino", "int8"),
    ("openvino", "int4"),
    ("transformers", "float32"),
)
"""(engine, precision), as `engine_<engine>.py` takes them."""

OWN = ("octavo", "transformers")
"""Engines that run in this interpreter's environment."""

Row = tuple[str, str]


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def is_wanted(row: Row, only: list[str] | None) -> bool:
    """Whether `only` names the engine, or the engine with this precision."""
    return only is None or row[0] in only or ":".join(row) in only


class Results:
    """The results file: rewritten after every process, so that a run can be stopped at any time."""

    def __init__(self, path: Path, shape: Path) -> None:
        self._path = path
        if path.exists():
            self._document = json.loads(path.read_text())
            # What could not run then may run now.
            runs = [run for run in self._document["runs"] if "skipped" not in run]
            self._document["runs"] = runs
        else:
            config = json.loads((shape / "config.json").read_text())
            self._document = {"shape": shape.name, "config": config, "ceilings": [], "runs": []}
        self._document["environment"] = environment()

    def forget(self, engines: list[str]) -> None:
        """Drop what these have."""
        runs = self._document["runs"]
        self._document["runs"] = [
            run
            for run in runs
            if not engines or not is_wanted((run["engine"], run["precision"]), engines)
        ]

    def missing(self, row: Row, turn: int, cases: list[Case]) -> list[Case]:
        """Cases of a round that this engine has not run yet; none where it said that it cannot."""
        mine = [run for run in self._document["runs"] if (run["engine"], run["precision"]) == row]
        if any("skipped" in run for run in mine):
            return []
        done = {name for run in mine if run["round"] == turn for name in run["cases"]}
        return [case for case in cases if case.name not in done]

    def add(self, kind: str, record: dict[str, Any]) -> None:
        """Append and write."""
        self._document[kind].append(record)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        partial = self._path.with_suffix(".partial")
        partial.write_text(json.dumps(self._document, indent=1) + "\n")
        partial.rename(self._path)


def run_round(
    args: argparse.Namespace, results: Results, engines: list[Row], turn: int, cases: list[Case]
) -> None:
    """The ceilings, then every engine that has something left to do; every other round backwards."""
    adopt_orphans()
    left = [(row, missing) for row in engines if (missing := results.missing(row, turn, cases))]
    if not left:
        return
    command = [sys.executable, str(HERE / "ceilings.py"), "--threads", str(args.threads)]
    record = quietest(args, lambda: watched(command, dict(os.environ), args.timeout, "{"))
    if "skipped" in record:
        raise SystemExit(f"the ceilings cannot be measured: {record['skipped']}")
    results.add("ceilings", {"round": turn, **record})
    for row, missing in left if turn % 2 == 0 else reversed(left):
        name = " ".join(row)
        print(f"round {turn + 1}: {name}: {', '.join(c.name for c in missing)}", file=sys.stderr)
        record = measured(args, row, turn, missing)
        if "skipped" in record:
            print(f"{name} is left out: {record['skipped']}", file=sys.stderr)
        results.add("runs", {"engine": row[0], "precision": row[1], "round": turn, **record})


def quietest(args: argparse.Namespace, run: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """A run during which others took at most --quiet of the cores, or the quietest of --tries."""
    best: dict[str, Any] = {}
    for _ in range(args.tries):
        with alone(args.lock):
            record = run()
        if "skipped" in record:
            return record
        if not best or record["others_cpu"] < best["others_cpu"]:
            best = record
        if best["others_cpu"] <= args.quiet:
            break
    return best


def measured(args: argparse.Namespace, row: Row, turn: int, cases: list[Case]) -> dict[str, Any]:
    """What one engine measured, or why it could not."""
    engine, precision = row
    python = Path(sys.executable)
    if engine not in OWN:
        python = (args.peers or Path("not given")) / engine / "bin" / "python"
        if not python.exists():
            return {"skipped": f"no {python}; --peers names the folder of install.sh"}
    try:
        model = prepared(args, engine, precision, python)
    except subprocess.CalledProcessError as error:
        lines = (error.stderr or "").strip().splitlines()
        return {"skipped": f"its model cannot be made: {lines[-1] if lines else error}"}
    job = Job(str(model), precision, args.threads, f"round {turn}", cases)
    command = [str(python), str(HERE / f"engine_{engine}.py"), job.dumps()]
    variables = environment_of(args.threads)
    return quietest(args, lambda: watched(command, variables, args.timeout, MARK))


def environment_of(threads: int) -> dict[str, str]:
    """What makes the engines use the cores asked for, and keeps them from the network."""
    cores = sorted(os.sched_getaffinity(0))[:threads]
    return {
        **os.environ,
        "OMP_NUM_THREADS": str(threads),
        "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cores)),
        "VLLM_CPU_KVCACHE_SPACE": "4",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
    }


def prepared(args: argparse.Namespace, engine: str, precision: str, python: Path) -> Path:
    """The checkpoint in the engine's own form, made where it is not there yet.

    Raises:
        subprocess.CalledProcessError: it could not be made.
    """
    source = args.models / args.shape.name
    if not (source / "model.safetensors").exists():
        make(args.lock, sys.executable, str(HERE / "make_model.py"), str(args.shape), str(source))
    if engine == "llamacpp":
        path = args.models / f"{source.name}-{precision}.gguf"
        if not path.exists():
            make(
                args.lock, str(python), str(HERE / "to_gguf.py"), str(source), str(path), precision
            )
        return path
    if engine == "openvino":
        kind = {"bf16": "fp16"}.get(precision, precision)
        path = args.models / f"{source.name}-ov-{kind}"
        if not (path / "openvino_model.bin").exists():
            tool = str(python.with_name("optimum-cli"))
            task = ("--task", "text-generation-with-past", "--weight-format", kind)
            make(args.lock, tool, "export", "openvino", "--model", str(source), *task, str(path))
        return path
    return source


def make(lock: Path | None, *command: str) -> None:
    """Run a converter."""
    with alone(lock):
        subprocess.run(command, check=True, capture_output=True, text=True)


@contextlib.contextmanager
def alone(lock: Path | None) -> Iterator[None]:
    """While holding a lock that other users of the machine take, too."""
    if lock is None:
        yield
        return
    with lock.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def watched(
    command: list[str], variables: dict[str, str], timeout: int, mark: str
) -> dict[str, Any]:
    """Run: what its marked line says, and how busy the machine was with other things; or why there is nothing."""
    started, before, begun = time.strftime("%Y-%m-%dT%H:%M:%S%z"), machine_time(), own_time()
    try:
        done = subprocess.run(
            command, env=variables, capture_output=True, text=True, timeout=timeout, check=False
        )
    except subprocess.TimeoutExpired:
        return {"skipped": f"no end after {timeout} s"}
    reap()
    used, after = own_time() - begun, machine_time()
    total = after[1] - before[1]
    lines = [line for line in done.stdout.splitlines() if line.startswith(mark)]
    if not lines:
        errors = [line for line in done.stderr.splitlines() if line.strip()] or ["nothing was said"]
        return {"skipped": f"it failed with {done.returncode}: {errors[-1][:300]}"}
    record = json.loads(lines[-1].removeprefix(MARK))
    others = (after[0] - before[0] - used) / total if total else 0.0
    steal = (after[2] - before[2]) / total if total else 0.0
    return {**record, "started": started, "others_cpu": others, "stolen_cpu": steal}


def adopt_orphans() -> None:
    """Linux: become the parent of processes whose own has ended, so that an engine's workers count as the engine's."""
    pr_set_child_subreaper = 36
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(pr_set_child_subreaper, 1)


def reap() -> None:
    """Wait for adopted processes; what an engine leaves running has ten seconds to end."""
    until = time.monotonic() + 10
    with contextlib.suppress(ChildProcessError):
        while time.monotonic() < until:
            pid, _ = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                time.sleep(0.05)


def machine_time() -> tuple[float, float, float]:
    """(busy, all, stolen) seconds of all cores since boot."""
    first = Path("/proc/stat").read_text().splitlines()[0].split()[1:]
    ticks = [int(field) for field in first[:8]]
    unit = os.sysconf("SC_CLK_TCK")
    idle, stolen = ticks[3] + ticks[4], ticks[7]
    return (sum(ticks) - idle - stolen) / unit, sum(ticks) / unit, stolen / unit


def own_time() -> float:
    """CPU seconds of this process's children that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
