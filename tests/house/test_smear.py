"""A plug-in's name stands in its own file, its registry and its tests, and nowhere else."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

import grimp
import pytest

from house import checks
from house.sources import PACKAGE, Source, package_sources
from octavo.core.registry import Registry

ORDINARY_WORDS = {"torch", "reference", "dense", "priority", "cpu", "json", "openai", "triton"}
"""Names that are also words of the trade; for these the imports alone are checked."""

DEFAULTS = "src/octavo/core/config.py"
"""May name the row that is the default."""

FORMATS = "octavo.text.parsers.registry"
MODELS = "src/octavo/models/"
"""A format of outputs bears the name of the family that writes it, and so does the family's own file."""

NEUTRAL_ROOMS = ("core", "engine", "scheduler")
VENDORS = (
    "qwen", "qwen2", "qwen3", "llama", "mistral", "mixtral", "gemma", "phi", "deepseek", "gpt2",
    "eagle", "medusa", "nvidia", "amd", "intel", "awq", "gptq", "flashinfer", "xgrammar", "llguidance",
)  # fmt: skip


def registries() -> dict[str, list[Registry[Any]]]:
    """Registries by the file that holds them, found in every module called `registry`."""
    found: dict[str, list[Registry[Any]]] = {}
    for path in sorted(PACKAGE.rglob("registry.py")):
        name = path.relative_to(PACKAGE.parent).with_suffix("").as_posix().replace("/", ".")
        if name == "octavo.core.registry":
            continue
        for value in vars(importlib.import_module(name)).values():
            registry = getattr(value, "candidates", value)
            if isinstance(registry, Registry) and registry not in found.setdefault(name, []):
                found[name].append(registry)
    return found


def rows() -> Iterator[tuple[str, str, str]]:
    """(registry module, row name, plug-in module) of every row; the module that defines it only."""
    seen: set[tuple[str, str]] = set()
    for module, known in registries().items():
        for registry in known:
            for name, target in registry._rows.items():
                plugin = target.partition(":")[0]
                if (name, plugin) not in seen:
                    seen.add((name, plugin))
                    yield module, name, plugin


ROWS = list(rows())
SOURCES = package_sources()


@pytest.fixture(scope="module")
def graph() -> grimp.ImportGraph:
    return grimp.build_graph("octavo", cache_dir=None)


def file_of(module: str) -> str:
    return f"src/{module.replace('.', '/')}.py"


def test_there_are_registries() -> None:
    assert len(ROWS) > 8


@pytest.mark.parametrize(("module", "name", "plugin"), ROWS, ids=lambda value: str(value))
def test_every_row_loads(module: str, name: str, plugin: str) -> None:
    assert any(name in registry and registry.load(name) for registry in registries()[module])


@pytest.mark.parametrize("plugin", sorted({row[2] for row in ROWS}))
def test_a_plugin_is_imported_by_its_own_folder_alone(
    plugin: str, graph: grimp.ImportGraph
) -> None:
    folder = plugin.rpartition(".")[0]
    importers = graph.find_modules_that_directly_import(plugin)
    outside = {each for each in importers if not each.startswith(folder + ".")}
    assert not outside or plugin == "octavo.kernels.ops", f"{plugin} is imported by {outside}"


@pytest.mark.parametrize("name", sorted({row[1] for row in ROWS} - ORDINARY_WORDS))
def test_a_name_stands_in_its_own_file_and_registry_alone(name: str) -> None:
    allowed = {DEFAULTS}
    for module, row, plugin in ROWS:
        if row == name:
            allowed |= {file_of(module), file_of(plugin)}
            if module == FORMATS:
                allowed |= {source.name for source in SOURCES if source.name.startswith(MODELS)}
    elsewhere = [source for source in SOURCES if source.name not in allowed]
    assert not checks.words_that_name(elsewhere, [name])


def test_rooms_that_serve_all_models_name_none() -> None:
    def is_neutral(source: Source) -> bool:
        return source.name.removeprefix("src/octavo/").partition("/")[0] in NEUTRAL_ROOMS

    neutral = [source for source in SOURCES if is_neutral(source)]
    assert len(neutral) > 10
    assert not checks.words_that_name(neutral, VENDORS)
