"""What `--quantization` means beside a checkpoint. No torch."""

from __future__ import annotations

from octavo.core.errors import ConfigError
from octavo.kernels.gemm.format_table import FORMATS, quantized_as
from octavo.layers.quant.spec import StoredSpec

METHODS = {
    "awq": "awq",
    "awq_marlin": "awq",
    "gptq": "gptq",
    "gptq_marlin": "gptq",
    "compressed-tensors": "compressed-tensors",
    "fbgemm_fp8": "fbgemm_fp8",
}
"""vLLM's names of `quant_method`s, kernels included, which here are chosen by themselves."""


def asked_format(stored: StoredSpec | None, asked: str) -> str:
    """The format in which to round weights at load; "" for none, or for what the checkpoint has anyway.

    Raises:
        ConfigError: an unknown name, a method that is not the checkpoint's, or rounding what has four bits already.
    """
    if asked in METHODS:
        _check_method(stored, asked)
        return ""
    form = quantized_as(asked)
    if not form or stored is None or stored.kind != "int4":
        return form
    if FORMATS[form] == FORMATS[stored.form]:
        return ""
    raise ConfigError(
        f"--quantization is {asked!r}, and the checkpoint is {stored.text} already; "
        "rounding its numbers once more would lose more of them.",
        param="quantization",
        code="E-CFG-08",
        fix="Leave --quantization out, or use the unquantized checkpoint.",
    )


def _check_method(stored: StoredSpec | None, asked: str) -> None:
    if stored is not None and stored.method == METHODS[asked]:
        return
    given = "has no quantization_config" if stored is None else f"says {stored.method!r}"
    raise ConfigError(
        f"--quantization is {asked!r}, which says how a checkpoint is stored; expected what its config.json says, "
        f"and that {given}.",
        param="quantization",
        code="E-CFG-08",
        fix="Leave --quantization out to load the checkpoint as it is"
        + (", or give int8 or int4 to round it at load." if stored is None else "."),
    )
