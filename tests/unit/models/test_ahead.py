from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from local_engine import TINY
from octavo.core.errors import ModelError
from octavo.kernels.cpu import native
from octavo.kernels.cpu.gemm import Weight
from octavo.kernels.gemm.cpu import CpuLinear
from octavo.kernels.gemm.quantized import CpuQuantized
from octavo.models import files
from octavo.models.ahead import PackedAhead, pack_ahead
from octavo.models.facts import read_facts
from octavo.models.load import LoadedModel, load_model
from octavo.models.storage import choose_dtype, plan_storage
from octavo.models.weights import Filling

pytestmark = pytest.mark.skipif(
    native.missing() is not None or native.isa() == "scalar", reason="nothing is packed here"
)

WIDE = {"hidden_size": 64, "intermediate_size": 96, "head_dim": 16, "vocab_size": 321}
"""Parts of merged weights are whole panels, the vocabulary is not."""


def write(folder: Path, *, stored: torch.dtype = torch.bfloat16, **changes: Any) -> Path:
    """A checkpoint with random weights, of which every one differs."""
    folder.mkdir(parents=True, exist_ok=True)
    config = TINY | WIDE | {"torch_dtype": str(stored).removeprefix("torch.")} | changes
    (folder / "config.json").write_text(json.dumps(config))
    generator = torch.Generator().manual_seed(7)
    tensors = {
        name: torch.randn(shape, generator=generator).to(stored)
        for name, shape in shapes(config).items()
    }
    save_file(tensors, folder / files.SINGLE_NAME)
    return folder


def shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    size, inner, dim = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    queries, keys = config["num_attention_heads"] * dim, config["num_key_value_heads"] * dim
    found: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (config["vocab_size"], size),
        "model.norm.weight": (size,),
    }
    if not config["tie_word_embeddings"]:
        found["lm_head.weight"] = (config["vocab_size"], size)
    for i in range(config["num_hidden_layers"]):
        layer = {
            "input_layernorm": (size,),
            "post_attention_layernorm": (size,),
            "self_attn.q_norm": (dim,),
            "self_attn.k_norm": (dim,),
            "self_attn.q_proj": (queries, size),
            "self_attn.k_proj": (keys, size),
            "self_attn.v_proj": (keys, size),
            "self_attn.o_proj": (size, queries),
            "mlp.gate_proj": (inner, size),
            "mlp.up_proj": (inner, size),
            "mlp.down_proj": (size, inner),
        }
        found |= {f"model.layers.{i}.{name}.weight": shape for name, shape in layer.items()}
    return found


def begin(folder: Path, quantization: str = "", num_threads: int = 3) -> PackedAhead | None:
    facts = read_facts(folder)
    dtype = choose_dtype(facts, "auto", "cpu", quantization).dtype
    storage = plan_storage(facts, dtype, "cpu", quantization)
    return pack_ahead(folder, facts, storage, quantization, num_threads)


def load(folder: Path, ahead: PackedAhead | None = None, quantization: str = "") -> LoadedModel:
    return load_model(folder, filling=Filling(ahead=ahead), quantization=quantization)


def packed(loaded: LoadedModel) -> Iterator[tuple[str, Weight]]:
    model: Any = loaded.model
    for i, block in enumerate(model.blocks):
        for name, linear in (
            ("qkv", block.attention.qkv),
            ("out", block.attention.out),
            ("gate_up", block.mlp.gate_up),
            ("down", block.mlp.down),
        ):
            yield f"{i}.{name}", linear._packed
    yield "head", model.head._packed


def assert_same(loaded: LoadedModel, reference: LoadedModel) -> None:
    """Every weight, and what follows from them."""
    for (name, weight), (_, expected) in zip(packed(loaded), packed(reference), strict=True):
        assert weight.num_bytes == expected.num_bytes, name
        ids = torch.arange(expected.num_outputs)
        rows = [torch.empty(len(ids), expected.num_inputs) for _ in range(2)]
        weight.rows(ids, rows[0])
        expected.rows(ids, rows[1])
        assert torch.equal(rows[0], rows[1]), name
    ids = torch.tensor([0, 5, 320])
    models: tuple[Any, Any] = (loaded.model, reference.model)
    hidden = [model.embed(ids) for model in models]
    assert torch.equal(hidden[0], hidden[1])
    x = torch.randn(3, WIDE["hidden_size"])
    assert torch.equal(models[0].logits(x), models[1].logits(x))
    assert torch.equal(models[0].blocks[1].mlp(x), models[1].blocks[1].mlp(x))


@pytest.mark.parametrize("is_tied", [True, False])
@pytest.mark.parametrize("quantization", ["", "int8", "int4", "int4_g32"])
@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float32])
def test_what_is_packed_ahead_is_what_layers_pack(
    tmp_path: Path, stored: torch.dtype, quantization: str, is_tied: bool
) -> None:
    folder = write(tmp_path, stored=stored, tie_word_embeddings=is_tied)
    reference = load(folder, None, quantization)
    ahead = begin(folder, quantization)
    assert ahead is not None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CpuLinear, "pack", None)
        patch.setattr(CpuQuantized, "pack", None)
        loaded = load(folder, ahead, quantization)
    assert_same(loaded, reference)


def test_many_pieces_over_files_and_threads(tmp_path: Path) -> None:
    """Weights larger than what one thread packs in one go, each tensor in a file of its own."""
    folder = write(tmp_path, hidden_size=64, vocab_size=150_000, num_hidden_layers=1)
    tensors = load_file(folder / files.SINGLE_NAME)
    (folder / files.SINGLE_NAME).unlink()
    named = {name: f"{i}.safetensors" for i, name in enumerate(tensors)}
    for name, tensor in tensors.items():
        save_file({name: tensor}, folder / named[name])
    (folder / files.INDEX_NAME).write_text(json.dumps({"weight_map": named}))
    reference = load(folder)
    loaded = load(folder, begin(folder, num_threads=4))
    for (_, weight), (_, expected) in zip(packed(loaded), packed(reference), strict=True):
        ids = torch.arange(0, expected.num_outputs, 7)
        rows = [torch.empty(len(ids), expected.num_inputs) for _ in range(2)]
        weight.rows(ids, rows[0])
        expected.rows(ids, rows[1])
        assert torch.equal(rows[0], rows[1])


def test_float32_that_is_bfloat16_is_kept_narrow(tmp_path: Path) -> None:
    folder = write(tmp_path, stored=torch.float32)
    tensors = load_file(folder / files.SINGLE_NAME)
    save_file({n: t.bfloat16().float() for n, t in tensors.items()}, folder / files.SINGLE_NAME)
    assert_same(load(folder, begin(folder)), load(folder))


def test_what_is_not_whole_panels_is_left_to_layers(tmp_path: Path) -> None:
    folder = write(tmp_path, head_dim=12)
    ahead = begin(folder)
    assert ahead is not None
    assert "model.layers.0.self_attn.q_proj.weight" not in ahead.names
    assert "model.layers.0.self_attn.o_proj.weight" in ahead.names
    assert_same(load(folder, ahead), load(folder))


def test_other_dtypes_than_planned_are_left_to_layers(tmp_path: Path) -> None:
    folder = write(tmp_path)
    tensors = load_file(folder / files.SINGLE_NAME)
    name = "model.layers.0.mlp.down_proj.weight"
    tensors[name] = tensors[name].half()
    save_file(tensors, folder / files.SINGLE_NAME)
    ahead = begin(folder)
    assert ahead is not None and name not in ahead.names
    assert_same(load(folder, ahead), load(folder))


def test_a_checkpoint_that_was_replaced_is_packed_again(tmp_path: Path) -> None:
    folder = write(tmp_path)
    ahead = begin(folder)
    assert ahead is not None and ahead.is_current()
    tensors = load_file(folder / files.SINGLE_NAME)
    save_file({name: -tensor for name, tensor in tensors.items()}, folder / "new")
    os.replace(folder / "new", folder / files.SINGLE_NAME)
    assert not ahead.is_current()
    assert_same(load(folder, ahead), load(folder))


def test_what_nobody_read_is_never_packed_by_a_layer(tmp_path: Path) -> None:
    """Tensors that were promised are not copied to their places, so that what lies there must not be used."""
    ahead = begin(write(tmp_path))
    assert ahead is not None
    names = ("model.layers.0.mlp.down_proj.weight",)
    with pytest.raises(LookupError, match="int8"):
        ahead.take(names, "int8")
    assert ahead.take(names, "") is not None
    with pytest.raises(LookupError):
        ahead.take(names, "")
    assert ahead.take(("model.norm.weight",), "") is None


def test_a_forced_kernel_gets_the_weights_as_they_are(tmp_path: Path) -> None:
    folder = write(tmp_path)
    filling = Filling(ahead=begin(folder))
    loaded = load_model(folder, kernels={"linear": "torch"}, filling=filling)
    reference = load_model(folder, kernels={"linear": "torch"})
    x = torch.randn(2, WIDE["hidden_size"])
    assert torch.equal(loaded.model.logits(x), reference.model.logits(x))


def _truncated(data: bytes) -> bytes:
    return data[: len(data) // 2]


def _reheaded(change: Any) -> Any:
    def changed(data: bytes) -> bytes:
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + length])
        change(header)
        text = json.dumps(header).encode()
        return len(text).to_bytes(8, "little") + text + data[8 + length :]

    return changed


def _set(key: str, value: Any) -> Any:
    return _reheaded(lambda header: header["model.embed_tokens.weight"].update({key: value}))


BROKEN = {
    "empty": lambda data: b"",
    "seven bytes": lambda data: data[:7],
    "truncated": _truncated,
    "huge header": lambda data: (1 << 62).to_bytes(8, "little") + data[8:],
    "no json": lambda data: data[:8] + b"x" + data[9:],
    "nested": lambda data: (8000).to_bytes(8, "little") + b"[" * 8000 + data,
    "a list": lambda data: (2).to_bytes(8, "little") + b"[]" + data,
    "beyond the end": _set("data_offsets", [0, 1 << 50]),
    "backwards": _set("data_offsets", [9, 3]),
    "no offsets": _set("data_offsets", None),
    "negative": _set("shape", [-1, 64]),
    "misshapen": _set("shape", [64, 321]),
    "unknown dtype": _set("dtype", "Q5"),
    "not a shape": _set("shape", "wide"),
    "missing": _reheaded(lambda header: header.pop("model.layers.1.mlp.up_proj.weight")),
}


@pytest.mark.parametrize("how", BROKEN)
def test_broken_checkpoints_have_the_errors_that_they_had(tmp_path: Path, how: str) -> None:
    folder = write(tmp_path)
    path = folder / files.SINGLE_NAME
    path.write_bytes(BROKEN[how](path.read_bytes()))
    with pytest.raises(ModelError) as expected:
        load(folder)
    with pytest.raises(ModelError) as caught:
        load(folder, begin(folder))
    assert str(caught.value) == str(expected.value)


def test_no_checkpoint_is_nothing_to_pack(tmp_path: Path) -> None:
    folder = write(tmp_path)
    (folder / files.SINGLE_NAME).unlink()
    assert begin(folder) is None


def test_dropped_before_anything_was_taken(tmp_path: Path) -> None:
    """The threads end with their owner, whatever they have begun."""
    folder = write(tmp_path, vocab_size=100_000)
    for _ in range(3):
        assert begin(folder, num_threads=8) is not None


class TestExtension:
    def test_refuses_what_does_not_fit(self) -> None:
        packing = native.native.PackingAhead()
        data = memoryview(bytes(16 * 8 * 2))

        def add(**changes: Any) -> int:
            good: dict[str, Any] = {
                "sources": [data],
                "rows": [16],
                "num_inputs": 8,
                "dtype": "bfloat16",
                "bits": 0,
                "group": 0,
                "has_zeros": False,
            }
            return packing.add(**(good | changes))

        for changes in (
            {"rows": [17]},
            {"rows": [16, 16]},
            {"rows": [0]},
            {"sources": []},
            {"num_inputs": 0},
            {"dtype": "float32"},
            {"dtype": "float16"},
            {"bits": 3},
            {"bits": 4, "group": 48},
            {"sources": [data[:128], data[:64]], "rows": [8, 4]},
        ):
            with pytest.raises(ValueError):
                add(**changes)
        assert add() == 0
        with pytest.raises(ValueError):
            packing.take(0)  # not started
        packing.start(1)
        with pytest.raises(ValueError):
            add()
        with pytest.raises(ValueError):
            packing.take(1)
        assert packing.take(0).num_bytes == 16 * 8 * 2
        with pytest.raises(ValueError):
            packing.take(0)
        assert packing.share == 1.0
