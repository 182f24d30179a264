"""`LLM` as a script uses it, on the bundled model."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from octavo import LLM, SamplingParams
from octavo.core.errors import (
    ConfigError,
    ContextLengthError,
    EngineDeadError,
    ModelError,
    RequestError,
)
from octavo.meter.stepfile import read_steplog
from octavo.meter.steplog import StepRecord

GREEDY = SamplingParams(temperature=0.0, max_tokens=8)


@pytest.fixture(scope="module")
def step_log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("llm")


@pytest.fixture(scope="module")
def llm(step_log: Path) -> Iterator[LLM]:
    options = {
        "dtype": "float32",  # in which an answer is the same bits alone and among others
        "threads": 1,
        "max_num_seqs": 8,
        "max_num_queued_reqs": 20,
        "kv_cache_memory_bytes": 1 << 25,
    }
    with LLM("octavo-mini", step_log=str(step_log), **options) as started:
        yield started


def test_answers_come_in_the_order_of_the_prompts(llm: LLM) -> None:
    prompts = ["import os\n", "def add(a, b):", "class Point:"]
    together = llm.generate(prompts, GREEDY, use_tqdm=False)
    assert [output.prompt for output in together] == prompts
    for prompt, output in zip(prompts, together, strict=True):
        [alone] = llm.generate(prompt, GREEDY, use_tqdm=False)
        assert alone.outputs[0].token_ids == output.outputs[0].token_ids
        assert output.outputs[0].text == llm.tokenizer.decode(output.outputs[0].token_ids)


def test_token_ids_are_a_prompt_and_each_prompt_may_have_its_params(llm: LLM) -> None:
    ids = llm.tokenizer.encode("for i in range(")
    params = [GREEDY, SamplingParams(max_tokens=5, n=2, seed=3, logprobs=1, ignore_eos=True)]
    first, second = llm.generate([ids, ids], params, use_tqdm=False)
    assert first.prompt is None and first.prompt_token_ids == ids
    assert [len(choice.token_ids) for choice in second.outputs] == [5, 5]
    assert all(len(choice.logprobs or []) == 5 for choice in second.outputs)
    assert second.outputs[0].finish_reason == "length"


def steps_of(llm: LLM, folder: Path) -> list[StepRecord]:
    """All steps so far; the engine writes what is left before it sleeps."""
    until = time.monotonic() + 20
    while time.monotonic() < until:
        found = read_steplog(folder)
        if found and found[-1].step == llm._client.stats.num_steps:
            return found
    raise AssertionError("the step log is behind")


def test_a_batch_starts_as_one(llm: LLM, step_log: Path) -> None:
    llm.generate([[300 + i, 5, 6] for i in range(6)], GREEDY, use_tqdm=False)
    llm.reset_prefix_cache()
    llm.generate([[400 + i] * 40 for i in range(6)], GREEDY, use_tqdm=False)
    steps = steps_of(llm, step_log)
    starting = [step.num_tokens for step in steps if len(step.started) == 6]
    assert starting[-2:] == [18, 240], "all prompts of a batch belong to one step"


def test_chat_goes_through_the_template(llm: LLM) -> None:
    [output] = llm.chat([{"role": "user", "content": "Hello"}], GREEDY, use_tqdm=False)
    assert "Hello" in llm.tokenizer.decode(output.prompt_token_ids)
    assert len(output.prompt_token_ids) > len(llm.tokenizer.encode("Hello"))
    many = [[{"role": "user", "content": name}] for name in ("a", "b")]
    assert len(llm.chat(many, GREEDY, use_tqdm=False)) == 2


def test_a_bad_prompt_is_refused_before_any_runs(llm: LLM, step_log: Path) -> None:
    before = len(steps_of(llm, step_log))
    with pytest.raises(ContextLengthError):
        llm.generate(["fine", [5] * 5000], GREEDY, use_tqdm=False)
    with pytest.raises(RequestError, match="2 sampling params for 1 prompt"):
        llm.generate("fine", [GREEDY, GREEDY], use_tqdm=False)
    assert len(steps_of(llm, step_log)) == before


def test_choices_of_many_prompts_do_not_overflow_the_queue(llm: LLM) -> None:
    params = SamplingParams(n=5, max_tokens=2, ignore_eos=True)
    outputs = llm.generate(["x"] * 6, params, use_tqdm=False)
    assert [len(choice.token_ids) for one in outputs for choice in one.outputs] == [2] * 30


def test_ctrl_c_ends_the_work_in_the_engine_s_thread(llm: LLM) -> None:
    cancelled = threading.Event()

    async def work() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    with pytest.raises(KeyboardInterrupt):
        llm._call(work())
    assert cancelled.wait(10)
    assert llm.generate("x", GREEDY, use_tqdm=False)[0].outputs[0].finish_reason


def test_progress_is_drawn_on_a_terminal(
    llm: LLM, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    llm.generate("x", GREEDY)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    llm.generate("x", GREEDY)
    shown = capsys.readouterr().err
    assert "1/1 prompts" in shown and "tok/s" in shown and shown.endswith("\n")


@pytest.mark.parametrize(
    ("options", "cause"),
    [
        ({"max_num_seq": 4}, "did you mean 'max_num_seqs'"),
        ({"max_num_seqs": "many"}, "Expected `int`"),
        ({"dtype": "int3"}, "int3"),
    ],
)
def test_a_wrong_option_says_which(options: dict[str, object], cause: str) -> None:
    with pytest.raises(ConfigError) as caught:
        LLM(**options)
    assert cause.lower() in str(caught.value).lower()


def test_an_engine_that_cannot_start_raises_the_cause(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelError):
        LLM(str(tmp_path), load_format="dummy")


def test_a_closed_llm_says_so() -> None:
    llm = LLM("octavo-mini", threads=1, max_num_seqs=1, kv_cache_memory_bytes=1 << 24)
    llm.close()
    llm.close()
    llm.reset_prefix_cache()
    with pytest.raises(EngineDeadError, match="this LLM is closed"):
        llm.generate("x", GREEDY)
