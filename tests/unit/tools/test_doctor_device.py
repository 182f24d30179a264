"""Driver, device and torch: what is wrong between them, and what to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from octavo.tools import gpu
from octavo.tools.doctor_device import TorchCuda, judge
from octavo.tools.gpu import Gpu

H100 = Gpu("NVIDIA H100 80GB HBM3", 81_559, 4, "550.54.15", "9.0")
T4 = Gpu("Tesla T4", 15_360, 0, "550.54.15", "7.5")
WORKS = TorchCuda("12.8", True)


@pytest.mark.parametrize(
    ("found", "cuda", "status", "words"),
    [
        ("nvidia-smi is not installed", TorchCuda(None, False), "ok", "cpu"),
        ("nvidia-smi is not installed", None, "ok", "cpu"),
        ("nvidia-smi failed: no driver", TorchCuda("12.8", False), "fail", "modprobe"),
        ("nvidia-smi failed: no driver", WORKS, "ok", "sees the device"),
        ((), WORKS, "warn", "--gpus all"),
        ((H100,), WORKS, "ok", "550.54.15"),
        ((H100,), None, "ok", "H100"),
        ((H100,), TorchCuda(None, False), "fail", "CUDA build of torch"),
        ((H100,), TorchCuda("13.0", False, "driver too old"), "fail", "Update the driver"),
        ((T4,), WORKS, "warn", "E-GPU-05"),
        ((H100._replace(used_mib=60_000),), WORKS, "warn", "nvidia-smi"),
    ],
)
def test_what_is_wrong(
    found: tuple[Gpu, ...] | str, cuda: TorchCuda | None, status: str, words: str
) -> None:
    findings = judge(found, cuda)
    order = ("ok", "warn", "fail")
    assert max((each[1] for each in findings), key=order.index) == status
    assert any(words in detail + fix for _, _, detail, fix in findings)
    assert all(bool(fix) == (state != "ok") for _, state, _, fix in findings)


def test_the_drivers_command(tmp_path: Path) -> None:
    def command(text: str) -> str:
        file = tmp_path / "smi"
        file.write_text(f"#!/bin/sh\n{text}\n")
        file.chmod(0o755)
        return str(file)

    line = "NVIDIA H100 80GB HBM3, 81559, 4, 550.54.15, 9.0"
    assert gpu.query(command(f"echo '{line}'; echo '{line}'")) == (H100, H100)
    assert "failed: no device" in gpu.query(command("echo no device >&2; exit 9"))
    assert "not understood" in gpu.query(command("echo '[Not Supported]'"))
    assert "is not installed" in gpu.query(str(tmp_path / "none"))
