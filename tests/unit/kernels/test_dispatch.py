from __future__ import annotations

import pytest

from octavo.core.errors import ConfigError
from octavo.core.registry import Registry
from octavo.kernels.dispatch import Dispatcher, Function, Op, OpCase, check_forced
from octavo.kernels.registry import OPS

CASE = OpCase(device="cpu", dtype="float32", sizes=(4,))


class Picky:
    """A candidate that takes even sizes."""

    num_asked = 0

    def __init__(self, case: OpCase) -> None:
        self.case = case

    @classmethod
    def refuses(cls, case: OpCase) -> str | None:
        cls.num_asked += 1
        return "takes even sizes" if case.sizes[0] % 2 else None


GPU_ONLY = Function(len, devices=("cuda",))
ANYWHERE = Function(len)

HERE = __name__


def make_op(**rows: str) -> Op[OpCase, object]:
    return Op("thing", Registry("thing kernel", {k: f"{HERE}:{v}" for k, v in rows.items()}))


def test_first_that_takes_it_wins_and_is_remembered() -> None:
    op = make_op(gpu="GPU_ONLY", picky="Picky", plain="ANYWHERE")
    dispatch = Dispatcher()
    made = dispatch.choose(op, CASE)
    asked = Picky.num_asked
    assert isinstance(made, Picky)
    assert dispatch.choose(op, OpCase(device="cpu", dtype="float32", sizes=(4,))) is made
    assert Picky.num_asked == asked
    (choice,) = dispatch.choices
    assert choice.winner == "picky"
    assert choice.refusals == (("gpu", "runs on cuda and not on cpu"),)


def test_another_case_is_asked_anew() -> None:
    op = make_op(picky="Picky", plain="ANYWHERE")
    dispatch = Dispatcher()
    dispatch.choose(op, CASE)
    assert dispatch.choose(op, OpCase(device="cpu", dtype="float32", sizes=(5,))) is len
    assert [choice.winner for choice in dispatch.choices] == ["picky", "plain"]


def test_all_refusals_in_one_report() -> None:
    op = make_op(gpu="GPU_ONLY", picky="Picky")
    with pytest.raises(ConfigError) as caught:
        Dispatcher().choose(op, OpCase(device="cpu", dtype="float32", sizes=(5,)))
    assert "gpu: runs on cuda and not on cpu; picky: takes even sizes" in str(caught.value)


def test_forced_candidate_is_the_only_one_asked() -> None:
    op = make_op(picky="Picky", plain="ANYWHERE", gpu="GPU_ONLY")
    assert Dispatcher({"thing": "plain"}).choose(op, CASE) is len
    with pytest.raises(ConfigError, match="gpu: runs on cuda") as caught:
        Dispatcher({"thing": "gpu"}).choose(op, CASE)
    assert caught.value.fix
    with pytest.raises(ConfigError, match="Did you mean 'plain'"):
        Dispatcher({"thing": "plan"}).choose(op, CASE)


def test_forced_op_must_exist() -> None:
    check_forced({"attention": "reference"}, OPS)
    with pytest.raises(ConfigError, match="Did you mean 'attention'"):
        check_forced({"atention": "reference"}, OPS)


def test_every_row_of_every_op_loads() -> None:
    for op in OPS:
        for name in op.candidates:
            assert callable(op.candidates.load(name).refuses)
