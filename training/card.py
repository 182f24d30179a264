"""Write the model card of an exported folder: measurements, the run's facts, unedited samples.

    python training/card.py octavo-mini --command "train.py octavo-mini --budget-minutes 110"

The prompts below were fixed before the first sample was drawn, and the seed is fixed too: what the
model writes is printed as it comes.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from evaluate import Score, evaluate, heldout_texts, load_model, xz_bits_per_byte
from export import ASSETS
from model import Qwen3, num_parameters
from prepare import END_OF_TEXT, HERE, IM_END, special_ids
from tokenizers import Tokenizer

COMPLETIONS = (
    "def read_file(path):\n",
    "import os\n\n\ndef list_files(directory):\n",
    "class Stack:\n    def __init__(self):\n",
    "The :mod:`collections` module provides",
    "A list is a mutable sequence, which means that",
)
QUESTIONS = (
    "Who are you?",
    "What does textwrap.fill do?",
    "Explain os.path.join.",
    "Show the signature of shutil.copyfile.",
    "What is a decorator?",
    "What is the capital of France?",
)
EXTRA = {
    "octavo-mini-draft": (
        "It exists to propose tokens for octavo-mini, whose tokenizer it shares, in speculative "
        "decoding.\n"
    )
}
TEMPERATURE, TOP_P, MAX_TOKENS = 0.7, 0.9, 96


@dataclass(frozen=True, slots=True)
class Writer:
    """A model with its tokenizer; keeps no cache, since the samples are short."""

    model: Qwen3
    tokenizer: Tokenizer

    @torch.no_grad()
    def write(self, prompt: str, *, is_greedy: bool) -> str:
        """Up to MAX_TOKENS after `prompt`, ending at an end token."""
        ids = self.tokenizer.encode(prompt, add_special_tokens=False).ids
        start = len(ids)
        special = special_ids(self.tokenizer)
        ends = {special[END_OF_TEXT], special[IM_END]}
        generator = torch.Generator().manual_seed(1)
        while len(ids) - start < MAX_TOKENS:
            logits_V = self.model(torch.tensor([ids]))[0, -1]
            choice = int(logits_V.argmax()) if is_greedy else sample(logits_V, generator)
            if choice in ends:
                break
            ids.append(choice)
        return self.tokenizer.decode(ids[start:])


def sample(logits_V: torch.Tensor, generator: torch.Generator) -> int:
    """One token at TEMPERATURE from the smallest set with TOP_P of the mass."""
    probs_V, order_V = torch.softmax(logits_V / TEMPERATURE, dim=-1).sort(descending=True)
    probs_V[probs_V.cumsum(0) - probs_V > TOP_P] = 0
    return int(order_V[torch.multinomial(probs_V, 1, generator=generator)])


def samples_section(writer: Writer) -> str:
    """Greedy and sampled text for every prompt, in quoted blocks."""
    parts = []
    for prompt in COMPLETIONS:
        for label, is_greedy in (("greedy", True), ("sampled", False)):
            text = writer.write(prompt, is_greedy=is_greedy)
            parts.append(f"Completion, {label}:\n\n~~~text\n{prompt}{text}\n~~~\n")
    for question in QUESTIONS:
        prompt = f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
        for label, is_greedy in (("greedy", True), ("sampled", False)):
            text = writer.write(prompt, is_greedy=is_greedy)
            parts.append(f"Chat, {label}:\n\n~~~text\nuser: {question}\nassistant: {text}\n~~~\n")
    return "\n".join(parts)


def score_rows(scores: dict[str, Score], xz: dict[str, float]) -> str:
    """Rows of the table of measurements."""
    labels = {"docs": "documentation", "lib": "source code", "all": "both"}
    return "\n".join(
        f"| {label} | {scores[kind].num_bytes:,} | {scores[kind].num_tokens:,} "
        f"| {scores[kind].perplexity:.2f} | {scores[kind].bits_per_byte:.3f} | {xz[kind]:.3f} |"
        for kind, label in labels.items()
    )


def run_facts(name: str) -> dict[str, float]:
    """The last line of the run's log."""
    lines = (HERE / "work" / name / "log.jsonl").read_text("utf-8").splitlines()
    facts: dict[str, float] = json.loads(lines[-1])
    return facts


def card(name: str, command: str) -> str:
    """The whole card, from the template beside this file."""
    folder = ASSETS / name
    model = load_model(folder)
    texts = heldout_texts()
    groups = {kind: [t for n, t in texts.items() if n.startswith(kind)] for kind in ("docs", "lib")}
    groups["all"] = list(texts.values())
    xz = {kind: xz_bits_per_byte(group) for kind, group in groups.items()}
    facts, shape = run_facts(name), model.shape
    writer = Writer(model, Tokenizer.from_file(str(folder / "tokenizer.json")))
    return (
        (HERE / "card_template.md")
        .read_text("utf-8")
        .format(
            name=name,
            parameters=f"{num_parameters(model) / 1e6:.2f} million",
            megabytes=f"{(folder / 'model.safetensors').stat().st_size / 1e6:.1f}",
            shape=f"{shape.num_layers} layers, hidden {shape.hidden}, feed-forward {shape.ffn}, "
            f"{shape.num_heads} query heads and {shape.num_kv_heads} key-value heads of "
            f"{shape.head_dim}",
            tokens=f"{facts['tokens'] / 1e6:.2f} million",
            steps=f"{facts['step']:,.0f}",
            minutes=f"{facts['active_s'] / 60:.0f}",
            command=command,
            extra=EXTRA.get(name, ""),
            temperature=TEMPERATURE,
            top_p=TOP_P,
            max_tokens=MAX_TOKENS,
            scores=score_rows(evaluate(folder, texts), xz),
            num_files=len(texts),
            samples=samples_section(writer),
        )
    )


def main() -> None:
    """Write README.md into the exported folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name")
    parser.add_argument("--command", required=True, help="the training command, for the record")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    path: Path = ASSETS / arguments.name / "README.md"
    path.write_text(card(arguments.name, arguments.command), "utf-8")


if __name__ == "__main__":
    main()
