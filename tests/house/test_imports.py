"""Import contracts, and what starting costs."""

from __future__ import annotations

import configparser
import json
import os
import subprocess
import sys

from house.sources import ROOT

IMPORT_S = 0.100
HELP_S = 0.200
HEAVY = ("torch", "triton", "transformers")
RUNS = 5


def contracts() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / ".importlinter")
    return parser


def words(value: str) -> list[str]:
    return value.split()


def test_the_contracts_hold() -> None:
    """In a process of its own: import-linter sets up logging anew, which would silence this project's loggers."""
    code = f"""
import sys
from importlinter import cli
sys.path.insert(0, {str(ROOT / "src")!r})
sys.exit(cli.lint_imports(config_filename={str(ROOT / ".importlinter")!r}, no_cache=True))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_contracts_know_every_room() -> None:
    """The layers are exhaustive; the other lists must not lag behind them either."""
    there = {path.parent.name for path in (ROOT / "src" / "octavo").glob("*/__init__.py")}
    layers = contracts()["importlinter:contract:rooms"]["layers"]
    known = set(layers.replace("|", " ").replace("(", " ").replace(")", " ").split())
    assert there <= known
    light = {"core", "text", "scheduler", "server", "router", "meter"} & there
    listed = words(contracts()["importlinter:contract:no-torch"]["source_modules"])
    assert light <= {name.removeprefix("octavo.") for name in listed}


def in_subprocess(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    return done.stdout


def test_light_rooms_load_nothing_heavy() -> None:
    """What the contracts say of imports on paper, tried: every module of those rooms, loaded."""
    listed = words(contracts()["importlinter:contract:no-torch"]["source_modules"])
    code = f"""
import importlib, json, pkgutil, sys
for name in {listed!r}:
    module = importlib.import_module(name)
    for each in pkgutil.walk_packages(getattr(module, "__path__", ()), name + "."):
        importlib.import_module(each.name)
print(json.dumps([len([m for m in sys.modules if m.startswith("octavo.")]),
                  [m for m in {HEAVY!r} if m in sys.modules]]))
"""
    loaded, heavy = json.loads(in_subprocess(code).splitlines()[-1])
    assert loaded > 20
    assert heavy == []


def cpu_seconds(code: str) -> float:
    """Least processor time of a few runs: a busy machine makes the clock lie, this hardly."""
    times = []
    for _ in range(RUNS):
        child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        assert child.returncode == 0
        times.append(usage.ru_utime + usage.ru_stime)
    return min(times)


def loads(code: str) -> list[str]:
    tail = f"\nimport sys; print('\\n' + ' '.join(m for m in {HEAVY!r} if m in sys.modules))"
    return words(in_subprocess(code + tail).splitlines()[-1])


def test_import_octavo_is_quick() -> None:
    assert loads("import octavo") == []
    assert cpu_seconds("import octavo") - cpu_seconds("pass") < IMPORT_S


def test_octavo_help_is_quick() -> None:
    code = "from octavo.tools.cli import main; assert main(['--help']) == 0"
    assert loads(code) == []
    assert cpu_seconds(code) < HELP_S
