"""The memory plan: sums, shares, and errors whose advice works."""

from __future__ import annotations

import errno
import re
from pathlib import Path

import pytest
import torch

from octavo.core.errors import MemoryPlanError
from octavo.core.kvspec import KVGroup, KVSpec
from octavo.engine import cgroup, free_memory
from octavo.engine.memory import GIB, MemoryPlan, Needs, plan

FULL = KVSpec(num_kv_heads=8, head_dim=128, dtype="float32")
WINDOW = KVSpec(kind="window", num_kv_heads=8, head_dim=128, dtype="float32", window=1024)


def needs(**changes: object) -> Needs:
    base = Needs(
        weights=2 * GIB,
        activations=GIB // 4,
        groups=(KVGroup(spec=FULL, layers=tuple(range(28))),),
        max_model_len=8192,
        is_len_explicit=True,
        max_num_seqs=16,
        chunk=512,
    )
    return base._replace(**changes)


def make(**changes: object) -> MemoryPlan:
    options: dict[str, object] = {"available": 16 * GIB, "share": 0.5, "kv_bytes": None}
    asked = needs(**{key: value for key, value in changes.items() if key not in options})
    return plan(asked, **(options | {k: v for k, v in changes.items() if k in options}))  # type: ignore[arg-type]


def test_parts_sum_to_what_is_available() -> None:
    for result in (
        make(),
        make(kv_bytes=3 * GIB),
        make(groups=(KVGroup(spec=WINDOW, layers=(0, 1)),)),
    ):
        assert sum(size for _, size in result.parts()) == 16 * GIB
        assert all(size >= 0 for _, size in result.parts()), result.parts()


def test_pool_is_no_larger_than_what_all_sequences_can_use() -> None:
    result = make(available=1024 * GIB)
    assert result.groups[0].num_blocks == 16 * 512 + 1
    assert result.unused > 400 * GIB


def test_a_window_group_holds_its_window_and_a_chunk_and_does_not_limit_the_context() -> None:
    groups = (KVGroup(spec=FULL, layers=(0,)), KVGroup(spec=WINDOW, layers=(1,)))
    result = make(groups=groups, max_num_seqs=2)
    assert result.groups[0].num_blocks == 2 * 512 + 1
    assert result.groups[1].num_blocks == 2 * ((1024 + 512) // 16 + 1) + 1
    assert result.kv_tokens == 2 * 8192


def test_a_derived_length_shrinks_and_an_explicit_one_is_an_error() -> None:
    shrunk = make(max_model_len=131_072, is_len_explicit=False)
    assert 16 < shrunk.kv_tokens < 131_072
    with pytest.raises(MemoryPlanError) as caught:
        make(max_model_len=131_072)
    assert caught.value.code == "E-MEM-03"


@pytest.mark.parametrize("available", [6 * GIB, 8 * GIB, 12 * GIB, 28 * GIB, 40 * GIB])
def test_each_advised_change_fits(available: int) -> None:
    asked = {"max_model_len": 131_072, "available": available}
    with pytest.raises(MemoryPlanError) as caught:
        make(**asked)
    advice = caught.value.fix
    assert advice.count(";") == 2, advice
    if length := re.search(r"--max-model-len (\d+)", advice):
        make(**(asked | {"max_model_len": int(length[1])}))
    if share := re.search(r"--gpu-memory-utilization ([0-9.]+)", advice):
        make(**(asked | {"share": float(share[1])}))
    if size := re.search(r"a machine with ([0-9.]+) GiB", advice):
        make(**(asked | {"available": int(float(size[1]) * GIB)}))


def test_kv_bytes_are_taken_at_their_word() -> None:
    assert make(kv_bytes=4 * GIB).kv <= 4 * GIB


@pytest.mark.parametrize(
    ("asked", "cause"),
    [
        ({"kv_bytes": 64 * GIB}, "--kv-cache-memory-bytes asks for 64.00 GiB"),
        ({"kv_bytes": GIB // 8}, "--kv-cache-memory-bytes is 128.0 MiB"),
        ({"kv_bytes": 64 * GIB, "max_model_len": 1 << 20}, "leave 13.35 GiB of the 16.00 GiB"),
        ({"kv_bytes": 2 * GIB, "available": 2 * GIB}, "leave 0.00 GiB of the 2.00 GiB"),
    ],
)
def test_kv_bytes_that_do_not_fit_are_refused_with_the_cause(
    asked: dict[str, int], cause: str
) -> None:
    with pytest.raises(MemoryPlanError) as caught:
        make(**asked)
    assert cause in caught.value.message
    advice = caught.value.fix
    assert advice.count(";") == 2, advice
    names = {"--kv-cache-memory-bytes": "kv_bytes", "--max-model-len": "max_model_len"}
    for change in advice.removeprefix("Any of: ").split("; "):
        changed = {names[name]: int(value) for name, value in re.findall(r"(--\S+) (\d+)", change)}
        if size := re.search(r"a machine with ([0-9.]+) GiB", change):
            changed["available"] = int(float(size[1]) * GIB)
        if changed:
            make(**(asked | changed))


def test_the_cgroup_limits_what_is_available(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("400\n")
    assert free_memory.cgroups_left([tmp_path]) == [600]
    (tmp_path / "memory.stat").write_text("anon 250\nactive_file 50\ninactive_file 100\n")
    assert free_memory.cgroups_left([tmp_path]) == [750], "cached files are given up under pressure"
    (tmp_path / "memory.max").write_text("max\n")
    assert free_memory.cgroups_left([tmp_path]) == []


@pytest.mark.parametrize(
    ("own", "where", "files"),
    [
        ("0::/user.slice/job.scope\n", "user.slice", ("memory.max", "memory.current")),
        ("0::/user.slice/job.scope\n", "user.slice/job.scope", ("memory.max", "memory.current")),
        (
            "5:cpu,cpuacct:/x\n4:memory:/batch/7\n0::/\n",
            "memory/batch/7",
            ("memory.limit_in_bytes", "memory.usage_in_bytes"),
        ),
    ],
)
def test_a_limit_of_the_own_cgroup_or_one_above_counts(
    tmp_path: Path, own: str, where: str, files: tuple[str, str]
) -> None:
    """As under `systemd-run -p MemoryMax=1000`, where the root's files have no limit."""
    for folder in ("user.slice/job.scope", "memory/batch/7"):
        (tmp_path / folder).mkdir(parents=True)
    for name, text in zip(files, ("1000\n", "400\n"), strict=True):
        (tmp_path / where / name).write_text(text)
    said = tmp_path / "own"
    said.write_text(own)
    folders = cgroup.folders(tmp_path, controller="memory", own=said)
    assert free_memory.cgroups_left(folders) == [600]
    said.write_text("0::/../elsewhere\n4:memory:/not/there\n")
    folders = cgroup.folders(tmp_path, controller="memory", own=said)
    assert folders == [tmp_path, tmp_path / "memory"]


def test_keys_and_values_of_half_the_bytes_are_advised_where_they_would_do() -> None:
    asked: dict[str, object] = {"max_model_len": 40_960, "available": 16 * GIB}
    with pytest.raises(MemoryPlanError) as caught:
        make(**asked)
    assert "--kv-cache-dtype bfloat16" in caught.value.fix
    narrow = KVSpec(num_kv_heads=8, head_dim=128, dtype="bfloat16")
    make(**asked, groups=(KVGroup(spec=narrow, layers=tuple(range(28))),))
    with pytest.raises(MemoryPlanError) as caught:
        make(**(asked | {"weights": 100 * GIB}))
    assert "bfloat16" not in caught.value.fix, "weights that exceed the budget are not halved"
    assert "octavo plan" in caught.value.fix


def test_few_bytes_are_said_as_bytes() -> None:
    with pytest.raises(MemoryPlanError, match="--kv-cache-memory-bytes is 10 bytes, and"):
        make(kv_bytes=10)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("Unable to allocate 128. MiB for an array"),
        MemoryError(),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to "
            "allocate 9 bytes. Error code 12 (Cannot allocate memory)"
        ),
        ImportError("libtorch_cpu.so: failed to map segment from shared object"),
    ],
)
def test_refused_memory_is_the_operators_to_mend(error: Exception) -> None:
    told = free_memory.refused(error)
    assert told is not None
    assert told.code == "E-MEM-06" and ".." not in told.message
    assert "--kv-cache-memory-bytes" in told.fix


def test_what_torch_says_of_memory_is_known() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 62, dtype=torch.uint8)
    assert free_memory.refused(caught.value) is not None


@pytest.mark.parametrize(
    "error",
    [RuntimeError("a shape is wrong"), OSError(errno.EIO, "x"), ImportError("no module named x")],
)
def test_other_errors_are_not_about_memory(error: Exception) -> None:
    assert free_memory.refused(error) is None
