"""Train one bundled model within a budget of active time.

    python training/train.py octavo-mini --budget-minutes 110
    python training/train.py octavo-mini-draft --budget-minutes 15 --teacher octavo-mini

The learning rate follows the share of the budget that is used, so it is 0 when the budget ends.
A step counts for at most five times the median step, so a paused process loses no budget.
A run continues from `training/work/<name>/checkpoint.pt` where there is one; `log.jsonl` beside it
has one line per `--log-every` steps. It knows nothing of export.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import os
import statistics
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path

import torch
from data import Mixture, heldout_batch
from model import SHAPES, Qwen3, num_parameters
from optim import build_optimizers, learning_rate_factor, set_learning_rate
from torch import Tensor
from torch.nn import functional as F

WORK = Path(__file__).resolve().parent / "work"
MAX_STEP_MEDIANS = 5.0
AVERAGE_DECAY = 0.98

logger = logging.getLogger("train")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """One field per command-line flag; shares are of the budget, except the chat shares."""

    name: str
    budget_minutes: float
    batch_tokens: int = 6144
    length: int = 512
    long_length: int = 2048
    long_share: float = 0.15
    warmup_share: float = 0.01
    decay_share: float = 0.5
    chat_share: float = 0.2
    late_chat_share: float = 0.25
    matrix_lr: float = 5e-3
    other_lr: float = 4e-3
    teacher: str = ""
    threads: int = 2
    seed: int = 0
    log_every: int = 10
    checkpoint_minutes: float = 4.0


@dataclass(slots=True)
class Progress:
    """What a run has used so far. Written by `Trainer.train` only."""

    step: int = 0
    tokens: int = 0
    active_s: float = 0.0


class Trainer:
    """Owns the model, its running average, the optimizers and the data position."""

    def __init__(self, config: TrainConfig) -> None:
        torch.manual_seed(config.seed)
        self.config = config
        self.folder = WORK / config.name
        self.folder.mkdir(parents=True, exist_ok=True)
        self.model = Qwen3(SHAPES[config.name])
        self.average = [p.detach().clone() for p in self.model.parameters()]
        self.optimizers = build_optimizers(self.model, config.matrix_lr, config.other_lr)
        self.teacher = load_teacher(config.teacher) if config.teacher else None
        self.data = Mixture(WORK / "data", config.seed)
        self.heldout = heldout_batch(WORK / "data", rows=24, length=config.length)
        self.progress = Progress()
        self._loss = torch.compile(self._compute_loss, dynamic=False)

    def _compute_loss(self, inputs_BT: Tensor, targets_BT: Tensor) -> tuple[Tensor, Tensor]:
        """(loss to minimise, cross entropy on the text)."""
        logits_NV = self.model(inputs_BT).flatten(0, 1)
        text_loss = F.cross_entropy(logits_NV, targets_BT.flatten())
        if self.teacher is None:
            return text_loss, text_loss
        with torch.no_grad():
            wanted_NV = F.softmax(self.teacher(inputs_BT).flatten(0, 1), dim=-1)
        # Soft targets alone would also teach the teacher's errors; a fifth stays on the text.
        return 0.8 * F.cross_entropy(logits_NV, wanted_NV) + 0.2 * text_loss, text_loss

    def share_used(self) -> float:
        """Share of the budget used, 0 to 1."""
        return min(1.0, self.progress.active_s / (60 * self.config.budget_minutes))

    def step(self) -> float:
        """One optimizer step; returns the cross entropy on the text."""
        config, share = self.config, self.share_used()
        is_long = share >= 1 - config.long_share
        length = config.long_length if is_long else config.length
        chat_share = config.late_chat_share if is_long else config.chat_share
        inputs_BT, targets_BT = self.data.batch(config.batch_tokens // length, length, chat_share)
        factor = learning_rate_factor(share, config.warmup_share, config.decay_share)
        set_learning_rate(self.optimizers, factor)
        loss, text_loss = self._loss(inputs_BT, targets_BT)
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        with torch.no_grad():
            decay = min(AVERAGE_DECAY, self.progress.step / (self.progress.step + 10))
            torch._foreach_lerp_(self.average, list(self.model.parameters()), 1 - decay)
        self.progress.step += 1
        self.progress.tokens += inputs_BT.numel()
        return text_loss.item()

    @torch.no_grad()
    def heldout_loss(self) -> float:
        """Mean cross entropy of the running average on fixed held-out windows."""
        parameters: list[Tensor] = list(self.model.parameters())
        current = [p.detach().clone() for p in parameters]
        torch._foreach_copy_(parameters, self.average)
        inputs_BT, targets_BT = self.heldout
        losses = [
            F.cross_entropy(self.model(x).flatten(0, 1), y.flatten())
            for x, y in zip(torch.split(inputs_BT, 8), torch.split(targets_BT, 8), strict=True)
        ]
        torch._foreach_copy_(parameters, current)
        return torch.stack(losses).mean().item()

    def save(self) -> None:
        """Write the checkpoint so that a reader sees the old one or the new one, never a part."""
        names = [name for name, _ in self.model.named_parameters()]
        state = {
            "model": self.model.state_dict(),
            "average": dict(zip(names, self.average, strict=True)),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "data": self.data.state(),
            "progress": dataclasses.asdict(self.progress),
            "config": dataclasses.asdict(self.config),
        }
        partial = self.folder / "checkpoint.partial"
        torch.save(state, partial)
        os.replace(partial, self.folder / "checkpoint.pt")

    def resume(self) -> None:
        """Continue from the checkpoint, if there is one."""
        path = self.folder / "checkpoint.pt"
        if not path.exists():
            return
        state = torch.load(path, weights_only=True)
        self.model.load_state_dict(state["model"])
        torch._foreach_copy_(self.average, list(state["average"].values()))
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.data.restore(state["data"])
        self.progress = Progress(**state["progress"])
        logger.info("resumed at step %d", self.progress.step)

    def log(self, losses: list[float], started: float, step_s: float) -> None:
        """Append one line to the log, with the held-out loss now and then."""
        record: dict[str, float] = dataclasses.asdict(self.progress)
        record |= {"loss": statistics.fmean(losses), "step_s": step_s, "share": self.share_used()}
        record["wall_s"] = time.monotonic() - started
        if self.progress.step % (10 * self.config.log_every) == 0:
            record["heldout"] = self.heldout_loss()
        line = json.dumps({key: round(value, 4) for key, value in record.items()})
        with (self.folder / "log.jsonl").open("a") as file:
            file.write(line + "\n")
        logger.info("%s", line)

    def train(self) -> None:
        """Run to the end of the budget."""
        logger.info("%s: %d parameters", self.config.name, num_parameters(self.model))
        started = saved = time.monotonic()
        recent_s: deque[float] = deque(maxlen=51)
        limit_s = 0.0
        losses: list[float] = []
        while self.share_used() < 1:
            before = time.monotonic()
            losses.append(self.step())
            step_s = time.monotonic() - before
            # The first step of a process compiles, and would use up the warmup.
            self.progress.active_s += min(step_s, limit_s)
            recent_s.append(step_s)
            limit_s = MAX_STEP_MEDIANS * statistics.median(list(recent_s)[1:] or [0.0])
            if self.progress.step % self.config.log_every == 0:
                self.log(losses, started, step_s)
                losses.clear()
            if time.monotonic() - saved > 60 * self.config.checkpoint_minutes:
                self.save()
                saved = time.monotonic()
        self.save()


def load_teacher(name: str) -> Qwen3:
    """The finished model of another run, frozen."""
    teacher = Qwen3(SHAPES[name])
    state = torch.load(WORK / name / "checkpoint.pt", weights_only=True)
    teacher.load_state_dict(state["model"])
    return teacher.requires_grad_(False)


def parse_config() -> TrainConfig:
    """Flags are the fields of `TrainConfig`, with its defaults."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=sorted(SHAPES))
    for field in dataclasses.fields(TrainConfig)[1:]:
        flag = f"--{field.name.replace('_', '-')}"
        is_required = field.default is dataclasses.MISSING
        kind = float if is_required else type(field.default)
        parser.add_argument(flag, type=kind, required=is_required, default=field.default)
    return TrainConfig(**vars(parser.parse_args()))


def main() -> None:
    """Train, resuming where possible."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    config = parse_config()
    torch.set_num_threads(config.threads)
    trainer = Trainer(config)
    trainer.resume()
    trainer.train()


if __name__ == "__main__":
    main()
