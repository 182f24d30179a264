from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from octavo.engine import asleep

MODULE = """
import json
TOLD = "here"
def __dir__():
    return ["TOLD"]
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    for name in ("sleeper", "sleeper_broken", "sleeper_alarm"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return tmp_path


def test_wakes_when_asked(folder: Path) -> None:
    (folder / "sleeper.py").write_text(MODULE)
    asleep.let_sleep("sleeper", ["sleeper_alarm"])
    asleep.let_sleep("no_such_module")
    import sleeper  # type: ignore[import-not-found]

    assert "TOLD" not in vars(sleeper) and not hasattr(sleeper, "__path__")
    import sleeper as again

    assert again is sleeper and "TOLD" not in vars(sleeper)
    assert sleeper.TOLD == "here"
    with pytest.raises(AttributeError, match="UNTOLD"):
        _ = sleeper.UNTOLD
    with pytest.raises(ModuleNotFoundError):
        __import__("no_such_module")


def test_wakes_before_what_needs_it(folder: Path) -> None:
    (folder / "sleeper.py").write_text(MODULE)
    (folder / "sleeper_alarm.py").write_text(
        "import sys\nIS_UP = 'TOLD' in vars(sys.modules['sleeper'])"
    )
    asleep.let_sleep("sleeper", ["sleeper_alarm"])
    __import__("sleeper")
    assert __import__("sleeper_alarm").IS_UP


def test_what_fails_to_load_fails_each_time(folder: Path) -> None:
    (folder / "sleeper_broken.py").write_text("raise OSError('not now')")
    asleep.let_sleep("sleeper_broken")
    import sleeper_broken  # type: ignore[import-not-found]

    for _ in range(2):
        with pytest.raises(OSError, match="not now"):
            _ = sleeper_broken.TOLD


TORCH = """
import sys
from octavo.engine import asleep
asleep.let_sleep()
import torch
import octavo.engine.boot
import octavo.models.dense
name = asleep.TORCH
assert name in sys.modules and "__getattr__" in vars(sys.modules[name]), "it does not sleep"
weight, x = torch.randn(8, 4), torch.randn(3, 4)
with torch.inference_mode():
    torch.nn.functional.linear(x, weight).softmax(-1).topk(2)
assert "__getattr__" in vars(sys.modules[name]), "what is computed wakes it"
from torch._subclasses.fake_tensor import FakeTensorMode
with FakeTensorMode():
    shape = torch.nn.functional.linear(torch.empty(3, 4), torch.empty(8, 4)).softmax(-1).topk(2)[0].shape
assert shape == (3, 2), shape
assert "__getattr__" not in vars(sys.modules[name])
assert torch.empty(3, 4, device="meta").matmul(torch.empty(4, 5, device="meta")).shape == (3, 5)
"""


def test_torch_works_without_it_and_with_it() -> None:
    """In a process of its own: this one has torch."""
    ended = subprocess.run(
        [sys.executable, "-W", "error", "-c", TORCH], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
