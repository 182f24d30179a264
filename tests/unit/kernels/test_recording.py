"""What was recorded gives the same bits when it is replayed, or says why it cannot be."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch

from octavo.core.batch import ForwardBatch, GroupBatch
from octavo.kernels import cpu_rows, recording
from octavo.kernels.attention.base import AttentionCase
from octavo.kernels.attention.cpu import CpuAttention
from octavo.kernels.cpu.extension import missing
from octavo.kernels.dispatch import OpCase
from octavo.kernels.gemm.cpu import CpuLinear
from octavo.kernels.kv import KVTensors
from octavo.kernels.recording import Arena, Recording, before_replay, recompute

pytestmark = pytest.mark.skipif(missing() is not None, reason="needs the compiled extension")

ROWS, SIZE = 3, 32


@pytest.fixture(autouse=True)
def inference() -> Iterator[None]:
    with torch.inference_mode():
        yield


def batch(context: int = 1, blocks: int = 2) -> ForwardBatch:
    numbers = torch.zeros(ROWS, dtype=torch.int64)
    tables = torch.arange(ROWS * blocks, dtype=torch.int32).view(ROWS, blocks) + 1
    return ForwardBatch(
        token_ids_T=numbers,
        positions_T=numbers,
        query_starts=tuple(range(ROWS + 1)),
        context_lens=(context,) * ROWS,
        groups=(GroupBatch(slots_T=numbers, block_tables_SB=tables),),
        logits_rows_N=numbers,
    )


def written(
    compute: Callable[[], torch.Tensor], arena: Arena | None = None
) -> tuple[Recording, torch.Tensor]:
    made = Recording(arena or Arena())
    return made, made.write(compute)


class Layer:
    """Norm, product, activation, and angles that torch computes from the input."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(3)
        self.weight_OD = torch.randn(2 * SIZE, SIZE, generator=generator)
        self.norm_D = torch.rand(SIZE, generator=generator)
        self.kernel = CpuLinear(OpCase(device="cpu", dtype="float32", sizes=(2 * SIZE, SIZE)))
        self.packed = self.kernel.pack(self.weight_OD)

    def __call__(self, x_ND: torch.Tensor) -> torch.Tensor:
        (cos_ND,) = recompute(lambda x: (x.cos(),), x_ND)
        x_ND = cpu_rows.rms_norm(cos_ND, self.norm_D, 1e-6)
        x_ND = cpu_rows.silu_and_mul(self.kernel.run(x_ND, self.packed, None))
        return cpu_rows.silu_and_mul(self.kernel.run(x_ND.flatten(1), self.packed, None))


def test_a_replay_computes_what_the_inputs_hold_now() -> None:
    layer = Layer()
    x_ND = torch.randn(ROWS, SIZE)
    made, first = written(lambda: layer(x_ND))
    assert made.refusal is None
    assert torch.equal(first, layer(x_ND.clone()))
    for _ in range(3):
        x_ND.copy_(torch.randn(ROWS, SIZE))
        assert torch.equal(made.replay(batch()), layer(x_ND.clone()))


def test_recordings_share_memory_and_do_not_disturb_each_other() -> None:
    layer, arena = Layer(), Arena()
    inputs = [torch.randn(rows, SIZE) for rows in (1, 64, 2, 200)]
    made = [written(lambda x_ND=x_ND: layer(x_ND), arena)[0] for x_ND in inputs]
    largest = written(lambda: layer(inputs[-1]), alone := Arena())[0]
    assert largest.refusal is None
    for recorded, x_ND in [*zip(made, inputs, strict=True)] * 2:
        x_ND.copy_(torch.randn(x_ND.shape))
        assert torch.equal(recorded.replay(batch()), layer(x_ND.clone()))
    assert arena.num_bytes <= 2 * alone.num_bytes


def test_live_tensors_never_share_a_chunk() -> None:
    arena = Arena()
    arena.begin()
    generator = np.random.default_rng(5)
    alive: list[tuple[torch.Tensor, int]] = []
    for stamp in range(400):
        tensor = arena.empty((int(generator.integers(1, 5000)),), torch.int64)
        assert tensor.data_ptr() % 64 == 0
        alive.append((tensor.fill_(stamp).view(1, -1), stamp))  # a view keeps the chunk, too
        del tensor
        if len(alive) > 8:
            alive.pop(int(generator.integers(len(alive))))
        assert all(bool((view == value).all()) for view, value in alive)
    assert arena.num_bytes <= 1 << 20  # what is gone was used again


def test_what_torch_computes_is_refused_by_name() -> None:
    x_ND = torch.randn(ROWS, SIZE)
    made, result = written(lambda: x_ND + 1)
    assert torch.equal(result, x_ND + 1)
    assert made.refusal == "add is computed by torch"
    made, _ = written(lambda: x_ND.T.contiguous())
    assert made.refusal == "T is computed by torch"
    made, _ = written(lambda: x_ND.transpose(0, 1).contiguous())
    assert made.refusal == "contiguous is computed by torch"
    made, _ = written(lambda: x_ND.add_(1))
    assert made.refusal == "add_ is computed by torch"


def test_an_error_ends_the_writing() -> None:
    def fails() -> torch.Tensor:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        written(fails)
    layer, x_ND = Layer(), torch.randn(ROWS, SIZE)
    made, first = written(lambda: layer(x_ND))
    assert made.refusal is None and torch.equal(first, made.replay(batch()))


def test_attention_reads_the_new_tables() -> None:
    case = AttentionCase(
        device="cpu",
        dtype="float32",
        cache_dtype="float32",
        num_heads=2,
        num_kv_heads=1,
        head_dim=8,
        scale=1.0,
    )
    backend = CpuAttention(case)
    cache = KVTensors(torch.randn(8, 16, 1, 8), torch.randn(8, 16, 1, 8))
    q_THD = torch.randn(ROWS, 2, 8)
    spec = None

    def attend(step: ForwardBatch) -> torch.Tensor:
        return backend.run(q_THD, cache, backend.plan(step, 0, spec))  # type: ignore[arg-type]

    now = batch()
    made, _ = written(lambda: attend(now))
    assert made.refusal is None
    for context in (2, 17, 32):
        q_THD.copy_(torch.randn(ROWS, 2, 8))
        assert torch.equal(made.replay(batch(context)), attend(batch(context)))
    with pytest.raises(ValueError, match="block 9 is outside a cache of 8"):
        made.replay(batch(48, blocks=3))
    assert torch.equal(made.replay(batch(5)), attend(batch(5)))


def test_marks_do_nothing_outside_a_recording() -> None:
    calls: list[ForwardBatch] = []
    before_replay(calls.append)
    assert recompute(lambda x: (x * 2,), torch.ones(2))[0].tolist() == [2, 2]
    assert not calls


def test_refusal_names_what_cannot_be_recorded() -> None:
    assert recording.refusal("cpu", "float32") is None
    assert recording.refusal("cuda", "float32") == "runs on cpu and not on cuda"
    assert recording.refusal("cpu", "bfloat16") == "takes float32 and not bfloat16"
