"""With `--deterministic`, a row has the same bits alone, in any batch and in any chunks: of products, and of whole models."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from gpu_cases import DEVICE, random
from model_driver import Driver
from octavo.kernels import ops
from octavo.kernels.dispatch import OpCase
from octavo.kernels.gemm.triton_dense import TritonDense
from octavo.kernels.registry import OPS
from octavo.kernels.triton import dense
from octavo.models.load import Exactness, load_model

TOLERANCE = {"float32": 1e-5, "bfloat16": 8e-3, "float16": 1e-3}
CONFIG = {
    "architectures": ["Qwen3ForCausalLM"],
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "max_position_embeddings": 64,
    "vocab_size": 40,
    "rms_norm_eps": 1e-6,
}
LIBRARIES = {"torch", "torch_sdpa", "reference"}


def kernel(dtype: str, outputs: int, inputs: int) -> TritonDense:
    case = OpCase(device=DEVICE, dtype=dtype, sizes=(outputs, inputs), is_invariant=True)
    assert TritonDense.refuses(case) is None
    return TritonDense(case)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_products(dtype: str) -> None:
    for outputs, inputs in ((1, 1), (130, 203), (40, 1100)):
        made = kernel(dtype, outputs, inputs)
        weight = made.pack(random(outputs, inputs, dtype=dtype))
        for rows in (0, 1, 70):
            x, bias = random(rows, inputs, dtype=dtype, seed=2), random(outputs, dtype=dtype)
            for given in (None, bias):
                got = made.run(x, weight, given)
                wanted = ops.linear(
                    x.double(), weight.double(), None if given is None else given.double()
                )
                assert got.dtype == x.dtype and got.shape == wanted.shape
                limit = TOLERANCE[dtype] * max(1.0, wanted.abs().max().item() if rows else 1.0)
                assert rows == 0 or (got.double() - wanted).abs().max().item() <= limit


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_a_row_does_not_depend_on_how_shares_are_added(dtype: str) -> None:
    """Two shares: of one row in programs of their own, of 70 in the same program."""
    assert dense.shares_of(40, 1100)[0] == 2
    made = kernel(dtype, 40, 1100)
    weight, x = random(40, 1100, dtype=dtype), random(70, 1100, dtype=dtype)
    bias = random(40, dtype=dtype)
    together = made.run(x, weight, bias)
    for first, last in ((0, 1), (3, 20), (69, 70)):
        assert torch.equal(made.run(x[first:last], weight, bias), together[first:last])


def test_shares_cover_the_inputs() -> None:
    for outputs, inputs in (
        (1, 0),
        (1, 1),
        (4096, 4096),
        (28672, 4096),
        (4096, 14336),
        (128256, 4096),
    ):
        shares, per_share = dense.shares_of(outputs, inputs)
        assert 1 <= shares <= dense.MAX_SHARES and per_share % dense.INPUTS == 0
        assert (shares - 1) * per_share < max(1, inputs) <= shares * per_share


def test_without_it_a_library_multiplies() -> None:
    case = OpCase(device=DEVICE, dtype="bfloat16", sizes=(8, 8))
    assert "a library is faster" in (TritonDense.refuses(case) or "")


@pytest.mark.parametrize("quantization", ["", "int8"])
@torch.inference_mode()
def test_a_whole_model(tmp_path: Path, quantization: str) -> None:
    """Logits of one sequence: token by token, in chunks, and among others."""
    (tmp_path / "config.json").write_text(json.dumps(CONFIG | {"torch_dtype": "bfloat16"}))
    forced = {op.name: "triton" for op in OPS if "triton" in op.candidates}
    forced["linear"] = "triton_dense"
    if quantization:
        del forced["linear"]
    loaded = load_model(
        tmp_path,
        dtype="bfloat16",
        device=DEVICE,
        load_format="dummy",
        quantization=quantization,
        kernels=forced,
        exactness=Exactness(is_invariant=True),
    )
    assert not LIBRARIES & {choice.winner for choice in loaded.choices}
    ids = [5, 17, 30, 3, 3, 21, 8, 11, 2, 39, 1, 7, 25, 14, 33, 6, 9, 9, 20]

    def logits(*steps: tuple[int, list[int]], others: bool = False) -> torch.Tensor:
        driver, found = Driver(loaded, max_tokens=32), []
        for turn, (_, tokens) in enumerate(steps):
            more = [(1, ids[turn : turn + 5]), (2, ids[:1])][: 2 - turn] if others else []
            found.append(driver.step([(0, tokens), *more])[: len(tokens)])
        return torch.cat(found)

    whole = logits((0, ids))
    assert torch.equal(logits((0, ids[:4]), (0, ids[4:18]), (0, ids[18:]), others=True), whole)
