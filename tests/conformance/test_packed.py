"""AWQ, GPTQ and compressed-tensors' packed checkpoints, against the numbers that their formats' documentation says they are."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from model_driver import Driver
from octavo.core.errors import ModelError
from octavo.kernels.dispatch import Dispatcher
from octavo.kernels.gemm.formats import plain
from octavo.layers.build import Build
from octavo.layers.linear import Linear
from octavo.layers.quant.packed import PackedLevels
from octavo.models.config import Config
from octavo.models.load import load_model
from octavo.models.storage import plan_storage
from octavo.models.stored_config import read_stored
from octavo.models.weights import load_weights
from packers import Int4, Kind, checkpoint, random_int4, shuffled_groups, write

KINDS = {
    "awq-32": Kind("awq", 32, True),
    "awq-64": Kind("awq", 64, True),
    "awq-symmetric": Kind("awq", 128, False),
    "awq-whole": Kind("awq", -1, True),
    "gptq-32": Kind("gptq", 32, False),
    "gptq-128-zeros": Kind("gptq", 128, True),
    "gptq-64-v2": Kind("gptq", 64, True, version=2),
    "gptq-whole": Kind("gptq", -1, False),
    "gptq-ordered": Kind("gptq", 32, True, is_ordered=True),
    "gptq-256": Kind("gptq", 256, False, scale=torch.bfloat16),
    "packed-32": Kind("packed", 32, False),
    "packed-128-zeros": Kind("packed", 128, True, scale=torch.bfloat16),
    "packed-float32": Kind("packed", 64, True, scale=torch.float32),
    "packed-whole": Kind("packed", -1, True),
    "packed-ordered": Kind("packed", 64, False, is_ordered=True),
}
SIZES = (40, 24)
INPUTS = 256


def build_of(kind: Kind, **changes: Any) -> Build:
    spec = read_stored(Config({"quantization_config": kind.config() | changes}, "config.json"))
    assert spec is not None
    return Build(
        dtype=torch.float32,
        device=torch.device("cpu"),
        weight_dtype=torch.float32,
        dispatch=Dispatcher(),
        quant=PackedLevels(spec, spec.form),
    )


def matrices(kind: Kind) -> dict[str, Int4]:
    groups_D = shuffled_groups(INPUTS, kind.group, 3) if kind.is_ordered else None
    return {
        name: random_int4(kind, size, INPUTS, seed, groups_D)
        for seed, (name, size) in enumerate(zip(("a", "b"), SIZES, strict=True))
    }


def fill(build: Build, folder: Path, tensors: dict[str, Tensor]) -> None:
    save_file(tensors, folder / "model.safetensors")
    load_weights(folder, build.weights, {})
    for finish in build.finishers:
        finish()


@pytest.mark.parametrize("name", KINDS)
def test_levels_are_the_checkpoints(tmp_path: Path, name: str) -> None:
    """All numbers bit by bit, both as they are read and as the CPU's kernel keeps them, in one product of two matrices."""
    kind = KINDS[name]
    found = matrices(kind)
    tensors = {
        key: value
        for local, each in found.items()
        for key, value in write(kind, local, each).items()
    }
    build = build_of(kind)
    assert build.quant is not None
    read = build.quant.stored(build, tuple(zip(found, SIZES, strict=True)), INPUTS)
    fill(build, tmp_path, tensors)
    wanted_OD = torch.cat([each.numbers() for each in found.values()])
    assert torch.equal(plain(read(), torch.float32), wanted_OD)

    build = build_of(kind)
    layer = Linear(build, tuple(zip(found, SIZES, strict=True)), INPUTS)
    fill(build, tmp_path, tensors)
    kept_OD = layer._kernel.rows(layer._packed, torch.arange(sum(SIZES)))
    columns = torch.arange(INPUTS) if layer._order_D is None else layer._order_D
    assert torch.equal(kept_OD, wanted_OD[:, columns])
    assert (layer._order_D is not None) == kind.is_ordered

    x_ND = torch.randn(5, INPUTS, generator=torch.Generator().manual_seed(9))
    off = layer(x_ND) - x_ND @ wanted_OD.T
    assert off.norm() < 0.02 * (x_ND @ wanted_OD.T).norm()  # rows are rounded to int8


TOKENS = [(0, [5, 17, 60, 3, 3, 21, 8]), (1, [1, 2])]
WHOLE = ("awq-32", "awq-64", "gptq-32", "gptq-64-v2", "gptq-ordered", "packed-32", "packed-whole")


@pytest.mark.parametrize("name", WHOLE)
def test_a_model_is_its_numbers(tmp_path: Path, name: str) -> None:
    """Off by what rounding rows to int8 does, and by no weight."""
    stored, plain_one = checkpoint(tmp_path, KINDS[name])
    got, wanted = (
        Driver(load_model(place, dtype="float32")).step(TOKENS) for place in (stored, plain_one)
    )
    assert (got - wanted).norm() < 0.04 * wanted.norm()
    again = Driver(load_model(stored, dtype="float32", quantization="int8")).step(TOKENS)
    assert not torch.equal(got, again) and (again - wanted).norm() < 0.04 * wanted.norm()


@pytest.mark.parametrize(
    ("name", "beside", "weights"),
    [
        ("gptq-32", "quantize_config.json", "gptq_model-4bit-32g.safetensors"),
        ("gptq-ordered", "quantize_config.json", "model.safetensors"),
        ("awq-32", "quant_config.json", "model.safetensors"),
    ],
)
def test_settings_in_a_file_of_their_own(
    tmp_path: Path, name: str, beside: str, weights: str
) -> None:
    """As old versions of AutoGPTQ and AutoAWQ wrote them: the same bits as of the section of config.json."""
    stored, _ = checkpoint(tmp_path, KINDS[name])
    wanted = Driver(load_model(stored, dtype="float32")).step(TOKENS)
    config = json.loads((stored / "config.json").read_text())
    told = config.pop("quantization_config")
    del told["quant_method"]
    told |= {"model_name_or_path": None, "model_file_base_name": None, "damp_percent": 0.01}
    (stored / "config.json").write_text(json.dumps(config))
    (stored / "model.safetensors").rename(stored / weights)
    with pytest.raises(ModelError, match="do not fit its config"):
        load_model(stored, dtype="float32")
    (stored / beside).write_text(json.dumps(told))
    assert torch.equal(Driver(load_model(stored, dtype="float32")).step(TOKENS), wanted)
    (stored / beside).write_text(json.dumps(told | {"bits": 3, "w_bit": 3}))
    with pytest.raises(ModelError, match=f"{beside}: .*bit.* is 3"):
        load_model(stored)
    (stored / "config.json").write_text(
        json.dumps(config | {"quantization_config": KINDS[name].config()})
    )
    assert torch.equal(Driver(load_model(stored, dtype="float32")).step(TOKENS), wanted)


def test_sizes_are_planned_exactly(tmp_path: Path) -> None:
    """The plan, made of config.json alone, against what kernels hold; panels are whole at these sizes."""
    left = {"modules_to_not_convert": ["lm_head", "layers.1.mlp.down_proj"]}
    for place, (kind, changes) in enumerate(
        ((KINDS["awq-32"], {}), (KINDS["awq-64"], left), (KINDS["packed-32"], {}))
    ):
        folder = tmp_path / str(place)
        folder.mkdir()
        stored, _ = checkpoint(folder, kind)
        if changes:
            plain_layer(stored, "model.layers.1.mlp.down_proj", kind)
            config = json.loads((stored / "config.json").read_text())
            config["quantization_config"] |= changes
            (stored / "config.json").write_text(json.dumps(config))
        loaded = load_model(stored, dtype="float32")
        held = 0
        for each in layers_of(loaded.model):
            packed = each._packed
            held += packed.num_bytes
        facts = loaded.facts
        rest = facts.num_parameters - facts.num_linear_parameters
        planned = plan_storage(facts, "float32", "cpu").num_bytes
        assert planned == held + 4 * rest
        assert plan_storage(facts, "float16", "cuda").num_bytes < planned


def plain_layer(folder: Path, name: str, kind: Kind) -> None:
    tensors = load_file(folder / "model.safetensors")
    found = [key for key in tensors if key.startswith(f"{name}.")]
    outputs = tensors[f"{name}.scales"].shape[1]
    inputs = tensors[f"{name}.qweight"].shape[0]
    for key in found:
        del tensors[key]
    tensors[f"{name}.weight"] = torch.randn(outputs, inputs).half()
    save_file(tensors, folder / "model.safetensors")


def layers_of(model: Any) -> list[Linear]:
    """All products of a model, found by walking what it holds."""
    found: list[Linear] = []
    seen: set[int] = set()
    left = [model]
    while left:
        each = left.pop()
        if id(each) in seen or not type(each).__module__.startswith(
            ("octavo.models", "octavo.layers")
        ):
            continue
        seen.add(id(each))
        if isinstance(each, Linear):
            found.append(each)
            continue
        for value in getattr(each, "__dict__", {}).values():
            left += value if isinstance(value, list | tuple) else [value]
    return found


def test_dummy_weights(tmp_path: Path) -> None:
    for place, name in enumerate(("awq-32", "gptq-32", "packed-ordered")):
        folder = tmp_path / str(place)
        folder.mkdir()
        stored, _ = checkpoint(folder, KINDS[name])
        (stored / "model.safetensors").unlink()
        loaded = load_model(stored, dtype="float32", load_format="dummy")
        logits = Driver(loaded).step([(0, [5, 17])])
        assert logits.isfinite().all() and logits.std() > 0


def changed(folder: Path, change: Any) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(
        {key: each.contiguous() for key, each in tensors.items()}, folder / "model.safetensors"
    )


LAYER = "model.layers.0.mlp"


def test_what_packers_write_beside_it(tmp_path: Path) -> None:
    """Biases of 0 for layers that have none, or no g_idx; other biases are not passed over."""
    stored, _ = checkpoint(tmp_path, KINDS["gptq-32"])
    wanted = Driver(load_model(stored, dtype="float32")).step(TOKENS)

    def more(tensors: dict[str, Tensor]) -> None:
        del tensors[f"{LAYER}.down_proj.g_idx"]
        tensors[f"{LAYER}.down_proj.bias"] = torch.zeros(64).half()

    changed(stored, more)
    assert torch.equal(Driver(load_model(stored, dtype="float32")).step(TOKENS), wanted)
    changed(stored, lambda tensors: tensors[f"{LAYER}.down_proj.bias"].fill_(1))
    with pytest.raises(ModelError, match=r"down_proj.bias: not part of this architecture"):
        load_model(stored)


def replaced(name: str, tensor: Tensor) -> Any:
    def change(tensors: dict[str, Tensor]) -> None:
        assert name in tensors
        tensors[name] = tensor

    return change


WRONG: dict[str, tuple[str, Any, str]] = {
    "shape": (
        "awq-32",
        replaced(f"{LAYER}.down_proj.qweight", torch.zeros(8, 8, dtype=torch.int32)),
        r"down_proj.qweight: has shape \[8, 8\], the config asks for \[128, 8\]",
    ),
    "one-scale": (
        "awq-32",
        replaced(f"{LAYER}.down_proj.scales", torch.ones(1).half()),
        r"down_proj.scales: has shape \[1\], the config asks for \[4, 64\]",
    ),
    "dtype": (
        "gptq-32",
        replaced(f"{LAYER}.down_proj.qweight", torch.zeros(16, 64)),
        r"down_proj.qweight: has dtype torch.float32, expected .*int32",
    ),
    "zeros": (
        "gptq-32",
        replaced(f"{LAYER}.down_proj.qzeros", torch.zeros(4, 8, dtype=torch.int32)),
        r"down_proj has zero points, and quantization_config says that weights are symmetric",
    ),
    "order": (
        "gptq-ordered",
        replaced(f"{LAYER}.down_proj.g_idx", torch.zeros(128, dtype=torch.int32)),
        r"down_proj: g_idx does not give each group 32 inputs",
    ),
    "orders": (
        "gptq-ordered",
        replaced(f"{LAYER}.up_proj.g_idx", shuffled_groups(64, 32, 99).int()),
        r"gate_proj, up_proj are one product, and their g_idx differ",
    ),
    "said-shape": (
        "packed-32",
        replaced(f"{LAYER}.down_proj.weight_shape", torch.tensor([64, 127])),
        r"weight_shape is \[64, 127\], and the config asks for \[64, 128\]",
    ),
    "missing": (
        "packed-whole",
        lambda tensors: tensors.pop(f"{LAYER}.down_proj.weight_zero_point"),
        r"down_proj.weight_zero_point: missing",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_does_not_fit_is_named(tmp_path: Path, case: str) -> None:
    name, change, words = WRONG[case]
    stored, _ = checkpoint(tmp_path, KINDS[name])
    changed(stored, change)
    with pytest.raises(ModelError, match=words):
        load_model(stored)


def test_groups_that_do_not_divide(tmp_path: Path) -> None:
    stored, _ = checkpoint(tmp_path, KINDS["awq-64"], group_size=96)
    with pytest.raises(ModelError, match=r"q_proj has 64 inputs, which groups of 96 do not divide"):
        load_model(stored)


def test_eight_bits_are_widened(tmp_path: Path) -> None:
    """GPTQ of 8 bits in groups: no kernel has them, so they become the numbers that they stand for."""
    kind = Kind("gptq", 32, False)
    build = build_of(kind, bits=8)
    assert build.quant is not None and build.quant.form == ""
    levels_OD = torch.randint(0, 256, (24, 64), generator=torch.Generator().manual_seed(1))
    scales_GO = (torch.rand(2, 24) * 0.01).half()
    places = torch.tensor([1 << 8 * k for k in range(4)])
    words = (levels_OD.T.reshape(16, 4, 24).transpose(1, 2) * places).sum(2)
    words = torch.where(words >= 1 << 31, words - (1 << 32), words).int()
    layer = Linear(build, (("a", 24),), 64)
    zeros = torch.full((2, 6), 0x7F7F7F7F, dtype=torch.int32)
    fill(build, tmp_path, {"a.qweight": words, "a.scales": scales_GO, "a.qzeros": zeros})
    wanted_OD = (levels_OD - 128).float() * scales_GO.float().T.repeat_interleave(32, 1)
    assert torch.equal(layer._kernel.rows(layer._packed, torch.arange(24)), wanted_OD)


def test_little_endian() -> None:
    """Words are read as bytes; a machine of the other order would need them swapped."""
    assert sys.byteorder == "little"
