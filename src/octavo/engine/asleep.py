"""Modules that load when something is first asked of them: of what a library imports, what a process never uses. No torch."""

from __future__ import annotations

import importlib.machinery
import sys
import threading
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from types import ModuleType
from typing import Any

TORCH = "torch._meta_registrations"
"""Shapes of results without results, for tracing and compiling; a quarter of the time that importing torch takes (docs/log.md)."""
TRACERS = ("torch._decomp", "torch._dynamo", "torch._inductor", "torch._prims", "torch._refs")
"""What traces, or is loaded by it in the usual order and will not be in another."""


def let_sleep(name: str = TORCH, alarms: Sequence[str] = TRACERS) -> None:
    """When `name` is imported from now on, only the name is, until an attribute of it is looked up or one of `alarms` is
    imported, which finds it loaded. A module that is loaded already, or does not exist, stays as it is.
    """
    sys.meta_path.insert(0, _Finder(name, frozenset(alarms)))


class _Finder(MetaPathFinder):
    def __init__(self, name: str, alarms: frozenset[str]) -> None:
        self._name = name
        self._alarms = alarms

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname in self._alarms and (module := sys.modules.get(self._name)) is not None:
            getattr(module, "is_awake", None)
        if fullname != self._name:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _Sleep(spec.loader)
        return spec


class _Sleep(Loader):
    """Puts off what `loader` would execute."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader
        self._lock = threading.RLock()

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        vars(module)["__getattr__"] = lambda name: self._wake(module, name)

    def _wake(self, module: ModuleType, name: str) -> Any:
        """Execute the module and look again. What imports itself asks for (`__path__` and the like) is no reason to."""
        if name.startswith("__"):
            raise AttributeError(f"module {module.__name__!r} has no attribute {name!r}")
        with self._lock:
            asleep = vars(module).pop("__getattr__", None)
            if asleep is not None:
                try:
                    self._loader.exec_module(module)
                except BaseException:
                    vars(module)["__getattr__"] = asleep
                    raise
        return getattr(module, name)
