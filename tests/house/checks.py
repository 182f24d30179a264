"""The rules as functions: sources in, complaints out. `test_budgets.py` wants none from the package, and
`test_checks_bite.py` shows that each complains when it should.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable

from house.sources import Source, dotted, parameters

FILE_LINES = 500
FUNCTION_LINES = 80
PARAMETERS = 10
BROAD_EXCEPTS_PER_1000_LINES = 0.5
MODEL_LINES = 250
OTHER_MODEL_LINES = 450
"""Of a family with experts, latent attention, recurrent layers or vision."""

BANNED_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"}
BANNED_CALLS = {
    "eval": "runs text as code",
    "exec": "runs text as code",
    "__import__": "use importlib",
    "torch.load": "unpickles; weights are safetensors",
    "numpy.load": "may unpickle",
    "np.load": "may unpickle",
    "yaml.load": "use yaml.safe_load",
    "os.system": "use subprocess with a list",
}
ENVIRONMENT = {"os.environ", "os.getenv", "os.environb", "os.putenv"}
ENVIRONMENT_READER = "src/octavo/core/env.py"


def long_files(sources: Iterable[Source]) -> list[str]:
    return [
        f"{source.name}: {len(source.lines)} lines, at most {FILE_LINES}"
        for source in sources
        if len(source.lines) > FILE_LINES
    ]


def long_functions(sources: Iterable[Source]) -> list[str]:
    found = []
    for source in sources:
        for function in source.functions:
            lines = (function.end_lineno or 0) - function.lineno + 1
            if lines > FUNCTION_LINES:
                found.append(
                    f"{source.name}:{function.lineno}: {function.name} has {lines} lines, "
                    f"at most {FUNCTION_LINES}"
                )
    return found


def many_parameters(sources: Iterable[Source]) -> list[str]:
    """Kernels are exempt: their parameters are pointers and strides."""
    return [
        f"{source.name}:{function.lineno}: {function.name} has {len(parameters(function))} "
        f"parameters, at most {PARAMETERS}"
        for source in sources
        if not source.name.startswith("src/octavo/kernels/")
        for function in source.functions
        if len(parameters(function)) > PARAMETERS
    ]


def broad_excepts(sources: Iterable[Source]) -> list[tuple[Source, int]]:
    """Handlers that catch everything and keep it. One that ends in a bare `raise` only cleans up."""
    return [
        (source, node.body[0].lineno)
        for source in sources
        for node in ast.walk(source.tree)
        if isinstance(node, ast.ExceptHandler) and _is_broad(node.type) and not _raises_again(node)
    ]


def _raises_again(node: ast.ExceptHandler) -> bool:
    last = node.body[-1]
    return isinstance(last, ast.Raise) and last.exc is None


def _is_broad(kind: ast.expr | None) -> bool:
    if kind is None:
        return True
    kinds = kind.elts if isinstance(kind, ast.Tuple) else [kind]
    return any(dotted(each) in ("Exception", "BaseException") for each in kinds)


def unexplained_broad_excepts(sources: Iterable[Source]) -> list[str]:
    return [
        f"{source.name}:{line}: a broad except without its reason beside it"
        for source, line in broad_excepts(sources)
        if not any(source.comment_near(near, r"#\s*\S+ \S+") for near in (line - 1, line))
    ]


def hidden_imports(sources: Iterable[Source]) -> list[str]:
    """Imports inside functions need the word `lazy:` and a reason."""
    found = []
    for source in sources:
        for function in source.functions:
            for node in ast.walk(function):
                if not isinstance(node, ast.Import | ast.ImportFrom):
                    continue
                if not _is_explained(source, function, node):
                    found.append(f"{source.name}:{node.lineno}: an import inside a function")
    return sorted(set(found))


def _is_explained(source: Source, function: ast.AST, node: ast.stmt) -> bool:
    """One comment speaks for a run of adjacent imports."""
    lines = {n.lineno for n in ast.walk(function) if isinstance(n, ast.Import | ast.ImportFrom)}
    first = node.lineno
    while first - 1 in lines:
        first -= 1
    return source.comment_near(first, r"lazy: \S+") or source.comment_near(
        node.lineno, r"lazy: \S+"
    )


def banned_code(sources: Iterable[Source]) -> list[str]:
    """Nothing that runs text or data as code."""
    found = []
    for source in sources:
        for node in ast.walk(source.tree):
            for name, why in _banned(node):
                found.append(f"{source.name}:{getattr(node, 'lineno', 0)}: {name}: {why}")
    return found


def _banned(node: ast.AST) -> list[tuple[str, str]]:
    names: list[str] = []
    match node:
        case ast.Import():
            names = [alias.name for alias in node.names]
        case ast.ImportFrom(module=str(module)):
            names = [module]
        case ast.Call() if dotted(node.func) in BANNED_CALLS:
            return [(dotted(node.func), BANNED_CALLS[dotted(node.func)])]
        case ast.keyword(arg="shell", value=ast.Constant(value=True)):
            return [("shell=True", "use a list of words")]
        case ast.keyword(arg="trust_remote_code"):
            return [("trust_remote_code", "no code from a model folder ever runs")]
    return [(name, "data as code") for name in names if name.split(".")[0] in BANNED_MODULES]


def prints(sources: Iterable[Source]) -> list[str]:
    return [
        f"{source.name}:{node.lineno}: print outside tools/"
        for source in sources
        if not source.name.startswith("src/octavo/tools/")
        for node in ast.walk(source.tree)
        if isinstance(node, ast.Call) and dotted(node.func) == "print"
    ]


def environment_reads(sources: Iterable[Source]) -> list[str]:
    """Uses of the process environment outside its reader."""
    found = []
    for source in sources:
        if source.name == ENVIRONMENT_READER:
            continue
        for node in ast.walk(source.tree):
            from_os = isinstance(node, ast.ImportFrom) and node.module == "os"
            names = [f"os.{alias.name}" for alias in node.names] if from_os else [dotted(node)]
            found += [
                f"{source.name}:{node.lineno}: {name}" for name in names if name in ENVIRONMENT
            ]
    return found


def own_environment_names(sources: Iterable[Source]) -> set[str]:
    """Strings in code that look like environment names of this project."""
    return {
        text
        for source in sources
        for _, text in source.words()
        if re.fullmatch(r"OCTAVO_[A-Z0-9_]+", text)
    }


def bare_todos(texts: Iterable[tuple[str, str]]) -> list[str]:
    """Marks of unfinished work without a link to its issue. Takes (name, text)."""
    return [
        f"{name}:{number}: {line.strip()}"
        for name, text in texts
        for number, line in enumerate(text.splitlines(), 1)
        if re.search(r"\b(TODO|FIXME|XXX|HACK)\b", line)
        and not re.search(r"https?://\S+|#\d+", line)
    ]


def machine_paths(texts: Iterable[tuple[str, str]]) -> list[str]:
    """Paths that exist on one machine alone. Takes (name, text)."""
    pattern = re.compile(r"(?<![\w./}*-])/(?:work|root|Users|home/(?!\{)\w+)/")
    return [
        f"{name}:{number}: {line.strip()[:100]}"
        for name, text in texts
        for number, line in enumerate(text.splitlines(), 1)
        if pattern.search(line)
    ]


def words_that_name(sources: Iterable[Source], names: Iterable[str]) -> list[str]:
    """Places where code, not prose, says one of the names: as a whole string, or as a word in an identifier."""
    found = []
    wanted = {
        name: re.compile(rf"(?<![a-z0-9]){re.escape(name.lower())}(?![a-z0-9])") for name in names
    }
    for source in sources:
        for line, text in source.words():
            for name, pattern in wanted.items():
                if len(text) < 80 and pattern.search(_snake(text)):
                    found.append(f"{source.name}:{line}: {name!r} in {text!r}")
    return sorted(set(found))


def _snake(text: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", text).lower()
