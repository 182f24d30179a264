"""S14, files that native code reads: whatever a model folder's files hold, the end is weights or a `ModelError`."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from hostile.fuzz_headers import (
    BYTE_LEVEL,
    GGUF_KINDS,
    KEYS,
    NUMBERS,
    TENSORS,
    gguf_file,
    read_gguf,
    run,
    safetensors_mutants,
)
from octavo.core.assets import bundled
from octavo.core.config import BUNDLED_MODEL
from octavo.core.errors import OctavoError
from octavo.models.facts import read_facts
from octavo.text.tokenizer import Tokenizer
from octavo.tools.doctor import check_model

ROUNDS = 1500


def test_weights_are_whole_or_refused(tmp_path: Path) -> None:
    """With every value checked: what is read lies within the file."""
    found = run("safetensors", ROUNDS, 14, tmp_path)
    assert 0 < found["read"] < ROUNDS / 2, "most of them are broken"


def test_gguf_files_are_whole_or_refused(tmp_path: Path) -> None:
    """Header, facts, tokenizer and weights; the same with a million is `python -m hostile.fuzz_headers`."""
    found = run("gguf", 2 * ROUNDS, 14, tmp_path)
    assert 100 < found["read"] < ROUNDS, "most of them are broken, and some are not"
    for name, mutant in GGUF_KINDS.items():
        rng = random.Random(15)
        assert not all(read_gguf(mutant(rng), tmp_path) for _ in range(40)), name


def test_the_gguf_file_that_is_mutated_is_whole(tmp_path: Path) -> None:
    for changes in ({}, BYTE_LEVEL):
        keys = [
            (k, v) for k, v in (dict(KEYS) | changes).items() if not changes or "scores" not in k
        ]
        path = tmp_path / "model.gguf"
        tensors = [row for row in TENSORS if row[0] != "rope_freqs.weight"]
        path.write_bytes(gguf_file(keys, tensors).raw)
        assert read_facts(path).num_layers == 1
        assert Tokenizer.load(path).encode("ab")[0] == 1


def test_the_doctor_says_what_is_wrong_and_never_falls_over(tmp_path: Path) -> None:
    config = {"architectures": ["LlamaForCausalLM"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "tokenizer.json").write_text("{}")
    path = tmp_path / "model.safetensors"
    for raw in safetensors_mutants(random.Random(15), ROUNDS // 3):
        path.write_bytes(raw)
        assert check_model(str(tmp_path)).status in ("ok", "fail")


def changed(rng: random.Random, value: Any, depth: int = 0) -> Any:
    """The value with something in it that is not what it was."""
    if isinstance(value, dict) and value and rng.random() < 0.8:
        key = rng.choice(list(value))
        return {**value, key: changed(rng, value[key], depth + 1)}
    if isinstance(value, list) and value and rng.random() < 0.8:
        index = rng.randrange(len(value))
        return [*value[:index], changed(rng, value[index], depth + 1), *value[index + 1 :]]
    return rng.choice(
        (*NUMBERS, "x", "\x00", "LlamaForCausalLM", ["x"], {"x": 1}, "a" * 9999, float("1e308"))
    )


def bundled_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    source = bundled()[BUNDLED_MODEL]
    folder.mkdir()
    for file in source.iterdir():
        if file.suffix in (".json", ".jinja"):
            shutil.copy(file, folder)
    return folder


def test_a_config_is_facts_or_refused(tmp_path: Path) -> None:
    folder = bundled_folder(tmp_path)
    path = folder / "config.json"
    whole = json.loads(path.read_text())
    rng = random.Random(16)
    for _ in range(ROUNDS // 3):
        path.write_text(json.dumps(changed(rng, whole)))
        try:
            read_facts(folder)
        except OctavoError:
            continue


@pytest.mark.parametrize(
    "name",
    [
        "tokenizer_config.json",
        "special_tokens_map.json",
        "generation_config.json",
        "tokenizer.json",
    ],
)
def test_a_tokenizer_is_read_or_refused(tmp_path: Path, name: str) -> None:
    folder = bundled_folder(tmp_path)
    path = folder / name
    whole = (
        json.loads(path.read_text()) if path.exists() else {"eos_token": "a", "chat_template": "b"}
    )
    rng = random.Random(17)
    rounds = 25 if name == "tokenizer.json" else 80
    for number in range(rounds):
        if number % 5 == 4:
            path.write_bytes(rng.randbytes(200) if number % 2 else b"[" * 100_000)
        else:
            path.write_text(json.dumps(changed(rng, whole)))
        try:
            Tokenizer.load(folder)
        except OctavoError:
            continue


@pytest.mark.parametrize("prefix", ["x", "é", "aaaaa", "a" * 9999])
def test_a_prefix_that_merges_do_not_have_ends_no_process(tmp_path: Path, prefix: str) -> None:
    """The library cuts it off each merge unlooked-at, and aborts where that is no text any more."""
    folder = bundled_folder(tmp_path)
    path = folder / "tokenizer.json"
    whole = json.loads(path.read_text())
    whole["model"]["continuing_subword_prefix"] = prefix
    path.write_text(json.dumps(whole))
    with pytest.raises(OctavoError, match="does not continue with"):
        Tokenizer.load(folder)
