"""`chat` and `generate`: the session alone, and both verbs against a fake server."""

import io

import pytest

from octavo.core.errors import ConfigError
from octavo.tools import cli
from octavo.tools.backend import Answer
from octavo.tools.session import Session


def answer(text="hi", tokens=5, reason="stop", cached=0) -> Answer:
    return Answer(text, tokens, 10, cached, 0.02, 0.1, reason)


def test_answer_line():
    assert answer().line() == "5 tokens, 40.0 tok/s, TTFT 20 ms"
    assert answer(reason="length").line().endswith("cut at max_tokens")
    assert "7 of 10 prompt tokens cached" in answer(cached=7).line()
    assert "tok/s" not in answer(tokens=1).line()


def test_history():
    session = Session({}, "be brief")
    session.say("one")
    session.hear(answer("two"))
    session.say("three")
    assert [m["role"] for m in session.messages] == ["system", "user", "assistant", "user"]
    session.hear_part("")
    assert [m["content"] for m in session.messages] == ["be brief", "one", "two"]
    session.say("four")
    session.hear_part("fi")
    assert session.messages[-1] == {"role": "assistant", "content": "fi"}


def test_commands():
    session = Session({})
    session.say("x")
    assert "/reset" in session.command("/help")
    assert session.command("/set temperature 0.5") == "temperature = 0.5"
    assert session.command("/set top_k=3") == "top_k = 3"
    assert session.settings == {"temperature": 0.5, "top_k": 3}
    assert session.command("/set") == "temperature=0.5, top_k=3"
    session.command("/set top_k")
    assert session.settings == {"temperature": 0.5}
    session.command("/system be kind")
    assert session.messages == [{"role": "system", "content": "be kind"}]
    session.say("x")
    session.command("/reset")
    session.command("/system")
    assert session.messages == []
    assert session.command("/stats") == "No answer yet."
    session.say("x")
    session.hear(answer())
    assert "5 tokens in all, 50.0 tok/s" in session.command("/stats")
    session.command("/exit")
    assert session.is_over


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/rest", "Did you mean '/reset'?"),
        ("/set temprature 1", "Did you mean 'temperature'?"),
        ("/set temprature", "Did you mean 'temperature'?"),
        ("/set temperature hot", "temperature is 'hot'; expected a number."),
        ("/set temperature -1", "temperature is -1.0; expected a number in"),
        ("/set top_k 1.5", "top_k is '1.5'; expected an integer."),
    ],
)
def test_bad_commands(line, message):
    with pytest.raises(ConfigError) as caught:
        Session({}).command(line)
    assert message in caught.value.message


@pytest.fixture
def typing(monkeypatch):
    """Lines (or exceptions) that `input()` gives, then the end of the input."""

    def use(*lines):
        left = list(lines)

        def read(prompt=""):
            if not left:
                raise EOFError
            line = left.pop(0)
            if isinstance(line, BaseException):
                raise line
            return line

        monkeypatch.setattr("builtins.input", read)

    return use


def test_chat(fake, typing, capsys):
    typing("hello", KeyboardInterrupt(), "/set max_tokens 2", "", "again", "/stats", "/exit", "no")
    assert cli.main(["chat", "--url", fake.url, "--system", "short", "--max-tokens", "3"]) == 0
    out = capsys.readouterr().out
    assert "Talking with fake" in out
    assert "w0 w1 w2 \n[3 tokens" in out
    assert "Ctrl-D or /exit" in out
    assert "5 tokens in all" in out
    assert len(fake.bodies) == 2
    assert fake.bodies[1]["max_tokens"] == 2
    assert [m["content"] for m in fake.bodies[1]["messages"]] == [
        "short",
        "hello",
        "w0 w1 w2 ",
        "again",
    ]


def test_chat_goes_on_after_an_error(fake, typing, capsys):
    fake.fail_every = 2
    typing("one", "two", "three")
    assert cli.main(["chat", "--url", fake.url]) == 0
    assert "oops: boom" in capsys.readouterr().out
    assert [m["content"] for m in fake.bodies[2]["messages"]][::2] == ["one", "three"]


def test_interrupt_stops_the_answer_only(fake, typing, capsys, monkeypatch):
    real, calls = cli_chat_run(), []

    def interrupted(self, work):
        calls.append(work)
        if len(calls) == 1:
            work.close()
            raise KeyboardInterrupt
        return real(self, work)

    monkeypatch.setattr("octavo.tools.background.LoopThread.run", interrupted)
    typing("one", "two")
    assert cli.main(["chat", "--url", fake.url]) == 0
    out = capsys.readouterr().out
    assert "[stopped]" in out
    assert [m["content"] for m in fake.bodies[0]["messages"]] == ["two"]


def cli_chat_run():
    from octavo.tools.background import LoopThread

    return LoopThread.run


def test_generate(fake, capsys):
    words = ["--prompt", "abc", "--max-tokens", "3", "--temperature", "0", "--echo"]
    assert cli.main(["generate", "--url", fake.url, *words, "--stop", "x", "y", "--seed", "4"]) == 0
    assert capsys.readouterr().out == "abcw0 w1 w2 \n"
    body = fake.bodies[0]
    assert (body["prompt"], body["temperature"], body["seed"]) == ("abc", 0.0, 4)
    assert body["stop"] == ["x", "y"]


def test_generate_reads_standard_input(fake, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("from a pipe"))
    assert cli.main(["complete", "served-name", "--url", fake.url]) == 0
    assert fake.bodies[0]["prompt"] == "from a pipe"
    assert fake.bodies[0]["model"] == "served-name"
    assert fake.bodies[0]["max_tokens"] == 128


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--prompt", ""], "the prompt is empty"),
        (["--prompt", "x", "--top-p", "2"], "top_p is 2.0; expected a number in (0, 1]"),
        (["--prompt", "x", "--max-num-seqs", "3"], "--max-num-seqs says how to start an engine"),
        (["--prompt", "x", "--config", "a.yaml"], "--config says how to start an engine"),
    ],
)
def test_bad_generate(fake, capsys, words, message):
    assert cli.main(["generate", "--url", fake.url, *words]) == 2
    assert message in capsys.readouterr().err


def test_a_url_without_its_scheme(fake, capsys):
    url = fake.url.removeprefix("http://")
    assert cli.main(["generate", "--url", url, "--prompt", "x", "--max-tokens", "2"]) == 0
    assert capsys.readouterr().out == "w0 w1 \n"


def test_stream_that_is_cut_off(fake, capsys):
    fake.cut_off = True
    assert cli.main(["generate", "--url", fake.url, "--prompt", "x"]) == 2
    assert "E-URL-03" in capsys.readouterr().err
