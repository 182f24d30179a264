"""What a start decides, and what it refuses before anything is loaded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from octavo.core.assets import model_folder
from octavo.core.config import EngineConfig
from octavo.core.errors import ConfigError
from octavo.engine.decide import Machine, Resolved, resolve_start
from octavo.kernels.attention.work import SPAN
from octavo.kernels.cpu import native
from octavo.models.storage import plan_storage

GIB = 1 << 30
LLAMA = Path(__file__).parents[3] / "benchmarks" / "shapes" / "llama-3.1-8b"
CPU = Machine("cpu", 4 * GIB, plan_storage)
GPU = Machine("cuda", 4 * GIB, plan_storage, total=4 * GIB, capability=(9, 0))
OLD_GPU = GPU._replace(capability=(8, 0))


def resolve(machine: Machine, **fields: object) -> Resolved:
    return resolve_start(EngineConfig(max_model_len=64, max_num_seqs=2, **fields), machine)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["fp8", "fp8_e4m3"])
def test_an_fp8_cache(name: str) -> None:
    resolved = resolve(GPU, kv_cache_dtype=name)
    assert resolved.kv_dtype == "float8_e4m3fn"
    spec = resolved.memory.groups[0].spec
    assert spec.dtype == "float8_e4m3fn"
    assert spec.bytes_per_token == 2 * spec.num_kv_heads * (spec.head_dim + 4)
    for machine, where in ((CPU, "device cpu"), (OLD_GPU, "compute capability 8.0")):
        with pytest.raises(
            ConfigError, match=f"--kv-cache-dtype {name} needs .* {where}"
        ) as caught:
            resolve(machine, kv_cache_dtype=name)
        assert "--kv-cache-dtype int8" in caught.value.fix


def test_deterministic() -> None:
    for machine in (CPU, GPU):
        found = [
            d for d in resolve(machine, deterministic=True).decisions if d.name == "deterministic"
        ]
        assert len(found) == 1 and found[0].value == "on"
        assert not [d for d in resolve(machine).decisions if d.name == "deterministic"]
    resolve(GPU, deterministic=True, dtype="bfloat16")
    has_pairs = native.features().get("avx512_bf16", False)
    if has_pairs:
        resolve(CPU, deterministic=True, dtype="bfloat16")
    for dtype in ("float16",) if has_pairs else ("bfloat16", "float16"):
        with pytest.raises(ConfigError, match=f"--deterministic .* on a CPU in {dtype}") as caught:
            resolve(CPU, deterministic=True, dtype=dtype)
        assert "--dtype float32" in caught.value.fix
        resolve(GPU, deterministic=True, dtype=dtype)


def test_fp8_blocks(tmp_path: Path) -> None:
    """Kept on a GPU with e4m3; widened, which takes more memory, elsewhere; and as a rounding only where there is e4m3."""
    config = json.loads((model_folder("octavo-mini") / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    (tmp_path / "config.json").write_text(json.dumps(config))

    def decided(machine: Machine) -> tuple[str, str, int]:
        resolved = resolve(machine, model=str(tmp_path))
        (found,) = [d for d in resolved.decisions if d.name == "quantization"]
        return found.value, found.reason, resolved.storage.num_bytes

    kept, why, num_bytes = decided(GPU)
    assert kept == "fp8_block" and why == "the checkpoint's fp8 (fp8, scales per 128x128)"
    for machine in (OLD_GPU, CPU):
        widened, why, more = decided(machine)
        assert widened.startswith("none") and "is widened at load" in why and more > num_bytes
    for form in ("fp8", "fp8_block"):
        assert resolve(GPU, quantization=form).decisions
        with pytest.raises(ConfigError, match=r"compute capability 8\.9 or later") as caught:
            resolve(OLD_GPU, quantization=form)
        assert caught.value.code == "E-CFG-08" and "--quantization int8" in caught.value.fix


def test_what_attention_keeps_between_spans_is_planned() -> None:
    """In fixed spans each sequence may leave a partial result for each of them, whatever the cache holds."""
    large = GPU._replace(available=79 * GIB, total=80 * GIB)

    def graphs(*, deterministic: bool) -> int:
        config = EngineConfig(model=str(LLAMA), max_num_seqs=128, deterministic=deterministic)
        return resolve_start(config, large).memory.graphs

    spans = -(-131_072 // SPAN) + 1
    kept = 128 * spans * 32 * (128 + 2) * 4
    assert graphs(deterministic=False) < kept <= graphs(deterministic=True)
