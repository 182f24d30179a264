"""The kernels for GPUs, in Triton's interpreter, in a process that was told so before it began."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from octavo.kernels.triton import support

TESTS = Path(__file__).resolve().parents[1]
TIMEOUT_S = 300


@pytest.mark.skipif(support.missing() is not None, reason="triton is not installed")
@pytest.mark.skipif(torch.cuda.is_available(), reason="tests/gpu runs on the device")
def test_interpreted() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(TESTS / "gpu")]
    done = subprocess.run(
        command,
        env=os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        cwd=TESTS.parent,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-8000:]
    assert " passed" in done.stdout
