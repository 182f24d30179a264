"""Who may take a case of a Triton kernel, and that asking loads no triton."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from octavo.kernels.dispatch import OpCase
from octavo.kernels.triton import support

FUNCTION: support.TritonFunction[[], None] = support.TritonFunction("no.such:thing", max_size=64)


def reason(device: str, dtype: str = "bfloat16", *sizes: int) -> str:
    return FUNCTION.refuses(OpCase(device=device, dtype=dtype, sizes=sizes)) or ""


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A CUDA device of compute capability 9.0."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(support, "missing", lambda: None)
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    return monkeypatch


def test_takes_a_device(device: pytest.MonkeyPatch) -> None:
    assert not reason("cuda")
    assert "not float64" in reason("cuda", "float64")
    assert "not on mps" in reason("mps")
    assert "not on cpu" in reason("cpu")
    assert "at most 64 features and not 65" in reason("cuda", "bfloat16", 65)


def test_refuses_what_cannot_run_it(device: pytest.MonkeyPatch) -> None:
    device.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    assert "needs compute capability 8.0; this device has 7.5" in reason("cuda")
    device.setattr(torch.cuda, "is_available", lambda: False)
    assert "no CUDA device" in reason("cuda")
    device.setattr(torch.version, "hip", "6.4")
    assert "ROCm" in reason("cuda")
    device.setattr(support, "missing", lambda: "triton is not installed")
    assert "not installed" in reason("cuda")


def test_the_interpreter_takes_cpu_tensors_alone(device: pytest.MonkeyPatch) -> None:
    device.setenv("TRITON_INTERPRET", "1")
    assert not reason("cpu")
    assert "interpreted" in reason("cuda")
    device.setenv("TRITON_INTERPRET", "0")
    assert "not on cpu" in reason("cpu")


def test_asking_every_candidate_loads_no_triton() -> None:
    code = """
import sys
from octavo.kernels.attention.base import AttentionCase
from octavo.kernels.dispatch import OpCase
from octavo.kernels.registry import OPS
heads = {"num_heads": 4, "num_kv_heads": 2, "head_dim": 64, "scale": 1.0}
asked = 0
for op in OPS:
    for name in op.candidates:
        case = OpCase(device="cpu", dtype="bfloat16", sizes=(64, 64))
        if op.name == "attention":
            case = AttentionCase(device="cpu", dtype="bfloat16", cache_dtype="bfloat16", **heads)
        op.candidates.load(name).refuses(case)
        asked += 1
assert asked > 15
assert "triton" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
