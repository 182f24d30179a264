import json
import os
import resource
import subprocess
import sys
import types

import pytest

from octavo.core.errors import ModelError
from octavo.engine import spawn
from octavo.tools import cli


def run(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "octavo.tools.cli", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_help_names_every_verb_and_loads_nothing_heavy():
    script = (
        "import sys, json; from octavo.tools import cli; cli.main(['--help']);"
        "print(json.dumps(sorted(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    text, _, modules = result.stdout.rstrip().rpartition("\n")
    assert all(name in text for name in cli.VERBS)
    heavy = {"torch", "msgspec", "aiohttp", "yaml", "rich", "argparse", "asyncio", "tokenizers"}
    assert not heavy & set(json.loads(modules))


def test_the_package_runs_as_a_module():
    command = [sys.executable, "-m", "octavo"]
    for words in (["--help"], ["--version"], ["nonsense"]):
        done = subprocess.run([*command, *words], capture_output=True, text=True, timeout=60)
        same = run(*words)
        assert (done.returncode, done.stdout, done.stderr) == (
            same.returncode,
            same.stdout,
            same.stderr,
        )


def test_help_is_instant():
    def cpu_s() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert run("--help").returncode == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert min(cpu_s() for _ in range(3)) < 0.1


@pytest.mark.parametrize("verb", cli.VERBS)
def test_every_verb_has_help_without_torch(verb, capsys):
    assert cli.main([*verb.split(), "--help"]) == 0
    out = capsys.readouterr().out
    assert f"usage: octavo {verb}" in out
    assert cli.VERBS[verb].help[:20] in out


def test_serve_help_does_not_load_torch():
    script = (
        "import sys; from octavo.tools import cli\n"
        "for verb in cli.VERBS: cli.main([*verb.split(), '--help'])\n"
        "assert not {'torch', 'transformers', 'aiohttp', 'rich'} & set(sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_version_and_verb_groups(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("octavo ")
    assert cli.main(["bench"]) == 0
    assert "{throughput,latency,serve,sweep}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["serv"], "unknown verb 'serv'"),
        (["serv"], "Did you mean 'serve'?"),
        (["bench", "latncy"], "Did you mean 'latency'?"),
        (["serve", "--max-num-seq", "3"], "Did you mean '--max-num-seqs'?"),
        (["serve", "--max-num-seqs"], "expected one argument"),
        (["serve", "--max-num-seqs", "0"], "--max-num-seqs is '0'; expected an integer >= 1"),
        (["complete", "--tempratur", "1"], "Did you mean '--temperature'?"),
        (["bench", "serve", "--num-prompts", "0"], "expected an integer from 1 to"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(words, expected, capsys):
    assert cli.main(words) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith("E-CFG-0")
    assert expected in line


@pytest.fixture
def verb(monkeypatch):
    """A verb whose `run` does what the test says."""
    module = types.SimpleNamespace(add_arguments=lambda parser: None, run=lambda args: 0)
    monkeypatch.setitem(sys.modules, "fake_verb", module)
    monkeypatch.setitem(cli.VERBS, "fake", cli.Verb("fake_verb", "Fake."))
    return module


def test_error_is_the_last_line(verb, capsys):
    def run(args):
        print("loading")
        raise ModelError("no model 'x'.", code="E-MODEL-01", fix="Give a folder.")

    verb.run = run
    assert cli.main(["fake"]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == "E-MODEL-01: no model 'x'. Give a folder."


def test_interrupt_is_quiet(verb, capsys):
    def run(args):
        raise KeyboardInterrupt

    verb.run = run
    assert cli.main(["fake"]) == 130
    assert capsys.readouterr().err == ""


def test_exit_code_of_the_verb(verb):
    verb.run = lambda args: 1
    assert cli.main(["fake"]) == 1


class Begun:
    """What stands for an engine's process that was started before the flags were read."""

    def __init__(self):
        self.is_taken = self.is_abandoned = False
        self.all.append(self)

    def abandon(self):
        self.is_abandoned = True


@pytest.fixture
def begun(verb, monkeypatch):
    """A verb with an engine, and the processes that were started for it."""
    monkeypatch.setattr(Begun, "all", [], raising=False)
    monkeypatch.setattr(spawn, "Spawned", Begun)
    monkeypatch.setitem(cli.VERBS, "fake", cli.Verb("fake_verb", "Fake.", has_engine=True))
    return Begun.all


def test_an_engine_is_started_before_flags_are_read(verb, begun):
    seen = []

    def add_arguments(parser):
        seen.append(len(begun))

    def take(args, spawned):
        spawned.is_taken = True
        return 0

    verb.add_arguments, verb.run = add_arguments, take
    assert cli.main(["fake"]) == 0
    assert seen == [1] and not begun[0].is_abandoned
    assert cli.main(["fake", "--help"]) == 0 and len(begun) == 1


def test_an_engine_that_nobody_wants_ends(verb, begun):
    def fail(args, spawned):
        raise ModelError("no model 'x'.")

    verb.run = fail
    assert cli.main(["fake"]) == 2
    assert cli.main(["fake", "--unknown"]) == 2
    assert [one.is_abandoned for one in begun] == [True, True]


def test_no_process_to_start_ahead_is_for_the_verb_to_say(verb, begun, monkeypatch):
    def no_room():
        raise OSError("no room")

    monkeypatch.setattr(spawn, "Spawned", no_room)
    verb.run = lambda args, spawned: 7 if spawned is None else 0
    assert cli.main(["fake"]) == 7


def test_a_refused_flag_leaves_nothing_behind(tmp_path):
    script = (
        "import os, sys; from octavo.tools import cli; code = cli.main(['serve', '--max-num-seqs', '0'])\n"
        "try: os.waitpid(-1, os.WNOHANG); sys.exit('a child is left')\n"
        "except ChildProcessError: sys.exit(code)"
    )
    result = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        env=os.environ | {"TMPDIR": str(tmp_path)},
    )
    assert result.returncode == 2 and result.stderr.count("\n") == 1, result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("flags", ["-u", ""])
@pytest.mark.parametrize("words", ["bench serve --help", "--help", "bench"])
def test_closed_pipe_is_quiet(flags, words):
    command = f"{sys.executable} {flags} -m octavo.tools.cli {words} | true"
    result = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=60)
    assert result.stderr == ""


def test_interrupt_is_quiet_from_the_first_import_on(monkeypatch, capsys):
    def interrupt(words):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_run", interrupt)
    assert cli.main(["serve"]) == 130
    assert capsys.readouterr().err == ""


def test_a_pipe_broken_elsewhere_is_not_hidden(verb):
    def run(args):
        raise BrokenPipeError("the engine's socket")

    verb.run = run
    with pytest.raises(BrokenPipeError):
        cli.main(["fake"])
