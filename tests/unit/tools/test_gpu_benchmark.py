"""`python benchmarks/gpu`: parts run apart, results are gone on with, and what is reached is said."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

FOLDER = Path(__file__).resolve().parents[3] / "benchmarks" / "gpu"
CARD = {"name": "a card", "is_dry": False, "cuda": "12.8"}


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The command's module. Its neighbours are found beside it, as when it is run."""
    monkeypatch.setattr(sys, "path", [str(FOLDER), *sys.path])
    for name in ("card", "cases", "goals", "results", "ours", "beside"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    spec = importlib.util.spec_from_file_location("gpu_benchmark", FOLDER / "__main__.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    for name in ("card", "cases", "goals", "results", "ours", "beside"):
        sys.modules.pop(name, None)


def test_a_dry_run_measures_and_the_next_goes_on(
    command: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """For real: a process of its own on the CPU."""
    out = tmp_path / "out.json"
    asked = ["--dry-run", "--only", "e", "--json", str(out)]
    assert command.main(asked) == 0
    written = json.loads(out.read_text())
    assert written["format"] == 1 and written["card"]["is_dry"]
    assert set(written["ceilings"]) == {
        "copy_bytes_per_s",
        "read_bytes_per_s",
        "bf16_flop_per_s",
    }
    part = written["parts"]["e"]
    assert part["backend"] == "cpu_paged" and part["took_s"] > 0
    assert set(part["contexts"]) == {"32", "64"}
    assert "runs on cuda" in part["backends"]["flash_attn"]["refused"]
    assert "A dry run" in capsys.readouterr().out
    assert command.main(asked) == 0
    assert "e: there already" in capsys.readouterr().out
    assert json.loads(out.read_text())["parts"]["e"] == part


PARTS_HERE = ("a", "d", "b", "c", "f", "idle", "memory", "pieces")
"""Those that run an engine in their own process and need no peer."""
ALL_HERE = """
import json, sys
sys.path.insert(0, sys.argv[1])
from card import Card
from cases import PARTS, Setting
card = Card(is_dry=True)
setting = Setting(card, card.ceilings())
print(json.dumps({name: PARTS[name].run(setting) for name in sys.argv[2:]}, default=str))
"""


def test_every_part_with_an_engine_runs_dry() -> None:
    """In one process, which saves their imports."""
    command = [sys.executable, "-c", ALL_HERE, str(FOLDER), *PARTS_HERE]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert set(found) == set(PARTS_HERE)
    assert not [name for name, part in found.items() if "refused" in part]
    runs = found["pieces"]["runs"]
    assert set(runs) == {"pieces", "eager"}
    assert all(run["output_tokens_per_s"] > 0 for run in runs.values())


def test_a_part_that_fails_or_hangs_costs_the_others_nothing(
    command: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "hangs.py").write_text("import time; time.sleep(600)")
    (tmp_path / "fails.py").write_text("raise SystemExit('no such kernel')")
    (tmp_path / "works.py").write_text(
        "import json, sys; open(sys.argv[2], 'w').write(json.dumps({'parts': {'g': {'x': 1}}}))"
    )
    monkeypatch.setattr(command, "HERE", tmp_path)
    part = type(command.PARTS["a"])
    for name, script, limit in (("a", "hangs.py", 1), ("b", "fails.py", 60), ("g", "works.py", 60)):
        monkeypatch.setitem(command.PARTS, name, part(script, limit))
    out = tmp_path / "out.json"
    assert command.main(["--dry-run", "--only", "a,b,g", "--json", str(out)]) == 1
    parts = json.loads(out.read_text())["parts"]
    assert parts["a"]["refused"] == "took more than 1 s"
    assert "no such kernel" in parts["b"]["refused"]
    assert parts["g"]["x"] == 1
    assert command.main(["--dry-run", "--only", "g", "--budget-s", "0"]) == 0


def test_only_the_same_card_is_gone_on_with(command: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    results = sys.modules["results"].Results(path, CARD, {"copy_bytes_per_s": 1.0})
    results.put("a", {"tokens_per_s": 190.0})
    results.put("b", {"refused": "too little memory"})
    again = sys.modules["results"].Results(path, CARD, {})
    assert again.is_done("a") and not again.is_done("b") and not again.is_done("c")
    other = sys.modules["results"].Results(path, CARD | {"name": "another"}, {})
    assert not other.is_done("a")
    path.write_text("{ cut off")
    assert not sys.modules["results"].Results(path, CARD, {}).is_done("a")


def test_what_is_reached_is_said(command: ModuleType) -> None:
    parts: dict[str, dict[str, Any]] = {
        "a": {"tokens_per_s": 190.0, "share_of_copy_ceiling": 0.8},
        "b": {
            "runs": {"x": {"output_tokens_per_s": 20_000.0}, "y": {"output_tokens_per_s": 23_000.0}}
        },
        "c": {"runs": {"x": {"output_tokens_per_s": 12_000.0}}},
        "c_vllm": {"output_tokens_per_s": 10_000.0},
        "e": {"contexts": {"4096": {"share_of_copy_ceiling": 0.9}}},
        "f": {"refused": "fp8 is not for this card"},
        "idle": {"idle_share": 0.02},
        "g": {"0.6b": {"first_token_s": 5.0}, "8b": {"refused": "too little"}},
    }
    rows = {row[0]: row for row in (g.row(parts, is_dry=False) for g in command.GOALS)}
    assert rows["(a) 8B, batch 1"][1:] == ("190 tok/s", "at least 180 tok/s", "yes")
    assert rows["(a) of the copy ceiling"][1:] == ("80.0%", "at least 85.0%", "no")
    assert rows["(b) 0.6B, public workload"][3] == "yes"
    assert rows["(c) 8B beside vLLM in this run"][1:] == ("1.2 x", "at least 1 x", "yes")
    assert rows["(d) prompt of 8k, of the matrix ceiling"][1] == "not run"
    assert rows["(f) 8B fp8, batch 1"][1] == "fp8 is not for this card"
    assert rows["(g) first token, 0.6B"][3] == "no"
    assert "no figure" in rows["(g) first token, 8B"][1]
    assert rows["device idle, decode at batch 64"][3] == "yes"


def test_an_unknown_part_is_named(command: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.main(["--only", "a,zz"])
    assert "no part 'zz'" in capsys.readouterr().err
    assert command.main(["--list"]) == 0
    assert "idle" in capsys.readouterr().out
