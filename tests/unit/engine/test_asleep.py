from __future__ import annotations

import builtins
import inspect
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
    asleep.let_sleep({"sleeper": ["sleeper_alarm"]})
    asleep.let_sleep({"no_such_module": ()})
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
    asleep.let_sleep({"sleeper": ["sleeper_alarm"]})
    __import__("sleeper")
    assert __import__("sleeper_alarm").IS_UP


def test_what_fails_to_load_fails_each_time(folder: Path) -> None:
    (folder / "sleeper_broken.py").write_text("raise OSError('not now')")
    asleep.let_sleep({"sleeper_broken": ()})
    import sleeper_broken  # type: ignore[import-not-found]

    for _ in range(2):
        with pytest.raises(OSError, match="not now"):
            _ = sleeper_broken.TOLD


@pytest.mark.parametrize("first", ["from sleeper.below import DEEP", "from sleeper import *"])
def test_a_package_wakes_for_what_is_below_it(folder: Path, first: str) -> None:
    """As importing in the usual order has it: the package's own code runs first, each module's once."""
    package = folder / "sleeper"
    package.mkdir()
    (package / "__init__.py").write_text(
        "import sys\nfrom sleeper import below\nDEEP = below.DEEP\n__all__ = ['DEEP']"
    )
    (package / "below.py").write_text(
        "import builtins\nbuiltins.sleeper_runs = getattr(builtins, 'sleeper_runs', 0) + 1\nDEEP = [1]"
    )
    asleep.let_sleep({"sleeper": ()})
    names: dict[str, object] = {}
    try:
        exec("import sleeper", names)
        assert "DEEP" not in vars(sys.modules["sleeper"])
        exec(first, names)
        below = sys.modules["sleeper.below"]
        assert names["DEEP"] is vars(below)["DEEP"] is vars(sys.modules["sleeper"])["DEEP"]
        assert vars(builtins)["sleeper_runs"] == 1
        assert below.__spec__ is not None and below.__spec__.origin == str(package / "below.py")
    finally:
        vars(builtins).pop("sleeper_runs", None)
        sys.modules.pop("sleeper.below", None)


def test_wakes_for_a_list_of_its_names(folder: Path) -> None:
    (folder / "sleeper.py").write_text(MODULE)
    asleep.let_sleep({"sleeper": ()})
    sleeper = __import__("sleeper")
    assert dir(sleeper) == ["TOLD"]


def test_whose_code_a_frame_is_of_takes_no_search(folder: Path) -> None:
    (folder / "sleeper.py").write_text(
        "import inspect\nTOLD = inspect.getmodule(inspect.currentframe(), __file__)"
    )
    asleep.let_sleep({"sleeper": ()})
    sleeper = __import__("sleeper")
    before = dict(inspect._filesbymodname)  # type: ignore[attr-defined]
    assert sleeper.TOLD is sleeper
    assert inspect._filesbymodname == before  # type: ignore[attr-defined]


TORCH = """
import sys
from octavo.engine import asleep
asleep.let_sleep()
import torch
import octavo.engine.boot
import octavo.models.dense
name = asleep.TORCH
def sleeping():
    return {each for each in asleep.SLEEPERS if "__getattr__" in vars(sys.modules.get(each, sys))}
assert name in sleeping(), "it does not sleep"
assert len(sleeping()) >= 8, sleeping()
before = sleeping()
weight, x = torch.randn(8, 4), torch.randn(3, 4)
with torch.inference_mode():
    torch.nn.functional.linear(x, weight).softmax(-1).topk(2)
assert sleeping() == before, "what is computed wakes it"
from torch._subclasses.fake_tensor import FakeTensorMode
with FakeTensorMode():
    shape = torch.nn.functional.linear(torch.empty(3, 4), torch.empty(8, 4)).softmax(-1).topk(2)[0].shape
assert shape == (3, 2), shape
assert "__getattr__" not in vars(sys.modules[name])
assert torch.empty(3, 4, device="meta").matmul(torch.empty(4, 5, device="meta")).shape == (3, 5)
from torch.utils.data.dataloader import DataLoader
assert torch.utils.data.DataLoader is DataLoader, (torch.utils.data.DataLoader, DataLoader)
layer = torch.nn.Linear(4, 2)
torch.optim.SGD(layer.parameters(), lr=0.1).step()
torch.distributions.Normal(0.0, 1.0).sample()
assert not torch.compiler.is_compiling()
with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]):
    layer(torch.ones(1, 4))
assert float(torch.masked.sum(torch.ones(2), mask=torch.tensor([True, False]))) == 1.0
assert torch.export.Dim("n").__name__ == "n"
import torch.quantization, torch.nn.quantized, torch.nn.intrinsic, torch.nn.qat, torch.nn.quantizable
for module in (torch.quantization, torch.nn.quantized, torch.nn.intrinsic, torch.nn.qat, torch.nn.quantizable):
    assert dir(module)
assert not sleeping(), sleeping()
"""


def test_torch_works_without_it_and_with_it() -> None:
    """In a process of its own: this one has torch."""
    ended = subprocess.run(
        [sys.executable, "-W", "error", "-c", TORCH], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
