"""`octavo tune` and `octavo bench sweep` with the bundled model and servers of their own."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from octavo.core.config import EngineConfig
from octavo.core.errors import EngineDeadError
from octavo.tools import cli
from octavo.tools.flags import build, read_config_file
from octavo.tools.started import started


def test_tuning_measures_searches_runs_and_writes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["tune", "--threads", "1", "--request-rate", "8", "--num-prompts", "20"]
    words += ["--input-len", "20-60", "--output-len", "4-8", "--max-num-seqs", "16"]
    words += ["--performance-mode", "balanced", "--ttft-p99-ms", "5000", "--itl-p99-ms", "2000"]
    words += ["--calibration-seconds", "3", "--live-seconds", "1", "--live-candidates", "1"]
    code = cli.main([*words, "--out", str(tmp_path), "--no-png", "--json"])
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert code == int(not found["is_met"] or found["is_confirmed"] is False), captured.err
    assert found["is_confirmed"] is not None
    calibration = found["calibration"]
    assert calibration["source"] == "measured" and calibration["steps"] >= 50
    assert calibration["requests"] >= 1  # as many as busy cores let end in 3 s
    live = next(row for row in found["rows"] if row["live"] is not None)
    assert live["live"]["failed"] == 0 and live["live"]["tokens_per_s"] > 0
    assert found["recommended"]["max_num_seqs"] == 16  # given, and kept
    values = read_config_file(str(tmp_path / "serve.yaml"))
    assert build(EngineConfig, values).max_num_seqs == 16
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "serve.yaml",
        "tune.csv",
        "tune.html",
        "tune.json",
    ]


def test_a_sweep_starts_a_server_and_draws(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib", reason="PNGs need octavo[plots]")
    words = ["bench", "sweep", "octavo-mini", "--threads", "1", "--max-concurrency", "4", "1"]
    words += ["--num-prompts", "20", "--input-len", "16", "--output-len", "6"]
    code = cli.main([*words, "--goodput", "ttft:60000", "--out", str(tmp_path)])
    text = capsys.readouterr().out
    found = json.loads((tmp_path / "sweep.json").read_text())
    assert code == int(not all(point["valid"] for point in found["points"]))
    assert [point["load"] for point in found["points"]] == [1, 4]
    assert all(point["completed"] == 20 for point in found["points"])
    assert found["points"][0]["peak_concurrency"] == 1
    assert all(point["goodput"] > 0 for point in found["points"])
    rows = list(csv.DictReader((tmp_path / "sweep.csv").read_text().splitlines()))
    assert float(rows[1]["ttft_p99_ms"]) == found["points"][1]["latencies_ms"]["ttft"]["p99"]
    assert "goodput/s" in text
    assert "<svg" in (tmp_path / "sweep.html").read_text()
    assert (tmp_path / "sweep.png").read_bytes().startswith(b"\x89PNG")


def test_a_server_that_cannot_start_says_why(tmp_path: Path) -> None:
    with pytest.raises(EngineDeadError, match="E-MODEL-01"), started({"model": "nowhere"}):
        raise AssertionError("it started")
