"""Metrics as a server exposes them, read back: values, sums over labels, quantiles of histograms. Pure."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping

from prometheus_client.parser import text_string_to_metric_families

from octavo.core.errors import ConfigError

Labels = tuple[tuple[str, str], ...]


class Samples:
    """One reading, or the change between two."""

    def __init__(self, values: Mapping[tuple[str, Labels], float]) -> None:
        self._values = dict(values)
        self._sums: dict[str, float] = defaultdict(float)
        for (name, _), value in self._values.items():
            self._sums[name] += value

    @staticmethod
    def parse(text: str) -> Samples:
        """Prometheus text.

        Raises:
            ConfigError: it is something else.
        """
        try:
            return Samples(
                {
                    (sample.name, tuple(sorted(sample.labels.items()))): sample.value
                    for family in text_string_to_metric_families(text)
                    for sample in family.samples
                }
            )
        except (ValueError, KeyError, IndexError) as error:
            raise ConfigError(
                f"/metrics is no Prometheus text: {error}.",
                code="E-NET-03",
                fix="Is it a server of Octavo?",
            ) from error

    def since(self, earlier: Samples) -> Samples:
        """What was added since an earlier reading; gauges stay as they are now.

        A counter below its earlier value began anew.
        """
        changed = {}
        for key, value in self._values.items():
            is_count = key[0].endswith(("_total", "_count", "_sum", "_bucket"))
            before = earlier._values.get(key, 0.0)
            changed[key] = value - before if is_count and value >= before else value
        return Samples(changed)

    def has(self, name: str) -> bool:
        """Whether there is any series of that name."""
        return name in self._sums

    def total(self, name: str, **labels: str) -> float:
        """Sum of a metric's series with these labels; 0 without any."""
        if not labels:
            return self._sums.get(name, 0.0)
        wanted = set(labels.items())
        return sum(
            value
            for (each, has), value in self._values.items()
            if each == name and wanted <= set(has)
        )

    def quantile(self, name: str, share: float) -> float | None:
        """The bound under which `share` of a histogram's observations lie, a line drawn within its bucket; None if empty.

        What lies beyond the last bound counts as that bound.
        """
        buckets: dict[float, float] = defaultdict(float)
        for (each, labels), value in self._values.items():
            if each == f"{name}_bucket":
                buckets[float(dict(labels)["le"])] += value
        bounds = sorted(buckets)
        if not bounds or not buckets[bounds[-1]]:
            return None
        wanted, below, low = share * buckets[bounds[-1]], 0.0, 0.0
        for bound in bounds:
            if buckets[bound] >= wanted and buckets[bound] > below:
                if math.isinf(bound):
                    return low
                return low + (bound - low) * (wanted - below) / (buckets[bound] - below)
            below, low = buckets[bound], bound
        return low
