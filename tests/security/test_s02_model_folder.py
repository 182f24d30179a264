"""S2, code from a model folder: a booby-trapped folder is loaded and served, and nothing of it runs."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from local_engine import write_tiny
from octavo.core.assets import bundled
from octavo.core.config import BUNDLED_MODEL
from octavo.core.errors import OctavoError
from octavo.text.chat import ChatTemplate
from octavo.text.render_worker import UntrustedRenderer
from octavo.text.template_env import RenderLimits

TRAPS = (
    "modeling_trap.py",
    "configuration_trap.py",
    "tokenization_trap.py",
    "__init__.py",
    "sitecustomize.py",
    "conftest.py",
    "octavo.py",
    "torch.py",
    "tokenizers.py",
    "model.py",
)
# Every Python process of the run writes what it opens, starts and connects to.
_HOOK = """
import os, sys
_log = open(os.environ["AUDIT_LOG"], "a", buffering=1)
def _hook(event, args):
    if event == "open" and isinstance(args[0], str):
        mode = args[1] or ""
        flags = args[2] if isinstance(args[2], int) else 0
        writes = any(c in mode for c in "wax+") or flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        _log.write(f"{'write' if writes else 'read'} {args[0]}\\n")
    elif event == "subprocess.Popen":
        _log.write(f"start {' '.join(map(str, args[1]))}\\n")
    elif event in ("os.system", "os.exec", "pickle.find_class", "os.posix_spawn", "ctypes.dlopen"):
        _log.write(f"{event} {args!r}\\n")
    elif event == "socket.connect" and isinstance(args[1], tuple):
        _log.write(f"connect {args[1]!r}\\n")
sys.addaudithook(_hook)
"""
_RUN = """
import sys
from octavo import LLM, SamplingParams
folder = sys.argv[1]
with LLM(model=folder, load_format="dummy", threads=1, kv_cache_memory_bytes=1 << 22, max_model_len=64) as llm:
    params = SamplingParams(max_tokens=2)
    print(len(llm.generate(["a"], params)[0].outputs[0].token_ids))
    try:
        print(len(llm.chat([{"role": "user", "content": "a"}], params)[0].outputs[0].token_ids))
    except Exception as error:
        print(type(error).__name__, error)
"""
SUBCLASSES = "{{ ''.__class__.__mro__[1].__subclasses__() }}"


class Bomb:
    def __init__(self, marker: Path) -> None:
        self._marker = str(marker)

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (self._marker,)


def trapped(folder: Path, marker: Path) -> Path:
    """A model folder with everything in it that has run code somewhere."""
    trap = f"import os\nos.makedirs({str(marker)!r}, exist_ok=True)\nclass Trap: pass\n"
    auto_map = {
        name: f"modeling_trap.{name}"
        for name in ("AutoConfig", "AutoModel", "AutoModelForCausalLM", "AutoTokenizer")
    }
    tokenizer = {"AutoTokenizer": ["tokenization_trap.Trap", "tokenization_trap.Trap"]}
    write_tiny(
        folder,
        auto_map=auto_map,
        custom_pipelines={"t": {"impl": "modeling_trap.Trap"}},
        vocab_size=8192,
    )
    for name in TRAPS:
        (folder / name).write_text(trap)
    for name in ("pytorch_model.bin", "model.pt", "training_args.bin", "tokenizer.pkl"):
        (folder / name).write_bytes(pickle.dumps(Bomb(marker)))
    shutil.copy(bundled()[BUNDLED_MODEL] / "tokenizer.json", folder)
    config = {
        "auto_map": tokenizer,
        "tokenizer_class": "Trap",
        "chat_template": SUBCLASSES + "{{ messages[0].content }}",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text(
        json.dumps({"custom_generate": "custom_generate/generate.py", "trust_remote_code": True})
    )
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate" / "generate.py").write_text(trap)
    return folder


def test_a_trapped_folder_is_served_and_nothing_of_it_runs(tmp_path: Path) -> None:
    marker, log, home = tmp_path / "marker", tmp_path / "audit", tmp_path / "home"
    folder = trapped(tmp_path / "model", marker)
    home.mkdir()
    (tmp_path / "hook").mkdir()
    (tmp_path / "hook" / "sitecustomize.py").write_text(_HOOK)
    env = os.environ | {
        "PYTHONPATH": str(tmp_path / "hook"),
        "AUDIT_LOG": str(log),
        "HOME": str(home),
        "TMPDIR": str(home),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", _RUN, str(folder)],
        capture_output=True,
        text=True,
        env=env,
        cwd=home,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[0] == "2", "it generates"
    assert not marker.exists()
    events = log.read_text().splitlines()
    inside = [line for line in events if str(folder) in line]
    assert any(line.endswith("config.json") for line in inside), "the hook saw the loading"
    wrong = [
        line
        for line in inside
        if line.startswith("write") or not line.endswith((".json", ".jinja", ".safetensors"))
    ]
    assert not [line for line in wrong if not line.startswith("start")], wrong
    wrong = [
        line
        for line in events
        if line.startswith(("connect", "os.system", "os.exec", "os.posix_spawn", "pickle"))
        or (line.startswith("start") and "octavo." not in line)
        or (
            line.startswith("write")
            and not line[6:].startswith((str(home), "/dev/", "/proc/", str(log)))
        )
    ]
    assert not wrong


TEMPLATES = (
    SUBCLASSES,
    "{{ ().__class__.__base__.__subclasses__() }}",
    "{{ cycler.__init__.__globals__.os.mkdir('MARKER') }}",
    "{{ lipsum.__globals__['os'].mkdir('MARKER') }}",
    "{{ self.__init__.__globals__.__builtins__.__import__('os').mkdir('MARKER') }}",
    "{{ messages.__class__.__init__.__globals__ }}",
    "{{ raise_exception.__globals__['__builtins__']['__import__']('os').mkdir('MARKER') }}",
    "{{ strftime_now.__globals__ }}",
    "{{ ''|attr('__class__')|attr('__mro__') }}",
    "{{ ''|attr('\\x5f\\x5fclass\\x5f\\x5f') }}",
    "{{ '%s'.__mod__.__self__.__class__ }}",
    "{{ '{0.__class__.__mro__}'.format('') }}",
    "{{ '{0.__class__}'.format_map({'0': ''}) }}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}{{ os.mkdir('MARKER') }}",
    "{% extends '/etc/passwd' %}",
    "{{ namespace.__init__.__globals__ }}",
    "{{ get_flashed_messages.__globals__ }}",
    "{{ messages.append.__self__.__class__.__mro__ }}",
    "{{ joiner.__init__.__globals__.os }}",
    "{{ dict.__base__.__subclasses__() }}",
    "{{ (messages|map(attribute='__class__')|list) }}",
    "{{ [1]|map('attr', '__class__')|list }}",
    "{{ messages|groupby('__class__') }}",
    "{{ messages|sort(attribute='__class__.__mro__') }}",
)
ENDLESS = (
    "{% for i in range(10**9) %}{% endfor %}",
    "{% for i in range(99999) %}{% for j in range(99999) %}x{% endfor %}{% endfor %}",
    "{{ 'a' * 10**10 }}",
    "{{ 9 ** (9**9) }}",
    "{{ 'a'|center(10**10) }}",
    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "{{ [0] * 10**10 }}",
    "{% set ns = namespace(x='aaaaaaaa') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}{{ ns.x }}",
)
MESSAGES = [{"role": "user", "content": "hello"}]


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_template_reaches_nothing_but_its_messages(template: str, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    source = template.replace("MARKER", str(marker))
    try:
        text = ChatTemplate(source).render(MESSAGES, add_generation_prompt=True)
    except OctavoError:
        text = ""
    assert not marker.exists()
    for word in ("<class", "<built-in", "<function", "<module", "root:", "subclasses"):
        assert word not in text


@pytest.mark.parametrize("template", ENDLESS)
def test_a_template_has_an_end(template: str) -> None:
    limits = RenderLimits(timeout_s=0.5)
    if "center" not in template:  # a filter's own size is bounded by its process, not by the clock
        with pytest.raises(OctavoError):
            ChatTemplate(template, limits=limits).render(MESSAGES, add_generation_prompt=True)
    with pytest.raises(OctavoError):
        UntrustedRenderer(limits=limits).render(template, {}, MESSAGES, add_generation_prompt=True)


def test_guards_hold_when_assertions_are_off() -> None:
    """Under `python -O`, where an `assert` is nothing: hostile bodies, folders, frames and keys are refused all the same."""
    root = Path(__file__).parents[2]
    tests = ("unit/server/test_hostile.py", "unit/engine/test_ipc.py", "unit/models/test_facts.py")
    code = "import sys, pytest; sys.exit(pytest.main(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-O", "-c", code, "-q", "-p", "no:cacheprovider", "-W", "ignore",
         *(f"tests/{name}" for name in tests)],
        capture_output=True, text=True, cwd=root, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:]
