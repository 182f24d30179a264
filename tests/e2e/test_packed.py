"""Tiny models saved as AWQ, GPTQ and packed checkpoints, through the engine, against transformers on the numbers they stand for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers

from local_engine import LocalEngine, request
from octavo.core.errors import ConfigError
from octavo.tools import cli
from packers import Kind, checkpoint

PROMPTS = ([5, 17, 60, 3, 3, 21, 8], [1, 2], [44] * 5 + [9, 30])
MARGIN = 0.5
"""Between the two largest logits, of some 15."""
CASES = {
    "awq": (Kind("awq", 32, True), True),
    "gptq": (Kind("gptq", 64, True), True),
    "gptq-ordered": (Kind("gptq", 32, False, is_ordered=True), False),
    "compressed-tensors": (Kind("packed", 64, False), False),
}


@pytest.mark.parametrize("name", CASES)
def test_the_tokens_of_the_reference(tmp_path: Path, name: str) -> None:
    """Greedy. Rows are rounded to int8 here and not there: tokens are compared up to the first choice that is close."""
    kind, is_llama = CASES[name]
    stored, plain = checkpoint(tmp_path, kind, is_llama=is_llama)
    oracle = transformers.AutoModelForCausalLM.from_pretrained(plain, dtype=torch.float32).eval()
    engine = LocalEngine(
        stored, load_format="safetensors", quantization=kind.config()["quant_method"]
    )
    assert "int4" in str(engine.ready)
    got = engine.run(
        request(str(i), prompt, max_tokens=6, ignore_eos=True) for i, prompt in enumerate(PROMPTS)
    )
    num_compared = 0
    for i, prompt in enumerate(PROMPTS):
        with torch.no_grad():
            out = oracle.generate(
                torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
                max_new_tokens=6, do_sample=False, eos_token_id=None, pad_token_id=0,
                output_scores=True, return_dict_in_generate=True,
            )  # fmt: skip
        first, second = torch.cat(out.scores).topk(2).values.unbind(1)
        clear = int((first - second >= MARGIN).int().cumprod(0).sum())
        assert got[str(i)][:clear] == out.sequences[0, len(prompt) :].tolist()[:clear]
        num_compared += clear
    assert num_compared >= 6


def test_other_names_are_refused(tmp_path: Path) -> None:
    stored, plain = checkpoint(tmp_path, Kind("awq", 32, True))
    for folder, asked, words in (
        (stored, "gptq", "config.json says, and that says 'awq'"),
        (stored, "int8", "is int4 .awq, scales per 32 with zero points. already"),
        (plain, "awq", "has no quantization_config"),
    ):
        with pytest.raises(ConfigError, match=words):
            LocalEngine(folder, load_format="safetensors", quantization=asked)
    LocalEngine(stored, load_format="safetensors", quantization="int4_g32_zp")


def test_a_plan_says_as_what_it_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stored, _ = checkpoint(tmp_path, Kind("awq", 32, True))
    here = ["--device", "cpu", "--read-gb-s", "10", "--tflops", "0.1"]
    for device in (["--device", "h100"], here):
        assert cli.main(["plan", str(stored), *device]) == 0
        assert "int4 (awq, scales per 32 with zero points)" in capsys.readouterr().out
