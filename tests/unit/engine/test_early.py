from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from local_engine import MemoryLink
from octavo.core.config import BUNDLED_MODEL, EngineConfig
from octavo.engine import early
from octavo.engine.boot import boot
from octavo.engine.ipc import Ready
from octavo.kernels.cpu import native

pytestmark = pytest.mark.skipif(
    native.missing() is not None or native.isa() == "scalar", reason="nothing is packed here"
)


def config(**options: Any) -> EngineConfig:
    return EngineConfig(
        **{"model": BUNDLED_MODEL, "threads": 2, "kv_cache_memory_bytes": 1 << 26} | options
    )


def test_begins_what_will_be_loaded() -> None:
    begun = early.begin(config())
    assert begun is not None
    assert "model.layers.0.mlp.down_proj.weight" in begun.ahead.names


@pytest.mark.parametrize(
    "options",
    [
        {"load_format": "dummy"},
        {"dtype": "float16"},  # torch's kernels, which pack nothing
        {"model": "no-such-model"},
        {"max_model_len": 1 << 40},
        {"quantization": "int5"},
        {"kv_cache_memory_bytes": 1 << 50},
    ],
)
def test_what_cannot_be_is_not_begun(options: dict[str, Any]) -> None:
    """The start itself says why, where it fails."""
    assert early.begin(config(**options)) is None


def test_weights_that_do_not_fit_are_not_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(early, "available_bytes", lambda: 1 << 20)
    assert early.begin(config(kv_cache_memory_bytes=None)) is None


@pytest.mark.parametrize("name", early.DEVICE_FILES)
def test_a_cpu_is_known_without_torch(name: str, tmp_path: Path) -> None:
    assert early.is_on_cpu(config(), tmp_path)
    (tmp_path / name).touch()
    assert not early.is_on_cpu(config(), tmp_path)
    assert early.is_on_cpu(config(device="cpu"), tmp_path)
    assert not early.is_on_cpu(config(device="cuda"), tmp_path)


def test_the_plan_is_that_of_the_memory_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was packed meanwhile does not count twice."""
    asked = config(kv_cache_memory_bytes=None, max_model_len=512, max_num_seqs=4)
    begun = early.begin(asked)
    assert begun is not None
    begun = begun._replace(available=777 << 20)

    def never() -> int:
        raise AssertionError("asked again")

    monkeypatch.setattr("octavo.engine.boot.available_bytes", never)
    link = MemoryLink()
    boot(asked, link, asked_at=0.0, process_at=0.0, early=begun)
    ready = next(message for message in link.sent if isinstance(message, Ready))
    assert sum(size for _, size in ready.memory) == 777 << 20
    (weights,) = (phase for phase in ready.phases if phase.name == "weights")
    assert weights.detail.endswith("packed during the imports")
