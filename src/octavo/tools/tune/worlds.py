"""What is simulated: this machine as a calibration found it, or a device by its roofline."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from msgspec.structs import replace

from octavo.core.assets import model_folder
from octavo.core.config import EngineConfig
from octavo.core.errors import ConfigError, MemoryPlanError
from octavo.models.facts import read_facts
from octavo.tools.plan.target import Target, network_of, speed_of
from octavo.tools.tune.calibrate import Calibration
from octavo.tools.tune.candidates import Candidate
from octavo.tools.tune.simulate import Machine, StepTimes
from octavo.tools.tune.steptimes import Seen, Told, fit
from octavo.tools.tune.traffic import Job

_TOLD_STEP = 8192
_BEYOND = 4
"""Times the longest measured step that a step may be told to take: products of many rows go on in proportion."""


class World(Protocol):
    """A machine under any flags."""

    @property
    def name(self) -> str:
        """For people."""

    @property
    def times(self) -> StepTimes:
        """What steps take."""

    @property
    def default(self) -> Candidate:
        """What a server does without further flags."""

    @property
    def longest_step(self) -> int:
        """Tokens of a step up to which times are told."""

    def machine(self, candidate: Candidate) -> Machine | None:
        """With these flags; None where they do not fit."""

    @property
    def num_seeds(self) -> int:
        """Simulations that are judged together: what varies is drawn anew in each."""

    @property
    def others(self) -> float | None:
        """Cores that others used while it was measured."""

    def learned(self, seen: Sequence[Seen]) -> World | None:
        """The same after more was measured; None where nothing is."""

    def facts(self) -> dict[str, object]:
        """Where its times are from."""


class Measured:
    """This machine."""

    name = "this machine, as measured"
    num_seeds = 3

    def __init__(self, found: Calibration) -> None:
        samples = [sample for seen in found.seen for sample in seen.samples]
        self._longest = max(sample.num_decodes + sample.num_chunk_tokens for sample in samples)
        self.times = fit(found.seen)
        self.others = found.others
        self.longest_step = self._longest * _BEYOND
        self._found = found
        self._machine = found.machine
        limits = found.machine.limits
        self.default = Candidate(
            limits.max_num_seqs,
            limits.max_num_batched_tokens,
            None if limits.max_itl_s is None else limits.max_itl_s * 1e3,
            "throughput" if limits.prefill_share >= 1 else "balanced",
            found.machine.enable_prefix_caching,
        )

    def machine(self, candidate: Candidate) -> Machine:
        """The KV cache is that of the calibration, whose size hardly depends on these flags."""
        return self._machine._replace(
            limits=candidate.limits(self._machine.limits),
            enable_prefix_caching=candidate.enable_prefix_caching,
        )

    def learned(self, seen: Sequence[Seen]) -> Measured:
        """With the steps of live runs: what varies is drawn from them alone, since the machine may be another by now."""
        before = [each._replace(is_traffic=False) for each in self._found.seen]
        return Measured(self._found._replace(seen=(*before, *seen)))

    def facts(self) -> dict[str, object]:
        """How well recorded steps are told."""
        times = self.times
        return {
            "source": "measured",
            "steps": times.num_steps,
            "steps_under_the_traffic": times.num_typical,
            "cores_used_by_others": self.others,
            "median_error": times.error,
            "longest_step_tokens": self._longest,
            "plain_step_s": times.plain,
            "mixed_step_s": times.mixed,
            "context_s": times.context_s,
            "gap_s": times.gap,
            "requests": len(times.ways),
        }


class Planned:
    """A device by its roofline, as `octavo plan` has it."""

    longest_step = _TOLD_STEP
    num_seeds = 1
    others = None

    def __init__(self, config: EngineConfig, target: Target) -> None:
        """Raises OperatorError where the model cannot run there."""
        resolved = target.resolve(config)
        network = network_of(resolved)
        self.name = f"{target.name}, by its roofline"
        self.times = Told(network, speed_of(target, resolved, network))
        self.default = Candidate(
            config.max_num_seqs,
            resolved.limits.max_num_batched_tokens,
            config.max_itl_ms,
            "throughput" if config.performance_mode == "throughput" else "balanced",
            config.enable_prefix_caching,
        )
        self._config = config
        self._target = target

    def machine(self, candidate: Candidate) -> Machine | None:
        """Planned anew: temporaries of larger steps leave less for the KV cache."""
        try:
            resolved = self._target.resolve(replace(self._config, **candidate._asdict()))
        except (ConfigError, MemoryPlanError):
            return None
        return Machine(
            resolved.limits,
            resolved.memory.groups,
            candidate.enable_prefix_caching,
            self._config.scheduling_policy,
        )

    def learned(self, seen: Sequence[Seen]) -> None:
        """Nothing runs there."""

    def facts(self) -> dict[str, object]:
        """What was assumed."""
        return {"source": "roofline", "device": self._target.name, "row": self._target.source}


def check_fits(jobs: Sequence[Job], config: EngineConfig, max_model_len: int | None = None) -> None:
    """Refuse traffic that the model could not take, or a model that generates nothing.

    Raises:
        ConfigError: requests beyond the context, or an embedder.
        ModelError: no such model.
    """
    facts = read_facts(model_folder(config.model), config.runner)
    if facts.pooling is not None:
        raise ConfigError(f"{config.model} generates no tokens; expected a model that does.")
    most = max_model_len or config.max_model_len or facts.max_context
    longest = max(job.prompt_len + job.output_len for job in jobs)
    if longest > most:
        count = sum(job.prompt_len + job.output_len > most for job in jobs)
        raise ConfigError(
            f"{count} of {len(jobs)} requests exceed the context of {most} tokens; the longest is {longest}.",
            fix="Ask for shorter ones, or give --max-model-len where the model has more.",
        )
