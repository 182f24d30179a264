"""Why a GPU cannot be used, and what is said of it; the memory of one."""

from __future__ import annotations

import pytest

from octavo.core.errors import MemoryPlanError, OperatorError
from octavo.core.kvspec import KVGroup, KVSpec
from octavo.engine import device as devices
from octavo.engine.device import choose
from octavo.engine.measure import measured_text
from octavo.engine.memory import Needs, plan, with_measured
from octavo.kernels.gpu_facts import (
    GIB,
    MIB,
    GpuFacts,
    Holder,
    held_by_others,
    parse_holders,
    problem,
)

H100 = GpuFacts(
    torch_version="2.13.0",
    torch_cuda="12.8",
    driver_cuda=(12, 4),
    num_devices=1,
    name="NVIDIA H100 80GB HBM3",
    uuid="GPU-1",
    capability=(9, 0),
    arch_list=("sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "compute_120"),
    total=80 * GIB,
    free=79 * GIB,
)
SPEC = KVSpec(num_kv_heads=8, head_dim=128, dtype="bfloat16")


def test_a_fit_gpu_is_used() -> None:
    assert problem(H100) is None
    assert choose("cuda", H100)[0] == choose("auto", H100)[0] == "cuda"
    assert choose("cpu", H100)[0] == "cpu"


@pytest.mark.parametrize(
    ("changes", "code", "says"),
    [
        ({"torch_cuda": None}, "E-GPU-01", ("2.13.0", "without CUDA")),
        ({"driver_cuda": None, "num_devices": 0}, "E-GPU-02", ("no NVIDIA driver", "--gpus all")),
        (
            {"driver_cuda": (11, 4), "num_devices": 0},
            "E-GPU-03",
            ("too old", "CUDA 11.4", "CUDA 12.8", "CUDA 12.0 or later"),
        ),
        ({"num_devices": 0}, "E-GPU-04", ("no GPU", "CUDA_VISIBLE_DEVICES")),
        ({"num_devices": 0, "init_error": 100}, "E-GPU-04", ("no GPU",)),
        ({"num_devices": 0, "init_error": 803}, "E-GPU-07", ("803", "different versions")),
        ({"num_devices": 0, "init_error": 4711}, "E-GPU-07", ("4711",)),
        ({"capability": (7, 5), "name": "Tesla T4"}, "E-GPU-05", ("Tesla T4", "7.5", "8.0")),
        ({"arch_list": ("sm_75", "sm_80")}, "E-GPU-05", ("no kernels", "9.0", "sm_80")),
        ({"use_error": "CUDA error: out of memory"}, "E-GPU-06", ("out of memory", "nvidia-smi")),
    ],
)
def test_each_cause_has_a_code_and_a_fix(changes: dict, code: str, says: tuple[str, ...]) -> None:
    facts = H100._replace(**changes)
    wrong = problem(facts)
    assert wrong is not None
    assert wrong.code == code
    text = f"{wrong.message} {wrong.fix}"
    assert all(word in text for word in says), text
    with pytest.raises(OperatorError) as caught:
        choose("cuda", facts)
    assert caught.value.code == code


@pytest.mark.parametrize("arch", ["sm_80", "sm_86", "compute_80", "sm_90a", "compute_90"])
def test_code_of_an_earlier_minor_or_intermediate_code_will_do(arch: str) -> None:
    capability = (9, 0) if "9" in arch or "compute" in arch else (8, 9)
    assert problem(H100._replace(arch_list=(arch,), capability=capability)) is None


def test_auto_falls_back_only_where_there_is_no_fit_gpu() -> None:
    assert choose("auto", H100._replace(torch_cuda=None, num_devices=0)) == (
        "cpu",
        "what there is",
        None,
    )
    name, why, _ = choose("auto", H100._replace(driver_cuda=(11, 0), num_devices=0))
    assert name == "cpu"
    assert "too old" in why
    assert choose("auto", H100._replace(capability=(6, 1)))[0] == "cpu"
    with pytest.raises(OperatorError):
        choose("auto", H100._replace(use_error="CUDA error: out of memory"))


def test_looking_here_ends_in_words() -> None:
    facts, wrong = devices.probe()
    assert (wrong is None) == (facts.num_devices > 0 and not facts.use_error)
    assert devices.holders(H100._replace(uuid="GPU-none")) == ()


def test_who_else_holds_memory() -> None:
    listed = """GPU-1, 100, python, 40000
GPU-1, 7, own, 500
GPU-2, 101, other card, 70000
GPU-1, 102, /usr/bin/train, 20000
GPU-1, [N/A], [Not Found], [N/A]
"""
    found = parse_holders(listed, "GPU-1", 7)
    assert [holder.pid for holder in found] == [100, 102]
    error = held_by_others(MemoryPlanError("Too little.", fix="Less."), H100, found)
    assert error.code == "E-MEM-05"
    assert "process 100 (python) with 39.1 GiB" in error.message
    assert "frees 58.6 GiB" in error.fix
    assert held_by_others(error, H100, ()) is error
    assert Holder(1, "x", 512 * MIB).num_bytes * 2 == GIB


def needs(**changes: object) -> Needs:
    base = Needs(
        weights=16 * GIB,
        activations=2 * GIB,
        groups=(KVGroup(spec=SPEC, layers=tuple(range(32))),),
        max_model_len=8192,
        is_len_explicit=True,
        max_num_seqs=4096,
        chunk=8192,
        graphs=GIB,
    )
    return base._replace(**changes)


def test_the_share_is_of_the_card_and_stops_at_what_is_free() -> None:
    alone = plan(needs(), available=79 * GIB, total=80 * GIB, share=0.9, kv_bytes=None)
    assert alone.budget == 72 * GIB
    beside = plan(needs(), available=40 * GIB, total=80 * GIB, share=0.9, kv_bytes=None)
    assert beside.budget == int(40 * GIB * 0.98)
    half = plan(needs(), available=40 * GIB, total=80 * GIB, share=0.4, kv_bytes=None)
    assert half.budget == 32 * GIB
    for one in (alone, beside, half):
        assert dict(one.parts())["graphs"] == GIB
        assert sum(size for _, size in one.parts()) == one.available
        assert all(size >= 0 for _, size in one.parts())


def test_too_little_of_a_card_says_how_much_is_free() -> None:
    with pytest.raises(MemoryPlanError) as caught:
        plan(needs(), available=10 * GIB, total=80 * GIB, share=0.9, kv_bytes=None)
    assert "GPU's 80.00 GiB, of which 10.00 GiB are free" in caught.value.message
    assert "--gpu-memory-utilization" not in caught.value.fix  # more of the card would not help


def test_a_share_that_would_do_is_named() -> None:
    with pytest.raises(MemoryPlanError) as caught:
        plan(needs(), available=79 * GIB, total=80 * GIB, share=0.2, kv_bytes=None)
    share = float(caught.value.fix.split("--gpu-memory-utilization ")[1].split(";")[0].rstrip("."))
    assert plan(needs(), available=79 * GIB, total=80 * GIB, share=share, kv_bytes=None).kv_tokens


def test_activations_beyond_the_estimate_come_off_the_cache() -> None:
    planned = plan(needs(), available=79 * GIB, total=80 * GIB, share=0.9, kv_bytes=None)
    limits = {"max_model_len": 8192, "chunk": 8192}
    assert with_measured(planned, GIB, **limits) == planned
    more = with_measured(planned, 5 * GIB, **limits)
    assert sum(size for _, size in more.parts()) == more.available
    assert more.activations == 5 * GIB
    assert planned.kv - more.kv >= 3 * GIB - planned.unused
    assert more.unused >= 0
    with pytest.raises(MemoryPlanError) as caught:
        with_measured(planned, 60 * GIB, **limits)
    assert caught.value.code == "E-MEM-04"


def test_predicted_against_measured() -> None:
    assert measured_text(1000 * MIB, 0) == "1000 MiB"
    assert measured_text(1000 * MIB, 1010 * MIB) == "1000 MiB planned, 1010 measured (+1.0%)"
