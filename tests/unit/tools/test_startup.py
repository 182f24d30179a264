"""What `serve` prints: sums that add up, lines that work as printed."""

import asyncio
import json
import shlex
import subprocess
import sys

import msgspec
import pytest

from octavo.core.errors import EngineDeadError, ModelError
from octavo.core.pooling import PoolingFacts
from octavo.core.result import EngineStats
from octavo.engine.ipc import Phase, Ready
from octavo.tools import serve, startup
from octavo.tools.startup import Address

READY = Ready(
    model="m",
    max_model_len=2048,
    vocab_size=4096,
    device="cpu",
    dtype="float32",
    max_num_seqs=128,
    max_num_batched_tokens=512,
    num_blocks=9,
    block_size=16,
    kv_tokens=128,
    memory=(("weights", 3 << 20), ("kv cache", 1 << 30)),
    decisions=(("device", "cpu", "what there is"),),
    phases=(Phase(name="weights", seconds=0.25, detail="3 MiB"),),
    pid=1,
)
ADDRESS = Address("127.0.0.1", 8000, "m", needs_key=False)


def test_process_age_grows():
    first = startup.process_age_s()
    assert 0 < first <= startup.process_age_s() < 24 * 3600


def test_memory_is_a_sum():
    text = startup.memory_text(READY)
    assert "weights    3.0 MiB    0.3 %" in text
    assert "available  1.0 GiB  100.0 %" in text


def test_timeline_shows_what_it_cannot_explain():
    before = [Phase(name="python", seconds=0.5)]
    text = startup.timeline_text(1.0, before, READY.phases)
    lines = {line.split("  ")[0]: line for line in text.splitlines()}
    assert "250.0 ms" in lines["unexplained"]
    assert "25.0 %" in lines["unexplained"]
    assert "1.00 s" in lines["process start to ready"]


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:8000"),
        ("0.0.0.0", "http://127.0.0.1:8000"),
        ("::", "http://[::1]:8000"),
        ("::1", "http://[::1]:8000"),
        ("example.org", "http://example.org:8000"),
    ],
)
def test_url_works_from_here(host, url):
    assert Address(host, 8000, "m", needs_key=False).url == url


def lines(address: Address, *, has_openai: bool) -> dict[str, str]:
    text = startup.ready_text(READY, address, has_openai=has_openai)
    return {row.split()[0]: row.split(None, 1)[1] for row in text.splitlines()[1:]}


def test_curl_line():
    address = ADDRESS._replace(model="it's a model", needs_key=True)
    words = shlex.split(lines(address, has_openai=True)["curl"])
    assert words[2] == "http://127.0.0.1:8000/v1/completions"
    assert "Authorization: Bearer $OCTAVO_API_KEY" in words
    assert json.loads(words[words.index("-d") + 1])["model"] == "it's a model"
    assert "Authorization" not in lines(ADDRESS, has_openai=True)["curl"]


@pytest.mark.parametrize("has_openai", [True, False])
def test_of_several_keys_the_lines_send_one(has_openai):
    address = ADDRESS._replace(needs_key=True, has_keys=True)
    printed = lines(address, has_openai=has_openai)
    assert "Bearer ${OCTAVO_API_KEY%%,*}" in printed["curl"]
    assert 'os.environ["OCTAVO_API_KEY"].split(",")[0]' in printed["Python"]


@pytest.mark.parametrize("has_openai", [True, False])
@pytest.mark.parametrize("needs_key", [True, False])
def test_python_line_works_as_printed(fake, has_openai, needs_key):
    host, port = fake.url.removeprefix("http://").split(":")
    address = Address(host, int(port), "it's a model", needs_key=needs_key)
    command = lines(address, has_openai=has_openai)["Python"]
    environment = {"OCTAVO_API_KEY": "key", "PATH": "/usr/bin:/bin"}
    # The fake always streams, so only the request can be judged here; e2e tests judge the answer.
    subprocess.run(["sh", "-c", command], capture_output=True, timeout=60, env=environment)
    assert fake.bodies[0]["model"] == "it's a model"
    assert fake.bodies[0]["prompt"] == startup.PROMPT
    assert sys.executable in command


@pytest.mark.parametrize(
    ("tasks", "path", "shown"),
    [
        (("embed", "token_embed"), "/v1/embeddings", "embedding[:4]"),
        (("classify", "score"), "/score", '["score"]'),
        (("classify",), "/classify", '["label"]'),
    ],
)
def test_a_pooling_model_is_shown_with_what_it_answers(tasks, path, shown):
    facts = PoolingFacts(tasks=tasks, num_features=2)
    ready = msgspec.structs.replace(READY, pooling=facts, num_blocks=0)
    address = Address(host="127.0.0.1", port=80, model="m", needs_key=False)
    text = startup.ready_text(ready, address, has_openai=True)
    assert f"http://127.0.0.1:80{path} " in text and shown in text and "no KV cache" in text


def test_announcing(capsys):
    async def start() -> Ready:
        return READY

    asyncio.run(serve.announcing(start, ADDRESS, entered=0.1, launched=0.2)())
    out = capsys.readouterr().out
    for part in (
        "kv cache",
        "what there is",
        "\nlaunch",
        "unexplained",
        "ready: m on cpu",
        "curl -s",
    ):
        assert part in out


def test_announcing_of_an_engine_that_was_started_first(capsys):
    async def start() -> Ready:
        return READY

    asyncio.run(serve.announcing(start, ADDRESS, entered=0.1, launched=0.1)())
    out = capsys.readouterr().out
    assert "python" in out and "\nlaunch" not in out


def test_the_vocabulary_waits_for_a_pause():
    """A first request that comes at once is not kept waiting for it."""
    told = []

    class Client:
        seen = iter(
            [
                EngineStats(),
                EngineStats(num_waiting=1),
                EngineStats(num_running=1),
                EngineStats(num_steps=3),
                EngineStats(num_steps=3),
            ]
        )

        @property
        def stats(self) -> EngineStats:
            return next(self.seen)

    class Frontend:
        async def prepare_grammars(self) -> None:
            told.append(next(Client.seen, None))
            raise EngineDeadError("it has ended meanwhile.")

    asyncio.run(serve.learn_when_quiet(Client(), Frontend(), 0.0))
    assert told == [None], "not at the first moment without a step"


def test_announcing_passes_the_cause_on(capsys):
    async def start() -> Ready:
        raise ModelError("no weights.")

    with pytest.raises(ModelError):
        asyncio.run(serve.announcing(start, ADDRESS, entered=0.1, launched=0.2)())
    assert capsys.readouterr().out == ""
