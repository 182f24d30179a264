"""A GGUF file is served as the folder that it was made of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from safetensors.torch import save_file

from gguf_files import from_folder
from local_engine import LocalEngine, request
from octavo import LLM, SamplingParams
from octavo.core import gguf
from octavo.core.assets import bundled
from octavo.core.config import BUNDLED_MODEL
from octavo.models.facts import read_facts
from octavo.models.gguf_tensors import GgufTensors
from octavo.tools import cli
from octavo.tools.doctor import check_model

PROMPTS = ["Once upon a time", "The weather today", "你好"]
GREEDY = SamplingParams(max_tokens=16, temperature=0.0)


def answers(model: Path, **options: object) -> list[list[int]]:
    with LLM(
        str(model), threads=1, kv_cache_memory_bytes=1 << 24, max_model_len=256, **options
    ) as llm:
        chat = llm.chat([{"role": "user", "content": "Hello"}], GREEDY)
        outputs = [*llm.generate(PROMPTS, GREEDY), *chat]
        return [list(output.outputs[0].token_ids) for output in outputs]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("gguf")
    source = bundled()[BUNDLED_MODEL]
    return {
        "same": from_folder(source, folder / "same.gguf", Kind.BF16),
        "q8": from_folder(source, folder / "q8.gguf", Kind.Q8_0),
    }


def test_the_same_tokens_as_from_the_folder(files: dict[str, Path]) -> None:
    assert answers(files["same"]) == answers(bundled()[BUNDLED_MODEL])


def test_an_engine_reads_the_header_once(
    files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server reads it, too, for its tokenizer, in another process and at the same time."""
    read: list[str] = []
    parse = gguf.parse

    def count(data: Any, where: str) -> gguf.Header:
        read.append(where)
        return parse(data, where)

    monkeypatch.setattr(gguf, "parse", count)
    engine = LocalEngine(
        files["q8"], load_format="auto", max_model_len=256, kv_cache_memory_bytes=1 << 22
    )
    assert read == [str(files["q8"])]
    [token, *_] = engine.run([request("a", [5, 6, 7], max_tokens=4)])["a"]
    assert token >= 0
    [part] = read_facts(files["q8"]).parts
    longest = max(len(value) for value in part.metadata.values() if isinstance(value, tuple | str))
    assert longest < 4096, "no vocabulary is kept"


def test_a_quantized_file_is_what_its_values_say(files: dict[str, Path], tmp_path: Path) -> None:
    """Against a folder with the values written out; once more with weights quantized again at load."""
    source = bundled()[BUNDLED_MODEL]
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((source / name).read_bytes())
    with GgufTensors(files["q8"]) as opened:
        tensors = {name: opened.get_tensor(name).clone() for name in list(opened.keys())}
    assert {tensor.dtype for tensor in tensors.values() if tensor.ndim > 1} == {torch.bfloat16}
    save_file(tensors, tmp_path / "model.safetensors")
    assert answers(files["q8"]) == answers(tmp_path)
    assert answers(files["q8"], quantization="int8") == answers(tmp_path, quantization="int8")


def test_verbs_take_the_file(
    files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = files["q8"]
    assert cli.main(["plan", str(path), "--device", "cpu"]) == 0
    assert "q8.gguf" in capsys.readouterr().out
    assert check_model(str(path)).status == "ok"
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(path.read_bytes()[:-5000])
    assert check_model(str(cut)).status == "fail"
    for words in (["plan", str(cut)], ["bench", "throughput", "--model", str(cut)]):
        assert cli.main(words) == 2, words
        said = capsys.readouterr().err
        assert "E-MODEL-07" in said
        assert "would end at byte" in said
    assert cli.main(["bench", "throughput", "--model", str(path), "--compare-transformers"]) == 2
    assert "not " + str(path) in capsys.readouterr().err
