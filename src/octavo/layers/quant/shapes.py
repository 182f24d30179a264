"""Names and shapes of the tensors in which checkpoints keep packed weights. No torch.

Read before anything is allocated. Shape letters: O outputs, D inputs, G groups of inputs, and so many levels a word.
"""

from __future__ import annotations

from typing import NamedTuple

from octavo.core.errors import ModelError
from octavo.layers.quant.spec import Packing


class Names(NamedTuple):
    """Of a matrix's tensors; "": there is none."""

    words: str
    scales: str
    zeros: str
    order: str = ""
    """Of the group of each input."""
    shape: str = ""


NAMES = {
    "awq": Names("qweight", "scales", "qzeros"),
    "gptq": Names("qweight", "scales", "qzeros", order="g_idx"),
    "packed": Names(
        "weight_packed",
        "weight_scale",
        "weight_zero_point",
        order="weight_g_idx",
        shape="weight_shape",
    ),
}
"""By layout. https://github.com/casper-hansen/AutoAWQ, https://github.com/ModelCloud/GPTQModel and
https://github.com/vllm-project/compressed-tensors have the packers."""


class Shapes(NamedTuple):
    """Of a matrix [O, D] and its tensors."""

    num_outputs: int
    num_inputs: int
    words: tuple[int, int]
    scales: tuple[int, int]
    zeros: tuple[int, int]


def shapes_of(packing: Packing, name: str, num_outputs: int, num_inputs: int) -> Shapes:
    """What the tensors of a matrix must be.

    Raises:
        ModelError: groups or words do not divide it.
    """
    group, per_word = packing.group or max(1, num_inputs), 32 // packing.bits
    if num_inputs % group:
        _refuse(name, f"has {num_inputs} inputs, which groups of {group} do not divide")
    groups = num_inputs // group
    if packing.layout == "packed":
        words = num_outputs, -(-num_inputs // per_word)
        zeros = -(-num_outputs // per_word), groups
        return Shapes(num_outputs, num_inputs, words, (num_outputs, groups), zeros)
    if num_outputs % per_word:
        _refuse(name, f"has {num_outputs} outputs, and {per_word} of them share a word")
    if packing.layout == "gptq" and num_inputs % per_word:
        _refuse(name, f"has {num_inputs} inputs, and {per_word} of them share a word")
    words = num_inputs, num_outputs // per_word
    if packing.layout == "gptq":
        words = num_inputs // per_word, num_outputs
    zeros = groups, num_outputs // per_word
    return Shapes(num_outputs, num_inputs, words, (groups, num_outputs), zeros)


def _refuse(name: str, why: str) -> None:
    raise ModelError(
        f"{name} {why}.",
        code="E-MODEL-04",
        fix="Use a checkpoint whose groups divide its layers, or the unquantized one with --quantization.",
    )
