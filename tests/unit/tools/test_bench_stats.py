import math

import numpy
import pytest

from octavo.tools.bench import stats
from octavo.tools.bench.stats import Record


def record(index=0, sent=0.0, times=(0.1, 0.2, 0.3), **fields) -> Record:
    shape = {"output_tokens": len(times), "asked_tokens": len(times), "prompt_tokens": 4}
    done = times[-1] + 0.01 if times else sent + 0.5
    return Record(
        index=index, due=sent, sent=sent, done=done, chunk_times=tuple(times), **(shape | fields)
    )


def test_metrics_of_one_request():
    one = record(sent=0.05, times=(0.1, 0.2, 0.4), output_tokens=5)
    assert one.ttft == pytest.approx(0.05)
    assert one.tpot == pytest.approx(0.3 / 4)
    assert one.gaps == pytest.approx((0.1, 0.2))
    assert one.e2e == pytest.approx(0.36)


def test_metrics_that_do_not_exist():
    assert record(times=()).ttft is None
    assert record(times=()).tpot is None
    assert record(times=(0.1,)).tpot is None
    assert stats.summary_ms([]) is None
    assert math.isnan(stats.percentile([], 50))


def test_percentile_matches_numpy():
    values = [3.0, 1.0, 4.0, 1.5, 9.0, 2.6, 5.3]
    for percent in (0, 10, 50, 90, 99, 100):
        expected = numpy.percentile(values, percent)
        assert stats.percentile(values, percent) == pytest.approx(expected)


def test_totals_leave_failed_requests_out():
    records = [record(), record(index=1, sent=0.1, times=(), error="boom")]
    total = stats.totals(records)
    assert (total.completed, total.failed) == (1, 1)
    assert total.duration_s == pytest.approx(0.6)
    assert total.output_tokens == 3
    assert total.output_tokens_per_s == pytest.approx(3 / 0.6)
    assert total.peak_concurrency == 2
    assert stats.totals([]).requests_per_s == 0


def test_latencies():
    found = stats.latencies([record(), record(index=1, times=(0.3, 0.5)), record(error="x")])
    assert found["ttft"].count == 2
    assert found["ttft"].mean == pytest.approx(200)
    assert found["itl"].count == 3
    assert found["e2el"].p50 == pytest.approx((310 + 510) / 2)


def test_goodput_counts_those_that_meet_every_objective():
    slow = record(index=1, times=(0.9, 1.0))
    records = [record(), slow, record(index=2, error="boom"), record(index=3, times=())]
    good = stats.goodput(records, {"ttft": 500, "tpot": 150})
    assert good.good == 1
    assert good.share == 0.25
    assert stats.goodput(records, {"ttft": 50}).good == 0
    assert stats.goodput(records, {"e2el": 1005}).good == 1
    assert stats.goodput(records, {"e2el": 1015}).good == 2
