"""The budgets of CONTRIBUTING.md. One is raised only by a changelog line that says why."""

from __future__ import annotations

import ast

import pytest

from house import checks
from house.sources import PACKAGE, ROOT, Source, package_sources, repository_files
from octavo.core import env
from octavo.models.registry import FAMILIES
from octavo.tools.cli import parser_of

SOURCES = package_sources()
LARGE_FAMILIES: set[str] = set()
"""Families with experts, latent attention, recurrent layers or vision: the larger budget."""

SERVE_FLAGS = 60
ENVIRONMENT_NAMES = 10

FOREIGN_TEXT = ("src/octavo/assets/", "benchmarks/data/", "training/work/", "tests/house/")
"""Not written here: model files and held-out text. The house tests quote what they look for."""


def own_texts(*suffixes: str) -> list[tuple[str, str]]:
    """(name, text) of the repository's own text files."""
    found = []
    for path in repository_files():
        name = path.relative_to(ROOT).as_posix()
        if name.startswith(FOREIGN_TEXT) or (suffixes and path.suffix not in suffixes):
            continue
        try:
            found.append((name, path.read_text(encoding="utf-8")))
        except UnicodeDecodeError:
            continue
    return found


def family_sources() -> list[Source]:
    modules = {target.partition(":")[0] for target in FAMILIES._rows.values()}
    names = {f"src/{module.replace('.', '/')}.py" for module in modules}
    found = [source for source in SOURCES if source.name in names]
    assert len(found) == len(names), f"rows of models/registry.py without a file: {names}"
    return found


def test_there_is_something_to_check() -> None:
    assert len(SOURCES) > 50
    assert len(repository_files()) > len(SOURCES)


def test_file_lines() -> None:
    assert not checks.long_files(SOURCES)


def test_function_lines() -> None:
    assert not checks.long_functions(SOURCES)


def test_parameters() -> None:
    assert not checks.many_parameters(SOURCES)


@pytest.mark.parametrize("source", family_sources(), ids=lambda source: source.name)
def test_model_file_lines(source: Source) -> None:
    name = source.name.rsplit("/", 1)[1].removesuffix(".py")
    budget = checks.OTHER_MODEL_LINES if name in LARGE_FAMILIES else checks.MODEL_LINES
    assert len(source.lines) <= budget


def test_broad_excepts_are_few_and_each_has_its_reason() -> None:
    assert not checks.unexplained_broad_excepts(SOURCES)
    lines = sum(len(source.lines) for source in SOURCES)
    found = [f"{source.name}:{line}" for source, line in checks.broad_excepts(SOURCES)]
    assert len(found) <= lines / 1000 * checks.BROAD_EXCEPTS_PER_1000_LINES, found


def test_imports_inside_functions_say_why() -> None:
    assert not checks.hidden_imports(SOURCES)


def test_environment_names() -> None:
    assert len(env.NAMES) <= ENVIRONMENT_NAMES
    assert not checks.environment_reads(SOURCES)
    assert checks.own_environment_names(SOURCES) == set(env.NAMES)
    assert all((f"`{name}`" in (ROOT / "README.md").read_text()) for name in env.NAMES)


def test_flags_of_serve() -> None:
    """Flags that are honoured. Those of other systems that are refused by name cost nobody a choice."""
    actions = parser_of("serve")._actions
    options = {action.dest for action in actions if action.option_strings}
    options = {name for name in options if not name.startswith("unsupported:")} - {"help"}
    assert 10 <= len(options) <= SERVE_FLAGS, sorted(options)


def test_nothing_runs_data_as_code() -> None:
    assert not checks.banned_code(SOURCES)


def test_print_is_for_tools() -> None:
    assert not checks.prints(SOURCES)


def test_unfinished_work_has_a_link() -> None:
    assert not checks.bare_todos(own_texts(".py", ".cpp", ".h", ".md", ".toml", ".yml", ".yaml"))


def test_no_path_of_one_machine() -> None:
    assert not checks.machine_paths(own_texts())


def test_package_files_are_empty_or_lazy() -> None:
    for path in PACKAGE.rglob("__init__.py"):
        tree = ast.parse(path.read_text())
        eager = [
            node
            for node in tree.body
            if isinstance(node, ast.Import | ast.ImportFrom)
            and getattr(node, "module", "") not in ("__future__", "typing", "importlib")
        ]
        assert path.parent == PACKAGE or not eager, f"{path} imports at once"


def test_compiled_code_keeps_python_to_its_binding_files() -> None:
    for path in sorted((ROOT / "csrc").rglob("*")):
        if path.suffix in (".cpp", ".h") and not path.name.startswith("bind"):
            text = path.read_text()
            assert "nanobind" not in text and "Python.h" not in text, path
            assert "torch/" not in text, path
