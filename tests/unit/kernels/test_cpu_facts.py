from __future__ import annotations

from pathlib import Path

import pytest

from octavo.kernels.cpu_facts import read_cpu_flags, resolve_dtype

AVX2 = frozenset({"avx2", "f16c", "fma"})
AMX = AVX2 | {"avx512f", "avx512_bf16", "amx_bf16"}


@pytest.mark.parametrize(
    ("asked", "checkpoint", "device", "flags", "expected"),
    [  # without the compiled kernels
        ("auto", "bfloat16", "cpu", AVX2, "float32"),
        ("auto", "float16", "cpu", AVX2, "float32"),
        ("auto", "float32", "cpu", AVX2, "float32"),
        ("auto", "bfloat16", "cpu", AMX, "bfloat16"),
        ("auto", "float16", "cpu", AMX, "float32"),
        ("auto", "bfloat16", "cuda", AVX2, "bfloat16"),
        ("auto", "float32", "cuda", AVX2, "float32"),
        ("bfloat16", "float32", "cpu", AVX2, "bfloat16"),
        ("auto", "bfloat16", "cpu", frozenset({"asimd", "bf16"}), "bfloat16"),
    ],
)
def test_resolve_dtype(
    asked: str, checkpoint: str, device: str, flags: frozenset[str], expected: str
) -> None:
    choice = resolve_dtype(asked, checkpoint, device=device, cpu_flags=flags, has_kernels=False)
    assert choice.dtype == expected
    assert choice.reason


@pytest.mark.parametrize("flags", [AVX2, AMX])
@pytest.mark.parametrize(
    ("asked", "checkpoint", "device", "expected"),
    [
        ("auto", "bfloat16", "cpu", "float32"),
        ("auto", "float16", "cpu", "float32"),
        ("bfloat16", "bfloat16", "cpu", "bfloat16"),
        ("auto", "bfloat16", "cuda", "bfloat16"),
    ],
)
def test_own_kernels_compute_in_float32_whatever_the_cpu_has(
    flags: frozenset[str], asked: str, checkpoint: str, device: str, expected: str
) -> None:
    assert resolve_dtype(asked, checkpoint, device=device, cpu_flags=flags).dtype == expected


def test_read_cpu_flags(tmp_path: Path) -> None:
    path = tmp_path / "cpuinfo"
    assert read_cpu_flags(path) == frozenset()
    path.write_text("processor\t: 0\nflags\t\t: fpu avx2\n\nprocessor\t: 1\nflags\t\t: other\n")
    assert read_cpu_flags(path) == {"fpu", "avx2"}
    path.write_text("processor\t: 0\nFeatures\t: fp asimdhp\n")
    assert read_cpu_flags(path) == {"fp", "asimdhp"}
    path.write_text("nothing\n")
    assert read_cpu_flags(path) == frozenset()
