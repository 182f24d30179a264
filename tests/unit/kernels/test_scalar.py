"""A CPU without AVX2, as far as one that has it can show: the slow path gives answers, and says once that it is slow."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from local_engine import LocalEngine, request, write_tiny
from octavo.kernels.cpu import extension, native

PROMPT = list(range(40, 75))
WORDS = "without vector instructions"


@pytest.fixture
def scalar() -> Iterator[None]:
    extension.limit_isa("scalar")
    yield
    extension.limit_isa("avx512")


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if WORDS in r.getMessage()]


def test_the_limit_holds(scalar: None) -> None:
    assert extension.isa() == "scalar"
    assert extension.runnable_isas() == ("scalar",)


def test_no_limit_has_that_name() -> None:
    with pytest.raises(ValueError, match="no instruction set is called 'sse9'"):
        extension.limit_isa("sse9")


def test_the_same_tokens_and_one_warning(
    tmp_path: Path, scalar: None, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write_tiny(tmp_path / "model")
    with caplog.at_level(logging.WARNING, "octavo"):
        slow = LocalEngine(folder).run([request("a", PROMPT, max_tokens=24)])
    [line] = warnings(caplog)
    assert extension.SCALAR_COST in line
    extension.limit_isa("avx512")
    if extension.isa() == "scalar":
        pytest.skip("this machine has nothing faster to compare with")
    caplog.clear()
    assert LocalEngine(folder).run([request("a", PROMPT, max_tokens=24)]) == slow
    assert not warnings(caplog)


def test_the_warning_names_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(
        native, "features", lambda: {"avx2": True, "fma": False, "f16c": False, "avx512f": False}
    )
    assert extension.slow_because().startswith("this CPU has no FMA, F16C: ")
    monkeypatch.setattr(native.platform, "machine", lambda: "riscv64")
    assert extension.slow_because().startswith("there are no vector kernels for riscv64 yet: ")


def test_threads_beyond_the_cores_start_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "octavo"):
        engine = LocalEngine(write_tiny(tmp_path / "model"), threads=4096)
    [line] = [r.getMessage() for r in caplog.records if "--threads 4096" in r.getMessage()]
    assert "more than the" in line
    [(value, reason)] = [(v, why) for name, v, why in engine.ready.decisions if name == "threads"]
    assert int(value) < 4096 and "--threads 4096" in reason
