"""Modules that load when something is first asked of them: of what a library imports, what a process never uses. No torch."""

from __future__ import annotations

import importlib.machinery
import inspect
import sys
import threading
from collections.abc import Mapping, Sequence
from importlib.abc import Loader, MetaPathFinder
from types import ModuleType
from typing import Any

TORCH = "torch._meta_registrations"
"""Shapes of results without results, for tracing and compiling; a quarter of the time that importing torch takes (docs/log.md)."""
TRACERS = ("torch._decomp", "torch._dynamo", "torch._inductor", "torch._prims", "torch._refs")
"""What traces, or is loaded by it in the usual order and will not be in another."""
UNUSED = (
    "torch.compiler",
    "torch.distributions",
    "torch.export",
    "torch.masked",
    "torch.nn.intrinsic",
    "torch.nn.qat",
    "torch.nn.quantizable",
    "torch.nn.quantized",
    "torch.optim",
    "torch.profiler",
    "torch.quantization",
    "torch.utils.data",
)
"""Parts of torch that it imports only to have them by name, together a fifth of its modules."""
SLEEPERS: Mapping[str, Sequence[str]] = {TORCH: TRACERS} | dict.fromkeys(UNUSED, ())
_QUIET = frozenset({"__path__", "__warningregistry__", "__wrapped__"})
"""What importing and inspecting ask of any module."""


def let_sleep(sleepers: Mapping[str, Sequence[str]] = SLEEPERS) -> None:
    """When one of `sleepers` is imported from now on, only the name is, until an attribute of it is looked up, or a module
    below it or one of its alarms is imported, which finds it loaded. A module that is loaded already, or does not exist, stays
    as it is.
    """
    sys.meta_path.insert(0, _Finder(sleepers))


class _Finder(MetaPathFinder):
    def __init__(self, sleepers: Mapping[str, Sequence[str]]) -> None:
        self._names = frozenset(sleepers)
        self._roots = frozenset(name.partition(".")[0] for name in sleepers)
        self._alarms: dict[str, list[str]] = {}
        for name, alarms in sleepers.items():
            for alarm in alarms:
                self._alarms.setdefault(alarm, []).append(name)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        for name in self._alarms.get(fullname, ()):
            _wake(name)
        root, *rest = fullname.split(".")
        if root not in self._roots:
            return None
        for part in rest:
            if root in self._names and _wake(root) and fullname in sys.modules:
                return _Loaded(sys.modules[fullname]).spec(fullname)
            root = f"{root}.{part}"
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is None or spec.loader is None:
            return None
        if spec.origin is not None:
            # Who asks which module a frame is of (torch does for each operator in Python) is answered from this, or by a walk
            # over the files of all modules: a tenth of a second.
            inspect.modulesbyfile.setdefault(spec.origin, fullname)
        if fullname in self._names:
            spec.loader = _Sleep(spec.loader)
        return spec


def _wake(name: str) -> bool:
    """Whether it was asleep."""
    module = sys.modules.get(name)
    asleep = None if module is None else vars(module).get("__getattr__")
    if not isinstance(asleep, _Asleep):
        return False
    asleep.wake()
    return True


class _Asleep:
    """The `__getattr__` of a module that sleeps."""

    def __init__(self, module: ModuleType, loader: Loader) -> None:
        self._module = module
        self._loader = loader
        self._lock = threading.RLock()

    def __call__(self, name: str) -> Any:
        """Execute the module and look again. What imports themselves ask for is no reason to."""
        if name in _QUIET:
            raise AttributeError(f"module {self._module.__name__!r} has no attribute {name!r}")
        self.wake()
        return getattr(self._module, name)

    def wake(self) -> None:
        """Execute the module, once; if that fails, it sleeps on."""
        with self._lock:
            names = vars(self._module)
            if names.get("__getattr__") is not self:
                return
            del names["__getattr__"], names["__dir__"]
            try:
                self._loader.exec_module(self._module)
            except BaseException:
                names.update(_asleep_names(self))
                raise

    def names(self) -> list[str]:
        """The module's `dir`."""
        self.wake()
        return dir(self._module)


def _asleep_names(asleep: _Asleep) -> dict[str, Any]:
    return {"__getattr__": asleep, "__dir__": asleep.names}


class _Sleep(Loader):
    """Puts off what `loader` would execute."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        vars(module).update(_asleep_names(_Asleep(module, self._loader)))


class _Loaded(Loader):
    """Of a module that was loaded while it was looked for."""

    def __init__(self, module: ModuleType) -> None:
        self._module = module
        self._spec = module.__spec__

    def spec(self, name: str) -> importlib.machinery.ModuleSpec:
        """To be returned by a finder: imports that find the module there by then take its own instead, and would load it again."""
        spec = importlib.machinery.ModuleSpec(name, self)
        vars(self._module)["__spec__"] = spec  # a module's class may refuse to have attributes set
        return spec

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        return self._module

    def exec_module(self, module: ModuleType) -> None:
        vars(module)["__spec__"] = self._spec
