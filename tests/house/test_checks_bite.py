"""Each rule complains about a small offender, and leaves a small innocent alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest

from house import checks
from house.sources import Source

Check = Callable[[Iterable[Source]], object]

BODY = "\n".join(f"    x{i} = {i}" for i in range(checks.FUNCTION_LINES))
MANY = ", ".join(f"a{i}" for i in range(checks.PARAMETERS + 1))

CASES: list[tuple[Check, str, str]] = [
    (checks.long_files, "x = 1\n" * 501, "x = 1\n" * 500),
    (checks.long_functions, f"def f():\n{BODY}", "def f():\n    pass"),
    (checks.many_parameters, f"def f({MANY}): pass", f"def f(self, {MANY[:-5]}): pass"),
    (checks.broad_excepts, "try: pass\nexcept: pass", "try: pass\nexcept OSError: pass"),
    (
        checks.broad_excepts,
        "try: pass\nexcept BaseException as e:\n    raise A from e",
        "try: pass\nexcept BaseException:\n    close()\n    raise",
    ),
    (
        checks.unexplained_broad_excepts,
        "try: pass\nexcept Exception: pass",
        "try: pass\nexcept Exception:  # edge of the task: logged\n    pass",
    ),
    (
        checks.unexplained_broad_excepts,
        "try: pass\nexcept (OSError, BaseException): pass",
        "try: pass\nexcept (OSError, BaseException):\n    # edge of the task: logged\n    pass",
    ),
    (
        checks.hidden_imports,
        "def f():\n    import torch",
        "import a\ndef f():\n    # lazy: heavy\n    import torch\n    import json",
    ),
    (checks.banned_code, "import pickle", "import json"),
    (checks.banned_code, "from pickle import loads", "from json import loads"),
    (checks.banned_code, "torch.load('x')", "model.eval()"),
    (checks.banned_code, "eval('1')", "evaluate('1')"),
    (checks.banned_code, "run('ls', shell=True)", "run('ls', shell=False)"),
    (checks.banned_code, "yaml.load(x)", "yaml.safe_load(x)"),
    (checks.prints, "print(1)", "self.print(1)"),
    (checks.environment_reads, "import os\nos.environ['A']", "import os\nos.path"),
    (checks.environment_reads, "from os import getenv", "from os import path"),
    (checks.own_environment_names, "x = 'OCTAVO_NEW'", "'''OCTAVO_NEW'''\ny = 1  # OCTAVO_NEW"),
]


@pytest.mark.parametrize(("check", "bad", "good"), CASES)
def test_sources(check: Check, bad: str, good: str) -> None:
    assert check([Source("src/octavo/room/file.py", bad)])
    assert not check([Source("src/octavo/room/file.py", good)])


def test_exemptions() -> None:
    assert not checks.many_parameters([Source("src/octavo/kernels/x.py", f"def f({MANY}): pass")])
    assert not checks.prints([Source("src/octavo/tools/x.py", "print(1)")])
    assert not checks.environment_reads([Source(checks.ENVIRONMENT_READER, "os.environ")])


@pytest.mark.parametrize("bad", ["# TODO: later", "x = 1  # FIXME"])
def test_todos(bad: str) -> None:
    assert checks.bare_todos([("x.py", bad)])
    assert not checks.bare_todos([("x.py", bad + " https://example.org/issues/1")])


@pytest.mark.parametrize("bad", ["open('/root/x')", "cd /work/x", "/home/me/y"])
def test_paths(bad: str) -> None:
    assert checks.machine_paths([("x.sh", bad)])
    assert not checks.machine_paths([("x.sh", "cd network/root/x ./work/y https://a.b/home/c/")])


@pytest.mark.parametrize("bad", ["x = 'swift'", "class SwiftThing: pass", "use_swift = 1"])
def test_words(bad: str) -> None:
    assert checks.words_that_name([Source("x.py", bad)], ["swift"])
    innocent = "'''The swift one.'''\nswiftly = 1  # swift\n"
    assert not checks.words_that_name([Source("x.py", innocent)], ["swift"])
