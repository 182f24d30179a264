"""The kernels that choose tokens, and those around products, compile for an A100 and an H100; and every kernel is among those
that a test compiles.
"""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest

from octavo.kernels.triton import support

if support.missing() is not None:
    pytest.skip("triton is not installed", allow_module_level=True)

import triton

from gpu_compile import compiled
from octavo.kernels.triton import edit_logits, gemm, logprobs, quantize, sample

KERNELS = Path(support.__file__).parent
BLOCKS = triton.cdiv(151_936, 64)
TILES = triton.cdiv(BLOCKS, 64)
X, T = triton.next_power_of_2(BLOCKS), triton.next_power_of_2(TILES)
"""Of Qwen3's vocabulary."""
TYPES = {
    "logits": "*fp32",
    "words": "*i32",
    "table": "*i64",
    "maxima": "*fp32",
    "tile_maxima": "*fp32",
    "tile_sums": "*fp32",
    "tile_ranks": "*i32",
    "sums": "*i64",
    "tokens": "*i64",
    "wanted": "*i64",
    "num_top": "*i64",
    "listed": "*i32",
    "values": "*fp32",
    "ids": "*i32",
    "out_ids": "*i64",
    "out_logprobs": "*fp32",
    "vocab": "i32:16",
    **dict.fromkeys(("num_words", "entries", "blocks", "tiles", "columns"), "i32"),
}
MASKS = {"HAS_MASKS": True}
CASES: dict[str, tuple[Any, dict[str, Any], int]] = {
    "block_maxima": (sample.block_maxima, MASKS | {"TILE": 64}, 4),
    "block_sums": (sample.block_sums, MASKS | {"TILE": 64, "TILES": T}, 8),
    "choose": (sample.choose, MASKS | {"X": X}, 8),
    "choose_of_largest": (sample.choose_of_largest, MASKS | {"X": X, "SPAN": 64}, 8),
    "choose_of_all": (sample.choose_of_all, MASKS | {"X": X, "SPAN": 4096}, 16),
    "look": (logprobs.look, {"TILE": 64}, 4),
    "settle": (logprobs.settle, {"X": X, "T": T}, 8),
}


@pytest.mark.parametrize("name", CASES)
def test_choosing(name: str) -> None:
    kernel, constants, warps = CASES[name]
    types = {each: TYPES[each] for each in kernel.arg_names if each in TYPES}
    assert compiled(kernel, types, constants, capability=90, warps=warps).stack == 0


def test_editing() -> None:
    types = {"logits": "*fp32", "table": "*i64", "penalties": "*fp32", "ids": "*i64"}
    types |= {"values": "*fp32", "vocab": "i32:16"}
    sizes = {"SPAN": 1024, "COLUMNS": edit_logits.COLUMNS}
    assert compiled(edit_logits.edit, types, sizes, capability=80, warps=4).stack == 0


@pytest.mark.parametrize("kept", ["i8", "fp8e4nv"])
def test_rounding_rows(kept: str) -> None:
    types = {"x": "*bf16", "levels": f"*{kept}", "row_scales": "*fp32", "inputs": "i32:16"}
    is_fp8 = kept != "i8"
    sizes = {"LARGEST": 448.0 if is_fp8 else 127.0, "IS_FP8": is_fp8, "TINY": quantize.TINY}
    made = compiled(quantize.quantize_row, types, sizes | {"BLOCK": 4096}, capability=90, warps=8)
    assert made.stack == 0 and "ld.global.v4" in made.ptx


@pytest.mark.parametrize("sums", ["i32", "fp32"])
def test_adding_shares(sums: str) -> None:
    types = {"shares": f"*{sums}", "scales": "*fp32", "row_scales": "*fp32", "bias": "*bf16"}
    types |= {"out": "*bf16", "num_rows": "i32", "outputs": "i32:16", "num_shares": "i32"}
    sizes = {"HAS_SCALES": True, "HAS_ROW_SCALES": True, "HAS_BIAS": True, "BLOCK": 1024}
    assert compiled(gemm.add_shares, types, sizes, capability=80, warps=4).stack == 0


def launched() -> set[tuple[str, str]]:
    """Module and name of each function with `triton.jit` that no other one calls: those that are launched."""
    found: set[tuple[str, str]] = set()
    called: set[str] = set()
    for path in KERNELS.glob("*.py"):
        for node in ast.parse(path.read_text()).body:
            if not isinstance(node, ast.FunctionDef):
                continue
            if not any("triton.jit" in ast.unparse(each) for each in node.decorator_list):
                continue
            found.add((path.stem, node.name))
            calls = [each.func for each in ast.walk(node) if isinstance(each, ast.Call)]
            called |= {each.id for each in calls if isinstance(each, ast.Name)}
    return {(module, name) for module, name in found if name not in called}


def test_every_kernel_is_compiled_by_some_test() -> None:
    texts = [path.read_text() for path in Path(__file__).parent.glob("test_gpu_compiles*.py")]
    kernels = launched()
    assert len(kernels) > 15
    missing = [f"{m}.{n}" for m, n in sorted(kernels) if not any(f"{m}.{n}" in t for t in texts)]
    assert not missing
