"""That `benchmarks/gpu/kernels.py` runs from end to end, where it measures nothing."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from gpu_cases import DEVICE
from octavo.kernels.triton.support import is_interpreting

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks" / "gpu"


@pytest.mark.skipif(not is_interpreting(), reason="measures for minutes on a device")
def test_dry_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])
    import kernels

    kernels.main(["--interpret", "--json", str(tmp_path / "out.json")])
    record = json.loads((tmp_path / "out.json").read_text())
    assert record["card"]["is_dry"] and DEVICE == "cpu"
    lines = record["parts"]["kernels"]["lines"]
    assert len(lines) == 2 * len(kernels.CACHES) + 5
    assert all(line["seconds"]["median_s"] > 0 and line["bytes"] > 0 for line in lines)
