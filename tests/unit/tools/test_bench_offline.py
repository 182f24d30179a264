"""The two offline benchmarks over fakes: no model, no engine process."""

import argparse
import asyncio
import json

import pytest

from octavo.core.config import EngineConfig
from octavo.core.errors import ConfigError, EngineError, ErrorInfo
from octavo.core.result import Failed, Finished, RequestTiming, TokenOut
from octavo.engine.ipc import Ready
from octavo.tools.bench import latency, offline, throughput

ARGS = argparse.Namespace(input_len=8, output_len=4, batch=[2], repeats=3, num_prompts=5)


def ready(**fields) -> Ready:
    values = {
        "model": "m",
        "max_model_len": 64,
        "vocab_size": 4096,
        "device": "cpu",
        "dtype": "float32",
        "max_num_seqs": 4,
        "max_num_batched_tokens": 64,
        "num_blocks": 8,
        "block_size": 16,
        "kv_tokens": 112,
        "memory": (("weights", 1),),
        "decisions": (),
        "phases": (),
        "pid": 1,
    }
    return Ready(**(values | fields))


class Side:
    """Generates zeros and remembers what it was asked."""

    def __init__(self, token=0, missing=0):
        self.calls: list[list[list[int]]] = []
        self._token, self._missing = token, missing

    def __call__(self, prompts, output_len):
        self.calls.append(prompts)
        return [[self._token] * (output_len - self._missing) for _ in prompts]


def test_both_sides_get_the_same_prompts_in_the_same_batches():
    own, peer = Side(), Side()
    row = throughput.measure({"octavo": own, "transformers": peer}, 2, ARGS)
    assert own.calls == peer.calls
    assert [len(prompts) for prompts in own.calls] == [2, 2, 1] * 4
    assert len(row.seconds["octavo"]) == len(row.seconds["transformers"]) == 3
    assert row.output_tokens == 20
    assert row.same_outputs == 1.0
    assert row.ratio() > 0
    flat = [tuple(prompt) for prompts in own.calls for prompt in prompts]
    assert len(set(flat)) == len(flat), "no prompt repeats, so no cache helps"


def test_order_alternates():
    order = []
    sides = {name: lambda p, n, name=name: order.append(name) or [[0] * n] for name in "ab"}
    args = argparse.Namespace(**{**vars(ARGS), "num_prompts": None})
    throughput.measure(sides, 1, args)
    assert "".join(order) == "baabbaab"


def test_ratio_and_text():
    row = throughput.Row(
        batch=2,
        seconds={"octavo": [1.0, 2.0, 1.0], "transformers": [2.0, 2.0, 4.0]},
        output_tokens=10,
        same_outputs=0.5,
    )
    assert row.ratio() == 2.0
    text = throughput.to_text([row])
    assert "octavo" in text
    assert "50%" in text
    alone = throughput.Row(batch=1, seconds={"octavo": [1.0]}, output_tokens=1, same_outputs=None)
    assert alone.ratio() is None
    assert throughput.to_text([alone])


def test_short_outputs_are_an_error():
    with pytest.raises(EngineError, match="gave 3 tokens where 4 were asked"):
        throughput.measure({"octavo": Side(missing=1)}, 2, ARGS)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"max_model_len": 11}, "exceed the context of 11"),
        ({"max_num_seqs": 1}, "--batch 2 exceeds --max-num-seqs 1"),
        ({"vocab_size": 500}, "vocabulary of 500"),
    ],
)
def test_what_cannot_be_run(fields, message):
    offline.check_room(ready(), ARGS)
    with pytest.raises(ConfigError, match=message):
        offline.check_room(ready(**fields), ARGS)


class FakeClient:
    """Streams one token at a time; `fail` ends with an error instead."""

    def __init__(self, fail=False):
        self.requests = []
        self.fail = fail
        self.ready = ready()

    async def generate(self, request):
        self.requests.append(request)
        if self.fail:
            yield Failed(id=request.id, error=ErrorInfo(code="x", message="no", status=500))
            return
        for _ in range(request.max_tokens):
            await asyncio.sleep(0)
            yield TokenOut(id=request.id, token_ids=(1,))
        timing = RequestTiming(arrived=0, admitted=0, first_token=0, last_token=0)
        yield Finished(
            id=request.id,
            reason="length",
            stop_token=None,
            num_prompt=8,
            num_output=4,
            num_cached=0,
            num_preemptions=0,
            timing=timing,
        )


def test_latency_leaves_the_first_round_out():
    client = FakeClient()
    row = asyncio.run(latency.measure(client, 2, ARGS))
    assert len(client.requests) == 2 * 4
    assert len({request.id for request in client.requests}) == 8
    assert all(request.params.ignore_eos for request in client.requests)
    assert row.latencies_ms["ttft"].count == 6
    assert row.latencies_ms["itl"].count == 18
    assert "per token" in latency.to_text([row])


def test_latency_stops_at_an_error():
    with pytest.raises(EngineError, match="no"):
        asyncio.run(latency.measure(FakeClient(fail=True), 1, ARGS))


def test_json_names_the_machine_and_the_engine():
    text = offline.to_json("octavo bench latency", EngineConfig(), ready(), [1])
    data = json.loads(text)
    assert data["engine"]["dtype"] == "float32"
    assert data["environment"]["cores"]
    assert data["results"] == [1]
