"""S14, files that native code reads: whatever a model folder's files hold, the end is weights or a `ModelError`."""

from __future__ import annotations

import json
import random
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save

from octavo.core.assets import bundled
from octavo.core.config import BUNDLED_MODEL
from octavo.core.errors import OctavoError
from octavo.layers.build import Weight
from octavo.models.facts import read_facts
from octavo.models.weights import load_weights
from octavo.text.tokenizer import Tokenizer
from octavo.tools.doctor import check_model

ROUNDS = 1500
NUMBERS: tuple[Any, ...] = (
    0, 1, -1, 7, 8, 24, 1 << 31, (1 << 32) - 1, 1 << 63, (1 << 64) - 1, -(1 << 63), 10**30, 1.5, "8", None, [], {}, True,
)  # fmt: skip
SHAPES = {"a": (2, 4), "b": (3, 4), "c": (4,)}


def good() -> bytes:
    return bytes(save({name: torch.zeros(shape) for name, shape in SHAPES.items()}))


def parts(file: bytes) -> tuple[dict[str, Any], bytes]:
    (length,) = struct.unpack("<Q", file[:8])
    return json.loads(file[8 : 8 + length]), file[8 + length :]


def joined(header: Any, data: bytes, length: int | None = None) -> bytes:
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def mutants(rng: random.Random, rounds: int) -> Iterator[bytes]:
    """Files that are nearly whole: a number, a name, a length or some bytes are not what they were."""
    whole = good()
    for number in range(rounds):
        header, data = parts(whole)
        name = rng.choice(list(SHAPES))
        kind = number % 8
        if kind == 0:
            header[name]["data_offsets"][rng.randrange(2)] = rng.choice(NUMBERS)
        elif kind == 1:
            header[name]["shape"] = [rng.choice(NUMBERS) for _ in range(rng.randrange(4))]
        elif kind == 2:
            header[name][rng.choice(("dtype", "shape", "data_offsets"))] = rng.choice(
                ("F64", "I8", "BOOL", "F4", "F8_E4M3", "", "F32" * 99, *NUMBERS)
            )
        elif kind == 3:
            other = rng.choice(list(SHAPES))
            header[name]["data_offsets"] = header[other]["data_offsets"]
        elif kind == 4:
            raw = bytearray(whole)
            for _ in range(rng.randrange(1, 6)):
                raw[rng.randrange(min(len(raw), 300))] = rng.randrange(256)
            yield bytes(raw)
            continue
        elif kind == 5:
            yield whole[: rng.randrange(len(whole))]
            continue
        elif kind == 6:
            length = rng.choice([n for n in NUMBERS if isinstance(n, int) and 0 <= n < 1 << 64])
            yield joined(header, data, int(length))
            continue
        else:
            header = rng.choice(
                (
                    [],
                    None,
                    {},
                    {"__metadata__": 5},
                    {name: None},
                    {name: []},
                    {**header, "x" * 9999: header[name]},
                )
            )
        yield joined(header, data[: rng.randrange(len(data) + 1)] if rng.random() < 0.3 else data)


def test_weights_are_whole_or_refused(tmp_path: Path) -> None:
    """With every value checked: what is read lies within the file."""
    rng = random.Random(14)
    path = tmp_path / "model.safetensors"
    num_loaded = 0
    for raw in mutants(rng, ROUNDS):
        path.write_bytes(raw)
        weights = {
            name: Weight(torch.full(shape, torch.nan), "normal") for name, shape in SHAPES.items()
        }
        try:
            load_weights(tmp_path, weights, {})
        except OctavoError:
            continue
        num_loaded += 1
        for name, shape in SHAPES.items():
            assert weights[name].tensor.shape == shape
            weights[name].tensor.clone()  # every byte of it is touched
    assert num_loaded < ROUNDS / 2, "most of them are broken"


def test_the_doctor_says_what_is_wrong_and_never_falls_over(tmp_path: Path) -> None:
    config = {"architectures": ["LlamaForCausalLM"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "tokenizer.json").write_text("{}")
    path = tmp_path / "model.safetensors"
    for raw in mutants(random.Random(15), ROUNDS // 3):
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
