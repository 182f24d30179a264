"""`octavo doctor`: is this machine able to serve, and if not, what is to be done."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import socket
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import msgspec

from octavo.core.assets import bundled, model_folder
from octavo.core.config import BUNDLED_MODEL
from octavo.core.errors import ConfigError, MemoryPlanError, ModelError, OperatorError
from octavo.core.gguf import is_gguf, read_parts
from octavo.engine.free_memory import available_bytes
from octavo.models.facts import read_facts
from octavo.tools import doctor_device, output
from octavo.tools.parser import Parser, number
from octavo.tools.tables import bytes_text, table

MIN_PYTHON = (3, 11)
LOW_MEMORY_BYTES = 2 << 30
_MAX_HEADER_BYTES = 100 << 20


class Check(msgspec.Struct, frozen=True):
    """One finding; `fix` says what to do unless all is well."""

    name: str
    status: Literal["ok", "warn", "fail"]
    detail: str
    fix: str = ""


def add_arguments(parser: Parser) -> None:
    """Add the verb's flags."""
    parser.add_argument("--model", default=BUNDLED_MODEL, help="Model to check [%(default)s].")
    parser.add_argument(
        "--port",
        type=number(0, 65535, whole=True),
        default=8000,
        metavar="N",
        help="Port that is to be free [8000].",
    )
    parser.add_argument(
        "--security",
        nargs="?",
        const="",
        metavar="URL",
        help="Say what a server exposes instead: the one at URL, else those of this user that run.",
    )
    parser.add_argument(
        "--flags",
        metavar="TEXT",
        help="With --security: flags of `octavo serve`, as one text, to judge before they are used.",
    )
    parser.add_argument(
        "--url",
        metavar="URL",
        help="Look at the server that runs there instead: its health and its metrics (docs/troubleshooting.md).",
    )
    parser.add_argument("--api-key", help="With --url: an operator's key; also OCTAVO_API_KEY.")
    parser.add_argument(
        "--seconds",
        type=number(0, 3600),
        default=0.0,
        metavar="X",
        help="With --url: look at what happens in so many seconds, instead of all since the start.",
    )
    output.add_json_flag(parser)


def run(args: argparse.Namespace) -> int:
    """Print the findings: 1 when one of them is a failure, or with --url anything is wrong."""
    if args.url is not None:
        checks = examine_live(args)
        output.show(args.json, lambda: live_text(checks), lambda: to_json(checks))
        return int(any(check.status != "ok" for check in checks))
    if args.security is None and args.flags is None:
        checks = examine(args.model, args.port)
        output.show(args.json, lambda: to_text(checks), lambda: to_json(checks))
    else:
        checks = examine_security(args.security, args.flags)
        output.show(args.json, lambda: security_text(checks), lambda: to_json(checks))
    return int(any(check.status == "fail" for check in checks))


def examine(model: str, port: int) -> list[Check]:
    """All findings."""
    checks: list[Callable[[], Check]] = [
        check_python,
        check_torch,
        check_memory,
        check_extension,
        check_bundled,
        lambda: check_model(model),
        lambda: check_port(port),
    ]
    return [check() for check in checks] + [Check(*found) for found in doctor_device.look()]


def examine_live(args: argparse.Namespace) -> list[Check]:
    """What is wrong with the server at `--url`.

    Raises:
        ConfigError: nothing answers there, or flags that do not go together.
    """
    # lazy: what reads metrics, which no other check needs
    from octavo.tools import doctor_live

    if args.security is not None or args.flags is not None:
        raise ConfigError("--url does not go with --security or --flags.", fix="Give one of them.")
    found = doctor_live.examine(args.url, api_key=args.api_key, seconds=args.seconds)
    return [Check(*finding) for finding in found]


def live_text(checks: list[Check]) -> str:
    """What is wrong, with cause and fix; all that was looked for is in the JSON."""
    wrong = [check for check in checks if check.status != "ok"]
    if not wrong:
        return f"{len(checks)} things looked at, and nothing is wrong."
    return "\n\n".join([*_table(wrong), f"{len(checks) - len(wrong)} others are well."])


def examine_security(url: str | None, flags: str | None) -> list[Check]:
    """What is exposed: by the server at `url`, by the one that `flags` would start, or by those that run.

    Raises:
        ConfigError: both are given, or one of them makes no sense.
    """
    # lazy: the server's libraries, which no other check needs
    from octavo.tools import security

    if url:
        if flags is not None:
            raise ConfigError("--flags does not go with a URL.", fix="Give one of them.")
        return [Check(*finding) for finding in security.probe(url)]
    checks = []
    for subject in security.subjects(flags):
        checks.append(Check("server", "ok", subject.name))
        checks += [Check(*finding) for finding in security.judge(subject)]
    return checks


def security_text(checks: list[Check]) -> str:
    """A table, then one line per thing to do."""
    return "\n\n".join(_table(checks))


def _table(checks: list[Check]) -> list[str]:
    lines = [table(("check", "status", "found"), [(c.name, c.status, c.detail) for c in checks])]
    return lines + [f"{c.status}: {c.name}: {c.fix}" for c in checks if c.fix]


def to_text(checks: list[Check]) -> str:
    """The same, and what it comes to."""
    lines = _table(checks)
    worst = "fail" if any(c.status == "fail" for c in checks) else "ok"
    lines.append("This machine can serve." if worst == "ok" else "This machine cannot serve yet.")
    return "\n\n".join(lines)


def to_json(checks: list[Check]) -> str:
    """`{"ok": bool, "checks": [...]}`."""
    is_ok = all(check.status != "fail" for check in checks)
    return json.dumps({"ok": is_ok, "checks": msgspec.to_builtins(checks)}, indent=1)


def check_python() -> Check:
    """Python is new enough."""
    found = f"{platform.python_version()} at {sys.executable}"
    if sys.version_info[:2] < MIN_PYTHON:
        return Check("python", "fail", found, "Install Python 3.11 or newer.")
    return Check("python", "ok", found)


def check_torch() -> Check:
    """PyTorch loads, and with which instruction set and how many threads."""
    try:
        import torch  # lazy: seconds, and only this check needs it
    except (ImportError, OSError) as error:
        return Check("torch", "fail", str(error), "Run `pip install torch` in this environment.")
    where = f"cuda ({torch.cuda.get_device_name()})" if torch.cuda.is_available() else "cpu"
    isa = torch.backends.cpu.get_cpu_capability()
    threads = torch.get_num_threads()
    detail = f"{torch.__version__} on {where}, {isa}, {threads} threads"
    usable = len(os.sched_getaffinity(0))
    if threads > usable:
        fix = f"More threads than usable cores ({usable}); serve with --threads {usable}."
        return Check("torch", "warn", detail, fix)
    if isa in ("DEFAULT", "NO AVX"):
        return Check("torch", "warn", detail, "This CPU has no AVX2; expect slow matrix products.")
    return Check("torch", "ok", detail)


def check_memory() -> Check:
    """There is memory to load a model into."""
    try:
        available = available_bytes()
    except MemoryPlanError:
        return Check("memory", "warn", "unknown", "No /proc/meminfo here; only Linux is supported.")
    detail = f"{bytes_text(available)} available"
    if available < LOW_MEMORY_BYTES:
        fix = "Free some memory, or serve a small model with a small --kv-cache-memory-bytes."
        return Check("memory", "warn", detail, fix)
    return Check("memory", "ok", detail)


def check_extension() -> Check:
    """The compiled kernels are there."""
    try:
        extension = importlib.import_module("octavo._cpu")
    except ImportError as error:
        fix = "Run `pip install .` with a C++ compiler at hand; torch kernels serve until then."
        return Check("octavo._cpu", "warn", str(error), fix)
    isa = getattr(extension, "isa", None)
    return Check("octavo._cpu", "ok", f"isa {isa() if callable(isa) else isa or 'unknown'}")


def check_bundled() -> Check:
    """The model inside the package is there."""
    if BUNDLED_MODEL not in bundled():
        fix = "Reinstall the package; until then name a model folder."
        return Check("bundled model", "warn", f"{BUNDLED_MODEL} is missing", fix)
    return Check("bundled model", "ok", str(bundled()[BUNDLED_MODEL]))


def check_port(port: int) -> Check:
    """The port can be bound."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            fix = "Stop what listens there, or serve with another --port."
            return Check("port", "warn", f"{port}: {error.strerror}", fix)
    return Check("port", "ok", f"{port} is free")


def check_model(name: str) -> Check:
    """The model folder holds what a model needs, and its weight files are whole."""
    try:
        folder = model_folder(name)
    except ModelError as error:
        return Check("model", "fail", error.message, error.fix)
    if is_gguf(folder):
        return _check_gguf(folder)
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        kind = ", ".join(config["architectures"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        fix = f"Fetch {folder}/config.json again."
        return Check("model", "fail", f"config.json: {type(error).__name__}: {error}", fix)
    if not (folder / "tokenizer.json").is_file():
        fix = "Fetch tokenizer.json, or name its folder with --tokenizer."
        return Check("model", "warn", f"{folder} has no tokenizer.json", fix)
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        fix = "Fetch the *.safetensors files, or serve with --load-format dummy."
        return Check("model", "fail", f"{folder} has no *.safetensors", fix)
    broken = next((trouble for file in files if (trouble := _weights_trouble(file))), "")
    if broken:
        return Check("model", "fail", broken, "Fetch the file again.")
    size = sum(file.stat().st_size for file in files)
    return Check("model", "ok", f"{kind}, {bytes_text(size)} in {folder}")


def _check_gguf(file: Path) -> Check:
    """The header of a GGUF file is whole, and so are the tensors that it lists; its architecture is known."""
    try:
        facts = read_facts(file)
        parts = read_parts(file)
    except OperatorError as error:
        return Check("model", "fail", error.message, error.fix)
    size = sum(tensor.num_bytes for part in parts for tensor in part.tensors.values())
    return Check("model", "ok", f"{facts.architecture}, {bytes_text(size)} in {file}")


def _weights_trouble(file: Path) -> str:
    """What is wrong with a safetensors file: its header must describe exactly its bytes."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        head = stream.read(8)
        if len(head) < 8:
            return f"{file.name} is cut short at {size} bytes"
        (length,) = struct.unpack("<Q", head)
        if length > min(size - 8, _MAX_HEADER_BYTES):
            return f"{file.name}: its header claims {length} bytes, the file has {size}"
        try:
            header = json.loads(stream.read(length))
            rows = (row for key, row in header.items() if key != "__metadata__")
            expected = 8 + length + max((row["data_offsets"][1] for row in rows), default=0)
        except (LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
            return f"{file.name}: malformed header ({type(error).__name__})"
    return "" if expected == size else f"{file.name} has {size} bytes; its header says {expected}"
