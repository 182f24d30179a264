"""A float16 checkpoint on a CPU is computed as the float32 checkpoint of the same values, and says so once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from octavo import LLM, SamplingParams
from octavo.core.assets import bundled
from octavo.core.config import BUNDLED_MODEL
from octavo.kernels.cpu import native
from octavo.models import files

PROMPTS = ["def add(a, b):", "Once upon a time"]
GREEDY = SamplingParams(max_tokens=12, temperature=0.0)


def checkpoint(folder: Path, dtype: torch.dtype) -> Path:
    """The bundled model's numbers as float16 has them, kept in `dtype`."""
    source = bundled()[BUNDLED_MODEL]
    folder.mkdir()
    config = json.loads((source / "config.json").read_text())
    name = str(dtype).removeprefix("torch.")
    (folder / "config.json").write_text(json.dumps(config | {"torch_dtype": name, "dtype": name}))
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (folder / file).write_bytes((source / file).read_bytes())
    tensors = load_file(source / files.SINGLE_NAME)
    save_file({n: t.half().to(dtype) for n, t in tensors.items()}, folder / files.SINGLE_NAME)
    return folder


@pytest.mark.skipif(
    native.missing() is not None or native.isa() == "scalar", reason="torch computes here"
)
def test_float16_has_the_tokens_of_its_values(tmp_path: Path) -> None:
    answers = {}
    for dtype in (torch.float16, torch.float32):
        folder = checkpoint(tmp_path / str(dtype), dtype)
        with LLM(str(folder), threads=1, kv_cache_memory_bytes=1 << 22, max_model_len=64) as llm:
            outputs = llm.generate(PROMPTS, GREEDY, use_tqdm=False)
            answers[dtype] = [list(output.outputs[0].token_ids) for output in outputs]
            said = [why for name, _, why in llm.ready.decisions if name == "dtype"]
            planned = dict(llm.ready.memory)["weights"]
            values = sum(t.numel() for t in load_file(folder / files.SINGLE_NAME).values())
        assert planned >= 4 * 0.95 * values
        if dtype is torch.float16:
            [reason] = said
            assert "float16 weights are kept in float32" in reason
    assert answers[torch.float16] == answers[torch.float32]
