"""Attention by libraries that may be installed: called as documented, refused with a reason, chosen by the clock."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
import torch

from attention_cases import TOLERANCE, make, make_case, make_tensors
from attention_libraries import (
    BatchDecodeWithPagedKVCacheWrapper,
    install,
    install_all,
    pretend_device,
)
from octavo.core.batch import ForwardBatch, GroupBatch
from octavo.core.registry import Registry
from octavo.kernels.attention import race
from octavo.kernels.attention.flash_attn import FlashAttention
from octavo.kernels.attention.flashinfer import FlashInferAttention
from octavo.kernels.attention.reference import ReferenceAttention
from octavo.kernels.attention.registry import ATTENTION
from octavo.kernels.dispatch import Dispatcher, Op

BACKENDS: dict[str, Any] = {"flash_attn": FlashAttention, "flashinfer": FlashInferAttention}
BATCHES = {
    "one": ((1, 1),),
    "decodes": ((1, 5), (1, 64), (1, 31), (1, 16), (1, 90)),
    "prompts": ((21, 21), (16, 16)),
    "mixed": ((1, 70), (9, 9), (1, 18), (0, 12), (20, 61), (1, 17)),
}


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize(("window", "soft_cap"), [(None, None), (1, None), (7, 5.0), (40, None)])
@pytest.mark.parametrize("heads", [(4, 4, 64), (8, 2, 64), (6, 1, 128)], ids=str)
@torch.inference_mode()
def test_called_as_documented_it_is_the_reference(
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    window: int | None,
    soft_cap: float | None,
    heads: tuple[int, int, int],
) -> None:
    install_all(monkeypatch)
    case, spec = make_case(heads, "bfloat16", window, soft_cap)
    backend, reference = BACKENDS[name](case), ReferenceAttention(case)
    for slices in BATCHES.values():
        batch, num_blocks = make(slices, spec)
        q_THD, cache = make_tensors(case, batch, num_blocks)
        wanted_THD = reference.run(q_THD, cache, reference.plan(batch, 0, spec)).float()
        out_THD = backend.run(q_THD, cache, backend.plan(batch, 0, spec)).float()
        off_THD = (out_THD - wanted_THD).abs() / wanted_THD.abs().clamp(min=1)
        assert off_THD.max() <= TOLERANCE["bfloat16"]


@pytest.mark.parametrize("name", BACKENDS)
@torch.inference_mode()
def test_a_kept_plan_is_filled_for_each_step(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """In buffers that stay where they are, as captured steps need; two buckets of a group share their tables."""
    install_all(monkeypatch)
    case, spec = make_case((8, 2, 64), "bfloat16", None, None)
    backend, reference = BACKENDS[name](case), ReferenceAttention(case)
    tables_RB = torch.zeros(4, 8, dtype=torch.int32)
    plans = {
        size: backend.reserve(tables_RB[:size], max_len=128, max_tokens=200) for size in (2, 4)
    }
    for lens in ((5, 64), (128, 17), (1, 1, 90, 33), (16, 128, 2, 3), (33, 34)):
        batch, num_blocks = make(tuple((1, length) for length in lens), spec)
        q_THD, cache = make_tensors(case, batch, num_blocks)
        wanted_THD = reference.run(q_THD, cache, reference.plan(batch, 0, spec)).float()
        own_SB = batch.groups[0].block_tables_SB
        tables_RB[: len(lens)].zero_()
        tables_RB[: len(lens), : own_SB.shape[1]] = own_SB
        kept = replace(
            batch,
            groups=(
                GroupBatch(slots_T=batch.groups[0].slots_T, block_tables_SB=tables_RB[: len(lens)]),
            ),
        )
        plan = plans[len(lens)]
        backend.fill(plan, kept, 0)
        out_THD = backend.run(q_THD, cache, plan).float()
        torch.testing.assert_close(out_THD, wanted_THD, atol=2e-2, rtol=2e-2)
    with pytest.raises(ValueError, match="a step of 2"):
        backend.fill(plans[4], kept, 0)
    if name == "flashinfer":
        captured = [w for w in BatchDecodeWithPagedKVCacheWrapper.made if w.is_captured]
        assert len(captured) == 2 and all(w.use_tensor_cores for w in captured)


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"device": "cpu"}, "runs on cuda"),
        ({"dtype": "float32", "cache_dtype": "float32"}, "bfloat16 or float16"),
        ({"cache_dtype": "int8"}, "int8"),
        ({"cache_dtype": "float8_e4m3fn"}, "float8_e4m3fn"),
        ({"head_dim": 80}, "80"),
        ({"ahead": 3}, "looks ahead"),
        ({"is_invariant": True}, "depend on it"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_imported(
    monkeypatch: pytest.MonkeyPatch, name: str, changes: dict, says: str
) -> None:
    monkeypatch.setitem(sys.modules, "flashinfer", None)
    monkeypatch.setitem(sys.modules, "flash_attn_interface", None)
    case, _ = make_case((8, 2, 64), "bfloat16", None, None)
    reason = BACKENDS[name].refuses(replace(case, **{"device": "cuda"} | changes))
    assert reason is not None and says in reason


def cuda_case() -> Any:
    case, _ = make_case((8, 2, 64), "bfloat16", 32, 5.0)
    return replace(case, device="cuda")


def test_what_is_missing_or_of_another_kind_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    case = cuda_case()
    assert "not installed" in str(FlashAttention.refuses(case))
    assert "not installed" in str(FlashInferAttention.refuses(case))
    install(monkeypatch, "flash_attn")
    assert "multiples of 256" in str(FlashAttention.refuses(case))
    install_all(monkeypatch)
    assert "no CUDA device" in str(FlashAttention.refuses(case))
    pretend_device(monkeypatch, (8, 0))
    assert "9.0" in str(FlashAttention.refuses(case))
    assert FlashInferAttention.refuses(case) is None
    pretend_device(monkeypatch, (9, 0))
    assert FlashAttention.refuses(case) is None
    pretend_device(monkeypatch, (10, 0))
    assert "9.0 to 9.0; this device has 10.0" in str(FlashAttention.refuses(case))
    pretend_device(monkeypatch, (7, 5))
    assert "8.0" in str(FlashInferAttention.refuses(case))


def test_a_build_that_cannot_be_loaded_is_a_reason(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    (tmp_path / "flashinfer.py").write_text("raise OSError('libcudart.so.13 is missing')")
    monkeypatch.syspath_prepend(tmp_path)
    pretend_device(monkeypatch, (9, 0))
    assert "libcudart.so.13 is missing" in str(FlashInferAttention.refuses(cuda_case()))


def test_nothing_is_imported_where_nothing_is_asked_for() -> None:
    code = """
import sys
from octavo.kernels.attention.registry import ATTENTION
for name in ATTENTION.candidates:
    ATTENTION.candidates.load(name)
assert not {"flashinfer", "flash_attn", "flash_attn_interface"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


# -- who is chosen -----------------------------------------------------------------------------------------------------


class Timed:
    """A backend that takes the time it is said to; `wrong` is added to what it computes."""

    seconds: float
    wrong = 0.0
    error = ""

    def __init__(self, case: Any) -> None:
        self._inner = ReferenceAttention(case)

    @staticmethod
    def refuses(case: Any, /) -> str | None:
        return None

    def plan(self, batch: ForwardBatch, group: int, spec: Any, /) -> Any:
        return self._inner.plan(batch, group, spec)

    def run(self, q_THD: torch.Tensor, cache: Any, plan: Any, /) -> torch.Tensor:
        if self.error:
            raise TypeError(self.error)
        Clock.now += self.seconds
        return self._inner.run(q_THD, cache, plan) + self.wrong


class Clock:
    now = 0.0


class Slow(Timed):
    seconds = 3.0


class Quick(Timed):
    seconds = 1.0


class Wrong(Timed):
    seconds = 0.1
    wrong = 0.5


class Broken(Timed):
    seconds = 0.1
    error = "plan() got an unexpected keyword argument"


class Absent(Quick):
    @staticmethod
    def refuses(case: Any, /) -> str | None:
        return "is not installed"


def contest(*names: str) -> Op[Any, Any]:
    rows = {name.lower(): f"{__name__}:{name}" for name in names}
    rivals = tuple(name for name in rows if name != "timed")
    registry: Registry[Any] = Registry("attention backend", rows)
    return Op("attention", registry, rivals=rivals, race="octavo.kernels.attention.race:race")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, __name__, sys.modules[__name__])
    monkeypatch.setattr(race.time, "perf_counter", lambda: Clock.now)


def test_the_fastest_that_is_right_is_chosen_and_the_others_are_told_why(clock: None) -> None:
    case, _ = make_case((4, 2, 16), "bfloat16", None, None)
    dispatch = Dispatcher()
    made = dispatch.choose(contest("Slow", "Absent", "Wrong", "Broken", "Quick"), case)
    assert isinstance(made, Quick) and dispatch.choose(contest("Slow", "Quick"), case) is made
    [choice] = dispatch.choices
    reasons = dict(choice.refusals)
    assert choice.winner == "quick" and set(reasons) == {"slow", "absent", "wrong", "broken"}
    assert reasons["slow"] == "is slower here, 6000000 us where quick takes 2000000"
    assert "off by 0.5" in reasons["wrong"] and "unexpected keyword" in reasons["broken"]
    # By name only where somebody says so.
    forced = Dispatcher({"attention": "slow"})
    assert isinstance(forced.choose(contest("Slow", "Quick"), case), Slow)


def test_one_that_stands_alone_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(race, "race", None)
    case, _ = make_case((4, 2, 16), "bfloat16", None, None)
    assert isinstance(Dispatcher().choose(contest("Absent", "Quick"), case), Quick)


def test_where_all_rivals_are_out_the_next_candidate_has_it(clock: None) -> None:
    case, _ = make_case((4, 2, 16), "bfloat16", None, None)
    op = contest("Wrong", "Broken", "Slow")
    op = Op("attention", op.candidates, rivals=("wrong", "broken"), race=op.race)
    dispatch = Dispatcher()
    assert isinstance(dispatch.choose(op, case), Slow)
    assert {name for name, _ in dispatch.choices[0].refusals} == {"wrong", "broken"}


def test_the_rivals_of_attention_are_candidates() -> None:
    assert set(ATTENTION.rivals) <= set(ATTENTION.candidates)
