from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from octavo.kernels.gemm.formats import Quantized
from octavo.layers.build import Build
from octavo.layers.embedding import Embedding
from octavo.layers.head import Head
from octavo.layers.linear import Linear
from octavo.layers.norm import RmsNorm
from octavo.layers.quant.base import Declares
from octavo.layers.quant.spec import StoredSpec
from octavo.layers.rope import Rope, inverse_frequencies
from octavo.layers.rope_spec import RopeSpec

PARTS = (("q", 6), ("k", 2), ("v", 2))


def make_build() -> Build:
    return Build(dtype=torch.float32, device=torch.device("cpu"), weight_dtype=torch.float32)


def fill(build: Build) -> None:
    for weight in build.weights.values():
        weight.tensor.normal_()
    for finish in build.finishers:
        finish()


def test_merged_linear_is_its_parts_side_by_side() -> None:
    build = make_build().at("layer.0")
    linear = Linear(build, PARTS, 5, has_bias=True)
    assert set(build.weights) == {f"layer.0.{n}.{t}" for n in "qkv" for t in ("weight", "bias")}
    fill(build)
    x = torch.randn(3, 5)
    expected = torch.cat(
        [
            x @ build.weights[f"layer.0.{n}.weight"].tensor.T
            + build.weights[f"layer.0.{n}.bias"].tensor
            for n in "qkv"
        ],
        dim=-1,
    )
    torch.testing.assert_close(linear(x), expected)


def test_a_quant_format_takes_the_layers_it_claims() -> None:
    class Halves:
        """Stores int8 levels of a half each."""

        form = ""

        def __init__(self, spec: StoredSpec, form: str) -> None:
            """Nothing to know."""

        @staticmethod
        def reads(spec: StoredSpec) -> bool:
            return True

        def claims(self, names: tuple[str, ...]) -> bool:
            return names[0].endswith("q")

        def stored(
            self, build: Declares, parts: tuple[tuple[str, int], ...], num_inputs: int
        ) -> Callable[[], Quantized]:
            outputs = sum(size for _, size in parts)
            levels = torch.empty(outputs, num_inputs, dtype=torch.int8)
            build.note(f"{parts[0][0]}.qweight", levels, "levels")
            scales = torch.full((outputs, 1), 0.5)
            return lambda: Quantized(levels, scales, torch.zeros(outputs, 1), num_inputs)

    build = replace(make_build(), quant=Halves(StoredSpec(method="m", kind="int8"), ""))
    claimed = Linear(build, (("q", 4),), 3)
    plain = Linear(build, (("o", 4),), 3)
    assert set(build.weights) == {"q.qweight", "o.weight"}
    build.weights["q.qweight"].tensor.fill_(3)
    build.weights["o.weight"].tensor.fill_(1)
    for finish in build.finishers:
        finish()
    x = torch.ones(1, 3)
    assert claimed(x).tolist() == [[4.5] * 4]
    assert plain(x).tolist() == [[3.0] * 4]


@pytest.mark.parametrize("is_tied", [True, False])
def test_head(is_tied: bool) -> None:
    build = make_build()
    embed = Embedding(build.at("embed"), 7, 4)
    head = Head(build.at("head"), embed, is_tied=is_tied)
    fill(build)
    name = "embed.weight" if is_tied else "head.weight"
    assert build.aliases == ({"head.weight": "embed.weight"} if is_tied else {})
    assert set(build.weights) == {"embed.weight", name}
    x = torch.randn(2, 4)
    torch.testing.assert_close(head(x), x @ build.weights[name].tensor.T)


def test_norm_without_residual() -> None:
    build = make_build()
    norm = RmsNorm(build, 8, 1e-6)
    fill(build)
    x = torch.randn(3, 8)
    normed, residual = norm.add(x, None)
    assert residual is x
    assert torch.equal(normed, norm(x))


def test_rope_at_zero_is_the_identity_and_far_positions_are_finite() -> None:
    rope = Rope(RopeSpec(theta=1e6), 16, torch.device("cpu"))
    cos, sin = rope(torch.tensor([0, 5_000_000]))
    assert cos.shape == (2, 8)
    assert torch.equal(cos[0], torch.ones(8))
    assert torch.equal(sin[0], torch.zeros(8))
    assert cos.isfinite().all()


def test_llama3_keeps_fast_and_divides_slow_features() -> None:
    spec = RopeSpec(kind="llama3", theta=500000.0, factor=8.0, original_max_position=8192)
    plain = inverse_frequencies(RopeSpec(theta=500000.0), 128)
    scaled = inverse_frequencies(spec, 128)
    assert torch.equal(scaled[:20], plain[:20])
    torch.testing.assert_close(scaled[-20:], plain[-20:] / 8)
    assert (scaled.diff() < 0).all()
