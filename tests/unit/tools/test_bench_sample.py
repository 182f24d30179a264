import json
import math
import random
import statistics

import pytest

from octavo.core.errors import ConfigError
from octavo.tools.bench import sample


def rng() -> random.Random:
    return random.Random(7)


@pytest.mark.parametrize(
    ("text", "low", "high", "mean"),
    [("128", 128, 128, 128), ("fixed:5", 5, 5, 5), ("uniform:10:20", 10, 20, 15)],
)
def test_lengths(text, low, high, mean):
    lengths = sample.parse_lengths(text)
    drawn = [lengths.draw(generator) for generator in [rng()] for _ in range(2000)]
    assert (min(drawn), max(drawn)) == (low, high)
    assert statistics.mean(drawn) == pytest.approx(mean, rel=0.05)


def test_lognormal_has_the_median_and_the_sigma():
    lengths, generator = sample.parse_lengths("lognormal:200:0.5"), rng()
    logs = [math.log(lengths.draw(generator)) for _ in range(4000)]
    assert math.exp(statistics.median(logs)) == pytest.approx(200, rel=0.05)
    assert statistics.stdev(logs) == pytest.approx(0.5, rel=0.05)


@pytest.mark.parametrize(
    "text", ["", "0", "x", "-3", "uniform:9:3", "uniform:3", "lognormal:0:1", "zipf:1:2", "nan"]
)
def test_bad_lengths(text):
    with pytest.raises(ConfigError, match="expected N, uniform"):
        sample.parse_lengths(text)


def test_arrivals():
    constant = sample.arrivals(5, 10, kind="constant", burst=1, rng=rng())
    assert constant == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4])
    groups = sample.arrivals(5, 10, kind="constant", burst=2, rng=rng())
    assert groups == pytest.approx([0.0, 0.0, 0.2, 0.2, 0.4])
    assert sample.arrivals(3, math.inf, kind="poisson", burst=1, rng=rng()) == [0.0] * 3


def test_poisson_arrivals_have_the_rate_and_exponential_gaps():
    times = sample.arrivals(4000, 20, kind="poisson", burst=1, rng=rng())
    gaps = [b - a for a, b in zip(times, times[1:], strict=False)]
    assert statistics.mean(gaps) == pytest.approx(1 / 20, rel=0.05)
    assert statistics.stdev(gaps) == pytest.approx(1 / 20, rel=0.05)
    assert times == sample.arrivals(4000, 20, kind="poisson", burst=1, rng=rng())


def test_random_work_is_seeded_and_does_not_repeat():
    inputs, outputs = sample.parse_lengths("16"), sample.parse_lengths("uniform:1:9")
    works = [
        sample.random_work(inputs, outputs, [0.0] * 50, kind="tokens", rng=rng()) for _ in range(2)
    ]
    assert works[0] == works[1]
    assert all(len(work.prompt) == 16 for work in works[0])
    assert sample.repeated_share([work.prompt for work in works[0]]) == 0
    words = sample.random_work(inputs, outputs, [0.0], kind="words", rng=rng())
    assert len(words[0].prompt.split()) == 16


def test_repeated_share():
    assert sample.repeated_share(["a", "b", "a", "a"]) == 0.5
    assert sample.repeated_share([]) == 0


def trace(tmp_path, *rows: object) -> str:
    path = tmp_path / "trace.jsonl"
    path.write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in rows))
    return str(path)


def test_trace(tmp_path):
    path = trace(
        tmp_path,
        {"timestamp": 12.5, "prompt_len": 3, "output_len": 4},
        {"timestamp": 12.0, "prompt": "hi", "output_len": 2},
    )
    work, is_timed = sample.read_trace(path, kind="tokens", rng=rng())
    assert is_timed
    assert work[0] == sample.Work("hi", 2, 0.0)
    assert (len(work[1].prompt), work[1].output_len, work[1].at) == (3, 4, 0.5)


def test_trace_without_timestamps(tmp_path):
    path = trace(tmp_path, {"prompt_len": 3, "output_len": 4}, "")
    work, is_timed = sample.read_trace(path, kind="words", rng=rng())
    assert not is_timed
    assert len(work) == 1


@pytest.mark.parametrize(
    "rows",
    [
        [],
        ["{"],
        [{"output_len": 3}],
        [{"output_len": 0, "prompt_len": 1}],
        [{"output_len": 1, "prompt": "a", "prompt_len": 1}],
        [{"output_len": 1, "prompt": ""}],
        [{"output_len": 1, "prompt_len": 0}],
        [{"output_len": 1, "prompt": "a", "time": 1}],
        [{"output_len": 1, "prompt": "a", "timestamp": 1}, {"output_len": 1, "prompt": "a"}],
    ],
)
def test_bad_traces(tmp_path, rows):
    with pytest.raises(ConfigError, match="--trace"):
        sample.read_trace(trace(tmp_path, *rows), kind="tokens", rng=rng())
