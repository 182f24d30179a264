"""What holds for every test."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

# A shell that starts the tests with `&` has them ignore SIGINT, and tests that interrupt something would wait for ever.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def rounded_products() -> Iterator[None]:
    """On a CPU that multiplies bfloat16."""
    from octavo.kernels.cpu import extension

    if not extension.features()["avx512_bf16"]:
        pytest.skip("this CPU has no AVX512_BF16; test_native.py runs that unit emulated")
    extension.round_products(True)
    yield
    extension.round_products(False)
