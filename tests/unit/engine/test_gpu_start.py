"""A start on a GPU that cannot be: what is asked of the machine comes from a fake, the error from where a start would end."""

from __future__ import annotations

from pathlib import Path

import pytest

from local_engine import write_tiny
from octavo.core.config import EngineConfig
from octavo.core.errors import OperatorError
from octavo.engine import boot, device
from octavo.kernels.gpu_facts import GIB, GpuFacts, Holder

H100 = GpuFacts(
    torch_version="2.13.0",
    torch_cuda="12.8",
    driver_cuda=(12, 4),
    num_devices=1,
    name="NVIDIA H100 80GB HBM3",
    uuid="GPU-1",
    capability=(9, 0),
    arch_list=("sm_90",),
    total=80 * GIB,
    free=79 * GIB,
)


def start(
    monkeypatch: pytest.MonkeyPatch, folder: Path, facts: GpuFacts, *holders: Holder
) -> boot.Resolved:
    monkeypatch.setattr(device, "look", lambda: facts)
    monkeypatch.setattr(boot, "holders", lambda _: holders)
    config = EngineConfig(model=str(folder), device="cuda", load_format="dummy")
    return boot.decide(config)


@pytest.mark.parametrize(
    ("changes", "code", "says", "fix"),
    [
        ({"torch_cuda": None}, "E-GPU-01", "without CUDA", "CUDA build"),
        ({"driver_cuda": None, "num_devices": 0}, "E-GPU-02", "no NVIDIA driver", "--gpus all"),
        ({"driver_cuda": (11, 4), "num_devices": 0}, "E-GPU-03", "too old", "Update the driver"),
        ({"num_devices": 0}, "E-GPU-04", "shows no GPU", "CUDA_VISIBLE_DEVICES"),
        (
            {"capability": (7, 0), "name": "Tesla V100"},
            "E-GPU-05",
            "Tesla V100 is too old",
            "Ampere",
        ),
        ({"use_error": "CUDA error: out of memory"}, "E-GPU-06", "out of memory", "nvidia-smi"),
        ({"num_devices": 0, "init_error": 999}, "E-GPU-07", "999", "nvidia-smi"),
    ],
)
def test_a_gpu_that_cannot_be_used_ends_the_start_with_its_cause(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, changes: dict, code: str, says: str, fix: str
) -> None:
    with pytest.raises(OperatorError) as caught:
        start(monkeypatch, write_tiny(tmp_path), H100._replace(**changes))
    assert caught.value.code == code
    assert says in caught.value.message and fix in caught.value.fix


def test_too_little_memory_and_who_holds_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = write_tiny(tmp_path)
    full = H100._replace(free=1 << 20)
    with pytest.raises(OperatorError) as caught:
        start(monkeypatch, folder, full)
    assert caught.value.code == "E-MEM-03" and "80.00 GiB" in caught.value.message
    with pytest.raises(OperatorError) as caught:
        start(monkeypatch, folder, full, Holder(4711, "python train.py", 70 * GIB))
    assert caught.value.code == "E-MEM-05"
    assert "process 4711 (python train.py) with 70.0 GiB" in caught.value.message
    assert "frees 70.0 GiB" in caught.value.fix


def test_what_fits_is_planned_with_every_part_named_and_steps_are_one_ahead(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    resolved = start(monkeypatch, write_tiny(tmp_path), H100)
    parts = dict(resolved.memory.parts())
    assert {"weights", "kv cache", "activations", "graphs", "headroom"} <= set(parts)
    assert sum(parts.values()) == H100.free
    assert all(parts[name] > 0 for name in ("weights", "kv cache", "activations", "graphs"))
    assert resolved.runs_ahead
    decisions = {d.name: d for d in resolved.decisions}
    assert decisions["async_scheduling"].value == "on"
